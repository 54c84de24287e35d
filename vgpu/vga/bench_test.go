package vga

import "testing"

// All of a screen of text, as after a mode switch.
func BenchmarkText(b *testing.B) {
	r := newRig(b)
	textScreen(r, mode03)
	bench(b, r, func(int) { r.card.picture.mode = mode{} })
}

// A screen of text moves up by a line, as a console does it: the start address, and one new line.
func BenchmarkTextScroll(b *testing.B) {
	r := newRig(b)
	textScreen(r, mode03)
	bench(b, r, func(i int) { r.indexed(portCRTCIndex, crtcStartLow, uint8(80*(i%3))) })
}

// One character, as somebody types.
func BenchmarkTextType(b *testing.B) {
	r := newRig(b)
	textScreen(r, mode03)
	p := []byte{0}
	bench(b, r, func(i int) { p[0] = byte(i); r.mmio.Write(0, 0xb8000, p) })
}

func BenchmarkPlanar(b *testing.B) {
	r := newRig(b)
	r.set(mode12)
	bench(b, r, func(int) { r.card.video.dirty.all() })
}

// All of a frame of 1024×768 pixels of 16 bits: all of it changed, or looked at in vain.
func Benchmark16(b *testing.B) {
	r := newRig(b)
	r.vbeMode(1024, 768, 16)
	b.Run("same", func(b *testing.B) { bench(b, r, func(int) { r.card.video.dirty.all() }) })
	b.Run("changed", func(b *testing.B) {
		bench(b, r, func(i int) {
			for j := 0; j < 1024*768*2; j += 1022 {
				r.card.video.memory[j] = byte(i)
			}
			r.card.video.dirty.all()
		})
	})
}

// A frame of 32 bits in which nothing has changed: what the card does while it waits.
func Benchmark32Idle(b *testing.B) {
	r := newRig(b)
	r.vbeMode(1024, 768, 32)
	bench(b, r, func(int) {})
}

func BenchmarkWindowWrite(b *testing.B) {
	r := newRig(b)
	r.set(mode12)
	b.ReportAllocs()
	p := []byte{0x55}
	for i := 0; b.Loop(); i++ {
		r.mmio.Write(0, windowBase+uint64(i&0xffff), p)
	}
}

func bench(b *testing.B, r *rig, change func(i int)) {
	b.Helper()
	b.ReportAllocs()
	r.card.draw()
	for i := 0; b.Loop(); i++ {
		change(i)
		r.card.draw()
	}
}
