package acpi

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// guidOffset is where in its page the generation identifier lies. The zeros before it are as long as a table's header,
// so that firmware that examines what a pointer leads to never takes random bytes for one.
const guidOffset = 40

// VMGenID is the virtual machine generation identifier: 16 random bytes in guest memory that change whenever the
// machine's time has forked or gone back, so that the guest reseeds its random numbers and drops what must be unique
// (Microsoft, "Virtual Machine Generation ID", 2012). All methods may be called from any goroutine.
type VMGenID struct {
	mem    *mem.Memory
	notify func()

	mu    sync.Mutex
	guid  [16]byte
	gpa   mem.GPA // of guid, or 0 while the guest has no room for it
	stale bool    // restored: guid has to change before the guest runs
}

// NewVMGenID returns an identifier with a fresh value. notify raises general-purpose event VMGenIDGPE.
func NewVMGenID(m *mem.Memory, notify func()) *VMGenID {
	v := &VMGenID{mem: m, notify: notify}
	rand.Read(v.guid[:]) // never fails
	return v
}

// GUID returns the current value.
func (v *VMGenID) GUID() [16]byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.guid
}

// SetGPA says that the guest keeps the identifier at gpa, a multiple of 8, and writes it there. A gpa of 0 takes its
// place away, as a reset of the machine does.
func (v *VMGenID) SetGPA(gpa mem.GPA) error {
	if gpa%8 != 0 {
		return fmt.Errorf("vmgenid: address %#x: want a multiple of 8", gpa)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.write(gpa); err != nil {
		return err
	}
	v.gpa = gpa
	return nil
}

// SetAddr does what SetGPA does with the content of VMGenIDAddrFile, 8 bytes in little-endian order.
func (v *VMGenID) SetAddr(b []byte) error {
	if len(b) != 8 {
		return fmt.Errorf("vmgenid: address of %d bytes, want 8", len(b))
	}
	return v.SetGPA(mem.GPA(binary.LittleEndian.Uint64(b)))
}

// Renew changes the identifier and tells the guest.
func (v *VMGenID) Renew() error {
	v.mu.Lock()
	rand.Read(v.guid[:])
	gpa := v.gpa
	err := v.write(gpa)
	v.mu.Unlock()
	if err == nil && gpa != 0 {
		v.notify()
	}
	return err
}

// write puts the identifier into guest memory at gpa, unless that is 0. v.mu is held.
func (v *VMGenID) write(gpa mem.GPA) error {
	if gpa == 0 {
		return nil
	}
	if err := v.mem.WriteAt(v.guid[:], gpa); err != nil {
		return fmt.Errorf("vmgenid: address %#x: %w", gpa, err)
	}
	return nil
}

// SnapID implements snap.Component.
func (v *VMGenID) SnapID() string { return "vmgenid" }

// SnapVersion implements snap.Component.
func (v *VMGenID) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (v *VMGenID) Pause() error { return nil }

// Resume implements snap.Component: after a restore, it changes the identifier and tells the guest.
func (v *VMGenID) Resume() error {
	v.mu.Lock()
	stale := v.stale
	v.stale = false
	v.mu.Unlock()
	if !stale {
		return nil
	}
	return v.Renew()
}

// State implements snap.Component.
func (v *VMGenID) State(c *snap.Codec) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c.Fixed(v.guid[:])
	gpa := uint64(v.gpa)
	c.U64(&gpa)
	if !c.Loading() || c.Err() != nil {
		return
	}
	if gpa%8 != 0 {
		c.Fail("identifier at %#x: not a multiple of 8", gpa)
		return
	}
	if gpa != 0 {
		var b [16]byte
		if err := v.mem.ReadAt(b[:], mem.GPA(gpa)); err != nil {
			c.Fail("identifier at %#x: %w", gpa, err)
			return
		}
	}
	v.gpa, v.stale = mem.GPA(gpa), true
}
