package vga

import (
	"bytes"
	"encoding/binary"
	"flag"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/vgpu/display"
)

var update = flag.Bool("update", false, "write the golden pictures anew")

// Where the rig puts the card's registers.
const (
	lfbBase  = 0xe0000000
	mmioBase = 0xfeb00000
)

// rig is a card on buses of its own, with memory on the heap, where the race detector sees it. Its time stands still, and
// nobody draws but the test.
type rig struct {
	t           testing.TB
	ports, mmio bus.Bus
	screen      *display.Screen
	card        *Card
	time        time.Duration
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, screen: display.NewScreen(display.Monitor{Connected: true, Width: 1024, Height: 768})}
	cfg := Config{Name: "vga", Screen: r.screen, Memory: 4 << 20}
	for _, f := range change {
		f(&cfg)
	}
	r.screen = cfg.Screen
	c, err := build(cfg, video{memory: make([]byte, cfg.Memory)})
	if err != nil {
		t.Fatal(err)
	}
	c.now = func() time.Duration { return r.time }
	r.card = c
	if err := c.Function().Attach(pci.Env{Ports: &r.ports, MMIO: &r.mmio}); err != nil {
		t.Fatal(err)
	}
	c.WriteConfig(pci.BAR0, binary.LittleEndian.AppendUint32(nil, lfbBase))
	c.WriteConfig(pci.BAR0+8, binary.LittleEndian.AppendUint32(nil, mmioBase))
	c.WriteConfig(pci.Command, []byte{pci.CommandIO | pci.CommandMemory, 0})
	t.Cleanup(r.close)
	return r
}

func (r *rig) close() {
	if r.card == nil {
		return
	}
	if err := r.card.Function().Detach(); err != nil {
		r.t.Error(err)
	}
	if err := r.card.Close(); err != nil {
		r.t.Error(err)
	}
	r.card = nil
}

func (r *rig) out8(port uint64, v uint8)   { r.ports.Write(0, port, []byte{v}) }
func (r *rig) out16(port uint64, v uint16) { r.ports.Write(0, port, []byte{byte(v), byte(v >> 8)}) }

func (r *rig) in8(port uint64) uint8 {
	var p [1]byte
	r.ports.Read(0, port, p[:])
	return p[0]
}

func (r *rig) in16(port uint64) uint16 {
	var p [2]byte
	r.ports.Read(0, port, p[:])
	return binary.LittleEndian.Uint16(p[:])
}

// indexed writes register i of a pair of ports.
func (r *rig) indexed(port uint64, i, v uint8) { r.out16(port, uint16(i)|uint16(v)<<8) }

func (r *rig) attr(i, v uint8) {
	r.in8(portStatus1)
	r.out8(portAttrIndex, i)
	r.out8(portAttrIndex, v)
}

func (r *rig) vbe(i, v uint16) { r.out16(vbePortIndex, i); r.out16(vbePortData, v) }

func (r *rig) vbeRead(i uint16) uint16 { r.out16(vbePortIndex, i); return r.in16(vbePortData) }

// vbeMode enters a mode.
func (r *rig) vbeMode(w, h, bpp uint16) {
	r.vbe(vbeEnable, 0)
	r.vbe(vbeXRes, w)
	r.vbe(vbeYRes, h)
	r.vbe(vbeBPP, bpp)
	r.vbe(vbeEnable, vbeEnabled|vbeLFB)
	r.in8(portStatus1)
	r.out8(portAttrIndex, attrVideo)
}

// poke and peek access memory.
func (r *rig) poke(addr uint64, p ...byte) {
	for i, v := range p {
		r.mmio.Write(0, addr+uint64(i), []byte{v})
	}
}

func (r *rig) peek(addr uint64) uint8 {
	var p [1]byte
	r.mmio.Read(0, addr, p[:])
	return p[0]
}

