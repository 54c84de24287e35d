package acpi

import (
	"bytes"
	"errors"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

var _ snap.Component = (*VMGenID)(nil)

// inMemory returns the identifier that a guest reads at gpa.
func inMemory(t *testing.T, m *mem.Memory, gpa mem.GPA) (guid [16]byte) {
	t.Helper()
	if err := m.ReadAt(guid[:], gpa); err != nil {
		t.Fatal(err)
	}
	return guid
}

func TestVMGenIDRenew(t *testing.T) {
	const gpa = 0x3028
	m := mem.NewHeap(1 << 16)
	notified := 0
	v := NewVMGenID(m, func() { notified++ })

	// Nobody to tell yet.
	first := v.GUID()
	if err := v.Renew(); err != nil || notified != 0 || v.GUID() == first {
		t.Errorf("Renew before the guest has an address: %v, notified %d times", err, notified)
	}

	if err := v.SetGPA(gpa); err != nil {
		t.Fatal(err)
	}
	second := v.GUID()
	if got := inMemory(t, m, gpa); got != second || notified != 0 {
		t.Errorf("in memory % x, want % x; notified %d times", got, second, notified)
	}
	if err := v.Renew(); err != nil {
		t.Fatal(err)
	}
	if got := inMemory(t, m, gpa); got != v.GUID() || got == second || notified != 1 {
		t.Errorf("in memory % x, want % x, not % x; notified %d times, want 1", got, v.GUID(), second, notified)
	}

	// A reset takes the address away: the memory is the guest's again.
	if err := v.SetGPA(0); err != nil {
		t.Fatal(err)
	}
	before := inMemory(t, m, gpa)
	if err := v.Renew(); err != nil || inMemory(t, m, gpa) != before || notified != 1 {
		t.Errorf("Renew after reset: %v, notified %d times; memory changed: %v", err, notified, inMemory(t, m, gpa) != before)
	}
}

func TestVMGenIDRefuses(t *testing.T) {
	v := NewVMGenID(mem.NewHeap(1<<16), func() {})
	for _, b := range [][]byte{nil, make([]byte, 4), {4, 0, 0, 0, 0, 0, 0, 0}, {0xF8, 0xFF, 0, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{0xF8}, 8)} {
		if err := v.SetAddr(b); err == nil {
			t.Errorf("SetAddr(% x): no error", b)
		}
	}
	if err := v.SetGPA(1 << 16); !errors.Is(err, mem.ErrOutOfRange) {
		t.Errorf("SetGPA beyond memory: %v", err)
	}
}

func TestVMGenIDRestore(t *testing.T) {
	const gpa = 0x3028
	m := mem.NewHeap(1 << 16)
	v := NewVMGenID(m, func() { t.Error("notified without a restore") })
	if err := v.SetGPA(gpa); err != nil {
		t.Fatal(err)
	}
	old := v.GUID()
	e := snap.NewEncoder(v.SnapVersion())
	v.State(e)
	if err := v.Resume(); err != nil || v.GUID() != old {
		t.Errorf("Resume after saving: %v; % x became % x", err, old, v.GUID())
	}

	notified := 0
	w := NewVMGenID(m, func() { notified++ })
	d := snap.NewDecoder(e.Data(), w.SnapVersion())
	w.State(d)
	d.Done()
	if d.Err() != nil || w.GUID() != old || notified != 0 {
		t.Fatalf("restored: %v, % x, want % x; notified %d times", d.Err(), w.GUID(), old, notified)
	}
	for range 2 { // the second Resume ends an ordinary pause
		if err := w.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	if got := inMemory(t, m, gpa); got == old || got != w.GUID() || notified != 1 {
		t.Errorf("after Resume: in memory % x, want % x, not % x; notified %d times, want 1", got, w.GUID(), old, notified)
	}

	for name, state := range map[string][]byte{
		"short":     e.Data()[:20],
		"unaligned": append(make([]byte, 16), 1, 0, 0, 0, 0, 0, 0, 0),
		"outside":   append(make([]byte, 16), 0, 0, 1, 0, 0, 0, 0, 0),
	} {
		d := snap.NewDecoder(state, 1)
		w.State(d)
		if d.Err() == nil {
			t.Errorf("%s state: no error", name)
		}
	}
}
