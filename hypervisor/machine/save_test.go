package machine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/blk"
	"github.com/lodgehv/lodge/hypervisor/virtio/rng"
)

// counts is a guest that counts in memory, in native code, and never exits.
var counts = kvmtest.Program{Ring: kvmtest.Ring3, Main: func(a *kvmtest.Asm) {
	a.Mov(kvmtest.RDI, kvmtest.Data)
	top := a.Here()
	a.IncMem(kvmtest.RDI).Jmp(top)
}}

// counter returns what counts has counted so far.
func counter(t testing.TB, m *Machine) (n uint64) {
	t.Helper()
	b, err := m.Memory().Slice(kvmtest.Data, 8)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		n |= uint64(b[i]) << (8 * i)
	}
	return n
}

// advances returns when m has counted on.
func advances(t testing.TB, m *Machine) {
	t.Helper()
	from := counter(t, m)
	for deadline := time.Now().Add(limit); counter(t, m) <= from; time.Sleep(10 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the guest stands still at %d: %+v", from, m.outcome)
		}
	}
}

func save(t testing.TB, m *Machine, definition string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "saved")
	if err := m.Save(t.Context(), dir, []byte(definition), nil); err != nil {
		t.Fatal(err)
	}
	return dir
}

func openSaved(t testing.TB, dir string) *Saved {
	t.Helper()
	s, err := OpenSaved(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// restore returns a machine that has not been started.
func restore(t testing.TB, cfg Config, dir string, opt RestoreOptions) *Machine {
	t.Helper()
	m, err := Restore(cfg, openSaved(t, dir), opt)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EPERM) {
		t.Skipf("needs root: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	closeAfter(t, m)
	return m
}

// ways are the two in which memory comes back.
var ways = map[string]RestoreOptions{"private": {}, "shared": {Shared: true}}

// A machine is saved in the middle of a loop and closed. It goes on where it was, twice from the same directory, and what
// was restored can be saved and restored in turn.
func TestSaveRestore(t *testing.T) {
	for name, opt := range ways {
		t.Run(name, func(t *testing.T) {
			cfg := fullBoard(t, counts, rawDisk(t, 1<<20))
			cfg.CPUs = 2
			m := newMachine(t, cfg)
			start(t, m)
			advances(t, m)
			running := save(t, m, "first") // it pauses by itself
			advances(t, m)
			if err := m.Pause(); err != nil {
				t.Fatal(err)
			}
			at := counter(t, m)
			dir := save(t, m, "second")
			if m.Running() {
				t.Error("saving has let a paused guest run")
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				m := restore(t, cfg, dir, opt)
				if n := counter(t, m); n != at {
					t.Errorf("restored at %d, saved at %d", n, at)
				}
				start(t, m)
				advances(t, m)
				if err := m.Pause(); err != nil {
					t.Fatal(err)
				}
				later := counter(t, m)
				again := save(t, m, "third")
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				m = restore(t, cfg, again, opt)
				if n := counter(t, m); n != later {
					t.Errorf("restored again at %d, saved at %d", n, later)
				}
				start(t, m)
				advances(t, m)
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
			}
			s := openSaved(t, running)
			if d := string(s.Definition()); d != "first" || time.Since(s.Created()) > time.Hour {
				t.Errorf("definition %q of %v", d, s.Created())
			}
			m = restore(t, cfg, running, opt)
			if n := counter(t, m); n == 0 || n > at {
				t.Errorf("the first saved state is at %d, the second at %d", n, at)
			}
			start(t, m)
			advances(t, m)
		})
	}
}

// Memory that is to be shared has a file, in a new machine and in a restored one, however that was asked for.
func TestSharedMemory(t *testing.T) {
	cfg := fullBoard(t, counts, rawDisk(t, 1<<20))
	cfg.SharedMemory = true
	m := newMachine(t, cfg)
	start(t, m)
	advances(t, m)
	if err := m.Pause(); err != nil {
		t.Fatal(err)
	}
	at, dir := counter(t, m), save(t, m, "shared")
	again := restore(t, cfg, dir, RestoreOptions{})
	if n := counter(t, again); n != at {
		t.Errorf("restored at %d, saved at %d", n, at)
	}
	for _, m := range []*Machine{m, again} {
		for _, r := range m.Memory().Regions() {
			if r.File == nil {
				t.Errorf("the region at %#x has no file", r.Base)
			}
		}
	}
	start(t, again)
	advances(t, again)
}

// A machine with as many processors as there can be goes on on all of them, each where it was.
func TestSaveAllCPUs(t *testing.T) {
	const counters = 0x100
	count := []byte{ // 16-bit code
		0x66, 0xb8, 1, 0, 0, 0, // mov eax, 1
		0x0f, 0xa2, // cpuid
		0x66, 0xc1, 0xeb, 24, // shr ebx, 24: the APIC ID
		0xc1, 0xe3, 2, // shl bx, 2
		0x2e, 0x66, 0xff, 0x87, counters & 0xff, counters >> 8, // inc dword [cs:bx+counters]
		0xeb, 0xf8, // jmp to it
	}
	cfg := small(t, kvmtest.RemoteProgram())
	cfg.CPUs = MaxCPUs
	g := newGuest(t, cfg)
	reached := func(m *Machine) (n [MaxCPUs]uint32) {
		b := make([]byte, 4*MaxCPUs)
		if err := m.Memory().ReadAt(b, kvmtest.Data+counters); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			n[i] = binary.LittleEndian.Uint32(b[4*i:])
		}
		return n
	}
	allCount := func(m *Machine, from [MaxCPUs]uint32) {
		t.Helper()
		for deadline := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
			now, behind := reached(m), 0
			for i := 1; i < MaxCPUs; i++ { // the first does what we tell it
				if now[i] <= from[i] {
					behind++
				}
			}
			if behind == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d CPUs stand still: %d, from %d", behind, now, from)
			}
		}
	}
	g.put(kvmtest.Data, count)
	const icr, initAll, sipiAll = 0xfee00300, 0xc4500, 0xc4600 // to all but ourselves
	g.Store32(icr, initAll)
	g.Store32(icr, sipiAll|kvmtest.Data>>12)
	allCount(g.Machine, [MaxCPUs]uint32{})
	if err := g.Pause(); err != nil {
		t.Fatal(err)
	}
	at := reached(g.Machine)
	dir := save(t, g.Machine, "")
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	m := restore(t, cfg, dir, RestoreOptions{})
	if now := reached(m); now != at {
		t.Errorf("restored at %d, saved at %d", now, at)
	}
	g = attach(t, m)
	allCount(m, at)
	if v := g.In8(0x80); v != 0xff {
		t.Errorf("the first CPU reads %#x", v)
	}
}

