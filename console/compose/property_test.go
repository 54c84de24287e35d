package compose

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"testing"

	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/vgpu/display"
)

// TestBufferAge draws, moves, switches, waits or does not wait for frames, in any order. Whenever the head comes to rest,
// the screen shows exactly what a drawing from nothing shows: no buffer has forgotten a change. And at no moment is
// there a buffer on the screen that has no whole picture.
func TestBufferAge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		scale := rapid.Bool().Draw(t, "scale")
		r := newRig(t, Config{IntegerScale: scale, Buffers: rapid.IntRange(2, 6).Draw(t, "buffers")}, 160, 120)
		r.out.hardware = rapid.Bool().Draw(t, "hardware pointer")
		size := r.h.GuestSize()
		var all []*Source
		serial := uint32(0)
		color := func() uint32 { serial++; return serial * 0x01234567 & 0xffffff }
		scanout := func(s *Source) {
			w := rapid.SampledFrom([]int{size.X, size.X, size.X + 9, 33, 1}).Draw(t, "width")
			h := rapid.SampledFrom([]int{size.Y, size.Y, size.Y + 9, 22, 1}).Draw(t, "height")
			f := plain(w+rapid.IntRange(0, 3).Draw(t, "slack"), h, color())
			f.Width, f.Format = w, rapid.SampledFrom(formats()).Draw(t, "format")
			s.Scanout(f)
		}
		for i := range rapid.IntRange(1, 4).Draw(t, "guests") {
			all = append(all, r.c.NewSource(guest(fmt.Sprint("g", i), i+1, "blue")))
		}
		source := func() *Source { return rapid.SampledFrom(all).Draw(t, "guest") }
		point := func() image.Point {
			return image.Pt(rapid.IntRange(-20, 180).Draw(t, "x"), rapid.IntRange(-20, 140).Draw(t, "y"))
		}
		t.Repeat(map[string]func(*rapid.T){
			"scanout": func(*rapid.T) { scanout(source()) },
			"off":     func(*rapid.T) { source().Scanout(nil) },
			"update": func(*rapid.T) {
				s := source()
				if s.surface == nil {
					return
				}
				p, q := point(), point()
				d := image.Rectangle{p, q}.Canon().Intersect(s.surface.Bounds())
				paint(s.surface, d, color())
				s.Update(d)
			},
			"pointer": func(t *rapid.T) {
				k := &display.Cursor{Width: rapid.IntRange(1, 9).Draw(t, "w"), Height: 4, Hot: image.Pt(0, rapid.IntRange(0, 3).Draw(t, "hot"))}
				k.Pixels = bytes.Repeat([]byte{40, 50, 60, 0x90}, k.Width*k.Height)
				source().Cursor(k)
			},
			"hide":    func(*rapid.T) { source().Cursor(nil) },
			"move":    func(*rapid.T) { source().MoveCursor(point()) },
			"switch":  func(*rapid.T) { r.c.Switch(source()) },
			"nobody":  func(*rapid.T) { r.c.Switch(nil) },
			"clock":   func(t *rapid.T) { r.c.SetStatus(Status{Clock: fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "clock"))}) },
			"placard": func(*rapid.T) { p := trustbar.Off(guest("x", 1, "red")); source().SetPlacard(&p, "off") },
			"well":    func(*rapid.T) { source().SetPlacard(nil, "") },
			"input":   func(*rapid.T) { r.c.SetInput(source()) },
			"refresh": func(*rapid.T) { r.c.Refresh() },
			"mode":    func(*rapid.T) { _ = r.h.setup() },
			"close": func(*rapid.T) {
				if len(all) > 1 {
					all[0].Close()
					all = all[1:]
				}
			},
			"step": func(*rapid.T) { r.now = r.now.Add(prepareEvery); r.h.step(r.now) },
			"flip": func(*rapid.T) {
				if r.out.next != nil {
					r.out.flip()
					r.h.flipped(r.now)
				}
			},
			"rest": func(t *rapid.T) {
				if r.out.next != nil {
					r.out.flip()
					r.h.flipped(r.now)
				}
				r.settle()
				compare(t, r)
			},
			"": func(t *rapid.T) { // at any moment
				if k := r.h.shown; k != nil && r.out.front == k.buf && k.src != nil {
					if !k.valid {
						t.Fatal("a buffer is on the screen that has no whole picture")
					}
				}
			},
		})
		if r.out.next != nil {
			r.out.flip()
			r.h.flipped(r.now)
		}
		r.settle()
		compare(t, r)
	})
}