// vgaMode is what a BIOS writes for a mode.
type vgaMode struct {
	misc uint8
	seq  [numSeq]uint8
	crtc [numCRTC]uint8
	gfx  [numGfx]uint8
	attr [numAttr]uint8
}

// The BIOS's modes, by their numbers, and one that it has not.
var (
	mode03 = vgaMode{0x67, [...]uint8{3, 0, 3, 0, 2},
		[...]uint8{0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff},
		[...]uint8{0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff}, attributes(0x0c, 0x0f, 0x08)}
	mode01 = vgaMode{0x67, [...]uint8{3, 8, 3, 0, 2},
		[...]uint8{0x2d, 0x27, 0x28, 0x90, 0x2b, 0xa0, 0xbf, 0x1f, 0, 0x4f, 0x0d, 0x0e, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14, 0x1f, 0x96, 0xb9, 0xa3, 0xff},
		[...]uint8{0, 0, 0, 0, 0, 0x10, 0x0e, 0, 0xff}, attributes(0x0c, 0x0f, 0x08)}
	mode04 = vgaMode{0x63, [...]uint8{3, 9, 3, 0, 2},
		[...]uint8{0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14, 0, 0x96, 0xb9, 0xa2, 0xff},
		[...]uint8{0, 0, 0, 0, 0, 0x30, 0x0f, 0, 0xff},
		[...]uint8{0, 0x13, 0x15, 0x17, 2, 4, 6, 7, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 1, 0, 3, 0, 0}}
	mode06 = vgaMode{0x63, [...]uint8{3, 1, 1, 0, 6},
		[...]uint8{0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0xc1, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0, 0x96, 0xb9, 0xc2, 0xff},
		[...]uint8{0, 0, 0, 0, 0, 0, 0x0d, 0, 0xff},
		[...]uint8{0, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 0x17, 1, 0, 1, 0, 0}}
	mode0D = vgaMode{0x63, [...]uint8{3, 9, 0xf, 0, 6},
		[...]uint8{0x2d, 0x27, 0x28, 0x90, 0x2b, 0x80, 0xbf, 0x1f, 0, 0xc0, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x14, 0, 0x96, 0xb9, 0xe3, 0xff},
		[...]uint8{0, 0, 0, 0, 0, 0, 5, 0xf, 0xff},
		[...]uint8{0, 1, 2, 3, 4, 5, 6, 7, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 1, 0, 0xf, 0, 0}}
	mode10 = vgaMode{0xa3, [...]uint8{3, 1, 0xf, 0, 6},
		[...]uint8{0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0x40, 0, 0, 0, 0, 0, 0, 0x83, 0x85, 0x5d, 0x28, 0x0f, 0x63, 0xba, 0xe3, 0xff},
		[...]uint8{0, 0, 0, 0, 0, 0, 5, 0xf, 0xff}, attributes(1, 0x0f, 0)}
	mode12 = vgaMode{0xe3, [...]uint8{3, 1, 0xf, 0, 6},
		[...]uint8{0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0b, 0x3e, 0, 0x40, 0, 0, 0, 0, 0, 0, 0xea, 0x8c, 0xdf, 0x28, 0, 0xe7, 0x04, 0xe3, 0xff},
		[...]uint8{0, 0, 0, 0, 0, 0, 5, 0xf, 0xff}, attributes(1, 0x0f, 0)}
	mode13 = vgaMode{0x63, [...]uint8{3, 1, 0xf, 0, 0xe},
		[...]uint8{0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0xbf, 0x1f, 0, 0x41, 0, 0, 0, 0, 0, 0, 0x9c, 0x8e, 0x8f, 0x28, 0x40, 0x96, 0xb9, 0xa3, 0xff},
		[...]uint8{0, 0, 0, 0, 0, 0x40, 5, 0xf, 0xff},
		[...]uint8{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0x41, 0, 0xf, 0, 0}}
	modeX = vgaMode{0xe3, [...]uint8{3, 1, 0xf, 0, 6}, // 320×240 in 256 colours, with planes
		[...]uint8{0x5f, 0x4f, 0x50, 0x82, 0x54, 0x80, 0x0d, 0x3e, 0, 0x41, 0, 0, 0, 0, 0, 0, 0xea, 0xac, 0xdf, 0x28, 0, 0xe7, 0x06, 0xe3, 0xff},
		mode13.gfx, mode13.attr}
)

