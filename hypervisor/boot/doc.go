// Package boot puts a kernel or firmware image into guest memory and says in which state the first vCPU must start it.
//
// It knows files, guest memory and boot protocols, and nothing of KVM: the machine owns the memory map and the ACPI
// tables, hands both to Load, and turns the Entry it gets back into vCPU registers.
//
// # Protocols
//
// Load recognises the image and picks the protocol, best first:
//
//   - PVH: an ELF image with the note XEN_ELFNOTE_PHYS32_ENTRY. Nothing is decompressed in the guest, so this is
//     the fastest way to start Linux. Xen, docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h.
//   - Linux64: a bzImage of boot protocol 2.12 or later through its 64-bit entry point. Linux,
//     Documentation/arch/x86/boot.rst, "64-bit boot protocol".
//   - Linux32: a bzImage of boot protocol 2.10 or later through its 32-bit entry point, for kernels without the other.
//   - Multiboot: a Multiboot 1 image, ELF32 or with address fields in its header. Multiboot Specification 0.6.96.
//
// A bzImage holds an ELF image, compressed. Unless told otherwise, Load unpacks it and starts it by PVH; who starts the
// same kernel often keeps the result of ExtractVMLinux in a file instead.
//
// # Register contract
//
// Every vCPU register that a protocol's row does not name is zero. Segments are flat (base 0, limit 4 GiB): CS is
// CodeSelector, and DS, ES, FS, GS and SS are DataSelector. Their descriptors stand in the GDT at Entry.GDT, whose limit is
// GDTLimit. RFLAGS is 2 (interrupts off). RSP is the kernel's own business in every protocol.
//
//	protocol   mode         RIP           other registers
//	PVH        Protected32  note's entry  EBX = hvm_start_info
//	Linux64    Long64       load + 0x200  RSI = boot_params ("zero page"), CR3 = tables that map the first 4 GiB
//	Linux32    Protected32  load          ESI = boot_params
//	Multiboot  Protected32  image's entry EAX = 0x2badb002, EBX = multiboot_info
//	firmware   Reset        0xfff0        CS base 0xffff0000: the state of an x86 CPU after reset, no GDT
//
// Protected32 is CR0.PE with paging off and CR4 = 0. Long64 is CR0.PE and CR0.PG, CR4.PAE, EFER.LME and EFER.LMA, with
// a 64-bit CS.
//
// # Trust
//
// Images are not trusted. Every offset and size in them is checked against the file, the memory map and what was
// placed before, and what a file makes the loader allocate is bounded. All errors name the file.
package boot
