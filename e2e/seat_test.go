package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/desk"
	"github.com/lodgehv/lodge/e2e/guest"
)

// seatLab is the desk of the tests, with the guests that run on it.
type seatLab struct {
	*desk.Desk
	guests map[string]*desk.Machine
}

var desktops = desk.Desktops()

// work and home are the indices of the desktops.
const (
	work = iota
	home
)

// shots is where screenshots are left for people to look at.
const shots = "../out/seat"

func TestSeat(t *testing.T) {
	l := newSeatLab(t)
	for _, s := range []struct {
		name string
		run  func(l *seatLab, ctx context.Context, t *testing.T)
	}{
		{"firmware", (*seatLab).testFirmware},
		{"desktops", (*seatLab).testDesktops},
		{"chords", (*seatLab).testChords},
		{"lodge switch", (*seatLab).testSwitch},
		{"typing", (*seatLab).testTyping},
		{"attention", (*seatLab).testAttention},
		{"500 switches", (*seatLab).testManySwitches},
		{"flood", (*seatLab).testFlood},
		{"false bar", (*seatLab).testFalseBar},
		{"restore on screen", (*seatLab).testRestore},
		{"machine killed on screen", (*seatLab).testKilled},
		{"seat killed", (*seatLab).testSeatKilled},
		{"lodge run", (*seatLab).testRun},
	} {
		ok := t.Run(s.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("test %q takes longer than %v", s.name, limit))
			defer cancel()
			s.run(l, ctx, t)
		})
		if !ok {
			l.explain(t)
			t.FailNow()
		}
	}
}

