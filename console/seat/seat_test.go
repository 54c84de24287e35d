package seat

import (
	"context"
	"fmt"
	"image/color"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lodgehv/lodge/console/headless"
	"github.com/lodgehv/lodge/console/qdisplay"
	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hid/route"
	"github.com/lodgehv/lodge/vgpu/display"
)

// machine is a guest's machine as the seat sees it: a screen of one colour, and a keyboard that writes down what it gets.
type machine struct {
	path   string
	screen *display.Screen

	mu   sync.Mutex
	keys []string
	held map[uint16]bool
	srv  *qdisplay.Server
}

func newMachine(t *testing.T, path string, c color.RGBA) *machine {
	m := &machine{path: path, screen: display.NewScreen(display.Monitor{Connected: true, Width: 64, Height: 48}), held: make(map[uint16]bool)}
	s := &display.Surface{Width: 320, Height: 200, Stride: 1280, Format: display.XRGB8888, Pixels: make([]byte, 1280*200)}
	for at := 0; at < len(s.Pixels); at += 4 {
		copy(s.Pixels[at:], []byte{c.B, c.G, c.R, 0})
	}
	m.screen.Scanout(s)
	m.on(t)
	return m
}

func (m *machine) on(t *testing.T) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	srv := qdisplay.NewServer(qdisplay.Config{Name: "x", UUID: "00000000-0000-0000-0000-000000000000", Screens: []*display.Screen{m.screen}, Input: m})
	m.srv = srv
	go func() { _ = srv.Serve(l) }() // ends with off
	t.Cleanup(m.off)
}

func (m *machine) off() { _ = m.srv.Close() }

// Send implements hid.Sink.
func (m *machine) Send(batch []hid.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range batch {
		if e.Type == hid.EVKey {
			m.keys = append(m.keys, fmt.Sprintf("%s%+d", hid.KeyName(e.Code), 2*e.Value-1))
			m.held[e.Code] = e.Value != 0
		}
	}
}

// typed returns what was typed since it was called last, without modifiers, and reports an error if anything is held.
func (m *machine) typed(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%v typed", want), func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		got := slices.DeleteFunc(slices.Clone(m.keys), func(k string) bool { return strings.HasPrefix(k, "left") })
		return slices.Equal(got, want)
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys = nil
}

func (m *machine) nothingHeld(t *testing.T) {
	t.Helper()
	eventually(t, "no key held", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, down := range m.held {
			if down {
				return false
			}
		}
		return true
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not yet: %s", what)
		}
	}
}

// rig is a seat with two guests and a screen.
type rig struct {
	*Seat
	t         *testing.T
	screen    *headless.Screen
	red, blue *machine
	ready     chan string
}

var (
	red  = color.RGBA{200, 0, 0, 255}
	blue = color.RGBA{0, 0, 200, 255}
)

func newRig(t *testing.T) *rig { return newManagedRig(t, nil, "") }

// newManagedRig returns a rig whose configuration has more.
func newManagedRig(t *testing.T, manager textui.System, more string) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, red: newMachine(t, filepath.Join(dir, "red"), red), blue: newMachine(t, filepath.Join(dir, "blue"), blue)}
	cfg, err := Parse("seat.toml", dir, `
[[guest]]
name = "Work"
color = "red"
slot = 1
display = "red"
[[guest]]
name = "Home"
label = "for the evening"
color = "blue"
slot = 2
display = "blue"
`+more)
	if err != nil {
		t.Fatal(err)
	}
	r.ready = make(chan string)
	if r.Seat, err = New(cfg, Options{Manager: manager, Ready: r.ready}); err != nil {
		t.Fatal(err)
	}
	if r.screen, err = headless.NewScreen("test", 640, 480); err != nil {
		t.Fatal(err)
	}
	show, err := r.Plug(r.screen)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := show(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { r.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	// Which guest comes first is chance.
	eventually(t, "both guests are there", func() bool {
		return r.guests[0].sender.Load() != nil && r.guests[1].sender.Load() != nil && r.Router.Focus() != ""
	})
	return r
}

func (r *rig) shows(c color.RGBA) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("the screen is %v", c), func() bool { return r.screen.Image().RGBAAt(320, 260) == c })
	if bar := r.screen.Image().RGBAAt(320, 2); bar == c {
		r.t.Errorf("the guest's colour is in the bar")
	}
}

func (r *rig) key(code uint16, down int32) {
	r.Input(1, monotonic(), []hid.Event{{Type: hid.EVKey, Code: code, Value: down}})
}

