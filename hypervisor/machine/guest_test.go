package machine

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/blk"
	"github.com/lodgehv/lodge/hypervisor/virtio/rng"
)

// limit bounds every wait of these tests: far more than anything takes.
const limit = 20 * time.Second

// small is the configuration of a machine that runs p.
func small(t testing.TB, p kvmtest.Program, slots ...Slot) Config {
	return Config{Name: "test", UUID: [16]byte{1, 2, 3}, KVM: openKVM(t), CPUs: 1, Memory: 16 << 20,
		Boot: Boot{Kernel: kvmtest.Image(p)}, Slots: slots, Log: slog.New(slog.DiscardHandler)}
}

// fullBoard has two serial ports, disk and an entropy device as well.
func fullBoard(t testing.TB, p kvmtest.Program, disk *os.File) Config {
	cfg := small(t, p, diskSlot(disk), Virtio("rng", func() (virtio.Device, error) { return &rng.Device{}, nil }))
	cfg.Serial = [2]io.Writer{io.Discard, io.Discard}
	return cfg
}

func diskSlot(disk *os.File) Slot {
	return Virtio("disk", func() (virtio.Device, error) { return blk.New(blk.Config{Name: "disk", File: disk}) })
}

// rawDisk returns an empty disk of size bytes.
func rawDisk(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

// guest is a machine whose guest does what the test tells it.
type guest struct {
	*kvmtest.Remote
	*Machine
	t testing.TB
}

// newGuest returns a running remote-controlled guest.
func newGuest(t testing.TB, cfg Config) *guest {
	t.Helper()
	return attach(t, newMachine(t, cfg))
}

// newMachine returns a machine that has not been started.
func newMachine(t testing.TB, cfg Config) *Machine {
	t.Helper()
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	closeAfter(t, m)
	return m
}

func closeAfter(t testing.TB, m *Machine) {
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

// attach starts m, new or restored, whose guest is remote-controlled.
func attach(t testing.TB, m *Machine) *guest {
	t.Helper()
	g := &guest{kvmtest.NewRemote(t, m.over), m, t}
	if err := m.ports.Map(bus.Range{Base: kvmtest.RemotePort, Size: kvmtest.RemoteSize}, g.Remote); err != nil {
		t.Fatal(err)
	}
	start(t, m)
	return g
}

func start(t testing.TB, m *Machine) {
	t.Helper()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
}

// outcome waits for a machine's end.
func outcome(t testing.TB, m *Machine) Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	o, err := m.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// expect waits for an interrupt, which must have the given vector. The guest is in its handler then.
func (g *guest) expect(vector byte) {
	g.t.Helper()
	if v := g.Interrupt(limit); v != vector {
		g.t.Fatalf("interrupt %#x, want %#x; the machine is %+v", v, vector, g.Machine.outcome)
	}
}

// quiet checks that no interrupt is on its way: what the guest does in between gives one the time to arrive.
func (g *guest) quiet() {
	g.t.Helper()
	for range 20 {
		g.In8(0x80)
	}
	if v := g.Interrupt(0); v != 0 {
		g.t.Errorf("interrupt %#x that nobody expects", v)
	}
}

// endLevel ends a level-triggered interrupt whose cause the test has removed. KVM without hardware (PVM) ends every
// interrupt when it delivers it, so a level that was still there then comes once more; a driver that shares its interrupt
// takes that in its stride. After that it must be quiet.
func (g *guest) endLevel(vector byte) {
	g.t.Helper()
	g.EndOfInterrupt()
	for range 20 {
		g.In8(0x80)
	}
	if v := g.Interrupt(0); v == vector {
		g.EndOfInterrupt()
	}
	g.quiet()
}

// ioapic routes a pin of the IOAPIC to a vector of the guest's only CPU (82093AA datasheet §3.2.4), and switches off the
// old interrupt controllers, which also have it.
func (g *guest) ioapic(pin uint32, vector byte, level bool) {
	g.Out8(0x21, 0xff)
	g.Out8(0xa1, 0xff)
	entry := uint32(vector)
	if level {
		entry |= 1 << 15
	}
	g.Store32(ioapicBase, 0x10+2*pin+1)
	g.Store32(ioapicBase+0x10, 0)
	g.Store32(ioapicBase, 0x10+2*pin)
	g.Store32(ioapicBase+0x10, entry)
}

// bytes returns guest memory.
func (g *guest) bytes(gpa mem.GPA, n int) []byte {
	g.t.Helper()
	b := make([]byte, n)
	if err := g.Memory().ReadAt(b, gpa); err != nil {
		g.t.Fatal(err)
	}
	return b
}

func (g *guest) put(gpa mem.GPA, b []byte) {
	g.t.Helper()
	if err := g.Memory().WriteAt(b, gpa); err != nil {
		g.t.Fatal(err)
	}
}

// held counts what a machine must give back: descriptors, goroutines, and mappings of descriptors.
type held struct{ fds, goroutines, mappings int }

func holding(t testing.TB) held {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := held{fds: len(fds), goroutines: runtime.NumGoroutine()}
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.Contains(s.Text(), "memfd:") || strings.Contains(s.Text(), "anon_inode:") || strings.HasSuffix(s.Text(), "/ram") {
			h.mappings++
		}
	}
	return h
}

// noMore fails the test if more is held than before, once what is ending has ended.
func (before held) noMore(t testing.TB) {
	t.Helper()
	var now held
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		now = holding(t)
		if now.fds <= before.fds && now.goroutines <= before.goroutines && now.mappings <= before.mappings {
			return
		}
	}
	buf := make([]byte, 1<<20)
	t.Errorf("held before %+v, now %+v\n%s", before, now, buf[:runtime.Stack(buf, true)])
}
