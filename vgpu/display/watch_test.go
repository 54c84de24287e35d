package display

import (
	"fmt"
	"image"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type noSink struct{}

func (noSink) Scanout(*Surface)       {}
func (noSink) Update(image.Rectangle) {}
func (noSink) Cursor(*Cursor)         {}
func (noSink) MoveCursor(image.Point) {}

func TestOnWatch(t *testing.T) {
	s := NewScreen(Monitor{})
	var got []string
	say := func(format string, args ...any) { got = append(got, fmt.Sprintf(format, args...)) }
	first := s.Attach(noSink{})
	f := &Surface{Width: 1, Height: 1, Stride: 4, Format: XRGB8888, Pixels: make([]byte, 4)}
	stop := s.OnWatch(func(on bool) { say("watched %v", on) }, func() { say("draw"); s.Scanout(f) })
	second := s.Attach(noSink{})
	first()
	first()
	follow := s.Follow(noSink{})
	second()
	follow()
	s.Follow(noSink{})
	s.Snapshot(func(have *Surface) { say("surface %v", have == f) })
	third := s.Attach(noSink{})
	stop()
	third()
	s.Snapshot(func(*Surface) {})
	want := []string{"watched true", "watched false", "draw", "surface true", "watched true"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
