package boot

import (
	"encoding/binary"
	"math"
)

// Constants of the Multiboot Specification 0.6.96: §3.1 (header) and §3.3 (information).
const (
	mbHeaderMagic  = 0x1badb002
	mbLoaderMagic  = 0x2badb002
	mbHeaderSearch = 8192 // the header ends within the first 8 KiB

	mbPageAlign  = 1 << 0 // header flags
	mbMemoryInfo = 1 << 1
	mbRequired   = 0xffff // flags that a loader must understand or refuse
	mbAddresses  = 1 << 16

	mbInfoMemory  = 1 << 0 // information flags
	mbInfoCmdline = 1 << 2
	mbInfoModules = 1 << 3
	mbInfoMmap    = 1 << 6
	mbInfoLoader  = 1 << 9

	mbInfoSize   = 68 // up to and including boot_loader_name
	mbModuleSize = 16
	mbMmapSize   = 24
)

// All lists at their longest fit the page that the layout has for them.
const _ = uint(infoSize - mbInfoSize - maxModules*mbModuleSize - maxMemRanges*mbMmapSize)

// findMultiboot returns the offset of the Multiboot header in head.
func findMultiboot(head []byte) (int, bool) {
	le := binary.LittleEndian
	for i := 0; i+12 <= min(len(head), mbHeaderSearch); i += 4 {
		if le.Uint32(head[i:]) == mbHeaderMagic && mbHeaderMagic+le.Uint32(head[i+4:])+le.Uint32(head[i+8:]) == 0 {
			return i, true
		}
	}
	return 0, false
}

func hasMultiboot(head []byte) bool {
	_, ok := findMultiboot(head)
	return ok
}

// multiboot places a Multiboot image. f is its ELF header, or nil if it has none.
func (l *loader) multiboot(img Image, head []byte, f *elfFile) (Entry, error) {
	off, _ := findMultiboot(head)
	flags := binary.LittleEndian.Uint32(head[off+4:])
	if unknown := flags & mbRequired &^ (mbPageAlign | mbMemoryInfo); unknown != 0 {
		return Entry{}, img.errorf("Multiboot header: requires features %#x that a guest's boot does not offer (4 is a video mode)", unknown)
	}
	var entry, end uint64
	var err error
	switch {
	case flags&mbAddresses != 0:
		entry, end, err = l.multibootAddresses(img, head, uint64(off))
	case f == nil:
		return Entry{}, img.errorf("Multiboot header: neither an ELF image nor load addresses (flag 16)")
	case f.class64:
		return Entry{}, img.errorf("Multiboot header: the image is a 64-bit ELF; Multiboot 1 starts 32-bit ones")
	default:
		entry, end, err = l.multibootELF(img, f)
	}
	if err != nil {
		return Entry{}, err
	}
	if err := l.gdt(code32); err != nil {
		return Entry{}, err
	}
	if err := l.multibootInfo(img, end); err != nil {
		return Entry{}, err
	}
	return Entry{Protocol: Multiboot, Mode: Protected32, RIP: entry, RAX: mbLoaderMagic, RBX: infoAddr, GDT: gdtAddr}, nil
}

// multibootELF places the segments and returns the entry point and the image's end in memory.
func (l *loader) multibootELF(img Image, f *elfFile) (entry, end uint64, err error) {
	if err := l.segments(img, f); err != nil {
		return 0, 0, err
	}
	entry = f.entry
	for _, s := range f.segments {
		// Kernels linked to high addresses give a virtual entry point, as ELF says, but start with paging off.
		if !f.holds(f.entry) && s.vaddr <= f.entry && f.entry-s.vaddr < s.memsz {
			entry = f.entry - s.vaddr + s.paddr
		}
		end = max(end, s.paddr+s.memsz)
	}
	if !f.holds(entry) {
		return 0, 0, img.errorf("ELF header: entry point %#x lies in no segment", f.entry)
	}
	return entry, end, nil
}