func attributes(mode, planes, pan uint8) [numAttr]uint8 {
	return [...]uint8{0, 1, 2, 3, 4, 5, 0x14, 7, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, mode, 0, planes, pan, 0}
}

// set enters a mode as a BIOS does, with the palette of an EGA and, above it, a cube of colours.
func (r *rig) set(m vgaMode) {
	r.out8(portStatus0, m.misc)
	for i, v := range m.seq {
		r.indexed(portSeqIndex, uint8(i), v)
	}
	r.indexed(portCRTCIndex, crtcVSyncEnd, 0)
	for i, v := range m.crtc {
		r.indexed(portCRTCIndex, uint8(i), v)
	}
	for i, v := range m.gfx {
		r.indexed(portGfxIndex, uint8(i), v)
	}
	for i, v := range m.attr {
		r.attr(uint8(i), v)
	}
	r.in8(portStatus1)
	r.out8(portAttrIndex, attrVideo)
	r.out8(portDACMask, 0xff)
	r.out8(portDACWrite, 0)
	for i := range 256 {
		if i < 64 { // rgbRGB, one third and two thirds
			for _, shift := range []int{2, 1, 0} {
				r.out8(portDACData, uint8(42*(i>>shift&1)+21*(i>>shift>>3&1)))
			}
			continue
		}
		n := i - 64
		for _, v := range []int{n / 32, n / 4 % 8, n % 4 * 2} {
			r.out8(portDACData, uint8(9*v))
		}
	}
}

// loadFont puts a font into plane 2, for which it writes all that a BIOS does.
func (r *rig) loadFont(number int, lines int, glyph func(char, line int) uint8) {
	seq, gfx := r.card.regs.seq, r.card.regs.gfx
	r.indexed(portSeqIndex, seqMapMask, 4)
	r.indexed(portSeqIndex, seqMemoryMode, 6)
	r.indexed(portGfxIndex, gfxMode, 0)
	r.indexed(portGfxIndex, gfxMisc, 4)
	for char := range 256 {
		for line := range lines {
			r.poke(windowBase+uint64(fontOffset(uint8(number))/4+32*char+line), glyph(char, line))
		}
	}
	r.indexed(portSeqIndex, seqMapMask, seq[seqMapMask])
	r.indexed(portSeqIndex, seqMemoryMode, seq[seqMemoryMode])
	r.indexed(portGfxIndex, gfxMode, gfx[gfxMode])
	r.indexed(portGfxIndex, gfxMisc, gfx[gfxMisc])
}

// barcode is a font whose characters are told apart by eye: their number's bits in eight bars, and an edge at the left.
// Line graphics are a line across.
func barcode(char, line int) uint8 {
	switch {
	case char == 0 || char == ' ':
		return 0
	case char&0xe0 == 0xc0:
		if line == 7 {
			return 0xff
		}
	case line >= 2 && line < 14:
		bits := uint8(0x80)
		if char>>(7-(line-2)*8/12)&1 != 0 {
			bits |= 0x3c
		}
		return bits
	}
	return 0
}

func hatched(char, line int) uint8 {
	if line%2 == 0 {
		return barcode(char, line)
	}
	return barcode(char, line) ^ 0x2a
}

// print writes text with an attribute at a cell of a text mode with 80 columns.
func (r *rig) print(cell int, attr uint8, text string) {
	for i := range len(text) {
		r.poke(0xb8000+2*uint64(cell+i), text[i], attr)
	}
}