// A guest saved with an interrupt waiting, and with a request that no device has looked at, loses neither.
func TestSaveInFlight(t *testing.T) {
	for name, intx := range map[string]bool{"MSI-X": false, "INTx": true} {
		for way, opt := range ways {
			t.Run(name+" "+way, func(t *testing.T) {
				disk := rawDisk(t, 1<<20)
				cfg := fullBoard(t, kvmtest.RemoteProgram(), disk)
				cfg.Slots[0] = Virtio("disk", func() (virtio.Device, error) { // the guest writes to it after it was saved
					return blk.New(blk.Config{Name: "disk", File: disk, IgnoreChanges: true})
				})
				g := newGuest(t, cfg)
				d := find(g, virtio.IDBlock)
				d.start(intx, featureFlush)
				g.put(diskData, []byte("before"))
				d.disk(blkOut, 0, 512)

				g.Cli()
				g.put(diskData, []byte("waiting"))
				d.offer(d.request(blkOut, 1, 512)...)
				d.kick()
				for deadline := time.Now().Add(limit); g.Load16(queueUsed+2) != d.next; {
					if time.Now().After(deadline) {
						t.Fatal("not served")
					}
				}
				waiting := save(t, g.Machine, "")
				g.Sti()
				d.finish()

				d.offer(d.request(blkIn, 1, 512)...)
				unserved := save(t, g.Machine, "")
				if err := g.Close(); err != nil {
					t.Fatal(err)
				}

				d.g = attach(t, restore(t, cfg, waiting, opt))
				done := d.next
				d.next-- // the state is older than the request that followed
				d.g.Sti()
				d.finish()
				d.disk(blkIn, 0, 512)
				if got := string(d.g.bytes(diskData, 6)); got != "before" {
					t.Errorf("read %q", got)
				}
				if err := d.g.Close(); err != nil {
					t.Fatal(err)
				}

				d.g, d.next = attach(t, restore(t, cfg, unserved, opt)), done
				d.finish()
				if got := string(d.g.bytes(diskData, 7)); got != "waiting" {
					t.Errorf("read %q", got)
				}
				d.disk(blkFlush, 0, 0)
			})
		}
	}
}

