package legacy

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// The ports of fw_cfg.
const (
	FWCfgBase = 0x510
	FWCfgSize = 12
)

const (
	fwSelector = 0 // 16 bits, write
	fwData     = 1 // 8 bits, read; SeaBIOS and Linux read them with rep insb
	fwDMA      = 4 // 64 bits, big-endian; writing its last byte starts
)

// Keys of fw_cfg's items. Those with a number are little-endian integers of the size given.
const (
	FWCfgSignature   = 0x00
	FWCfgID          = 0x01
	FWCfgUUID        = 0x02 // 16 bytes
	FWCfgRAMSize     = 0x03 // 8 bytes
	FWCfgNoGraphic   = 0x04 // 2 bytes
	FWCfgCPUs        = 0x05 // 2 bytes
	FWCfgMachineID   = 0x06 // 2 bytes
	FWCfgKernelAddr  = 0x07 // 4 bytes
	FWCfgKernelSize  = 0x08 // 4 bytes
	FWCfgCmdLine     = 0x09
	FWCfgInitrdAddr  = 0x0a // 4 bytes
	FWCfgInitrdSize  = 0x0b // 4 bytes
	FWCfgBootDevice  = 0x0c // 2 bytes
	FWCfgNUMA        = 0x0d // 8 bytes each
	FWCfgBootMenu    = 0x0e // 2 bytes
	FWCfgMaxCPUs     = 0x0f // 2 bytes
	FWCfgKernelEntry = 0x10 // 4 bytes
	FWCfgKernelData  = 0x11
	FWCfgInitrdData  = 0x12
	FWCfgCmdLineAddr = 0x13 // 4 bytes
	FWCfgCmdLineSize = 0x14 // 4 bytes
	FWCfgCmdLineData = 0x15
	FWCfgSetupAddr   = 0x16 // 4 bytes
	FWCfgSetupSize   = 0x17 // 4 bytes
	FWCfgSetupData   = 0x18
	FWCfgFileDir     = 0x19
	FWCfgFirstFile   = 0x20 // files get the keys from here
	FWCfgX86         = 0x8000
	FWCfgACPITables  = FWCfgX86 + 0
	FWCfgSMBIOS      = FWCfgX86 + 1
	FWCfgIRQ0        = FWCfgX86 + 2 // 1 byte
	FWCfgE820        = FWCfgX86 + 3
)

const (
	fwIDPorts = 1 << 0 // the id: the selector and data ports
	fwIDDMA   = 1 << 1

	fwDMAError  = 1 << 0 // the control word of a request
	fwDMARead   = 1 << 1
	fwDMASkip   = 1 << 2
	fwDMASelect = 1 << 3 // the key is in bits 16 to 31
	fwDMAWrite  = 1 << 4

	fwDMASignature = "QEMU CFG" // what the DMA register reads

	fwNameSize  = 56 // of a directory entry, with at least one NUL
	fwEntrySize = 8 + fwNameSize
	fwMaxFiles  = 4096
	// fwMaxPad bounds how many zeros a request may read beyond an item's end. Firmware reads what the directory says;
	// without a bound, one access could have us clear all of the guest's memory.
	fwMaxPad = 1 << 20
	// fwMaxWritable bounds an item that the guest may write, and so what a saved state holds.
	fwMaxWritable = 64 << 10
)

type fwItem struct {
	name  string // empty if the item is no file
	data  []byte
	write func(data []byte) // nil if the item is read-only
}

// FWCfg is QEMU's firmware configuration device: numbered items of bytes, some of which are files with names, that
// firmware selects and reads (QEMU, docs/specs/fw_cfg). It is mapped at FWCfgBase. The selector takes an access of two
// bytes or more; the data port gives the selected item byte by byte, and zeros after its end.
//
// Items are added before the machine runs. Their content is not part of the saved state, except of those that the guest
// may write: whoever restores a machine adds what it had.
type FWCfg struct {
	mem *mem.Memory

	mu     sync.Mutex
	items  map[uint16]*fwItem
	files  []uint16 // keys of the files, sorted by name
	key    uint16   // the item selected
	offset uint32   // of the next byte in it
	addr   [8]byte  // DMA register, as written
	req    [16]byte // the request being worked on; here, so that it is not allocated
}

