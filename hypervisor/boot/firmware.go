package boot

import (
	"github.com/lodgehv/lodge/hypervisor/mem"
)

// RegionKind says how the machine maps a firmware region.
type RegionKind int

// The kinds of regions.
const (
	// ROM is read-only; writes go nowhere.
	ROM RegionKind = iota
	// Shadow is the copy below 1 MiB. It reads as ROM until the guest makes it RAM through the chipset's PAM registers.
	Shadow
	// Variables is the store of UEFI variables: flash memory that keeps what the guest writes in its file.
	Variables
)

// FirmwareRegion is one appearance of firmware in the guest's address space. Base and length are multiples of
// mem.PageSize.
type FirmwareRegion struct {
	Kind RegionKind
	Base uint64 // guest-physical address
	Size uint64 // in bytes
	// Bytes is the content of a ROM or Shadow region, aliasing the one copy of the image; nil for Variables, whose
	// content is the file itself.
	Bytes []byte
}

// Firmware is what a machine that starts with firmware maps.
type Firmware struct {
	Regions []FirmwareRegion
	Entry   Entry
}

// Bounds on firmware, in bytes. The flash of a PC ends at 4 GiB and 16 MiB of address space are decoded for it; the last
// 128 KiB also appear below 1 MiB, where the segments E and F of real mode are.
const (
	maxFirmware = 16 << 20
	shadowSize  = 128 << 10
)

// LoadFirmware reads a firmware image: a SeaBIOS blob, or the code part of OVMF with vars as its variable store, which
// ends where the code begins. vars may be nil. Nothing is written to guest memory.
func LoadFirmware(code Image, vars *Image) (Firmware, error) {
	size, total := code.size(), code.size()
	if vars != nil {
		total += vars.size()
	}
	if size == 0 || size%mem.PageSize != 0 || size > maxFirmware {
		return Firmware{}, code.errorf("firmware: %d bytes, want whole pages of %d bytes and at most %d MiB", size, mem.PageSize, mib(maxFirmware))
	}
	if vars != nil && (vars.size() == 0 || vars.size()%mem.PageSize != 0 || vars.size() > maxFirmware-size) {
		return Firmware{}, vars.errorf("firmware variables: %d bytes, want whole pages of %d bytes and, with the code, at most %d MiB", vars.size(), mem.PageSize, mib(maxFirmware))
	}
	blob := make([]byte, size)
	if err := code.read(blob, 0); err != nil {
		return Firmware{}, err
	}
	low := blob[size-min(size, shadowSize):]
	f := Firmware{Regions: []FirmwareRegion{
		{Kind: Shadow, Base: highAddr - uint64(len(low)), Size: uint64(len(low)), Bytes: low},
		{Kind: ROM, Base: fourGiB - size, Size: size, Bytes: blob},
	}}
	if vars != nil {
		f.Regions = append(f.Regions, FirmwareRegion{Kind: Variables, Base: fourGiB - total, Size: vars.size()})
	}
	f.Entry = Entry{Mode: Reset, RIP: 0xfff0}
	return f, nil
}