// What the guest is to notice of a restore: another generation, and the time.
func TestRestoreIsNoticed(t *testing.T) {
	for way, opt := range ways {
		t.Run(way, func(t *testing.T) {
			cfg := small(t, kvmtest.RemoteProgram())
			g := newGuest(t, cfg)
			g.Out16(legacy.PMBase+legacy.GPE0Off+8, 0xffff)
			where, old := g.generation()
			ticks := g.In32(legacy.PMBase + legacy.PMTimerOff)
			clock, err := g.vm.GetClock()
			if err != nil {
				t.Fatal(err)
			}
			saved := time.Now()
			dir := save(t, g.Machine, "")
			if _, same := g.generation(); same != old {
				t.Error("the generation changes by saving")
			}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				g = attach(t, restore(t, cfg, dir, opt))
				at, id := g.generation()
				if at != where || id == old || id == [16]byte{} {
					t.Errorf("generation %x at %#x was %x at %#x", id, at, old, where)
				}
				if v := g.In16(legacy.PMBase + legacy.GPE0Off); v == 0 {
					t.Error("the guest was not told")
				}
				old = id
				if step := (g.In32(legacy.PMBase+legacy.PMTimerOff) - ticks) & 0xffffff; step > legacy.PMTimerHz {
					t.Errorf("the PM timer went from %d by %d", ticks, step)
				}
				now, err := g.vm.GetClock()
				if err != nil {
					t.Fatal(err)
				}
				if passed := time.Duration(now.Clock - clock.Clock); passed < 0 || passed > time.Since(saved)+time.Second {
					t.Errorf("kvmclock went on by %v within %v", passed, time.Since(saved))
				}
				if d := time.Since(g.cmosTime()); d < -2*time.Second || d > 3*time.Second {
					t.Errorf("the CMOS clock is %v behind", d)
				}
				if err := g.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// generation returns the identifier and where it is.
func (g *guest) generation() (at uint64, id [16]byte) {
	id = g.vmgenid.GUID()
	low := g.bytes(tablesBase, tablesEnd-tablesBase)
	i := strings.Index(string(low), string(id[:]))
	if i < 0 {
		g.t.Fatal("the generation is not in the guest's memory")
	}
	return tablesBase + uint64(i), id
}

// cmosTime returns the CMOS clock's time.
func (g *guest) cmosTime() time.Time {
	read := func(reg uint8) int {
		g.Out8(0x70, reg)
		v := g.In8(0x71)
		return int(v>>4*10 + v&0xf)
	}
	for {
		sec := read(0)
		at := time.Date(2000+read(9), time.Month(read(8)), read(7), read(4), read(2), sec, 0, time.UTC)
		if read(0) == sec {
			return at
		}
	}
}

// What cannot be restored is refused by name, and nothing of it stays.
func TestRestoreRefused(t *testing.T) {
	disk := rawDisk(t, 1<<20)
	good := fullBoard(t, counts, disk)
	m := newMachine(t, good)
	start(t, m)
	advances(t, m)
	dir, other := save(t, m, ""), save(t, m, "")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	edit := func(name string, f func([]byte) []byte) func(*testing.T, string, *Config) {
		return func(t *testing.T, dir string, _ *Config) {
			path := filepath.Join(dir, name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, f(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	section := func(id string, f func(*snap.Section)) func(*testing.T, string, *Config) {
		return func(t *testing.T, dir string, _ *Config) {
			path := filepath.Join(dir, snap.StateName)
			file, err := snap.Read(path)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(file.Sections, func(s snap.Section) bool { return s.ID == id })
			f(&file.Sections[i])
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := file.Write(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	config := func(f func(*Config)) func(*testing.T, string, *Config) {
		return func(_ *testing.T, _ string, cfg *Config) { f(cfg) }
	}
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, dir string, cfg *Config)
		err   error
		says  string
	}{
		{"a bit of the state", edit(snap.StateName, func(b []byte) []byte { b[len(b)/2] ^= 4; return b }), snap.ErrDamaged, "state"},
		{"half of the state", edit(snap.StateName, func(b []byte) []byte { return b[:len(b)/2] }), snap.ErrTruncated, "state"},
		{"no state", edit(snap.StateName, func(b []byte) []byte { return []byte(strings.Repeat("hello", 100)) }), snap.ErrForeign, "state"},
		{"newer board", section(sectionBoard, func(s *snap.Section) { s.Version++ }), snap.ErrNewer, "board"},
		{"newer vCPU", section("vcpu.0", func(s *snap.Section) { s.Version++ }), snap.ErrNewer, "vcpu.0"},
		{"newer disk", section("disk", func(s *snap.Section) { s.Version++ }), snap.ErrNewer, "disk"},
		{"short vCPU", section("vcpu.0", func(s *snap.Section) { s.Data = s.Data[:len(s.Data)-1] }), nil, "vcpu.0"},
		{"short last component", section("kvm", func(s *snap.Section) { s.Data = s.Data[:len(s.Data)-1] }), nil, "kvm"},
		{"foreign memory", func(t *testing.T, dir string, _ *Config) {
			b, err := os.ReadFile(filepath.Join(other, snap.RAMName))
			if err != nil {
				t.Fatal(err)
			}
			edit(snap.RAMName, func([]byte) []byte { return b })(t, dir, nil)
		}, nil, "ram"},
		{"half of the memory", edit(snap.RAMName, func(b []byte) []byte { return b[:len(b)/2] }), nil, "ram"},
		{"no memory", func(t *testing.T, dir string, _ *Config) { os.Remove(filepath.Join(dir, snap.RAMName)) }, fs.ErrNotExist, "ram"},
		{"CPUs", config(func(c *Config) { c.CPUs = 2 }), snap.ErrMismatch, "1 CPUs"},
		{"memory", config(func(c *Config) { c.Memory *= 2 }), snap.ErrMismatch, "32"},
		{"UUID", config(func(c *Config) { c.UUID[15]++ }), snap.ErrMismatch, "guest"},
		{"a device too few", config(func(c *Config) { c.Slots = c.Slots[:1] }), snap.ErrMismatch, "rng"},
		{"a device too many", config(func(c *Config) {
			c.Slots = append(slices.Clip(c.Slots), Virtio("rng2", func() (virtio.Device, error) { return &rng.Device{}, nil }))
		}), snap.ErrMismatch, "rng2"},
		{"another name", config(func(c *Config) { c.Slots = []Slot{{"disc", c.Slots[0].New}, c.Slots[1]} }), snap.ErrMismatch, "disc"},
		{"another device", config(func(c *Config) { c.Slots = []Slot{{"disk", c.Slots[1].New}, {"rng", c.Slots[0].New}} }), nil, "disk"},
		{"no COM2", config(func(c *Config) { c.Serial[1] = nil }), snap.ErrMismatch, "com2"},
		{"debug console", config(func(c *Config) { c.DebugConsole = io.Discard }), snap.ErrMismatch, "debug"},
		{"another disk", config(func(c *Config) { c.Slots = []Slot{diskSlot(rawDisk(t, 1<<20)), c.Slots[1]} }), nil, "was written to"},
		{"size of the disk", config(func(c *Config) { c.Slots = []Slot{diskSlot(rawDisk(t, 2<<20)), c.Slots[1]} }), nil, "disk"},
	} {
		for way, opt := range ways {
			t.Run(c.name+" "+way, func(t *testing.T) {
				copied := filepath.Join(t.TempDir(), "saved")
				if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				cfg := good
				c.spoil(t, copied, &cfg)
				before := holding(t)
				s, err := OpenSaved(copied)
				if err == nil {
					var m *Machine
					if m, err = Restore(cfg, s, opt); m != nil {
						m.Close()
						t.Error("there is a machine")
					}
				}
				if err == nil {
					t.Fatal("no error")
				}
				if c.err != nil && !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("error %q is not %q about %q", err, c.err, c.says)
				}
				before.noMore(t)
			})
		}
	}
}

// What a paused guest has printed, and nobody has taken, is written when its machine is closed; but if it was saved, it is
// written by the one that is restored, once.
func TestCloseFlushesPaused(t *testing.T) {
	for name, saved := range map[string]bool{"paused": false, "paused and saved": true} {
		t.Run(name, func(t *testing.T) {
			var out shutWriter
			cfg := small(t, kvmtest.RemoteProgram())
			cfg.Serial = [2]io.Writer{&out}
			g := newGuest(t, cfg)
			const text = "last words"
			for _, c := range []byte(text) {
				g.Out8(legacy.COM1Base, c)
			}
			if err := g.Pause(); err != nil {
				t.Fatal(err)
			}
			out.open.Store(true)
			want := text
			var dir string
			if saved {
				dir, want = save(t, g.Machine, ""), ""
			}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != want {
				t.Errorf("written: %q, want %q", got, want)
			}
			if saved {
				m := restore(t, cfg, dir, RestoreOptions{})
				start(t, m)
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				if got := out.String(); got != text {
					t.Errorf("written after the restore: %q, want %q", got, text)
				}
			}
		})
	}
}

// shutWriter takes nothing until it is open.
type shutWriter struct {
	open atomic.Bool
	bytes.Buffer
}

func (w *shutWriter) Write(p []byte) (int, error) {
	if !w.open.Load() {
		return 0, os.ErrDeadlineExceeded
	}
	return w.Buffer.Write(p)
}

// Verify knows the version of every component's state, and looks at all of them and at the memory.
func TestVerify(t *testing.T) {
	cfg := fullBoard(t, counts, rawDisk(t, 1<<20))
	cfg.DebugConsole = io.Discard
	m := newMachine(t, cfg)
	for _, c := range m.components() {
		if got := newestVersion(c.SnapID()); got != c.SnapVersion() {
			t.Errorf("%s: version %d is the newest known, and %d is written", c.SnapID(), got, c.SnapVersion())
		}
	}
	dir, other := save(t, m, ""), save(t, m, "")
	if err := openSaved(t, dir).Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	path := filepath.Join(dir, snap.StateName)
	good, err := snap.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good.Sections {
		bad := *good
		bad.Sections = slices.Clone(good.Sections)
		bad.Sections[i].Version++
		s := &Saved{dir: dir, file: &bad}
		if err := s.Verify(t.Context(), nil); !errors.Is(err, snap.ErrNewer) || !strings.Contains(err.Error(), bad.Sections[i].ID) {
			t.Errorf("a newer %s: %v", bad.Sections[i].ID, err)
		}
	}
	if err := os.Rename(filepath.Join(other, snap.RAMName), filepath.Join(dir, snap.RAMName)); err != nil {
		t.Fatal(err)
	}
	if err := openSaved(t, dir).Verify(t.Context(), nil); !errors.Is(err, mem.ErrForeign) {
		t.Errorf("the memory of another state: %v", err)
	}
}

// If its context ends, saving writes nothing and the guest runs on.
func TestSaveCancelled(t *testing.T) {
	m := newMachine(t, small(t, counts))
	start(t, m)
	advances(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := filepath.Join(t.TempDir(), "saved")
	if err := m.Save(ctx, dir, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	advances(t, m)
}