// multibootAddresses places an image by the addresses in its header (§3.1.3), which go before an ELF header's.
func (l *loader) multibootAddresses(img Image, head []byte, off uint64) (entry, end uint64, err error) {
	const size = 32
	if off+size > uint64(len(head)) {
		return 0, 0, img.errorf("Multiboot header: its address fields end after the file")
	}
	field := func(i uint64) uint64 { return uint64(binary.LittleEndian.Uint32(head[off+i:])) }
	header, load, loadEnd, bssEnd, entry := field(12), field(16), field(20), field(24), field(28)
	if load > header || header-load > off {
		return 0, 0, img.errorf("Multiboot header: at offset %#x and address %#x, but the image loads at %#x", off, header, load)
	}
	start := off - (header - load)
	if loadEnd == 0 { // to the end of the file
		loadEnd = load + img.size() - start
	}
	if bssEnd == 0 {
		bssEnd = loadEnd
	}
	if load >= loadEnd || loadEnd > bssEnd || bssEnd > fourGiB || !img.contains(start, loadEnd-load) {
		return 0, 0, img.errorf("Multiboot header: loads offset %#x to [%#x, %#x) and zeros up to %#x, but the file has %d bytes: it is cut short or damaged",
			start, load, loadEnd, bssEnd, img.size())
	}
	if entry < load || entry >= bssEnd {
		return 0, 0, img.errorf("Multiboot header: entry point %#x lies outside the image %v", entry, span{load, bssEnd})
	}
	if err := l.reserve("kernel "+img.Name, load, bssEnd-load); err != nil {
		return 0, 0, err
	}
	if err := l.fill(img, start, load, loadEnd-load); err != nil {
		return 0, 0, err
	}
	return entry, bssEnd, l.zero(loadEnd, bssEnd-loadEnd)
}

// multibootInfo places the information structure with all that it points to. Modules go right behind the kernel, which
// ends at end: kernels this simple often map no more than the first megabytes.
func (l *loader) multibootInfo(img Image, end uint64) error {
	le := binary.LittleEndian
	if err := l.reserve("Multiboot information", infoAddr, infoSize); err != nil {
		return err
	}
	cmdline, err := l.cmdline(img.Name, l.cfg.Cmdline, math.MaxUint32)
	if err != nil {
		return err
	}
	name, err := l.cmdline(img.Name, "Lodge", math.MaxUint32)
	if err != nil {
		return err
	}
	lists := make([]byte, 0, infoSize)
	for _, mod := range l.cfg.Modules {
		base, err := l.module("module", mod.Image, func(name string, size uint64) (uint64, error) {
			return l.lowest(name, size, max(end, highAddr), fourGiB)
		})
		if err != nil {
			return err
		}
		line, err := l.cmdline(mod.Name, mod.Cmdline, math.MaxUint32)
		if err != nil {
			return err
		}
		lists = le.AppendUint32(lists, uint32(base))
		lists = le.AppendUint32(lists, uint32(base+mod.size()))
		lists = le.AppendUint32(lists, uint32(line))
		lists = le.AppendUint32(lists, 0)
	}
	const mods = uint64(infoAddr + mbInfoSize)
	mmap := mods + uint64(len(lists))
	for _, r := range l.cfg.MemMap {
		lists = le.AppendUint32(lists, mbMmapSize-4) // the size does not count itself
		lists = le.AppendUint64(lists, r.Base)
		lists = le.AppendUint64(lists, r.Size)
		lists = le.AppendUint32(lists, uint32(r.Type))
	}

	var lower, upper uint64 // KiB from 0, and from 1 MiB to the first hole
	for _, r := range l.ram {
		if r.base == 0 {
			lower = min(r.end, 640<<10) >> 10
		}
		if r.base <= highAddr && r.end > highAddr {
			upper = (min(r.end, fourGiB) - highAddr) >> 10
		}
	}
	b := make([]byte, mbInfoSize, infoSize)
	put := func(off int, v uint64) { le.PutUint32(b[off:], uint32(v)) }
	put(0, mbInfoMemory|mbInfoCmdline|mbInfoModules|mbInfoMmap|mbInfoLoader)
	put(4, lower)
	put(8, upper)
	put(16, cmdline)
	put(20, uint64(len(l.cfg.Modules)))
	put(24, mods)
	put(44, mods+uint64(len(lists))-mmap)
	put(48, mmap)
	put(64, name)
	return l.write(infoAddr, append(b, lists...))
}
