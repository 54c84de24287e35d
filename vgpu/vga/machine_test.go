package vga

import (
	"bytes"
	"errors"
	"image"
	"image/png"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/boot"
	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/vgpu/display"
)

// Files of Debian's package seabios.
const (
	seabios = "/usr/share/seabios/bios-256k.bin"
	vgabios = "/usr/share/seabios/vgabios-stdvga.bin"
)

func readROM(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: is Debian's package seabios installed?", err)
	}
	return b
}

func openKVM(t testing.TB) *kvm.System {
	t.Helper()
	k, err := kvm.Open("/dev/kvm")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// guest is a machine with the card, whose firmware is SeaBIOS with the card's option ROM.
type guest struct {
	*machine.Machine
	t      testing.TB
	cfg    machine.Config
	screen *display.Screen
	card   *Card
}

func newGuest(t testing.TB, slots ...machine.Slot) *guest {
	t.Helper()
	bios, err := os.Open(seabios)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bios.Close() })
	img, err := boot.FileImage(bios)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, screen: display.NewScreen(display.Monitor{})}
	rom := readROM(t, vgabios)
	g.cfg = machine.Config{
		Name: "vga", KVM: openKVM(t), CPUs: 1, Memory: 64 << 20, Boot: machine.Boot{Firmware: &img},
		Slots: []machine.Slot{{Name: "vga", New: func(b machine.Board) (machine.Card, error) {
			c, err := New(Config{Name: b.Name, Screen: g.screen, ROM: rom, Mapper: b.Mapper, Log: b.Log})
			g.card = c
			return c, err
		}}},
	}
	g.cfg.Slots = append(g.cfg.Slots, slots...)
	m, err := machine.New(g.cfg)
	g.run(m, err)
	return g
}

// run starts m.
func (g *guest) run(m *machine.Machine, err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
	g.Machine = m
	g.t.Cleanup(func() {
		if err := m.Close(); err != nil {
			g.t.Error(err)
		}
	})
	if err := m.Start(); err != nil {
		g.t.Fatal(err)
	}
}

// await returns what is written on the screen, once want is a part of it.
func (g *guest) await(want string) string {
	g.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		text := g.text()
		if strings.Contains(text, want) {
			return text
		}
		if time.Now().After(deadline) || !g.Running() {
			g.t.Fatalf("no %q on the screen:\n%s", want, text)
		}
	}
}

// text reads the picture: each cell of 9 by 16 pixels is compared with the font in plane 2.
func (g *guest) text() (lines string) {
	c := g.card
	chars := make(map[[16]byte]byte)
	c.mu.Lock()
	for ch := 255; ch >= 0; ch-- {
		var glyph [16]byte
		for i := range glyph {
			glyph[i] = c.video.memory[4*(32*ch+i)+2]
		}
		chars[glyph] = byte(ch)
	}
	c.mu.Unlock()
	chars[[16]byte{}] = ' '
	g.screen.Snapshot(func(s *display.Surface) {
		if s == nil || s.Width != 720 || s.Height != 400 {
			return
		}
		s.Mu.RLock()
		defer s.Mu.RUnlock()
		for y := 0; y < s.Height; y += 16 {
			for x := 0; x < s.Width; x += 9 {
				var cell [16]byte
				for i := range 16 {
					for bit := range 8 {
						if pixel(s.Pixels[(y+i)*s.Stride:], x+bit)&0xffffff != 0 {
							cell[i] |= 0x80 >> bit
						}
					}
				}
				ch, ok := chars[cell]
				if !ok {
					ch = ' ' // the cursor
				}
				lines += string(rune(ch))
			}
			lines = strings.TrimRight(lines, " ") + "\n"
		}
	})
	return lines
}

// artifact writes the picture where a person can look at it.
func (g *guest) artifact(name string) {
	g.t.Helper()
	f, err := os.Create(filepath.Join(g.t.ArtifactDir(), name))
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	g.screen.Snapshot(func(s *display.Surface) {
		if err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(f, copyPicture(s)); err != nil {
			g.t.Error(err)
		}
	})
}

