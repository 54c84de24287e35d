package vga

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/blk"
	"github.com/lodgehv/lodge/vgpu/display"
)

// biosModes are modes that the test's boot sector enters by the video BIOS, and the text that it has the BIOS write there.
var biosModes = []struct {
	name   string
	ax, bx uint16 // of INT 10h
	want   image.Point
	scale  int // of the font's pixels
	lines  int // of a character
}{
	{"03", 0x0003, 0, image.Pt(720, 400), 1, 16},
	{"12", 0x0012, 0, image.Pt(640, 480), 1, 16},
	{"13", 0x0013, 0, image.Pt(640, 400), 2, 8},
	{"0d", 0x000d, 0, image.Pt(640, 400), 2, 8},
	{"10", 0x0010, 0, image.Pt(640, 350), 1, 14},
	{"04", 0x0004, 0, image.Pt(640, 400), 2, 8},
	{"vbe-800x600x4", 0x4f02, 0x0102, image.Pt(800, 600), 1, 16},
	{"vbe-640x480x8", 0x4f02, 0x0101, image.Pt(640, 480), 1, 16},
	{"vbe-640x480x15", 0x4f02, 0x4110, image.Pt(640, 480), 1, 16},
	{"vbe-640x480x16", 0x4f02, 0x4111, image.Pt(640, 480), 1, 16},
	{"vbe-640x480x24", 0x4f02, 0x4112, image.Pt(640, 480), 1, 16},
	{"vbe-640x480x32", 0x4f02, 0x4142, image.Pt(640, 480), 1, 16},
}

const biosText = "Lodge"

// Bytes of memory by which test and boot sector agree: the modes that the guest may enter, and those it has.
const (
	biosMay  = 0x500
	biosHas  = 0x501
	biosLoad = 0x7c00
)

// bootSector enters the modes one after the other, and writes the text in each.
func bootSector() []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xa2, biosHas & 0xff, biosHas >> 8, // mov [has], al
		0xfb,       // sti
		0xbe, 0, 0, // mov si, table (filled in below)
		// next:
		0xf4,                               // hlt
		0xa0, biosMay & 0xff, biosMay >> 8, // mov al, [may]
		0x3a, 0x06, biosHas & 0xff, biosHas >> 8, // cmp al, [has]
		0x76, 0xf6, // jbe next
		0xad,       // lodsw
		0x93,       // xchg ax, bx
		0xad,       // lodsw
		0x56,       // push si
		0xcd, 0x10, // int 10h
		0xbe, 0, 0, // mov si, text (filled in below)
		// write:
		0xac,       // lodsb
		0x08, 0xc0, // or al, al
		0x74, 0x09, // jz written
		0xb4, 0x0e, // mov ah, 0eh
		0xbb, 0x0f, 0x00, // mov bx, 15
		0xcd, 0x10, // int 10h
		0xeb, 0xf2, // jmp write
		// written:
		0x5e,                                     // pop si
		0xfe, 0x06, biosHas & 0xff, biosHas >> 8, // inc byte [has]
		0xeb, 0xd8, // jmp next
	}
	le := binary.LittleEndian
	text := len(code)
	le.PutUint16(code[28:], uint16(biosLoad+text))
	code = append(code, biosText+"\x00"...)
	le.PutUint16(code[9:], uint16(biosLoad+len(code)))
	for _, m := range biosModes {
		code = le.AppendUint16(le.AppendUint16(code, m.bx), m.ax)
	}
	sector := make([]byte, 512)
	copy(sector[:510], code)
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// The option ROM's functions set every kind of mode, and draw characters in it.
func TestBIOSModes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, append(bootSector(), make([]byte, 1<<20-512)...), 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	g := newGuest(t, machine.Virtio("disk", func() (virtio.Device, error) {
		return blk.New(blk.Config{Name: "disk", File: disk})
	}))
	g.await("Booting from Hard Disk...")
	for i, m := range biosModes {
		if err := g.Memory().WriteAt([]byte{byte(i + 1)}, mem.GPA(biosMay)); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			var has [1]byte
			if err := g.Memory().ReadAt(has[:], mem.GPA(biosHas)); err != nil {
				t.Fatal(err)
			}
			if int(has[0]) == i+1 {
				break
			}
			if time.Now().After(deadline) || !g.Running() {
				t.Fatalf("mode %s: the guest is at %d of %d", m.name, has[0], i+1)
			}
		}
		img := g.image()
		if img == nil || img.Rect.Max != m.want {
			t.Errorf("mode %s: a picture of %v, want %v", m.name, img.Bounds(), m.want)
			continue
		}
		g.artifact(fmt.Sprintf("mode-%s.png", m.name))
		for c := range len(biosText) {
			want, cell := g.glyph(biosText[c], m.lines), 8
			if m.ax == 3 {
				want, cell = g.textGlyph(biosText[c]), 9
			}
			if got := glyphAt(img, c*cell*m.scale, m.lines, m.scale); !bytes.Equal(got, want) {
				t.Errorf("mode %s: character %d is %x, want %x", m.name, c, got, want)
			}
		}
	}
}

// image returns the picture.
func (g *guest) image() (img *image.RGBA) {
	g.screen.Snapshot(func(s *display.Surface) {
		if s != nil {
			img = copyPicture(s)
		}
	})
	return img
}

// glyph returns a character of the BIOS's font for graphics, which interrupt vector 43h points to.
func (g *guest) glyph(char byte, lines int) []byte {
	g.t.Helper()
	var vector [4]byte
	glyph := make([]byte, lines)
	if err := g.Memory().ReadAt(vector[:], 4*0x43); err != nil {
		g.t.Fatal(err)
	}
	font := int(binary.LittleEndian.Uint16(vector[2:]))<<4 + int(binary.LittleEndian.Uint16(vector[:]))
	if err := g.Memory().ReadAt(glyph, mem.GPA(font+lines*int(char))); err != nil {
		g.t.Fatal(err)
	}
	return glyph
}

// textGlyph returns a character of the font in plane 2.
func (g *guest) textGlyph(char byte) []byte {
	g.card.mu.Lock()
	defer g.card.mu.Unlock()
	glyph := make([]byte, 16)
	for i := range glyph {
		glyph[i] = g.card.video.memory[4*(glyphLines*int(char)+i)+2]
	}
	return glyph
}

// glyphAt reads a character off the top of a picture, of which each of the font's pixels takes scale by scale.
func glyphAt(img *image.RGBA, x, lines, scale int) []byte {
	glyph := make([]byte, lines)
	for i := range glyph {
		for bit := range 8 {
			if c := img.RGBAAt(x+bit*scale, i*scale); c.R|c.G|c.B != 0 {
				glyph[i] |= 0x80 >> bit
			}
		}
	}
	return glyph
}
