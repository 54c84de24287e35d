package boot

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Constants of the PVH start-of-day interface: xen/include/public/elfnote.h and arch-x86/hvm/start_info.h.
const (
	xenNoteOwner       = "Xen"
	xenNotePhys32Entry = 18

	startInfoMagic   = 0x336ec578
	startInfoVersion = 1 // the first with a memory map
	startInfoSize    = 56
	modlistEntrySize = 32
	memmapEntrySize  = 24
)

// All lists at their longest fit the page that the layout has for them.
const _ = uint(infoSize - startInfoSize - maxModules*modlistEntrySize - maxMemRanges*memmapEntrySize)

// pvhEntry returns the physical address at which a PVH kernel wants to be entered, if it has one.
func (f *elfFile) pvhEntry(img Image) (entry uint64, ok bool, err error) {
	desc, err := f.note(img, xenNoteOwner, xenNotePhys32Entry)
	switch {
	case err != nil || desc == nil:
		return 0, false, err
	case len(desc) == 4:
		entry = uint64(binary.LittleEndian.Uint32(desc))
	case len(desc) == 8: // a 64-bit kernel writes a pointer; the address is 32 bits wide all the same
		entry = binary.LittleEndian.Uint64(desc)
	default:
		return 0, false, img.errorf("note XEN_ELFNOTE_PHYS32_ENTRY: %d bytes, want 4 or 8", len(desc))
	}
	if entry > math.MaxUint32 || !f.holds(entry) {
		return 0, false, img.errorf("note XEN_ELFNOTE_PHYS32_ENTRY: entry point %#x lies in no segment below 4 GiB", entry)
	}
	return entry, true, nil
}

// pvh places an ELF image for the PVH protocol. Modules go below modLimit; the command line has at most cmdLimit bytes.
func (l *loader) pvh(img Image, f *elfFile, entry, modLimit, cmdLimit uint64) (Entry, error) {
	if err := l.segments(img, f); err != nil {
		return Entry{}, err
	}
	if err := l.gdt(code32); err != nil {
		return Entry{}, err
	}
	if err := l.reserve("PVH start info", infoAddr, infoSize); err != nil {
		return Entry{}, err
	}
	cmdline, err := l.cmdline(img.Name, l.cfg.Cmdline, cmdLimit)
	if err != nil {
		return Entry{}, err
	}

	le := binary.LittleEndian
	mods := make([]byte, 0, maxModules*modlistEntrySize)
	for i, mod := range l.cfg.Modules {
		base, err := l.module(fmt.Sprintf("module %d", i), mod.Image, func(name string, size uint64) (uint64, error) {
			return l.highest(name, size, modLimit)
		})
		if err != nil {
			return Entry{}, err
		}
		line := uint64(0)
		if mod.Cmdline != "" {
			if line, err = l.cmdline(mod.Name, mod.Cmdline, math.MaxUint32); err != nil {
				return Entry{}, err
			}
		}
		mods = le.AppendUint64(mods, base)
		mods = le.AppendUint64(mods, mod.size())
		mods = le.AppendUint64(mods, line)
		mods = le.AppendUint64(mods, 0)
	}
	modlist := uint64(0)
	if len(mods) > 0 {
		modlist = infoAddr + startInfoSize
	}

	b := make([]byte, 0, infoSize)
	b = le.AppendUint32(b, startInfoMagic)
	b = le.AppendUint32(b, startInfoVersion)
	b = le.AppendUint32(b, 0) // flags: neither privileged nor the initial domain
	b = le.AppendUint32(b, uint32(len(l.cfg.Modules)))
	b = le.AppendUint64(b, modlist)
	b = le.AppendUint64(b, cmdline)
	b = le.AppendUint64(b, l.cfg.RSDP)
	b = le.AppendUint64(b, uint64(infoAddr+startInfoSize+len(mods)))
	b = le.AppendUint32(b, uint32(len(l.cfg.MemMap)))
	b = le.AppendUint32(b, 0)
	b = append(b, mods...)
	for _, r := range l.cfg.MemMap {
		b = le.AppendUint64(b, r.Base)
		b = le.AppendUint64(b, r.Size)
		b = le.AppendUint32(b, uint32(r.Type)) // Xen numbers the types as ACPI does
		b = le.AppendUint32(b, 0)
	}
	if err := l.write(infoAddr, b); err != nil {
		return Entry{}, err
	}
	return Entry{Protocol: PVH, Mode: Protected32, RIP: entry, RBX: infoAddr, GDT: gdtAddr}, nil
}
