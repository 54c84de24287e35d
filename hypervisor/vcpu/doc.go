// Package vcpu runs one virtual CPU on a thread of its own: the loop around KVM_RUN, what its exits mean, how it is
// paused, and its architectural state, as it begins (Entry, CPUID) and as it is saved (State).
//
// # States
//
//	New → Created ──Resume──→ Running ──Pause, or an Event──→ Paused
//	                             ↑                              │
//	                             └───────────Resume─────────────┘
//	any of them ──Stop──→ Stopped
//
// In Created and Paused the thread waits and touches nothing. A vCPU that cannot go on (a triple fault, a shutdown that
// the guest asked for, an error of KVM) pauses itself and reports an Event; its machine decides, and other machines
// notice nothing.
//
// # Threads
//
// All ioctls of the vCPU are issued on its thread; Do brings a function there. Getting the thread out of the guest is a
// kick, whose three steps and their order are what makes it reliable:
//
//	the one who asks:  1. set the request   2. set immediate_exit   3. send the thread a signal
//	the thread:        on EINTR, 1. clear immediate_exit   2. look at the request; and look before every KVM_RUN
//
// If the thread is in the guest, the signal ends KVM_RUN. If it is between its look and KVM_RUN, the signal is lost on
// our handler but immediate_exit makes KVM_RUN return. Since the request is set first and looked at after the clearing,
// clearing never loses one. EINTR therefore means "look", and may be spurious.
package vcpu
