package machine

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/balloon"
	"github.com/lodgehv/lodge/hypervisor/virtio/console"
	virtionet "github.com/lodgehv/lodge/hypervisor/virtio/net"
	"github.com/lodgehv/lodge/hypervisor/virtio/rng"
	"github.com/lodgehv/lodge/hypervisor/virtio/vsock"
)

// everything is a board with one of each virtio device.
func everything(t testing.TB, p kvmtest.Program) Config {
	ours, theirs := net.Pipe()
	go io.Copy(io.Discard, theirs)
	link := virtionet.NewStream(ours, nil, nil)
	t.Cleanup(func() { link.Close() })
	cfg := small(t, p, diskSlot(rawDisk(t, 1<<20)),
		Virtio("rng", func() (virtio.Device, error) { return &rng.Device{}, nil }),
		Virtio("balloon", func() (virtio.Device, error) { return balloon.New(nil), nil }),
		Virtio("console", func() (virtio.Device, error) { return console.New(io.Discard), nil }),
		Virtio("vsock", func() (virtio.Device, error) { return vsock.New(vsock.Config{CID: 3}) }),
		Virtio("net", func() (virtio.Device, error) { return virtionet.New(virtionet.Config{Backend: link}), nil }))
	cfg.Serial = [2]io.Writer{io.Discard, io.Discard}
	cfg.DebugConsole = io.Discard
	return cfg
}

// A guest writes garbage to every register and port there is, and reads it back. Neither it nor what it does to the rings
// of its devices harms the process, or the machine beside it.
func TestHostileGuest(t *testing.T) {
	neighbour := newMachine(t, small(t, counts))
	start(t, neighbour)
	advances(t, neighbour)
	cfg := everything(t, kvmtest.RemoteProgram())
	const accesses, perMachine = 4000, 1000
	var before held
	var heap uint64
	ends := make(map[string]int)
	for seed := range uint64(2 + accesses/perMachine) {
		if seed == 2 { // what a process allocates once, it has now
			before, heap = holding(t), heapInUse()
		}
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		g := &guest{kvmtest.NewRemote(t, m.over), m, t}
		if err := m.ports.Map(bus.Range{Base: kvmtest.RemotePort, Size: kvmtest.RemoteSize}, g.Remote); err != nil {
			t.Fatal(err)
		}
		start(t, m)
		h := hostile{g, rand.New(rand.NewPCG(seed, 42))}
		for range perMachine {
			h.access()
			select {
			case <-m.over:
			default:
				continue
			}
			break
		}
		advances(t, neighbour)
		closed := make(chan error)
		go func() { closed <- m.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(limit):
			t.Fatal("the machine cannot be closed")
		}
		ends[m.outcome.Detail]++
	}
	before.noMore(t)
	if now := heapInUse(); now > heap+4<<20 {
		t.Errorf("the heap has grown from %d to %d KiB", heap>>10, now>>10)
	}
	advances(t, neighbour)
	t.Log(ends)
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapInuse
}

// hostile decides what the guest does next.
type hostile struct {
	g *guest
	r *rand.Rand
}

func (h hostile) access() {
	switch n := h.r.IntN(100); {
	case n < 40:
		h.memory()
	case n < 80:
		h.port()
	case n < 90:
		h.command()
	default:
		h.rings()
	}
}

// value prefers the numbers at which code goes wrong.
func (h hostile) value() uint32 {
	v := [...]uint32{0, 1, 0xff, 0x7fff, 0xffff, 1 << 31, 0xffffffff, queueDesc, h.r.Uint32(), h.r.Uint32(), h.r.Uint32() & 0xff}
	return v[h.r.IntN(len(v))]
}

func (h hostile) memory() {
	ranges := h.g.mmio.Ranges()
	r := ranges[h.r.IntN(len(ranges))]
	addr := uint32(r.Base + h.r.Uint64N(r.Size))
	if r.Base == ecamBase {
		addr = ecamBase + uint32(h.slot())<<15 + h.r.Uint32N(256)
	} else if h.r.IntN(2) == 0 {
		addr = uint32(r.Base) + h.r.Uint32N(64) // the common configuration
	}
	switch h.r.IntN(6) {
	case 0:
		h.g.Load8(addr)
	case 1:
		h.g.Load16(addr)
	case 2:
		h.g.Load32(addr)
	case 3:
		h.g.Store8(addr, uint8(h.value()))
	case 4:
		h.g.Store16(addr, uint16(h.value()))
	case 5:
		h.g.Store32(addr, h.value())
	}
}

