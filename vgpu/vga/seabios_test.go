package vga

import (
	"errors"
	"image/png"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/boot"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/machine"
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

func newGuest(t testing.TB) *guest {
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
					ch = '?'
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
		if err := png.Encode(f, copyPicture(s)); err != nil {
			g.t.Error(err)
		}
	})
}

// SeaBIOS finds the card and its option ROM, and what it says is on the screen; again after a restore.
func TestSeaBIOS(t *testing.T) {
	g := newGuest(t)
	began := time.Now()
	text := g.await("No bootable device")
	t.Logf("after %v:\n%s", time.Since(began), text)
	if !strings.HasPrefix(text, "SeaBIOS (version") {
		t.Error("the first line is not SeaBIOS's")
	}
	g.artifact("seabios.png")
}