// NewFWCfg returns a fw_cfg device that holds the signature, the id and an empty directory. Its DMA is to m.
func NewFWCfg(m *mem.Memory) *FWCfg {
	f := &FWCfg{mem: m, items: map[uint16]*fwItem{
		FWCfgSignature: {data: []byte("QEMU")},
		FWCfgID:        {data: []byte{fwIDPorts | fwIDDMA, 0, 0, 0}},
		FWCfgFileDir:   {},
	}}
	f.writeDirectory()
	return f
}

// AddKey adds an item by its number, one of those that are no file. FWCfg keeps data.
func (f *FWCfg) AddKey(key uint16, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if key >= FWCfgFirstFile && key < FWCfgX86 {
		return fmt.Errorf("fw_cfg: key %#x is a file's", key)
	}
	if f.items[key] != nil {
		return fmt.Errorf("fw_cfg: key %#x exists", key)
	}
	f.items[key] = &fwItem{data: data}
	return nil
}

// AddFile adds a file, whose name has 1 to 55 bytes. FWCfg keeps data.
func (f *FWCfg) AddFile(name string, data []byte) error {
	return f.add(&fwItem{name: name, data: data})
}

// AddWritableFile adds a file of size bytes, at most 64 KiB, zero at first, that the guest may write. After each write
// onWrite, if not nil, gets the whole of it, to keep; no lock is held then. It is not called when a saved state is
// restored.
func (f *FWCfg) AddWritableFile(name string, size int, onWrite func(data []byte)) error {
	if size < 0 || size > fwMaxWritable {
		return fmt.Errorf("fw_cfg file %s: %d bytes, at most %d may be writable", name, size, fwMaxWritable)
	}
	if onWrite == nil {
		onWrite = func([]byte) {}
	}
	return f.add(&fwItem{name: name, data: make([]byte, size), write: onWrite})
}

func (f *FWCfg) add(it *fwItem) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	byName := func(key uint16, name string) int { return strings.Compare(f.items[key].name, name) }
	at, exists := slices.BinarySearchFunc(f.files, it.name, byName)
	switch {
	case it.name == "" || len(it.name) >= fwNameSize || strings.ContainsRune(it.name, 0):
		return fmt.Errorf("fw_cfg file %q: the name must have 1 to %d bytes, none of them zero", it.name, fwNameSize-1)
	case exists:
		return fmt.Errorf("fw_cfg file %s: exists", it.name)
	case len(f.files) == fwMaxFiles:
		return fmt.Errorf("fw_cfg file %s: there are %d files already", it.name, fwMaxFiles)
	case int64(len(it.data)) > 1<<32-1:
		return fmt.Errorf("fw_cfg file %s: %d bytes do not fit in 32 bits", it.name, len(it.data))
	}
	key := uint16(FWCfgFirstFile + len(f.files))
	f.items[key] = it
	f.files = slices.Insert(f.files, at, key)
	f.writeDirectory()
	return nil
}

// writeDirectory makes the item of the file directory: a number of entries, and entries of size, key and name.
func (f *FWCfg) writeDirectory() {
	dir := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(f.files)*fwEntrySize), uint32(len(f.files)))
	for _, key := range f.files {
		it := f.items[key]
		dir = binary.BigEndian.AppendUint32(dir, uint32(len(it.data)))
		dir = binary.BigEndian.AppendUint16(dir, key)
		dir = append(dir, 0, 0) // reserved
		var name [fwNameSize]byte
		copy(name[:], it.name)
		dir = append(dir, name[:]...)
	}
	f.items[FWCfgFileDir].data = dir
}

// Read implements bus.Device.
func (f *FWCfg) Read(a bus.Access, p []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range p {
		switch off := a.Off + uint64(i); {
		case off == fwData, off == fwSelector: // the two share a port in QEMU, so a read of either is one of the data
			p[i] = f.next()
		case off >= fwDMA && off < FWCfgSize:
			p[i] = fwDMASignature[off-fwDMA]
		default:
			p[i] = 0xff
		}
	}
}

// next returns the next byte of the selected item.
func (f *FWCfg) next() byte {
	it := f.items[f.key]
	if it == nil || uint64(f.offset) >= uint64(len(it.data)) {
		return 0
	}
	f.offset++
	return it.data[f.offset-1]
}