// slot is one that has something in it.
func (h hostile) slot() int {
	if n := h.r.IntN(len(h.g.cards) + 2); n < len(h.g.cards) {
		return slotCards + n
	} else if n == len(h.g.cards) {
		return slotLPC
	}
	return slotMCH
}

func (h hostile) port() {
	ranges := h.g.ports.Ranges()
	r := ranges[h.r.IntN(len(ranges))]
	port := uint16(r.Base + h.r.Uint64N(r.Size))
	if h.r.IntN(4) == 0 {
		port = uint16(h.r.Uint32()) // KVM's own devices, and where nothing is
	}
	if port >= kvmtest.RemotePort-3 && port < kvmtest.RemotePort+kvmtest.RemoteSize ||
		port >= legacy.DebugExitBase-3 && port < legacy.DebugExitBase+legacy.DebugExitSize {
		return // the one is the test's, the other ends all
	}
	switch port &^ 3 {
	case legacy.Port92 &^ 3, legacy.I8042Command &^ 3, legacy.ResetPort &^ 3, legacy.PMBase + legacy.PM1ControlOff:
		if h.r.IntN(30) != 0 { // they end the machine rather often
			return
		}
	}
	switch h.r.IntN(6) {
	case 0:
		h.g.In8(port)
	case 1:
		h.g.In16(port)
	case 2:
		h.g.In32(port)
	case 3:
		h.g.Out8(port, uint8(h.value()))
	case 4:
		h.g.Out16(port, uint16(h.value()))
	case 5:
		h.g.Out32(port, h.value())
	}
}

// command has every card listen again, and its registers be where they were: garbage soon makes them vanish.
func (h hostile) command() {
	at := uint32(1 + h.r.IntN(len(h.g.cards)))
	h.g.Store32(ecamBase+at<<15+0x10, pci32Base+0x100000*at)
	h.g.Store16(ecamBase+at<<15+4, pci.CommandMemory|pci.CommandMaster)
}

// rings starts a device properly, on rings full of garbage: loops, absurd lengths, addresses where nothing is.
func (h hostile) rings() {
	h.command()
	at := uint32(1 + h.r.IntN(len(h.g.cards)))
	bar := h.g.Load32(ecamBase+at<<15+0x10) &^ 0xf
	if bar < pci32Base || bar > pci32Last {
		return
	}
	garbage := make([]byte, 0x3000)
	for i := 0; i < len(garbage); i += 16 {
		binary.LittleEndian.PutUint64(garbage[i:], h.r.Uint64N(h.g.cfg.Memory+0x1000)) // nearly always memory
		binary.LittleEndian.PutUint64(garbage[i+8:], h.r.Uint64()&0x00ff_000f_ffff_ffff>>(h.r.IntN(3)*16))
	}
	h.g.put(queueDesc, garbage)
	status := bar + 20
	h.g.Store8(status, 0)
	h.g.Store8(status, 3)
	for i := range uint32(2) {
		h.g.Store32(bar, i)
		h.g.Store32(bar+8, i)
		h.g.Store32(bar+12, h.g.Load32(bar+4))
	}
	h.g.Store8(status, 11)
	for q := range h.g.Load16(bar + 18) {
		h.g.Store16(bar+22, q)
		h.g.Store32(bar+32, queueDesc)
		h.g.Store32(bar+40, queueAvail)
		h.g.Store32(bar+48, queueUsed)
		h.g.Store16(bar+28, 1)
	}
	h.g.Store8(status, 15)
	for q := range h.g.Load16(bar + 18) {
		h.g.Store16(queueAvail+2, h.g.Load16(queueUsed+2)+uint16(h.r.IntN(4)))
		h.g.Store16(bar+0x2000+4*uint32(q), q)
	}
}
