package boot

// Where the loaders put what they hand to a kernel, as guest-physical addresses. A kernel image is placed first, where
// it asks to be; then these; the initrd or the modules last, where room is left. All of it lies in the RAM that a PC has
// below 640 KiB, clear of the interrupt table and BIOS data at 0..0x4ff and of an extended BIOS data area above 0x9f000.
// A kernel has done with it once it manages its own memory, so none is marked reserved in the memory map.
//
//	0x00500  GDT
//	0x06000  PVH: hvm_start_info, module list, memory map · Multiboot: multiboot_info, module list, memory map
//	0x07000  Linux: boot_params
//	0x09000  Linux64: page tables (PML4, PDPT, 4 page directories)
//	0x20000  command line, and behind it those of the modules
const (
	gdtAddr     = 0x00500
	infoAddr    = 0x06000
	infoSize    = 0x01000
	zeroAddr    = 0x07000
	zeroSize    = 0x01000
	tablesAddr  = 0x09000
	tablesSize  = 0x06000
	cmdlineAddr = 0x20000
	cmdlineSize = 0x10000 // all command lines together, with their closing zero bytes

	highAddr = 0x100000 // 1 MiB: where memory without a PC's legacy holes begins
	fourGiB  = 1 << 32

	// lowRAMMax is the address up to which every board has RAM if the guest has that much: more memory may lie above 4 GiB.
	lowRAMMax = 2 << 30
)

// Bounds on lists, so that they fit where the layout has room for them. 128 ranges is also what boot_params holds.
const (
	maxMemRanges = 128
	maxModules   = 16
)

// maxVMLinux bounds the uncompressed size, in bytes, that ExtractVMLinux believes a kernel to have.
const maxVMLinux = 512 << 20