// compare draws what is to be on the screen, pixel by pixel and anew, and compares.
func compare(t *rapid.T, r *rig) {
	src := r.h.want.Load()
	fonts, err := trustbar.NewFonts(image.Pt(160, 120))
	if err != nil {
		t.Fatal(err)
	}
	bar := fonts.New(160)
	bar.Set(r.c.barState(src, true))
	area := image.Rect(0, bar.Picture().Height, 160, 120)
	var card *trustbar.Picture
	if src.surface == nil || src.placard != nil {
		if card, err = r.c.placardOf(src, &snapshot{placard: src.placard, seen: src.seen}).Draw(area.Size()); err != nil {
			t.Fatal(err)
		}
	}
	for y := range 120 {
		for x := range 160 {
			want := expected(r, src, image.Pt(x, y), bar.Picture(), card, area)
			if got := r.out.pixel(x, y); got != want {
				t.Fatalf("(%d, %d) is %06x, want %06x", x, y, got, want)
			}
		}
	}
}

func expected(r *rig, src *Source, at image.Point, bar, card *trustbar.Picture, area image.Rectangle) uint32 {
	word := func(p *trustbar.Picture, x, y int) uint32 {
		return binary.LittleEndian.Uint32(p.Pixels[y*p.Stride+4*x:]) & 0xffffff
	}
	if at.Y < area.Min.Y {
		return word(bar, at.X, at.Y)
	}
	if card != nil {
		corner := area.Min.Add(image.Pt((area.Dx()-card.Width)/2, (area.Dy()-card.Height)/2))
		if p := at.Sub(corner); p.In(card.Bounds()) {
			return word(card, p.X, p.Y)
		}
	}
	f := src.surface
	if f == nil {
		return trustbar.Background() & 0xffffff
	}
	k := 1
	for r.c.cfg.IntegerScale && f.Width*(k+1) <= area.Dx() && f.Height*(k+1) <= area.Dy() {
		k++
	}
	var left, top int
	if f.Width*k < area.Dx() {
		left = (area.Dx() - f.Width*k) / 2
	}
	if f.Height*k < area.Dy() {
		top = (area.Dy() - f.Height*k) / 2
	}
	v := uint32(0)
	x, y := at.X-left, at.Y-area.Min.Y-top
	if x >= 0 && y >= 0 && x/k < f.Width && y/k < f.Height {
		b := f.Pixels[y/k*f.Stride+x/k*4:]
		switch f.Format { // by the formats' names, not by our conversion
		case display.XRGB8888, display.ARGB8888:
			v = uint32(b[2])<<16 | uint32(b[1])<<8 | uint32(b[0])
		case display.XBGR8888, display.ABGR8888:
			v = uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2])
		case display.RGBX8888, display.RGBA8888:
			v = uint32(b[3])<<16 | uint32(b[2])<<8 | uint32(b[1])
		default:
			v = uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		}
	}
	c := src.cursor
	if c == nil || r.out.cursor == c {
		return v
	}
	d := image.Pt(x, y).Sub(src.at.Sub(c.Hot).Mul(k))
	if !d.In(image.Rect(0, 0, c.Width*k, c.Height*k)) {
		return v
	}
	q := d.Div(k)
	return over(binary.LittleEndian.Uint32(c.Pixels[4*(q.Y*c.Width+q.X):]), v)
}