// recorder is a sink that keeps a copy of the picture as it is told of it.
type recorder struct {
	noCursor
	surface *display.Surface
	pixels  []byte // rows of width × 4 bytes
	scanout int
	updates []image.Rectangle
}

func (k *recorder) Scanout(s *display.Surface) {
	k.surface, k.pixels, k.updates = s, nil, nil
	k.scanout++
	if s != nil {
		k.pixels = make([]byte, 4*s.Width*s.Height)
		k.copy(s.Bounds())
	}
}

func (k *recorder) Update(r image.Rectangle) {
	k.updates = append(k.updates, r)
	k.copy(r)
}

func (k *recorder) copy(r image.Rectangle) {
	s := k.surface
	s.Mu.RLock()
	defer s.Mu.RUnlock()
	for y := r.Min.Y; y < r.Max.Y; y++ {
		copy(k.pixels[4*(y*s.Width+r.Min.X):4*(y*s.Width+r.Max.X)], s.Pixels[y*s.Stride+4*r.Min.X:])
	}
}

// picture draws and returns what is shown; nil is nothing.
func (r *rig) picture() (img *image.RGBA) {
	r.t.Helper()
	r.screen.Snapshot(func(s *display.Surface) {
		if s == nil {
			return
		}
		if err := s.Check(); err != nil {
			r.t.Fatal(err)
		}
		img = copyPicture(s)
	})
	return img
}

// copyPicture copies a surface.
func copyPicture(s *display.Surface) *image.RGBA {
	img := image.NewRGBA(s.Bounds())
	s.Mu.RLock()
	defer s.Mu.RUnlock()
	for y := range s.Height {
		for x := range s.Width {
			v := pixel(s.Pixels[y*s.Stride:], x)
			if s.Format == display.BGRX8888 {
				v = v>>24 | v>>8&0xff00 | v<<8&0xff0000
			}
			img.SetRGBA(x, y, color.RGBA{uint8(v >> 16), uint8(v >> 8), uint8(v), 0xff})
		}
	}
	return img
}

// golden compares the picture with testdata/<name>.png. If it is another one, it is among the artifacts.
func (r *rig) golden(name string) {
	r.t.Helper()
	got := r.picture()
	if got == nil {
		r.t.Errorf("%s: no picture", name)
		return
	}
	file := filepath.Join("testdata", name+".png")
	if *update {
		writePNG(r.t, file, got)
	}
	f, err := os.Open(file)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		r.t.Fatal(err)
	}
	want := image.NewRGBA(img.Bounds())
	differ := 0
	for y := range want.Rect.Dy() {
		for x := range want.Rect.Dx() {
			want.Set(x, y, img.At(x, y))
			if want.Rect == got.Rect && want.RGBAAt(x, y) != got.RGBAAt(x, y) {
				differ++
			}
		}
	}
	if want.Rect != got.Rect || differ > 0 {
		file := filepath.Join(r.t.ArtifactDir(), name+".png")
		writePNG(r.t, file, got)
		r.t.Errorf("%s: %v, want %v; %d pixels differ: see %s, or take it with -update", name, got.Rect, want.Rect, differ, file)
	}
}

func writePNG(t testing.TB, file string, img image.Image) {
	t.Helper()
	var b bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// save returns the card's state.
func (r *rig) save() []byte {
	r.t.Helper()
	c := snap.NewEncoder(r.card.SnapVersion())
	r.card.State(c)
	if err := c.Err(); err != nil {
		r.t.Fatal(err)
	}
	return c.Data()
}

// restored returns another rig, whose card has the given state.
func (r *rig) restored(state []byte) *rig {
	r.t.Helper()
	n := newRig(r.t, func(c *Config) { *c = r.card.cfg; c.Screen = display.NewScreen(r.screen.Monitor()) })
	n.time = r.time
	c := snap.NewDecoder(state, n.card.SnapVersion())
	n.card.State(c)
	if c.Done(); c.Err() != nil {
		r.t.Fatal(c.Err())
	}
	return n
}
