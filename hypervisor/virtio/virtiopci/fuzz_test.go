package virtiopci

import (
	"runtime"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/pci"
)

// FuzzRegisters is a guest that writes and reads anything anywhere in the BAR and in configuration space, of a device
// that runs at first: nothing panics, nothing hangs, no worker stays behind.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte{0x00, 0x14, 0x00, 0})                                     // reset
	f.Add([]byte{0x00, 0x14, 0x00, 0, 0x00, 0x14, 0x00, 0x0f})             // and everything at once
	f.Add([]byte{0x80, 0x20, 0x00, 2, 0xff, 0xff, 0x11, 0x00, 0x20, 0x00}) // a kick
	f.Add([]byte{0x40, 0x04, 0x00, 0, 0x00, 0x80, 0x10, 0x00, 2, 0, 0, 0, 0xd0})
	f.Fuzz(func(t *testing.T, data []byte) {
		before := runtime.NumGoroutine()
		b := newBoard(t, new(echo), true)
		d := probe(b)
		d.start(true)
		d.queues[0].offer("x")
		d.queues[0].kick()
		for len(data) > 3 {
			// The first byte says where and how: width, BAR or configuration space, by vCPU or by doorbell, write or read.
			how := data[0]
			off, n := uint64(data[1])|uint64(data[2])<<8, 1<<(how&3)
			addr := d.bar + off%barSize
			if how&0x40 != 0 {
				addr = config(int(off % pci.ConfigSize))
			}
			var p [8]byte
			data = data[3+copy(p[:n], data[3:]):]
			switch {
			case how&0x80 != 0 && how&0x40 == 0:
				b.bells.ring(addr &^ 3)
			case how&0x20 != 0:
				b.mmio.Read(0, addr, p[:n])
			default:
				b.mmio.Write(0, addr, p[:n])
			}
		}
		// Whatever happened, a driver that starts over is served.
		for i := range 6 {
			b.write(config(pci.BAR0+4*i), 4, 0)
		}
		b.write(config(pci.BAR0), 4, barBase)
		b.write(config(pci.Command), 2, pci.CommandMemory|pci.CommandMaster)
		d.start(true)
		d.queues[0].do("served again")
		d.setStatus(0)
		eventually(t, "all workers ended", func() bool { return runtime.NumGoroutine() <= before })
	})
}
