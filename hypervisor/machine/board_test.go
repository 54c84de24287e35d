package machine

import (
	"bytes"
	"encoding/binary"
	"io"
	mathbits "math/bits"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/legacy"
)

// COM1 with interrupts: what the host sends comes back in capitals.
func TestCOM1(t *testing.T) {
	com1 := newScreen()
	cfg := small(t, kvmtest.RemoteProgram())
	cfg.Serial = [2]io.Writer{com1}
	g := newGuest(t, cfg)
	const data, enable, vector = legacy.COM1Base, legacy.COM1Base + 1, 0x24
	g.ioapic(legacy.COM1IRQ, vector, false)
	g.Out8(enable, 1) // received data available
	g.Sti()
	for _, c := range []byte("lodge") {
		if n, err := g.Serial(0).Receive(t.Context(), []byte{c}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		g.expect(vector)
		if id := g.In8(legacy.COM1Base + 2); id&0xf != 4 {
			t.Errorf("interrupt identification %#x, want received data", id)
		}
		g.Out8(data, g.In8(data)-'a'+'A')
		g.EndOfInterrupt()
	}
	com1.await(t, g.Machine, "LODGE", limit)
	if g.Serial(1) != nil {
		t.Error("a COM2 that was not asked for")
	}
}

// fw_cfg by DMA: QEMU, docs/specs/fw_cfg.
func TestFWCfgDMA(t *testing.T) {
	g := newGuest(t, small(t, kvmtest.RemoteProgram()))
	read := func(key uint16, n int) []byte {
		const request, buffer = kvmtest.Data, kvmtest.Data + 0x100
		be := binary.BigEndian
		b := be.AppendUint32(nil, uint32(key)<<16|1<<3|1<<1) // select and read
		b = be.AppendUint32(b, uint32(n))
		g.put(request, be.AppendUint64(b, buffer))
		g.Out32(legacy.FWCfgBase+4, 0)
		g.Out32(legacy.FWCfgBase+8, mathbits.ReverseBytes32(request))
		if c := g.Load32(request); c != 0 {
			t.Errorf("key %#x: control is %#x after the transfer", key, c)
		}
		return g.bytes(buffer, n)
	}
	uuid := g.cfg.UUID
	for key, want := range map[uint16][]byte{
		legacy.FWCfgSignature: []byte("QEMU"), legacy.FWCfgUUID: uuid[:],
		legacy.FWCfgRAMSize: binary.LittleEndian.AppendUint64(nil, g.cfg.Memory),
	} {
		if got := read(key, len(want)); !bytes.Equal(got, want) {
			t.Errorf("key %#x is %q, want %q", key, got, want)
		}
	}
}

// The PM timer runs at its rate, seen from outside of its readings.
func TestPMTimer(t *testing.T) {
	g := newGuest(t, small(t, kvmtest.RemoteProgram()))
	read := func() uint32 { return g.In32(legacy.PMBase + legacy.PMTimerOff) }
	before := time.Now()
	first := read()
	after := time.Now()
	last, ticks := first, uint32(0)
	for ticks < legacy.PMTimerHz/20 {
		inside := time.Now()
		now := read()
		step := (now - last) & 0xffffff
		if took := time.Since(after); step > 1<<23 || uint64(ticks)+uint64(step) > uint64(took+after.Sub(before))*legacy.PMTimerHz/1e9+1 {
			t.Fatalf("%d ticks from %d to %d within %v", ticks+step, first, now, took)
		}
		ticks += step
		if least := uint64(inside.Sub(after)) * legacy.PMTimerHz / 1e9; uint64(ticks)+1 < least {
			t.Fatalf("%d ticks, where at least %d have passed", ticks, least)
		}
		last = now
	}
}

// The periodic interrupts of the PIT and of the CMOS clock come, and not faster than they may.
func TestPeriodicInterrupts(t *testing.T) {
	const vector, count = 0x28, 40
	for _, c := range []struct {
		name   string
		pin    uint32
		start  func(g *guest)
		again  func(g *guest)
		period time.Duration
	}{
		{"PIT", 2, func(g *guest) {
			g.Out8(0x43, 0x34) // counter 0, both bytes, rate generator
			g.Out8(0x40, 1193&0xff)
			g.Out8(0x40, 1193>>8)
		}, func(*guest) {}, 999 * time.Microsecond},
		{"RTC", legacy.CMOSIRQ, func(g *guest) {
			g.Out8(0x70, 0x0a)
			g.Out8(0x71, 0x26) // 1024 Hz
			g.Out8(0x70, 0x0c)
			g.In8(0x71)
			g.Out8(0x70, 0x0b)
			g.Out8(0x71, 1<<6|1<<1)
			g.Out8(0x70, 0x0c)
		}, func(g *guest) {
			if v := g.In8(0x71); v&0xc0 != 0xc0 {
				g.t.Errorf("register C is %#x", v)
			}
		}, 976 * time.Microsecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, small(t, kvmtest.RemoteProgram()))
			g.ioapic(c.pin, vector, false)
			g.Sti()
			began := time.Now()
			c.start(g)
			for range count {
				g.expect(vector)
				c.again(g)
				g.EndOfInterrupt()
			}
			if took := time.Since(began); took < (count-2)*c.period {
				t.Errorf("%d interrupts within %v", count, took)
			}
		})
	}
}
