package trustbar

import (
	"bytes"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// named returns the colour of a name.
func named(t testing.TB, name string) Color {
	t.Helper()
	c, ok := ParseColor(name)
	if !ok {
		t.Fatalf("no colour %q", name)
	}
	return c
}

func newBar(t testing.TB, screen image.Point) *Bar {
	t.Helper()
	f, err := NewFonts(screen)
	if err != nil {
		t.Fatal(err)
	}
	return f.New(screen.X)
}

// work is a usual state.
func work(t testing.TB) State {
	g := Guest{"work", "Company notebook", 1, named(t, "blue")}
	return State{Guest: g, Input: g, Hint: "Ctrl+Alt+Esc", Battery: Battery{true, 87, false}, Clock: "14:05"}
}

// picture returns p for comparison and encoding.
func (p *Picture) image() *image.RGBA {
	m := image.NewRGBA(p.Bounds())
	for i := 0; i < len(m.Pix); i += 4 {
		m.Pix[i], m.Pix[i+1], m.Pix[i+2], m.Pix[i+3] = p.Pixels[i+2], p.Pixels[i+1], p.Pixels[i], p.Pixels[i+3]
	}
	return m
}

// golden compares a picture with testdata/name.png.
func golden(t *testing.T, name string, p *Picture) {
	t.Helper()
	file := filepath.Join("testdata", name+".png")
	if *update {
		var b bytes.Buffer
		if err := png.Encode(&b, p.image()); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, err := png.Decode(f)
	if err != nil {
		t.Fatal(err)
	}
	got := p.image()
	if want.Bounds() != got.Rect {
		t.Fatalf("%s: %v pixels, want %v", file, got.Rect.Size(), want.Bounds().Size())
	}
	for y := range got.Rect.Dy() {
		for x := range got.Rect.Dx() {
			if w := color.RGBAModel.Convert(want.At(x, y)); w != got.At(x, y) {
				t.Fatalf("%s: (%d, %d) is %v, want %v; look at the pictures that -update makes", file, x, y, got.At(x, y), w)
			}
		}
	}
}

func TestBars(t *testing.T) {
	screens := map[string]image.Point{"": {1024, 768}, "-hd": {1920, 1080}, "-vga": {640, 480}}
	elsewhere := work(t)
	elsewhere.Input = Guest{Name: "personal", Slot: 2, Color: named(t, "green")}
	nobody := work(t)
	nobody.Input = Guest{}
	hung := work(t)
	hung.Guest.Color, hung.Note, hung.Battery = named(t, "red"), "not responding", Battery{true, 8, false}
	hung.Input = hung.Guest
	charging := work(t)
	charging.Guest = Guest{"personal", "Debian 12: mail, music and everything else that is fun", 2, named(t, "green")}
	charging.Input, charging.Battery = charging.Guest, Battery{true, 42, true}
	lodge := work(t)
	lodge.Guest = Guest{Name: "Lodge", Label: "Console", Color: Lodge()}
	lodge.Input, lodge.Hint = lodge.Guest, ""
	hostile := work(t)
	hostile.Guest.Name = "\u202ekrow\u202c\nwork\x1b[31m " + strings.Repeat("w\u0301\u0302\u0303", 100)
	hostile.Guest.Label, hostile.Input = strings.Repeat("very long ", 100), hostile.Guest
	hostile.News.Guest.Name = hostile.Guest.Name
	news := work(t)
	news.News = News{Guest{Name: "personal", Slot: 2, Color: named(t, "green")}, "Ctrl+Alt+2"}
	for name, s := range map[string]State{
		"news": news, "work": work(t), "elsewhere": elsewhere, "nobody": nobody, "hung": hung, "charging": charging, "lodge": lodge,
		"hostile": hostile, "empty": {},
	} {
		for suffix, screen := range screens {
			t.Run(name+suffix, func(t *testing.T) {
				b := newBar(t, screen)
				if got := b.Set(s); got != b.Picture().Bounds() {
					t.Errorf("first picture changes %v", got)
				}
				golden(t, name+suffix, b.Picture())
			})
		}
	}
	for _, c := range ColorNames() {
		t.Run(c, func(t *testing.T) {
			b := newBar(t, screens[""])
			s := work(t)
			s.Guest.Color = named(t, c)
			s.Input = s.Guest
			b.Set(s)
			golden(t, "color-"+c, b.Picture())
		})
	}
}

func TestPlacards(t *testing.T) {
	g := Guest{Name: "work", Color: named(t, "blue")}
	for name, p := range map[string]Placard{
		"no-guest":       NoGuest("Ctrl+Alt+Esc"),
		"starting":       Starting(g),
		"off":            Off(g),
		"not-responding": NotResponding(g, "Ctrl+Alt+Esc"),
		"crashed":        Crashed(g, "signal 11 (segmentation fault)", "Ctrl+Alt+Esc"),
		"stopped":        Stopped(Guest{}, "Ctrl+Alt+Esc"),
		"hostile": Crashed(Guest{Name: strings.Repeat("\u202eevil ", 100)}, strings.Repeat("line after line\n", 100),
			strings.Repeat("x", 1000)),
	} {
		t.Run(name, func(t *testing.T) {
			for suffix, screen := range map[string]image.Point{"": {1024, 740}, "-hd": {1920, 1046}} {
				pic, err := p.Draw(screen)
				if err != nil {
					t.Fatal(err)
				}
				if !pic.Bounds().In(image.Rectangle{Max: screen}) {
					t.Errorf("%v pixels on a screen of %v", pic.Bounds().Size(), screen)
				}
				golden(t, "placard-"+name+suffix, pic)
			}
		})
	}
	for _, screen := range []image.Point{{}, {1, 1}, {3, 200}, {200, 3}, {16384, 16384}} {
		if pic, err := Starting(g).Draw(screen); err != nil || !pic.Bounds().In(image.Rectangle{Max: screen}) {
			t.Errorf("screen of %v: picture of %v, %v", screen, pic.Bounds().Size(), err)
		}
	}
}

// TestSet changes one thing after the other: what Set returns is where the picture has changed, and nothing is drawn anew
// when nothing has changed.
func TestSet(t *testing.T) {
	b := newBar(t, image.Pt(1024, 768))
	s := work(t)
	b.Set(s)
	if r := b.Set(s); !r.Empty() {
		t.Errorf("same state: changed %v", r)
	}
	if n := testing.AllocsPerRun(100, func() { b.Set(s) }); n != 0 {
		t.Errorf("same state: %v allocations", n)
	}
	for name, change := range map[string]func(*State){
		"clock":   func(s *State) { s.Clock = "14:06" },
		"battery": func(s *State) { s.Battery.Percent = 5 },
		"note":    func(s *State) { s.Note = "paused" },
		"guest":   func(s *State) { s.Guest.Color = named(t, "red") },
	} {
		t.Run(name, func(t *testing.T) {
			b.Set(s)
			before := bytes.Clone(b.Picture().Pixels)
			next := s
			change(&next)
			r := b.Set(next)
			if r.Empty() || name == "clock" && r.Dx() > 60 {
				t.Errorf("changed %v", r)
			}
			p := b.Picture()
			for i := 0; i < len(before); i += 4 {
				if at := image.Pt(i%p.Stride/4, i/p.Stride); !at.In(r) && !bytes.Equal(before[i:i+4], p.Pixels[i:i+4]) {
					t.Fatalf("%v has changed, outside of %v", at, r)
				}
			}
		})
	}
}

// TestField looks for the guest's colour where a person does: at the left edge and along the lower one.
func TestField(t *testing.T) {
	for _, name := range ColorNames() {
		b := newBar(t, image.Pt(1024, 768))
		c := named(t, name)
		b.Set(State{Guest: Guest{Name: "x", Color: c}})
		m := b.Picture().image()
		for _, at := range []image.Point{{0, 0}, {0, 27}, {1023, 27}, {500, 27}} {
			if got := m.RGBAAt(at.X, at.Y); got != c.theme().field {
				t.Errorf("%s: %v is %v", name, at, got)
			}
		}
	}
}

// luminance is WCAG 2.2's relative luminance.
func luminance(c color.RGBA) float64 {
	f := func(v uint8) float64 {
		s := float64(v) / 255
		if s <= 0.04045 {
			return s / 12.92
		}
		return math.Pow((s+0.055)/1.055, 2.4)
	}
	return 0.2126*f(c.R) + 0.7152*f(c.G) + 0.0722*f(c.B)
}

func contrast(a, b color.RGBA) float64 {
	la, lb := luminance(a), luminance(b)
	return (max(la, lb) + 0.05) / (min(la, lb) + 0.05)
}

func TestContrast(t *testing.T) {
	type pair struct {
		name       string
		ink, field color.RGBA
	}
	pairs := []pair{
		{"text", text, ground}, {"quiet text", quiet, ground}, {"alert", black, alert}, {"low battery", low, ground},
		{"text of a placard", text, raised}, {"quiet text of a placard", quiet, raised},
	}
	for _, th := range themes() {
		pairs = append(pairs, pair{"guest " + th.name, th.ink, th.field})
	}
	for _, p := range pairs {
		if c := contrast(p.ink, p.field); c < 4.5 {
			t.Errorf("%s: contrast %.1f to 1, want 4.5 at least", p.name, c)
		}
	}
	if diff := cmp.Diff([]string{"grey", "red", "orange", "yellow", "green", "blue", "purple", "black"}, ColorNames()); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if _, ok := ParseColor(""); ok {
		t.Error("Lodge's colour has a name")
	}
}

func TestHeight(t *testing.T) {
	for _, tt := range []struct{ w, h, want int }{
		{1024, 768, 28}, {640, 480, 22}, {1366, 768, 28}, {1920, 1080, 34}, {2560, 1440, 42}, {3840, 2160, 56}, {16384, 16384, 64},
		{1, 1, 20},
	} {
		if got := Height(image.Pt(tt.w, tt.h)); got != tt.want {
			t.Errorf("%d×%d: %d, want %d", tt.w, tt.h, got, tt.want)
		}
	}
}

func TestClock(t *testing.T) {
	for second, want := range map[int]time.Duration{0: time.Minute, 59: time.Second} {
		text, next := Clock(time.Date(2026, 3, 1, 4, 5, second, 0, time.UTC))
		if text != "04:05" || next != want {
			t.Errorf("second %d: %q for %v, want %v", second, text, next, want)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                              "",
		"work":                          "work",
		"  Größe \t\n\r 7  ":            "Größe 7",
		"\u202eabc\u2066\u200b\ufeff":   "abc",
		"a\x00b\x1b[31mc\u0085d":        "ab[31mc d",
		"Z\u0300\u0301\u0302a\u20dd":    "Za",
		"\xff\xfe":                      "\ufffd\ufffd",
		"\U000e0041\ue000\U0010fffdtag": "tag",
		"Бюро 日本":                       "Бюро 日本",
		"\u2028\u2029\u00a0x\u3164":     "x\u3164",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzBar(f *testing.F) {
	f.Add("work", "Company", 1, uint8(3), "note", 50)
	f.Add("\u202e\x00\xff", strings.Repeat("w", 5000), -7, uint8(255), "\n", -1)
	fonts, err := NewFonts(image.Pt(320, 200))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name, label string, slot int, c uint8, note string, percent int) {
		s := Clean(name)
		if !utf8.ValidString(s) || utf8.RuneCountInString(s) > maxRunes || strings.IndexFunc(s, unicode.IsControl) >= 0 ||
			strings.IndexFunc(s, func(r rune) bool { return unicode.In(r, unicode.Cf, unicode.M) }) >= 0 {
			t.Errorf("%q was cleaned to %q", name, s)
		}
		b := fonts.New(320)
		col := Color{c % uint8(len(themes()))}
		g := Guest{name, label, slot, col}
		b.Set(State{Guest: g, Input: Guest{Name: label}, Note: note, Hint: label, Battery: Battery{true, percent, c&1 == 0}, Clock: name})
		// Whatever the texts are, the left edge and the lower one are the guest's colour.
		m := b.Picture().image()
		if got := m.RGBAAt(0, b.height-1); got != col.theme().field {
			t.Errorf("lower left corner is %v", got)
		}
	})
}

func BenchmarkSet(b *testing.B) {
	bar := newBar(b, image.Pt(1920, 1080))
	s := work(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Clock = fmt.Sprintf("14:%02d", i%60)
		bar.Set(s)
	}
}
