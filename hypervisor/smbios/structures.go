package smbios

import (
	"encoding/binary"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// Handles of structures that others refer to, and of the first of those of which there are several.
const (
	handleFirmware      = 0x0000
	handleSystem        = 0x0100
	handleChassis       = 0x0300
	handleProcessor     = 0x0400
	handleMemoryArray   = 0x1000
	handleMemoryDevice  = 0x1100
	handleMappedAddress = 0x1300
	handleBoot          = 0x2000
	handleEnd           = 0x7F00

	noHandle    = 0xFFFF // where a reference is optional
	notProvided = 0xFFFE // where it is to error information
)

// structure is one structure: its formatted area, written at the offsets that DSP0134 gives, and its strings.
type structure struct {
	data    []byte
	strings []string
}

func newStructure(typ byte, handle uint16, length int) *structure {
	s := &structure{data: make([]byte, length)}
	s.data[0], s.data[1] = typ, byte(length)
	s.u16(2, handle)
	return s
}

func (s *structure) u8(at int, v byte)    { s.data[at] = v }
func (s *structure) u16(at int, v uint16) { binary.LittleEndian.PutUint16(s.data[at:], v) }
func (s *structure) u32(at int, v uint32) { binary.LittleEndian.PutUint32(s.data[at:], v) }
func (s *structure) u64(at int, v uint64) { binary.LittleEndian.PutUint64(s.data[at:], v) }

// str adds v to the strings and puts its number, from 1 up, at an offset; an empty string has number 0.
func (s *structure) str(at int, v string) {
	if v == "" {
		return
	}
	s.strings = append(s.strings, v)
	s.data[at] = byte(len(s.strings))
}

// bytes returns the formatted area and the strings, which another zero ends (DSP0134 §6.1.3).
func (s *structure) bytes() []byte {
	b := s.data
	for _, v := range s.strings {
		b = append(append(b, v...), 0)
	}
	if len(s.strings) == 0 {
		b = append(b, 0)
	}
	return append(b, 0)
}

// structures returns all structures in the order of their types.
func structures(c *Config) []*structure {
	list := []*structure{firmware(c), system(c), chassis(c), processor(c), memoryArray(c), memoryDevice(c)}
	for i, r := range c.Memory {
		list = append(list, mappedAddress(handleMappedAddress+uint16(i), r))
	}
	return append(list,
		newStructure(32, handleBoot, 11), // boot status 0: no error
		newStructure(127, handleEnd, 4),
	)
}

// Values that mean the same in several structures.
const (
	other = 0x01
	safe  = 0x03 // of a state
	none  = 0x03 // of memory's error correction, and of a chassis's security
)

// firmware is type 0, BIOS information (DSP0134 §7.1).
func firmware(c *Config) *structure {
	s := newStructure(0, handleFirmware, 0x18)
	s.str(0x04, "Lodge")
	s.str(0x05, "1.0")
	s.u16(0x06, 0xF000) // segment
	s.str(0x08, c.FirmwareDate)
	s.u8(0x09, 0)     // ROM size: 64 KiB
	s.u64(0x0A, 1<<3) // characteristics are not supported
	s.u8(0x12, 1)     // extension byte 1: ACPI
	s.u8(0x13, 1<<4)  // extension byte 2: a virtual machine
	s.u8(0x14, 1)     // release 1.0
	s.u8(0x16, 0xFF)  // no embedded controller
	s.u8(0x17, 0xFF)
	return s
}

// system is type 1, system information (DSP0134 §7.2).
func system(c *Config) *structure {
	s := newStructure(1, handleSystem, 0x1B)
	s.str(0x04, c.Manufacturer)
	s.str(0x05, c.Product)
	s.str(0x06, c.Version)
	s.str(0x07, c.Serial)
	u := c.UUID // its first three fields are little-endian (§7.2.1)
	u[0], u[1], u[2], u[3] = u[3], u[2], u[1], u[0]
	u[4], u[5] = u[5], u[4]
	u[6], u[7] = u[7], u[6]
	copy(s.data[0x08:], u[:])
	s.u8(0x18, 6) // woken by the power switch
	s.str(0x19, c.SKU)
	s.str(0x1A, c.Family)
	return s
}

// chassis is type 3, system enclosure (DSP0134 §7.4).
func chassis(c *Config) *structure {
	s := newStructure(3, handleChassis, 0x16)
	s.str(0x04, c.Manufacturer)
	s.u8(0x05, other)
	s.str(0x06, c.Version)
	s.str(0x07, c.Serial)
	s.u8(0x09, safe) // when last booted
	s.u8(0x0A, safe) // power supply
	s.u8(0x0B, safe) // temperature
	s.u8(0x0C, none) // security
	return s
}

// processor is type 4, processor information (DSP0134 §7.5).
func processor(c *Config) *structure {
	s := newStructure(4, handleProcessor, 0x30)
	s.str(0x04, "CPU 0")
	s.u8(0x05, 3) // central processor
	s.u8(0x06, other)
	s.str(0x07, c.Manufacturer)
	s.u8(0x18, 1<<6|1) // socket populated, CPU enabled
	s.u8(0x19, other)  // upgrade
	s.u16(0x1A, noHandle)
	s.u16(0x1C, noHandle)
	s.u16(0x1E, noHandle) // the caches are in CPUID
	cores := byte(c.CPUs)
	s.u8(0x23, cores)
	s.u8(0x24, cores)
	s.u8(0x25, cores)                 // threads
	characteristics := uint16(1 << 2) // 64-bit capable
	if c.CPUs > 1 {
		characteristics |= 1 << 3 // multi-core
	}
	s.u16(0x26, characteristics)
	s.u16(0x28, other)          // family 2, which family defers to with 0xFE only
	s.u16(0x2A, uint16(c.CPUs)) // core count 2
	s.u16(0x2C, uint16(c.CPUs)) // core enabled 2
	s.u16(0x2E, uint16(c.CPUs)) // thread count 2
	return s
}

// memoryArray is type 16, physical memory array (DSP0134 §7.17).
func memoryArray(c *Config) *structure {
	s := newStructure(16, handleMemoryArray, 0x17)
	s.u8(0x04, 1) // location: other
	s.u8(0x05, 3) // use: system memory
	s.u8(0x06, none)
	s.u32(0x07, 1<<31) // the capacity is in the field at 0x0F
	s.u16(0x0B, notProvided)
	s.u16(0x0D, 1) // devices
	s.u64(0x0F, c.memorySize()<<20)
	return s
}

// memoryDevice is type 17, memory device (DSP0134 §7.18).
func memoryDevice(c *Config) *structure {
	s := newStructure(17, handleMemoryDevice, 0x28)
	s.u16(0x04, handleMemoryArray)
	s.u16(0x06, notProvided)
	s.u16(0x08, 0xFFFF) // total width: unknown
	s.u16(0x0A, 0xFFFF) // data width: unknown
	if mib := c.memorySize(); mib < 0x7FFF {
		s.u16(0x0C, uint16(mib))
	} else {
		s.u16(0x0C, 0x7FFF) // the size is in the field at 0x1C
		s.u32(0x1C, uint32(mib))
	}
	s.u8(0x0E, 9) // form factor: DIMM
	s.str(0x10, "DIMM 0")
	s.u8(0x12, 7)     // type: RAM
	s.u16(0x13, 1<<1) // detail: other
	s.str(0x17, c.Manufacturer)
	return s
}

// mappedAddress is type 19, memory array mapped address (DSP0134 §7.20).
func mappedAddress(handle uint16, r mem.Range) *structure {
	s := newStructure(19, handle, 0x1F)
	begin, end := uint64(r.Base), uint64(r.Base)+r.Size
	first, last := begin>>10, end>>10-1 // in KiB
	if last < 0xFFFFFFFF {
		s.u32(0x04, uint32(first))
		s.u32(0x08, uint32(last))
	} else {
		s.u32(0x04, 0xFFFFFFFF) // the addresses are in the fields at 0x0F and 0x17, in bytes
		s.u32(0x08, 0xFFFFFFFF)
		s.u64(0x0F, begin)
		s.u64(0x17, end-1)
	}
	s.u16(0x0C, handleMemoryArray)
	s.u8(0x0E, 1) // devices in a row
	return s
}
