package qdisplay

import (
	"image"
	"testing"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// frames is a sink that says when it was told something.
type frames struct{ c chan struct{} }

func (f frames) Scanout(s *display.Surface) {
	if s != nil {
		f.c <- struct{}{}
	}
}
func (f frames) Update(image.Rectangle) { f.c <- struct{}{} }
func (frames) Cursor(*display.Cursor)   {}
func (frames) MoveCursor(image.Point)   {}

// framesRig returns a surface of 1920×1080 that is shown, and a function that updates a part of it and returns when the sink
// at the other end of the sockets has been told.
func framesRig(t testing.TB, shared, noMap bool) (*display.Surface, func(image.Rectangle)) {
	g := newGuest(t)
	surface := newSurface(t, 1920, 1080, shared)
	g.screen.Scanout(surface)
	told := frames{make(chan struct{}, 16)}
	r, err := g.client(t, ClientConfig{}).Listen(t.Context(), 0, told, ReceiverConfig{NoMap: noMap})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	<-told.c
	return surface, func(r image.Rectangle) {
		g.screen.Update(r)
		<-told.c
	}
}

// From the device's Update to that of the sink in the other process, the picture being shared memory.
func BenchmarkUpdateMap(b *testing.B) {
	_, show := framesRig(b, true, false)
	b.ReportAllocs()
	for b.Loop() {
		show(image.Rect(100, 100, 356, 356))
	}
}

// The same, with 256×256 pixels as bytes.
func BenchmarkUpdateData(b *testing.B) {
	_, show := framesRig(b, false, true)
	b.SetBytes(256 * 256 * 4)
	b.ReportAllocs()
	for b.Loop() {
		show(image.Rect(100, 100, 356, 356))
	}
}

// Whole frames of 1920×1080.
func BenchmarkFrames(b *testing.B) {
	for name, noMap := range map[string]bool{"map": false, "data": true} {
		b.Run(name, func(b *testing.B) {
			surface, show := framesRig(b, true, noMap)
			b.SetBytes(1920 * 1080 * 4)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				show(surface.Bounds())
				n++
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "frames/s")
		})
	}
}

// Page flips between two surfaces that are mapped already.
func BenchmarkFlip(b *testing.B) {
	g := newGuest(b)
	surfaces := [2]*display.Surface{newSurface(b, 1920, 1080, true), newSurface(b, 1920, 1080, true)}
	told := frames{make(chan struct{}, 16)}
	r, err := g.client(b, ClientConfig{}).Listen(b.Context(), 0, told, ReceiverConfig{})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		g.screen.Scanout(surfaces[i%2])
		<-told.c
	}
}

// arrival is an input that says when a batch has come.
type arrival struct{ c chan struct{} }

func (a arrival) Send([]hid.Event) { a.c <- struct{}{} }

// inputRig returns an input of the seat, and a channel of the batches that the guest gets.
func inputRig(t testing.TB) (hid.Sink, <-chan struct{}) {
	got := make(chan struct{}, 16)
	screen := display.NewScreen(display.Monitor{})
	screen.Scanout(newSurface(t, 1920, 1080, false))
	server := NewServer(Config{Screens: []*display.Screen{screen}, Input: arrival{got}})
	t.Cleanup(func() { server.Close() })
	c, err := NewClient((&guest{server: server}).sock(t), ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Console(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	return c.Sender(0), got
}

// From the seat's Send to that of the guest's input in the other process.
func BenchmarkKey(b *testing.B) {
	in, got := inputRig(b)
	batches := [2][]hid.Event{{{Type: hid.EVKey, Code: 30, Value: 1}}, {{Type: hid.EVKey, Code: 30, Value: 0}}}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		in.Send(batches[i%2])
		<-got
	}
}

// What moves all the time allocates nothing on its way, on both sides together.
func TestHotPathsAllocateNothing(t *testing.T) {
	in, got := inputRig(t)
	_, show := framesRig(t, true, false)
	_, copied := framesRig(t, false, true)
	key := [2][]hid.Event{{{Type: hid.EVKey, Code: 30, Value: 1}}, {{Type: hid.EVKey, Code: 30, Value: 0}}}
	move := []hid.Event{{Type: hid.EVAbs, Code: hid.AbsX, Value: 5}, {Type: hid.EVAbs, Code: hid.AbsY, Value: 6}}
	for name, f := range map[string]func(){
		"a key": func() {
			in.Send(key[0])
			<-got
			in.Send(key[1])
			<-got
		},
		"a movement":              func() { in.Send(move); <-got },
		"damage of shared memory": func() { show(image.Rect(1, 2, 30, 40)) },
		"damage with its pixels":  func() { copied(image.Rect(1, 2, 300, 400)) },
	} {
		if n := testing.AllocsPerRun(200, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
