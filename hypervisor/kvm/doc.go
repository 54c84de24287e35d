// Package kvm is the Linux kernel's KVM API for x86-64, as thin as it can be: one method for each ioctl, named after it,
// on the object whose file descriptor the ioctl belongs to (System for /dev/kvm, VM, VCPU). It has no policy and knows
// nothing of devices or of how a machine is put together.
//
// The reference is Documentation/virt/kvm/api.rst of the kernel; structures have the kernel's layout, so that the
// kernel reads and writes them in place, and a test holds their sizes and offsets. Reserved fields are blank.
//
// Errors carry the ioctl's name and wrap the unix.Errno. Everything that needs package unsafe is in the files whose
// names say so.
//
// Ownership: each object holds the os.File of its descriptor, which therefore stays open until Close. Close a VM's
// VCPUs before the VM. What was handed to SetUserMemoryRegion must stay mapped until the VM is closed or the slot deleted.
package kvm
