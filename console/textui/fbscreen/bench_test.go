package fbscreen

import (
	"image"
	"testing"
	"unicode/utf8"

	"github.com/gdamore/tcell/v3"
)

// BenchmarkResize makes a picture anew, with its font: what a new monitor costs.
func BenchmarkResize(b *testing.B) {
	for i := range b.N {
		s := New(nobody{})
		if err := s.Resize(image.Pt(1024, 740+i%2)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkShow draws all of a screen's characters, each of which is another one than before.
func BenchmarkShow(b *testing.B) {
	s := New(nobody{})
	if err := s.Resize(image.Pt(1024, 740)); err != nil {
		b.Fatal(err)
	}
	w, h := s.Size()
	for i := range b.N {
		for y := range h {
			for x := range w {
				s.Put(x, y, string(rune('!'+(i+x+y)%(utf8.RuneSelf-'!'-1))), tcell.StyleDefault)
			}
		}
		s.Show()
	}
}