// Write implements bus.Device.
func (f *FWCfg) Write(a bus.Access, p []byte) {
	if a.Off == fwSelector && len(p) >= 2 {
		f.mu.Lock()
		f.key, f.offset = binary.LittleEndian.Uint16(p), 0
		f.mu.Unlock()
		return
	}
	for i, b := range p {
		off := a.Off + uint64(i)
		if off < fwDMA || off >= FWCfgSize {
			continue // writing the data port does nothing
		}
		f.mu.Lock()
		f.addr[off-fwDMA] = b
		var wrote func([]byte)
		var data []byte
		if off == FWCfgSize-1 {
			wrote, data = f.dma()
		}
		f.mu.Unlock()
		if wrote != nil {
			wrote(data)
		}
	}
}

// dma carries out the request at the address in the DMA register, which it clears. If the request wrote an item, dma
// returns whom to tell, and a copy of the item.
func (f *FWCfg) dma() (wrote func([]byte), data []byte) {
	gpa := mem.GPA(binary.BigEndian.Uint64(f.addr[:]))
	f.addr = [8]byte{}
	if f.mem.ReadAt(f.req[:], gpa) != nil {
		return nil, nil // nowhere to report the error to
	}
	control := binary.BigEndian.Uint32(f.req[0:])
	length := binary.BigEndian.Uint32(f.req[4:])
	to := mem.GPA(binary.BigEndian.Uint64(f.req[8:]))
	if control&fwDMASelect != 0 {
		f.key, f.offset = uint16(control>>16), 0
	}
	it, ok := f.items[f.key], true
	switch {
	case control&fwDMARead != 0:
		ok = f.dmaRead(it, to, length)
	case control&fwDMAWrite != 0:
		if ok = f.dmaWrite(it, to, length); ok {
			wrote, data = it.write, slices.Clone(it.data)
		}
	case control&fwDMASkip != 0:
		f.skip(it, length)
	}
	result := uint32(0)
	if !ok {
		result = fwDMAError
	}
	binary.BigEndian.PutUint32(f.req[:4], result)
	_ = f.mem.WriteAt(f.req[:4], gpa) // it was RAM a moment ago
	return wrote, data
}

// left returns the bytes of it that were not read yet.
func (f *FWCfg) left(it *fwItem) []byte {
	if it == nil {
		return nil
	}
	return it.data[min(uint64(f.offset), uint64(len(it.data))):]
}

// skip moves on by n bytes, at most to the item's end.
func (f *FWCfg) skip(it *fwItem, n uint32) {
	f.offset += uint32(min(uint64(n), uint64(len(f.left(it)))))
}

// dmaRead copies length bytes of the item to guest memory, zeros after its end.
func (f *FWCfg) dmaRead(it *fwItem, to mem.GPA, length uint32) bool {
	data := f.left(it)
	data = data[:min(uint64(length), uint64(len(data)))]
	pad := uint64(length) - uint64(len(data))
	if pad > fwMaxPad || f.mem.WriteAt(data, to) != nil {
		return false
	}
	for at := to + mem.GPA(len(data)); pad > 0; { // within a page, guest memory is contiguous
		n := min(pad, mem.PageSize-uint64(at)%mem.PageSize)
		b, err := f.mem.Slice(at, int(n))
		if err != nil {
			return false
		}
		clear(b)
		at, pad = at+mem.GPA(n), pad-n
	}
	f.skip(it, length)
	return true
}

// dmaWrite copies length bytes of guest memory to the item, which must take them.
func (f *FWCfg) dmaWrite(it *fwItem, from mem.GPA, length uint32) bool {
	data := f.left(it)
	if it == nil || it.write == nil || uint64(length) > uint64(len(data)) {
		return false
	}
	if f.mem.ReadAt(data[:length], from) != nil {
		return false
	}
	f.skip(it, length)
	return true
}

// SnapID implements snap.Component.
func (f *FWCfg) SnapID() string { return "fwcfg" }

// SnapVersion implements snap.Component.
func (f *FWCfg) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (f *FWCfg) Pause() error { return nil }

// Resume implements snap.Component.
func (f *FWCfg) Resume() error { return nil }

// State implements snap.Component.
func (f *FWCfg) State(c *snap.Codec) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.U16(&f.key)
	c.U32(&f.offset)
	c.Fixed(f.addr[:])
	for _, key := range f.files {
		if it := f.items[key]; it.write != nil {
			c.Match("the size of fw_cfg file "+it.name, uint64(len(it.data)))
			c.Fixed(it.data)
		}
	}
}
