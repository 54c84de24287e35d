package machine

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/irq"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
)

// A device's messages reach the guest by Trigger and by eventfd alike; what comes while a vector is masked comes once,
// later.
func TestVectors(t *testing.T) {
	g := newGuest(t, small(t, kvmtest.RemoteProgram()))
	g.Sti()
	v, err := g.interrupts.Vectors(2)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := v.EventFD(1)
	if err != nil {
		t.Fatal(err)
	}
	trigger := func() error { return v.Trigger(0) }
	signal := func() error {
		_, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		return err
	}
	for i, send := range []func() error{trigger, signal} {
		message := func(vector byte) irq.MSI { return irq.MSI{Addr: lapicBase, Data: uint32(vector)} }
		step := func(errs ...error) {
			t.Helper()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
		}
		step(send(), send()) // masked as it is from the start
		g.quiet()
		step(v.Update(i, message(0x31), false))
		g.expect(0x31)
		g.EndOfInterrupt()
		g.quiet()
		for vector := byte(0x32); vector < 0x36; vector++ { // the guest moves its interrupts about
			step(v.Update(i, message(vector), false), send())
			g.expect(vector)
			g.EndOfInterrupt()
		}
		step(v.Update(i, message(0x36), true), send())
		g.quiet()
		step(v.Update(i, message(0x36), false))
		g.expect(0x36)
		g.EndOfInterrupt()
		g.quiet()
		step(v.Update(i, message(0x37), true), send())
		v.Cancel(i)
		step(v.Update(i, message(0x37), false))
		g.quiet()
	}
	routes := len(g.interrupts.table)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(g.interrupts.table); n != routes-1 || len(g.interrupts.routes) != 0 {
		t.Errorf("%d routes after closing, %d before; %v", n, routes, g.interrupts.routes)
	}
}

// A message to any address but the local APICs' is no interrupt.
func TestMessageElsewhere(t *testing.T) {
	g := newGuest(t, small(t, kvmtest.RemoteProgram()))
	g.Sti()
	v, err := g.interrupts.Vectors(2)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	fd, err := v.EventFD(1)
	if err != nil {
		t.Fatal(err)
	}
	update := func(addr uint64) {
		t.Helper()
		m := irq.MSI{Addr: addr, Data: 0x31}
		if err := errors.Join(v.Update(0, m, false), v.Update(1, m, false)); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range []uint64{0, 0x1000, lapicBase - 1<<20, lapicBase + 1<<20, 1<<32 | lapicBase} {
		update(addr)
		if err := v.Trigger(0); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		g.quiet()
	}
	update(lapicBase + 0xff000)
	if err := v.Trigger(0); err != nil {
		t.Fatal(err)
	}
	g.expect(0x31)
	g.EndOfInterrupt()
}

// Two devices share a line. It stays up until both let go.
func TestSharedLine(t *testing.T) {
	g := newGuest(t, small(t, kvmtest.RemoteProgram()))
	const pin, vector = gsiPIRQ + 7, 0x33
	one, two := g.interrupts.line(pin), g.interrupts.line(pin)
	g.ioapic(pin, vector, true)
	set := func(l irq.Line, level bool) {
		t.Helper()
		if err := errors.Join(l.Set(level), l.Set(level)); err != nil {
			t.Fatal(err)
		}
	}
	for _, order := range [][2]irq.Line{{one, two}, {two, one}} {
		set(one, true)
		set(two, true)
		g.Sti()
		g.expect(vector)
		set(order[0], false)
		g.EndOfInterrupt()
		g.expect(vector) // the other holds it
		set(order[1], false)
		g.endLevel(vector)
		g.Cli()
	}
}

// A guest that uses the old interrupt controllers gets a card's interrupt as the ISA interrupt that it chose in the LPC
// bridge (ICH9 datasheet §13.1.17).
func TestPIRQToISA(t *testing.T) {
	g := newGuest(t, small(t, kvmtest.RemoteProgram()))
	const first, isa, slot = 0x20, 11, 3
	for port, words := range map[uint16][4]byte{ // edge, cascade; all but the cascade and our interrupt masked
		0x20: {0x11, first, 1 << 2, 1}, 0xa0: {0x11, first + 8, 2, 1},
	} {
		g.Out8(port, words[0])
		for _, w := range words[1:] {
			g.Out8(port+1, w)
		}
	}
	g.Out8(0x21, 0xff&^(1<<2))
	g.Out8(0xa1, 0xff&^(1<<(isa-8)))
	g.Out8(0x4d1, 1<<(isa-8)) // level-triggered
	pirq := intxGSI(slot, 0) - gsiPIRQ
	register := ecamBase + slotLPC<<15 + uint32(lpcPIRQE) + pirq - 4
	g.Store8(register, isa)
	line := g.interrupts.line(intxGSI(slot, 0))
	g.Sti()
	if err := line.Set(true); err != nil {
		t.Fatal(err)
	}
	g.expect(first + isa)
	if err := line.Set(false); err != nil {
		t.Fatal(err)
	}
	g.Out8(0xa0, 0x20) // end of interrupt
	g.Out8(0x20, 0x20)
	g.EndOfInterrupt()
	g.quiet()
	g.Store8(register, pirqOff)
	if err := line.Set(true); err != nil {
		t.Fatal(err)
	}
	g.quiet()
	g.Store8(register, isa) // routed while it is up
	g.expect(first + isa)
	g.Store8(register, pirqOff)
	g.Out8(0xa0, 0x20)
	g.Out8(0x20, 0x20)
	g.EndOfInterrupt()
	g.quiet()
}

// A PIRQ that is routed to an interrupt of the board's own stays away from it.
func TestPIRQToReserved(t *testing.T) {
	g := newGuest(t, small(t, kvmtest.RemoteProgram()))
	n := g.interrupts
	for isa := range uint8(16) {
		n.routePIRQ(7, isa)
		line := n.line(gsiPIRQ + 7)
		if err := line.Set(true); err != nil {
			t.Fatal(err)
		}
		want := 1
		switch isa {
		case 0, 1, 2, 8, 13:
			want = 0
		}
		if got := n.levels[isa]; got != want {
			t.Errorf("ISA interrupt %d is asserted %d times, want %d", isa, got, want)
		}
		if err := line.Set(false); err != nil {
			t.Fatal(err)
		}
		if got := n.levels[isa]; got != 0 {
			t.Errorf("ISA interrupt %d is still asserted", isa)
		}
	}
}