func (r *rig) chord(code uint16) {
	for _, k := range []uint16{hid.KeyLeftCtrl, hid.KeyLeftAlt, code} {
		r.key(k, 1)
	}
	for _, k := range []uint16{code, hid.KeyLeftAlt, hid.KeyLeftCtrl} {
		r.key(k, 0)
	}
}

func (r *rig) typeKey(code uint16) { r.key(code, 1); r.key(code, 0) }

func TestSwitch(t *testing.T) {
	r := newRig(t)
	for range 3 {
		r.chord(hid.Key1)
		r.shows(red)
		r.typeKey(hid.KeyA)
		r.red.typed(t, "a+1", "a-1")
		r.chord(hid.Key2)
		r.shows(blue)
		r.typeKey(hid.KeyB)
		r.blue.typed(t, "b+1", "b-1")
		r.red.typed(t)
	}
	r.red.nothingHeld(t)
	r.blue.nothingHeld(t)
}

func TestAttention(t *testing.T) {
	r := newRig(t)
	r.chord(hid.Key1)
	r.shows(red)
	r.chord(hid.KeyEsc)
	eventually(t, "Lodge is shown", func() bool { return r.screen.Image().RGBAAt(320, 460) != red })
	r.typeKey(hid.KeyQ) // which no guest sees
	r.typeKey(hid.Key2)
	r.shows(blue)
	r.chord(hid.KeyEsc)
	r.typeKey(hid.KeyEsc)
	r.shows(blue)
	r.red.typed(t)
	r.blue.typed(t)
}

func TestMachineGoesAndComes(t *testing.T) {
	r := newRig(t)
	r.chord(hid.Key2)
	r.shows(blue)
	r.chord(hid.Key1)
	r.shows(red)
	r.red.off()
	r.shows(blue) // the focus goes to the one before
	r.red.on(t)
	r.shows(red) // and comes back
	r.typeKey(hid.KeyA)
	r.red.typed(t, "a+1", "a-1")
}

// lit is the input of a machine with lights.
type lit struct {
	mu   sync.Mutex
	leds hid.LEDs
	tell func(hid.LEDs)
}

func (*lit) Send([]hid.Event) {}

func (l *lit) LEDs() hid.LEDs {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leds
}

func (l *lit) OnLEDs(f func(hid.LEDs)) (stop func()) {
	l.tell = f
	return func() {}
}

func (l *lit) set(leds hid.LEDs) {
	l.mu.Lock()
	l.leds = leds
	l.mu.Unlock()
	l.tell(leds)
}

// TestLightsWhileConnecting has a guest turn a light on after its machine was asked for them, and before it can be seen.
func TestLightsWhileConnecting(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "red"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	in := &lit{}
	screen := display.NewScreen(display.Monitor{Connected: true, Width: 64, Height: 48})
	srv := qdisplay.NewServer(qdisplay.Config{Name: "x", Screens: []*display.Screen{screen}, Input: in})
	t.Cleanup(func() { _ = srv.Close() })
	t.Cleanup(screen.OnMonitor(func(display.Monitor) {
		in.set(hid.LEDCaps)
		time.Sleep(50 * time.Millisecond) // the seat waits for the answer: it hears of the light first
	}))
	go func() { _ = srv.Serve(l) }() // ends with Close
	cfg, err := Parse("seat.toml", dir, "[[guest]]\nname = \"a\"\ncolor = \"red\"\nslot = 1\ndisplay = \"red\"\n")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := headless.NewScreen("test", 640, 480)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Plug(out); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	eventually(t, "the guest has the focus", func() bool { return s.Router.Focus() == "a" })
	if leds := s.Router.LEDs(); leds != hid.LEDCaps {
		t.Errorf("lights %b, want %b", leds, hid.LEDCaps)
	}
	cancel()
	wg.Wait()
}

