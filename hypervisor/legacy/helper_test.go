package legacy

import (
	"sync/atomic"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// testLine is an interrupt line that counts its rising edges.
type testLine struct {
	level atomic.Bool
	edges atomic.Int32
}

func (l *testLine) Set(level bool) error {
	if old := l.level.Swap(level); !old && level {
		l.edges.Add(1)
	}
	return nil
}

// in reads n bytes at an offset, as a number.
func in(d bus.Device, base, off uint64, n int) uint64 {
	var p [8]byte
	d.Read(bus.Access{Addr: base + off, Off: off}, p[:n])
	var v uint64
	for i := range n {
		v |= uint64(p[i]) << (8 * i)
	}
	return v
}

// out writes v as n bytes at an offset.
func out(d bus.Device, base, off uint64, n int, v uint64) {
	var p [8]byte
	for i := range p {
		p[i] = byte(v >> (8 * i))
	}
	d.Write(bus.Access{Addr: base + off, Off: off}, p[:n])
}

// drive accesses d as data says: three bytes and those to be written make an access. Offsets and sizes are any that the
// bus lets through, which drive makes sure of.
func drive(d bus.Device, base, size uint64, data []byte) {
	driveWith(d, base, size, data, new([8]byte))
}

func driveWith(d bus.Device, base, size uint64, data []byte, p *[8]byte) {
	for len(data) >= 3 {
		n := uint64(1) << (data[0] >> 1 & 3)
		for n > size {
			n /= 2
		}
		off := uint64(data[1]) % (size - n + 1)
		a := bus.Access{Addr: base + off, Off: off, VCPU: int(data[0] >> 7)}
		if data[0]&1 == 0 {
			d.Read(a, p[:n])
			data = data[2:]
			continue
		}
		data = data[2+copy(p[:n], data[2:]):]
		d.Write(a, p[:n])
	}
}

func encode(c snap.Component) ([]byte, error) {
	e := snap.NewEncoder(c.SnapVersion())
	c.State(e)
	return e.Data(), e.Err()
}

func decode(c snap.Component, b []byte) error {
	d := snap.NewDecoder(b, c.SnapVersion())
	c.State(d)
	d.Done()
	return d.Err()
}