func newSeatLab(t *testing.T) *seatLab {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (package qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // the first time, images are built
	defer cancel()
	d, err := desk.Start(ctx, desk.Config{Shots: shots, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return &seatLab{Desk: d, guests: make(map[string]*desk.Machine)}
}

// explain prints what a failed test may have failed for.
func (l *seatLab) explain(t *testing.T) {
	if _, err := l.Shoot(context.WithoutCancel(t.Context()), "failed"); err != nil {
		t.Log(err)
	}
	t.Logf("the seat says:\n%s", l.Seat.Log())
	t.Logf("lodged says:\n%s", l.Manager.Log())
	for _, m := range l.guests {
		text := m.Console()
		t.Logf("the console of %s:\n%s", m.Name(), text[max(0, len(text)-2000):])
	}
	select {
	case <-l.Notebook.Done():
		t.Log(l.Notebook.Postmortem())
	default:
	}
}

// lodge runs the program lodge in the notebook, which is to succeed.
func (l *seatLab) lodge(ctx context.Context, t *testing.T, args ...string) {
	t.Helper()
	if _, err := l.Manager.Lodge(ctx, args...); err != nil {
		t.Fatal(err)
	}
}

func (l *seatLab) startSeat(t *testing.T) {
	t.Helper()
	if err := l.StartSeat(); err != nil {
		t.Fatal(err)
	}
}

func (l *seatLab) launch(ctx context.Context, t *testing.T, i int) *desk.Machine {
	t.Helper()
	m, err := l.Launch(ctx, desktops[i])
	if err != nil {
		t.Fatal(err)
	}
	l.guests[desktops[i].Name] = m
	return m
}

func (l *seatLab) await(ctx context.Context, t *testing.T, m *desk.Machine) {
	t.Helper()
	if err := m.Await(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("guest %s: its terminal is there after %.1f s", m.Name(), time.Since(m.Begin).Seconds())
}

func (l *seatLab) press(ctx context.Context, t *testing.T, keys ...string) {
	t.Helper()
	if err := l.Press(ctx, keys...); err != nil {
		t.Fatal(err)
	}
}

func (l *seatLab) shoot(ctx context.Context, t *testing.T, name string) image.Image {
	t.Helper()
	img, err := l.Shoot(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// shows waits until the screen has a guest's desktop.
func (l *seatLab) shows(ctx context.Context, t *testing.T, i int, shot string) image.Image {
	t.Helper()
	img, err := l.AwaitDesktop(ctx, desktops[i], shot)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// chord goes to a guest, which is not on screen.
func (l *seatLab) chord(ctx context.Context, t *testing.T, i int) desk.Event {
	t.Helper()
	e, err := l.Chord(ctx, desktops[i])
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// chordTo goes to a guest, which may be on screen.
func (l *seatLab) chordTo(ctx context.Context, t *testing.T, i int) {
	t.Helper()
	l.press(ctx, t, "ctrl", "alt", fmt.Sprint(desktops[i].Slot))
	l.shows(ctx, t, i, "desktop-"+desktops[i].Name)
}

// typed returns what was typed in a guest's terminal.
func (l *seatLab) typed(ctx context.Context, t *testing.T, i int) string {
	t.Helper()
	text, err := l.guests[desktops[i].Name].Typed(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// testFirmware starts the seat and the guest that boots as a PC does, and looks at it from the first text on.
func (l *seatLab) testFirmware(ctx context.Context, t *testing.T) {
	l.startSeat(t)
	l.launch(ctx, t, home)
	if _, err := l.Seat.Switched(ctx, 0, desktops[home].Name); err != nil {
		t.Fatal(err)
	}
	for _, stage := range []struct {
		name string
		is   func(textScreen) bool
	}{
		{"seabios", func(s textScreen) bool { return s.lit > 200 && s.bars == 0 }}, // a few lines
		{"grub", func(s textScreen) bool { return s.bars > 10 }},                   // its menu: an entry in inverse video
		{"linux", func(s textScreen) bool { return s.same >= 4 }},                  // its log
	} {
		until(ctx, t, "the screen of "+stage.name, func() (bool, error) {
			s := textOf(l.shoot(ctx, t, "boot-"+stage.name))
			if !s.only || !stage.is(s) {
				return false, fmt.Errorf("%w: the screen is %+v", errNotYet, s)
			}
			return true, nil
		})
	}
}

// textScreen describes a picture of a VGA's text mode.
type textScreen struct {
	only bool // there are no other colours than those of text
	lit  int  // pixels in the colour of text
	bars int  // rows of pixels with a run of that colour that is as wide as GRUB's menu
	same int  // lines that begin with the same character, of those that begin with any: Linux's with "["
}

// textOf looks at what is below the seat's bar, where a text mode of 80 by 25 cells of 9 by 16 pixels is in the middle.
func textOf(img image.Image) textScreen {
	const menu, columns, lines, width, height = 500, 80, 25, 9, 16
	at := image.Pt((desk.Width-columns*width)/2, desk.Bar+(desk.Height-lines*height)/2)
	s := textScreen{only: true}
	gray := func(x, y int) (uint32, bool) {
		r, g, b, _ := img.At(x, y).RGBA()
		return r >> 8, r == g && g == b
	}
	for y := desk.Bar; y < img.Bounds().Dy(); y++ {
		row := 0
		for x := range img.Bounds().Dx() {
			switch level, isGray := gray(x, y); {
			case isGray && level == 0xaa:
				s.lit++
				if row++; row == menu {
					s.bars++
				}
				continue
			case !isGray || level%0x55 != 0:
				s.only = false
			}
			row = 0
		}
	}
	first := make(map[[height]byte]int)
	for line := range lines {
		var glyph [height]byte
		for y := range height {
			for x := range 8 {
				if level, _ := gray(at.X+x, at.Y+line*height+y); level != 0 {
					glyph[y] |= 1 << x
				}
			}
		}
		if glyph != [height]byte{} {
			first[glyph]++
			s.same = max(s.same, first[glyph])
		}
	}
	return s
}

// testDesktops starts the other guest, and waits for both desktops.
func (l *seatLab) testDesktops(ctx context.Context, t *testing.T) {
	l.launch(ctx, t, work)
	for _, k := range desktops {
		l.await(ctx, t, l.guests[k.Name])
	}
	l.chordTo(ctx, t, work)
}

// testChords goes from guest to guest, and compares the screen with what each guest has on its own.
func (l *seatLab) testChords(ctx context.Context, t *testing.T) {
	for range 3 {
		for _, i := range []int{home, work} {
			e := l.chord(ctx, t, i)
			t.Logf("the picture of %s was handed to the screen after %.0f µs", desktops[i].Name, e.TookUS)
			l.shows(ctx, t, i, "desktop-"+desktops[i].Name)
			l.sameAs(ctx, t, i)
		}
	}
}

// clock is where the desktops have a clock, which may go on between two looks.
var clock = image.Rect(desk.Width-256, 0, desk.Width, 32)

// sameAs waits until the notebook's screen below the bar is what the guest itself shows on its monitor, apart from its clock.
func (l *seatLab) sameAs(ctx context.Context, t *testing.T, i int) {
	t.Helper()
	m := l.guests[desktops[i].Name]
	until(ctx, t, "the same picture on the screen as "+m.Name()+" has", func() (bool, error) {
		own, err := m.Screen(ctx)
		if err != nil {
			return false, err
		}
		for _, r := range desk.Differences(l.shoot(ctx, t, "desktop-"+m.Name()), own) {
			if !r.In(clock) {
				return false, fmt.Errorf("%w: they differ at %v", errNotYet, r)
			}
		}
		return true, nil
	})
}

func (l *seatLab) testTyping(ctx context.Context, t *testing.T) {
	for i, word := range []string{"lodge", "guest"} {
		other := l.typed(ctx, t, 1-i)
		l.chordTo(ctx, t, i)
		if err := l.Type(ctx, word+"\n"); err != nil {
			t.Fatal(err)
		}
		until(ctx, t, fmt.Sprintf("%q in the terminal of %s", word, desktops[i].Name), func() (bool, error) {
			got := l.typed(ctx, t, i)
			if !strings.Contains(got, word) {
				return false, fmt.Errorf("%w: it has %q", errNotYet, got)
			}
			return true, nil
		})
		if got := l.typed(ctx, t, 1-i); got != other {
			t.Errorf("guest %s, which is not on screen, got %q", desktops[1-i].Name, strings.TrimPrefix(got, other))
		}
		l.sameAs(ctx, t, i)
		l.shoot(ctx, t, "typed-"+desktops[i].Name)
	}
}

// testSwitch has lodged ask the seat to show a guest.
func (l *seatLab) testSwitch(ctx context.Context, t *testing.T) {
	l.chordTo(ctx, t, work)
	for _, i := range []int{home, work} {
		l.lodge(ctx, t, "switch", desktops[i].Name)
		l.shows(ctx, t, i, "desktop-"+desktops[i].Name)
	}
}

// attention presses the attention key and waits for Lodge's console.
func (l *seatLab) attention(ctx context.Context, t *testing.T) desk.Event {
	t.Helper()
	seen := l.Seat.Seen()
	l.press(ctx, t, "ctrl", "alt", "esc")
	e, err := l.Seat.Switched(ctx, seen, "Lodge")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// leave goes from Lodge's console to a guest, by its digit.
func (l *seatLab) leave(ctx context.Context, t *testing.T, i int) {
	t.Helper()
	seen := l.Seat.Seen()
	l.press(ctx, t, fmt.Sprint(desktops[i].Slot))
	if _, err := l.Seat.Switched(ctx, seen, desktops[i].Name); err != nil {
		t.Fatal(err)
	}
	l.shows(ctx, t, i, "desktop-"+desktops[i].Name)
}

func (l *seatLab) testAttention(ctx context.Context, t *testing.T) {
	l.chordTo(ctx, t, work)
	l.attention(ctx, t)
	before := l.typed(ctx, t, work)
	l.press(ctx, t, "b") // for nobody
	l.shoot(ctx, t, "attention")
	l.leave(ctx, t, home)
	if got := l.typed(ctx, t, work); got != before {
		t.Errorf("guest work got %q of what was typed for Lodge", strings.TrimPrefix(got, before))
	}
}

func (l *seatLab) testKilled(ctx context.Context, t *testing.T) {
	l.chordTo(ctx, t, work)
	l.chordTo(ctx, t, home)
	if err := l.guests[desktops[home].Name].Kill(ctx); err != nil {
		t.Fatal(err)
	}
	l.shows(ctx, t, work, "after-kill") // the focus goes back to the one before
	m := l.launch(ctx, t, home)
	l.await(ctx, t, m)
	l.chordTo(ctx, t, home)
}

func (l *seatLab) testSeatKilled(ctx context.Context, t *testing.T) {
	if err := l.Seat.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Seat.Wait(ctx); err != nil && !errors.Is(err, rpc.ErrClosed) {
		t.Fatal(err)
	}
	l.startSeat(t)
	for _, k := range desktops {
		_, err := l.Seat.Await(ctx, 0, k.Name, func(e desk.Event) bool { return e.Event == "guest" && e.Guest == k.Name && e.There })
		if err != nil {
			t.Fatal(err)
		}
	}
	l.chordTo(ctx, t, home)
	l.chordTo(ctx, t, work)
}

// testRun has lodge run show a guest on the notebook's own screen, with neither the manager nor a seat before it, and types into it.
func (l *seatLab) testRun(ctx context.Context, t *testing.T) {
	l.lodge(ctx, t, "stop", "--all")
	if err := l.Seat.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Seat.Wait(ctx); err != nil && !errors.Is(err, rpc.ErrClosed) {
		t.Fatal(err)
	}
	k := desktops[work]
	p, err := guest.InNotebook(l.Notebook).StartProgram(rpc.Cmd{Args: []string{
		"lodge", "run", "/guests/amd64/vmlinux", "--initrd=/guests/amd64/initrd", "--disk=/disk/" + k.Name, "--memory=384M", "--display=seat", "--net=none",
		fmt.Sprintf("--append=root=/dev/vda rw quiet lodge.name=%s lodge.color=%02x%02x%02x", k.Name, k.Wallpaper.R, k.Wallpaper.G, k.Wallpaper.B),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("lodge run says: %s", p.Said())
		}
	}()
	l.shows(ctx, t, work, "run")
	// The terminal comes after the wallpaper, in white on black as the only large thing; what is typed appears in it.
	var before image.Image
	until(ctx, t, "a terminal on the screen", func() (bool, error) {
		before = l.shoot(ctx, t, "run")
		return desk.Share(before, before.Bounds(), color.RGBA{A: 255}) > 0.1, errNotYet
	})
	if err := l.Type(ctx, "lodge run"); err != nil {
		t.Fatal(err)
	}
	letters := image.Rect(0, desk.Bar+40, desk.Width, desk.Bar+desk.Height) // without the clock
	until(ctx, t, "what was typed on the screen", func() (bool, error) {
		after := l.shoot(ctx, t, "run-typed")
		return differ(before, after, letters), errNotYet
	})
	if err := p.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(ctx); err != nil || st.Code != 0 {
		t.Errorf("lodge run: %+v, %v", st, err)
	}
	until(ctx, t, "the screen without the guest", func() (bool, error) {
		img := l.shoot(ctx, t, "run-over")
		return desk.Share(img, img.Bounds(), k.Wallpaper) == 0, errNotYet
	})
}

// differ returns whether two pictures are not the same within r.
func differ(a, b image.Image, r image.Rectangle) bool {
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			if color.RGBAModel.Convert(a.At(x, y)) != color.RGBAModel.Convert(b.At(x, y)) {
				return true
			}
		}
	}
	return false
}