// TestTypingBeforeGuests types in Lodge's console when the first guest comes: it is not shown at once then.
func TestTypingBeforeGuests(t *testing.T) {
	for _, typing := range []bool{false, true} {
		dir := t.TempDir()
		cfg, err := Parse("seat.toml", dir, "[[guest]]\nname = \"a\"\ncolor = \"red\"\nslot = 1\ndisplay = \"red\"\n")
		if err != nil {
			t.Fatal(err)
		}
		there := make(chan struct{})
		s, err := New(cfg, Options{OnGuest: func(_ string, is bool) {
			if is {
				close(there)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.Run(ctx) })
		want := "a"
		if typing {
			s.Input(1, monotonic(), []hid.Event{{Type: hid.EVKey, Code: hid.KeyX, Value: 1}})
			want = route.Console
		}
		newMachine(t, filepath.Join(dir, "red"), red)
		<-there
		if got := s.Router.Focus(); got != want {
			t.Errorf("typing %v: %s has the focus, want %s", typing, got, want)
		}
		cancel()
		wg.Wait()
	}
}

// TestEdge pushes the mouse through the right edge of the screen, where there is a way, and where there is none.
func TestEdge(t *testing.T) {
	for _, c := range []struct {
		more  string
		focus string
	}{{"", "Work"}, {"[mouse]\nedge = 100\n", "Home"}} {
		r := newManagedRig(t, nil, c.more)
		r.chord(hid.Key1)
		r.shows(red)
		for range 30 {
			r.Input(1, monotonic(), []hid.Event{{Type: hid.EVRel, Code: hid.RelX, Value: 100}})
		}
		eventually(t, "the focus of "+c.focus, func() bool { return r.Router.Focus() == c.focus })
		if r.key(hid.KeyA, 1); c.focus == "Home" {
			r.shows(blue)
			r.blue.typed(t, "a+1")
		}
		r.key(hid.KeyA, 0)
	}
}

// TestPosition has a device with positions click in the middle of the guest's picture.
func TestPosition(t *testing.T) {
	r := newRig(t)
	r.chord(hid.Key1)
	r.shows(red)
	bar := trustbar.Height(r.screen.Mode().Size().Max)
	y := int32((bar + (480-bar)/2) * hid.AbsMax / 479)
	got := r.guests[0].place([]hid.Event{{Type: hid.EVAbs, Code: hid.AbsX, Value: hid.AbsMax / 2}, {Type: hid.EVAbs, Code: hid.AbsY, Value: y}})
	for _, e := range got {
		if e.Value < hid.AbsMax*48/100 || e.Value > hid.AbsMax*52/100 {
			t.Errorf("the middle is at %+v", got)
		}
	}
	if len(got) != 2 {
		t.Errorf("%+v", got)
	}
}

// TestPositionPixels has every pixel of the picture pointed at, by a device that tells only the axis that has changed.
func TestPositionPixels(t *testing.T) {
	r := newRig(t)
	r.chord(hid.Key1)
	r.shows(red)
	bar := trustbar.Height(r.screen.Mode().Size().Max)
	left, top := (640-320)/2, bar+(480-bar-200)/2
	pixel := func(g *guest, batch ...hid.Event) (x, y int) {
		x, y = -1, -1
		for _, e := range g.place(batch) {
			switch e.Code {
			case hid.AbsX, hid.AbsMTPositionX:
				x = int(math.Round(float64(e.Value) * 319 / hid.AbsMax))
			case hid.AbsY, hid.AbsMTPositionY:
				y = int(math.Round(float64(e.Value) * 199 / hid.AbsMax))
			}
		}
		return x, y
	}
	abs := func(code uint16, v, last int) hid.Event {
		return hid.Event{Type: hid.EVAbs, Code: code, Value: int32(v * hid.AbsMax / last)} // as headless does it
	}
	work, home := r.guests[0], r.guests[1]
	pixel(work, abs(hid.AbsY, top+7, 479))
	for want := range 320 {
		if x, y := pixel(work, abs(hid.AbsX, left+want, 639)); x != want || y != 7 {
			t.Fatalf("pixel %d of row 7 is at %d, %d", want, x, y)
		}
		if x, _ := pixel(work, abs(hid.AbsMTPositionX, left+want, 639)); x != want {
			t.Fatalf("a finger at column %d is at %d", want, x)
		}
	}
	for want := range 200 {
		if x, y := pixel(work, abs(hid.AbsY, top+want, 479)); x != 319 || y != want {
			t.Fatalf("pixel %d of the last column is at %d, %d", want, x, y)
		}
		if _, y := pixel(work, abs(hid.AbsMTPositionY, top+want, 479)); y != want {
			t.Fatalf("a finger at row %d is at %d", want, y)
		}
	}
	// The other guest's pointer goes on from there, and not from where it was when that guest was seen last.
	r.chord(hid.Key2)
	r.shows(blue)
	if x, y := pixel(home, abs(hid.AbsX, left+5, 639)); x != 5 || y != 199 {
		t.Errorf("after a switch the pointer is at %d, %d, want 5, 199", x, y)
	}
}

func TestParseErrors(t *testing.T) {
	const good = "[[guest]]\nname = \"a\"\ncolor = \"red\"\nslot = 1\ndisplay = \"a.sock\"\n"
	for _, c := range []struct{ text, want string }{
		{good + "colour = 1\n", `seat.toml:6: unknown key "guest.colour"`},
		{good + good, `two guests are called "a"`},
		{strings.Replace(good, "red", "pink", 1), `color "pink": one of`},
		{strings.Replace(good, "slot = 1", "slot = 10", 1), "slot 10: 1 to 9"},
		{strings.Replace(good, `"a"`, `"Lodge"`, 1), `not "Lodge"`},
		{strings.Replace(good, `"a"`, `"a\u202eb"`, 1), "one line"},
		{strings.Replace(good, "a.sock", "", 1), "set display"},
		{good + strings.Replace(good, `"a"`, `"b"`, 1), `slot 1 is also guest "a"'s`},
		{good + "[chords]\nleft = \"ctrl+nokey\"\n", "seat.toml:7"},
		{"x", "seat.toml:1"},
		{"control = \"/" + strings.Repeat("x", 107) + "\"\n" + good, "the path has 108 bytes"},
		{good + "[mouse]\nedge = -1\n", "edge = -1"},
		{good + "[mouse]\nedge = 10001\n", "edge = 10001"},
		{good + "[mouse]\nkeyboard_follows = false\n", "keyboard_follows = false"},
		{good + "[monitors]\nshow = \"all\"\n", `show = "all": one of "mirror" and "one each"`},
		{good + "[[monitor]]\nguest = \"a\"\n", "monitor: set id"},
		{good + "[[monitor]]\nid = \"m\"\nguest = \"b\"\n", `monitor "m": guest "b"`},
		{good + "[[monitor]]\nid = \"m\"\nwidth = 3\n", "both width and height"},
		{good + "[[monitor]]\nid = \"m\"\n[[monitor]]\nid = \"m\"\n", `two monitors are called "m"`},
	} {
		if _, err := Parse("seat.toml", "/", c.text); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.text, err, c.want)
		}
	}
	cfg, err := Parse("seat.toml", "/run", good+"[chords]\nattention = \"ctrl+alt+delete\"\n")
	if err != nil || cfg.Guests[0].Display != "/run/a.sock" || cfg.Chords.chords().Attention.Key != hid.KeyDelete {
		t.Errorf("%+v, %v", cfg, err)
	}
	if cfg.Control != "" || cfg.Guests[0].Definition != "" {
		t.Errorf("%+v", cfg)
	}
	cfg, err = Parse("seat.toml", "/run", "control = \"seat.sock\"\n"+good+"definition = \"a.toml\"\n")
	if err != nil || cfg.Control != "/run/seat.sock" || cfg.Guests[0].Definition != "/run/a.toml" {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestBattery(t *testing.T) {
	dir := t.TempDir()
	for _, f := range [][2]string{
		{"AC/type", "Mains\n"}, {"AC/online", "1\n"},
		{"BAT0/type", "Battery\n"}, {"BAT0/capacity", "73\n"}, {"BAT0/status", "Discharging\n"},
		{"mouse/type", "Battery\n"}, {"mouse/scope", "Device\n"}, {"mouse/capacity", "5\n"},
	} {
		path := filepath.Join(dir, f[0])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(f[1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := battery(dir), (trustbar.Battery{Present: true, Percent: 73}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := battery(filepath.Join(dir, "none")); got.Present {
		t.Errorf("%+v of a machine without batteries", got)
	}
}

// A socket's appearance is told, in whatever way it comes; what else happens in its directory is not.
func TestAppearance(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "display")
	if _, err := watchFor(path); err == nil {
		t.Error("a directory that does not exist is watched")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a, err := watchFor(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	came := func(what string, do func() error) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		select {
		case _, ok := <-a.came:
			if !ok {
				t.Errorf("%s: the watch ends", what)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%s: is not told", what)
		}
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	came("created", func() error { return os.WriteFile(path, nil, 0o600) })
	if len(a.came) != 0 {
		t.Error("another file is told, too")
	}
	came("its rights change", func() error { return os.Chmod(path, 0o644) })
	came("moved there", func() error { return os.Rename(other, path) })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the watch ends with the directory", func() bool {
		select {
		case _, ok := <-a.came:
			return !ok
		default:
			return false
		}
	})
}

// A guest that was switched off for so long that nobody tries its socket any more is back when its machine is.
func TestLongOff(t *testing.T) {
	r := newRig(t)
	r.red.off()
	time.Sleep(2 * maxDelay)
	r.red.on(t)
	eventually(t, "it is back", func() bool { return r.guests[0].sender.Load() != nil })
	r.chord(hid.Key1)
	r.shows(red)
}
