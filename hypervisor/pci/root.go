package pci

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Ports of configuration mechanism 1, PCI 3.0 §3.2.2.3.2.
const (
	ConfigAddressPort = 0xcf8
	ConfigDataPort    = 0xcfc
)

// ECAMSize is the size in bytes of the memory-mapped configuration space of one bus.
const ECAMSize = 32 * 8 * extendedSize

// extendedSize is the size in bytes of one function's part of it.
const extendedSize = 4096

// addressWritable are the bits that CONFIG_ADDRESS has; the others read as zero.
const addressWritable = 0x80fffffc

// Root is the host's side of bus 0: it routes configuration accesses to the functions in its slots.
type Root struct {
	slots   [256]atomic.Pointer[ConfigSpace] // by devfn; read without a lock
	mu      sync.Mutex                       // serialises changes of slots
	address atomic.Uint32                    // CONFIG_ADDRESS
}

// Insert puts f at a, which must be free.
func (r *Root) Insert(a Address, f ConfigSpace) error {
	if a.Device > 31 || a.Function > 7 {
		return fmt.Errorf("pci %v: no such slot", a)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.slots[a.devfn()].Load() != nil {
		return fmt.Errorf("pci %v: slot is taken", a)
	}
	r.slots[a.devfn()].Store(&f)
	return nil
}

// Remove empties the slot at a. An access that is under way may still reach what was there.
func (r *Root) Remove(a Address) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slots[a.devfn()].Store(nil)
}

// Free returns the first device number in [first, 31) of which no function is taken.
func (r *Root) Free(first uint8) (Address, error) {
	for d := first; d < 31; d++ {
		used := false
		for f := range 8 {
			used = used || r.slots[int(d)<<3|f].Load() != nil
		}
		if !used {
			return Address{Device: d}, nil
		}
	}
	return Address{}, fmt.Errorf("pci: all %d slots are taken: remove a device", 31-first)
}

// Ports returns the device of ports 0xcf8 to 0xcff.
func (r *Root) Ports() bus.Device { return configPorts{r} }

// ECAM returns the device of the memory-mapped configuration space of bus 0, ECAMSize bytes long.
func (r *Root) ECAM() bus.Device { return ecam{r} }

// access reads or writes p at off of the function devfn, in naturally aligned pieces. Past the function's 4 KiB nothing
// answers.
func (r *Root) access(devfn, off int, p []byte, write bool) {
	slot := r.slots[devfn&0xff].Load()
	for len(p) > 0 {
		n := 4
		for n > len(p) || off%n != 0 {
			n /= 2
		}
		switch {
		case (slot == nil || off >= extendedSize) && !write:
			for i := range n {
				p[i] = 0xff
			}
		case slot == nil || off >= extendedSize:
		case write:
			(*slot).WriteConfig(off, p[:n])
			if moves(off, n) {
				r.retry()
			}
		default:
			(*slot).ReadConfig(off, p[:n])
		}
		p, off = p[n:], off+n
	}
}

// retry lets all functions map what the last write may have made room for. None is locked but the one that is asked.
func (r *Root) retry() {
	for i := range r.slots {
		slot := r.slots[i].Load()
		if slot == nil {
			continue
		}
		switch s := (*slot).(type) {
		case *Function:
			s.retry()
		case interface{ Function() *Function }: // a device that has one
			s.Function().retry()
		}
	}
}

type ecam struct{ r *Root }

func (e ecam) Read(a bus.Access, p []byte)  { e.r.access(int(a.Off>>12), int(a.Off&0xfff), p, false) }
func (e ecam) Write(a bus.Access, p []byte) { e.r.access(int(a.Off>>12), int(a.Off&0xfff), p, true) }

type configPorts struct{ r *Root }

// target returns what CONFIG_ADDRESS selects, if it selects a function of bus 0.
func (c configPorts) target(a bus.Access) (devfn, off int, ok bool) {
	v := c.r.address.Load()
	return int(v >> 8 & 0xff), int(v&0xfc) + int(a.Off&3), v>>31 == 1 && v>>16&0xff == 0
}

func (c configPorts) Read(a bus.Access, p []byte) {
	if a.Off < 4 {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], c.r.address.Load())
		clear(p)
		copy(p, b[a.Off:])
		return
	}
	if devfn, off, ok := c.target(a); ok && int(a.Off&3)+len(p) <= 4 {
		c.r.access(devfn, off, p, false)
		return
	}
	for i := range p {
		p[i] = 0xff
	}
}

func (c configPorts) Write(a bus.Access, p []byte) {
	if a.Off < 4 {
		if a.Off == 0 && len(p) == 4 { // only a full dword reaches CONFIG_ADDRESS
			c.r.address.Store(binary.LittleEndian.Uint32(p) & addressWritable)
		}
		return
	}
	if devfn, off, ok := c.target(a); ok && int(a.Off&3)+len(p) <= 4 {
		c.r.access(devfn, off, p, true)
	}
}

// SnapID implements snap.Component. The functions save themselves.
func (r *Root) SnapID() string { return "pci" }

// SnapVersion implements snap.Component.
func (r *Root) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (r *Root) Pause() error { return nil }

// Resume implements snap.Component.
func (r *Root) Resume() error { return nil }

// State implements snap.Component.
func (r *Root) State(c *snap.Codec) {
	v := r.address.Load()
	c.U32(&v)
	if v&^addressWritable != 0 {
		c.Fail("CONFIG_ADDRESS is %#x", v)
	}
	r.address.Store(v & addressWritable)
}
