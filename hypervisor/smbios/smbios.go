// Package smbios tells a guest about its machine as a maker would: who made it, its serial number and UUID, its CPUs and
// its memory (DMTF DSP0134, System Management BIOS 3.0).
//
// Build makes the structures of a Config. A kernel that is booted directly finds them where Place wrote them; firmware
// gets Files.
package smbios

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// Config is what the structures say about a machine. A string that is empty, and for which nothing else is said below, is
// left out.
type Config struct {
	Manufacturer string // "Lodge" if empty
	Product      string // "Lodge Virtual Machine" if empty
	Version      string
	Serial       string
	UUID         [16]byte // in the order in which it is written down; all zero means none
	SKU          string
	Family       string
	FirmwareDate string // "mm/dd/yyyy"; "01/01/2026" if empty, for kernels distrust a board older than 2010

	CPUs   int         // cores of the one socket, 1 to 255
	Memory []mem.Range // the guest's RAM, in whole pages
}

const (
	maxMemory = 1 << 50 // addresses and sizes, in bytes
	maxRanges = 64
)

// Tables are the structures of one machine, to be placed.
type Tables struct {
	structures []byte
	count      int
	largest    int // bytes of the largest structure
}

// Build returns the structures of c. The error says what in c cannot be.
func Build(c Config) (*Tables, error) {
	c.Manufacturer = cmp.Or(c.Manufacturer, "Lodge")
	c.Product = cmp.Or(c.Product, "Lodge Virtual Machine")
	c.FirmwareDate = cmp.Or(c.FirmwareDate, "01/01/2026")
	if c.CPUs < 1 || c.CPUs > 255 {
		return nil, fmt.Errorf("smbios: %d CPUs, want 1 to 255", c.CPUs)
	}
	if len(c.Memory) < 1 || len(c.Memory) > maxRanges {
		return nil, fmt.Errorf("smbios: %d ranges of memory, want 1 to %d", len(c.Memory), maxRanges)
	}
	for _, r := range c.Memory {
		if r.Base%mem.PageSize != 0 || r.Size%mem.PageSize != 0 || r.Size == 0 || r.Size > maxMemory || r.Base > maxMemory {
			return nil, fmt.Errorf("smbios: memory at %#x, size %#x: want whole pages below 1 PiB", r.Base, r.Size)
		}
	}
	if n := c.memorySize(); n > maxMemory>>20 {
		return nil, fmt.Errorf("smbios: %d MiB of memory, want at most 1 PiB", n)
	}
	for _, s := range []string{c.Manufacturer, c.Product, c.Version, c.Serial, c.SKU, c.Family, c.FirmwareDate} {
		if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7E }) || len(s) > 64 {
			return nil, fmt.Errorf("smbios: string %q: want at most 64 printable ASCII characters", s)
		}
	}

	t := &Tables{}
	for _, s := range structures(&c) {
		b := s.bytes()
		t.structures = append(t.structures, b...)
		t.largest = max(t.largest, len(b))
		t.count++
	}
	return t, nil
}

// memorySize returns the sum of all ranges in MiB. It is rounded up: what a PC's memory lacks of whole MiB lies hidden
// behind the VGA window.
func (c *Config) memorySize() uint64 {
	var n uint64
	for _, r := range c.Memory {
		n += r.Size
	}
	return (n + 1<<20 - 1) >> 20
}

// Where kernels search for entry points (DSP0134 §5.2).
const (
	biosStart mem.GPA = 0xF0000
	biosEnd   mem.GPA = 0x100000
)

// Place writes both entry points and the structures to m from at up and returns the first address after them. Kernels
// search 0xF0000 to 0xFFFFF for them in steps of 16 bytes, so they must lie there: at is a multiple of 16. The whole
// range is to be reserved in the guest's memory map.
func (t *Tables) Place(m *mem.Memory, at mem.GPA) (end mem.GPA, err error) {
	const at32, at64, atStructures = 0, 32, 64
	end = at + atStructures + mem.GPA(len(t.structures))
	if at%16 != 0 || at < biosStart || at >= biosEnd || end > biosEnd {
		return 0, fmt.Errorf("SMBIOS structures at %#x-%#x: want a multiple of 16 within %#x-%#x", at, end, biosStart, biosEnd)
	}
	b := make([]byte, end-at)
	copy(b[at32:], t.entry32(uint32(at+atStructures)))
	copy(b[at64:], t.entry64(uint64(at+atStructures)))
	copy(b[atStructures:], t.structures)
	if err := m.WriteAt(b, at); err != nil {
		return 0, fmt.Errorf("SMBIOS structures at %#x-%#x: %w", at, end, err)
	}
	return end, nil
}

// Names of the fw_cfg files that Files is about.
const (
	AnchorFile = "etc/smbios/smbios-anchor"
	TablesFile = "etc/smbios/smbios-tables"
)

// Files returns the contents of AnchorFile and TablesFile. The anchor is a 32-bit entry point, which every firmware
// knows, with no address in it: firmware copies the structures and fills it in.
func (t *Tables) Files() (anchor, tables []byte) {
	return t.entry32(0), append([]byte(nil), t.structures...)
}

// entry32 returns the entry point of version 2.8 to structures at an address (DSP0134 §5.2.1).
func (t *Tables) entry32(at uint32) []byte {
	e := make([]byte, 0x1F)
	copy(e, "_SM_")
	e[0x05], e[0x06], e[0x07] = byte(len(e)), 2, 8
	binary.LittleEndian.PutUint16(e[0x08:], uint16(t.largest))
	copy(e[0x10:], "_DMI_")
	binary.LittleEndian.PutUint16(e[0x16:], uint16(len(t.structures)))
	binary.LittleEndian.PutUint32(e[0x18:], at)
	binary.LittleEndian.PutUint16(e[0x1C:], uint16(t.count))
	e[0x1E] = 0x28 // the version once more, in BCD
	e[0x15] = -sum(e[0x10:])
	e[0x04] = -sum(e)
	return e
}

// entry64 returns the entry point of version 3.0 to structures at an address (DSP0134 §5.2.2).
func (t *Tables) entry64(at uint64) []byte {
	e := make([]byte, 0x18)
	copy(e, "_SM3_")
	e[0x06], e[0x07], e[0x08], e[0x09] = byte(len(e)), 3, 0, 0
	e[0x0A] = 1 // revision of the entry point
	binary.LittleEndian.PutUint32(e[0x0C:], uint32(len(t.structures)))
	binary.LittleEndian.PutUint64(e[0x10:], at)
	e[0x05] = -sum(e)
	return e
}

// sum adds up bytes modulo 256.
func sum(b []byte) (s byte) {
	for _, v := range b {
		s += v
	}
	return s
}
