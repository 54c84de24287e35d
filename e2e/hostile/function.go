package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// function is one PCI function with its registers.
type function struct {
	name   string
	config *os.File
	bars   map[int][]byte
	first  [256]byte // its configuration space before the attack
}

func openFunction(dir string) (*function, error) {
	f := &function{name: filepath.Base(dir), bars: make(map[int][]byte)}
	var err error
	if f.config, err = os.OpenFile(filepath.Join(dir, "config"), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if _, err := f.config.ReadAt(f.first[:], 0); err != nil {
		return nil, fmt.Errorf("%s: config: %w", f.name, err)
	}
	for i := range 6 {
		bar, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("resource%d", i)), os.O_RDWR, 0)
		if err != nil {
			continue // it has no such BAR
		}
		st, err := bar.Stat()
		if err != nil {
			return nil, err
		}
		m, err := unix.Mmap(int(bar.Fd()), 0, int(st.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		bar.Close()
		if err != nil {
			continue // a BAR of ports
		}
		f.bars[i] = m
	}
	return f, nil
}

// Offsets in configuration space (PCI 3.0 §6.1).
const (
	pciCommand      = 0x04
	pciBARs         = 0x10
	pciCapabilities = 0x34
)

// decode gives the function back its addresses and lets it answer and reach memory, after an attack on its configuration.
func (f *function) decode() {
	_, _ = f.config.WriteAt(f.first[pciBARs:pciBARs+24], pciBARs)
	_, _ = f.config.WriteAt([]byte{0x06, 0x04}, pciCommand) // memory, bus master, no INTx: a level that nobody lowers would be this guest's end
}

func (f *function) attackConfig(rnd *rand.Rand) {
	var b [4]byte
	for range 200 {
		n := 1 << rnd.IntN(3)
		at := rnd.IntN(256) &^ (n - 1)
		if rnd.IntN(4) == 0 {
			at = rnd.IntN(4096) &^ (n - 1)
		}
		if f.routes(at, n) {
			continue
		}
		scramble(rnd, b[:n])
		if at <= pciCommand+1 && at+n > pciCommand {
			b[0] |= 2 // this guest cannot survive its own reads of registers that are not there
		}
		_, _ = f.config.WriteAt(b[:n], int64(at))
	}
}

// routes reports whether n bytes at a place are routing registers of the LPC bridge (ICH9 datasheet §13.1.17). They put a
// card's level on the line of another driver, which this guest does not survive: the line stays up, and the processor does
// nothing but take its interrupts.
func (f *function) routes(at, n int) bool {
	const lpcBridge = 0x29188086
	return binary.LittleEndian.Uint32(f.first[:]) == lpcBridge && at < 0x6c && at+n > 0x60
}

// attackRegisters writes random values of all widths at random offsets.
func (f *function) attackRegisters(rnd *rand.Rand) {
	for _, m := range f.bars {
		for range 500 {
			at := rnd.IntN(len(m)) &^ 7
			if rnd.IntN(2) == 0 {
				at = rnd.IntN(min(len(m), 0x100)) &^ 7
			}
			p := unsafe.Pointer(&m[at])
			switch v := rnd.Uint64(); rnd.IntN(5) {
			case 0:
				*(*uint8)(p) = uint8(v)
			case 1:
				*(*uint16)(p) = uint16(v)
			case 2:
				atomic.StoreUint32((*uint32)(p), uint32(v))
			case 3:
				atomic.StoreUint64((*uint64)(p), v)
			case 4:
				_ = atomic.LoadUint32((*uint32)(p))
			}
		}
	}
}

// Types of virtio structures in capabilities (virtio 1.2 §4.1.4).
const (
	capCommon = 1
	capNotify = 2
)

// structure returns the registers that a virtio vendor capability describes, or nil.
func (f *function) structure(typ byte) []byte {
	for at, n := int(f.first[pciCapabilities]), 0; at != 0 && at < 240 && n < 48; at, n = int(f.first[at+1]), n+1 {
		c := f.first[at:]
		if c[0] != 9 || c[3] != typ {
			continue
		}
		m := f.bars[int(c[4])]
		off, size := uint64(binary.LittleEndian.Uint32(c[8:])), uint64(binary.LittleEndian.Uint32(c[12:]))
		if off+size > uint64(len(m)) {
			return nil
		}
		return m[off : off+size]
	}
	return nil
}

// Offsets in the common configuration (virtio 1.2 §4.1.4.3).
const (
	featureSelect       = 0x00
	deviceFeature       = 0x04
	driverFeatureSelect = 0x08
	driverFeature       = 0x0c
	numQueues           = 0x12
	deviceStatus        = 0x14
	queueSelect         = 0x16
	queueSize           = 0x18
	queueEnable         = 0x1c
	queueDesc           = 0x20
)

func put[T uint8 | uint16 | uint32](m []byte, at int, v T) { *(*T)(unsafe.Pointer(&m[at])) = v }
func get[T uint8 | uint16 | uint32](m []byte, at int) T    { return *(*T)(unsafe.Pointer(&m[at])) }

// attackRings starts the device as a driver would, with queues that are garbage, and notifies it.
func (f *function) attackRings(rnd *rand.Rand, pages []page) {
	common, notify := f.structure(capCommon), f.structure(capNotify)
	if len(common) < 56 || len(notify) < 4 {
		return
	}
	put[uint8](common, deviceStatus, 0)
	for range 1000 { // the reset of a device may take a while
		if get[uint8](common, deviceStatus) == 0 {
			break
		}
	}
	put[uint8](common, deviceStatus, 1|2)
	for i := range uint32(2) {
		put(common, featureSelect, i)
		offered := get[uint32](common, deviceFeature)
		put(common, driverFeatureSelect, i)
		if i == 0 && rnd.IntN(2) == 0 {
			offered &= rnd.Uint32()
		}
		put(common, driverFeature, offered)
	}
	put[uint8](common, deviceStatus, 1|2|8)
	for q := range get[uint16](common, numQueues) {
		put(common, queueSelect, q)
		put(common, queueSize, uint16(1)<<rnd.IntN(9))
		for i := range 3 {
			addr := pages[rnd.IntN(len(pages))].addr
			switch rnd.IntN(16) {
			case 0:
				addr = rnd.Uint64() &^ 15
			case 1:
				addr += 4096 - 16
			}
			put(common, queueDesc+8*i, uint32(addr))
			put(common, queueDesc+8*i+4, uint32(addr>>32))
		}
		put[uint16](common, queueEnable, 1)
	}
	for _, p := range pages {
		fillRing(rnd, p.data, pages)
	}
	put[uint8](common, deviceStatus, 1|2|8|4)
	for range 50 {
		at := rnd.IntN(len(notify)/4) * 4
		put(notify, at, uint16(rnd.IntN(4)))
		fillRing(rnd, pages[rnd.IntN(len(pages))].data, pages)
	}
}

// fillRing makes a page look like descriptors, and their indices like rings: with loops, for next is any small number,
// and lengths from nothing to 4 GiB.
func fillRing(rnd *rand.Rand, b []byte, pages []page) {
	lengths := []uint32{0, 1, 16, 512, 4096, 65536, 1 << 31, 1<<32 - 1}
	for at := 0; at < len(b); at += 16 {
		addr := pages[rnd.IntN(len(pages))].addr
		if rnd.IntN(8) == 0 {
			addr = rnd.Uint64()
		}
		binary.LittleEndian.PutUint64(b[at:], addr)
		binary.LittleEndian.PutUint32(b[at+8:], lengths[rnd.IntN(len(lengths))])
		binary.LittleEndian.PutUint16(b[at+12:], uint16(rnd.IntN(8)))
		binary.LittleEndian.PutUint16(b[at+14:], uint16(rnd.IntN(16)))
	}
	if rnd.IntN(2) == 0 { // as an available ring: flags, index, heads
		binary.LittleEndian.PutUint32(b, uint32(1+rnd.IntN(300))<<16)
		for at := 4; at < 516; at += 2 {
			binary.LittleEndian.PutUint16(b[at:], uint16(rnd.IntN(20)))
		}
	}
}

// frame returns the physical address of a page by pagemap: bits 0 to 54 of its entry are the frame's number.
func frame(f *os.File, p []byte) (uint64, error) {
	at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) / 4096 * 8
	var b [8]byte
	if _, err := f.ReadAt(b[:], int64(at)); err != nil {
		return 0, fmt.Errorf("pagemap: %w", err)
	}
	return binary.LittleEndian.Uint64(b[:]) & (1<<55 - 1) * 4096, nil
}