// SeaBIOS finds the card and its option ROM, and what it says is on the screen. A restored guest has the same screen.
func TestSeaBIOS(t *testing.T) {
	g := newGuest(t)
	began := time.Now()
	text := g.await("No bootable device.  Retrying in 60 seconds.")
	t.Logf("after %v:\n%s", time.Since(began), text)
	if !strings.HasPrefix(text, "SeaBIOS (version") {
		t.Error("the first line is not SeaBIOS's")
	}
	g.artifact("seabios.png")

	if err := g.Pause(); err != nil {
		t.Fatal(err)
	}
	before := g.still()
	dir := filepath.Join(t.TempDir(), "saved")
	if err := g.Save(t.Context(), dir, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g.screen.Snapshot(func(s *display.Surface) {
		if s != nil {
			t.Error("a picture without a machine")
		}
	})
	saved, err := machine.OpenSaved(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := machine.Restore(g.cfg, saved, machine.RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if after := g.still(); after.Rect != before.Rect || !bytes.Equal(after.Pix, before.Pix) {
		t.Error("another picture after the restore")
	}
	g.run(m, nil)
	if again := g.text(); again != text {
		t.Errorf("restored:\n%s", again)
	}
}

// still returns the picture of a machine that does not run, at a time when the cursor is seen.
func (g *guest) still() (img *image.RGBA) {
	g.card.mu.Lock()
	g.card.now = func() time.Duration { return 0 }
	g.card.mu.Unlock()
	g.screen.Snapshot(func(s *display.Surface) {
		if s == nil {
			g.t.Fatal("no picture")
		}
		img = copyPicture(s)
	})
	return img
}

// A guest draws into the memory that it has itself. The screen shows that memory, without a copy, and is told where; and
// the process that shows it can have it.
func TestFrameBuffer(t *testing.T) {
	k := openKVM(t)
	over := make(chan struct{})
	defer close(over)
	remote := kvmtest.NewRemote(t, over)
	screen := display.NewScreen(display.Monitor{})
	sink := &waiter{changed: make(chan image.Rectangle, 100)}
	defer screen.Attach(sink)()
	m, err := machine.New(machine.Config{
		Name: "vga", KVM: k, CPUs: 1, Memory: 16 << 20, Boot: machine.Boot{Kernel: kvmtest.Image(kvmtest.RemoteProgram())},
		Slots: []machine.Slot{
			{Name: "remote", New: func(b machine.Board) (machine.Card, error) { return newRemoteCard(b.Name, remote) }},
			{Name: "vga", New: func(b machine.Board) (machine.Card, error) {
				return New(Config{Name: b.Name, Screen: screen, Mapper: b.Mapper, Log: b.Log})
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	const config = 0xb0000000 + 2<<15 // the second card
	if id := remote.Load32(config); id != 0x11111234 {
		t.Fatalf("card %#x", id)
	}
	remote.Store16(config+pci.Command, pci.CommandIO|pci.CommandMemory)
	memory, regs := remote.Load32(config+pci.BAR0)&^0xf, remote.Load32(config+pci.BAR0+8)&^0xf
	remote.Store8(regs+portsOff, attrVideo)
	for _, r := range [][2]uint16{{vbeXRes, 1024}, {vbeYRes, 768}, {vbeBPP, 32}, {vbeEnable, vbeEnabled | vbeLFB}} {
		remote.Store16(regs+vbeOff+2*uint32(r[0]), r[1])
	}
	sink.await(t, image.Rect(0, 0, 1024, 768))
	remote.Store32(memory+4096*300+4*17, 0x00c0ffee)
	sink.await(t, image.Rect(0, 300, 1024, 301))
	screen.Snapshot(func(s *display.Surface) {
		if v := pixel(s.Pixels[300*s.Stride:], 17); v != 0x00c0ffee {
			t.Errorf("the surface has %#x", v)
		}
		b, err := unix.Mmap(int(s.File.Fd()), s.Offset, s.Stride*s.Height, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(b)
		if v := pixel(b[300*s.Stride:], 17); v != 0x00c0ffee {
			t.Errorf("who maps the file sees %#x", v)
		}
		if err := unix.Ftruncate(int(s.File.Fd()), 0); err == nil {
			t.Error("the file can be cut")
		}
	})
	// It is the guest's elsewhere when the register moves. What was drawn just before is not known then.
	remote.Store32(config+pci.BAR0, 0xd0000000)
	sink.await(t, image.Rect(0, 0, 1024, 768))
	remote.Store32(0xd0000000+4096*500, 1)
	sink.await(t, image.Rect(0, 500, 1024, 501))
	if v := remote.Load32(0xd0000000 + 4096*300 + 4*17); v != 0x00c0ffee {
		t.Errorf("after a move the guest reads %#x", v)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// waiter is a sink that waits for an update; a new surface is one as well.
type waiter struct {
	noCursor
	changed chan image.Rectangle
}

type noCursor struct{}

func (noCursor) Cursor(*display.Cursor) {}
func (noCursor) MoveCursor(image.Point) {}

func (w *waiter) Scanout(s *display.Surface) {
	if s != nil {
		w.Update(s.Bounds())
	}
}

func (w *waiter) Update(r image.Rectangle) {
	select {
	case w.changed <- r:
	default:
	}
}

// await waits for an update that holds r and nothing else, or all.
func (w *waiter) await(t testing.TB, r image.Rectangle) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case got := <-w.changed:
			if got == r {
				return
			}
		case <-limit:
			t.Fatalf("no update of %v", r)
		}
	}
}

// remoteCard puts the other end of a remote-controlled guest on the ports.
type remoteCard struct {
	pci.ConfigSpace
	snap.Component
	fn *pci.Function
}

func newRemoteCard(name string, r *kvmtest.Remote) (*remoteCard, error) {
	f, err := pci.NewFunction(pci.Config{Name: name, Class: 0xff0000, DefaultCommandBits: pci.CommandIO,
		Fixed: []pci.Fixed{{Ports: true, Range: bus.Range{Base: kvmtest.RemotePort, Size: kvmtest.RemoteSize}, Device: r}}})
	return &remoteCard{f, f, f}, err
}

func (c *remoteCard) Function() *pci.Function { return c.fn }
func (c *remoteCard) Close() error            { return nil }
