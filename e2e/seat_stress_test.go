package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/draw"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/desk"
)

// Codes of keys (linux/input-event-codes.h).
var letterCodes = map[byte]int{
	'a': 30, 'b': 48, 'c': 46, 'd': 32, 'e': 18, 'f': 33, 'g': 34, 'h': 35, 'i': 23, 'j': 36, 'k': 37, 'l': 38, 'm': 50,
	'n': 49, 'o': 24, 'p': 25, 'q': 16, 'r': 19, 's': 31, 't': 20, 'u': 22, 'v': 47, 'w': 17, 'x': 45, 'y': 21, 'z': 44,
}

// stream is a program in a guest, and what it has printed.
type stream struct {
	*rpc.Process
	mu    sync.Mutex
	text  []byte
	grown chan struct{} // closed and replaced when there is more
}

func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, b...)
	close(s.grown)
	s.grown = make(chan struct{})
	return len(b), nil
}

// startStream starts a program of the agent, and waits until it says that it is ready.
func startStream(ctx context.Context, t *testing.T, m *desk.Machine, args ...string) *stream {
	t.Helper()
	s := &stream{grown: make(chan struct{})}
	var err error
	if s.Process, err = m.Agent.Start(rpc.Cmd{Args: append([]string{rpc.Self}, args...), Stdout: s, Stderr: s}); err != nil {
		t.Fatal(err)
	}
	s.await(ctx, t, "agent "+args[0]+" in "+m.Name(), func(string) bool { return true })
	return s
}

// await waits until is likes what was printed after "ready".
func (s *stream) await(ctx context.Context, t *testing.T, what string, is func(string) bool) {
	t.Helper()
	for {
		s.mu.Lock()
		text, grown := string(s.text), s.grown
		s.mu.Unlock()
		if rest, ok := strings.CutPrefix(text, "ready\n"); ok && is(rest) {
			return
		}
		select {
		case <-grown:
		case <-s.Done():
			t.Fatalf("%s: the program has ended, after %q", what, text)
		case <-ctx.Done():
			t.Fatalf("%s: %v: it has %q", what, context.Cause(ctx), text)
		}
	}
}

// printed returns what was printed after "ready".
func (s *stream) printed() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimPrefix(string(s.text), "ready\n")
}

// letters returns the letters that were typed, by the account of "agent keys", and which keys are held at its end. Letters
// that were pressed while another key was held are upper-case.
func letters(t *testing.T, account string) (string, []int) {
	t.Helper()
	names := make(map[int]byte)
	for name, code := range letterCodes {
		names[code] = name
	}
	var typed []byte
	held := make(map[int]bool)
	for line := range strings.Lines(account) {
		var code, value int
		if _, err := fmt.Sscan(line, &code, &value); err != nil {
			t.Fatalf("the probe of keys says %q", line)
		}
		if name := names[code]; value == 1 && name != 0 {
			if len(held) > 0 {
				name -= 'a' - 'A'
			}
			typed = append(typed, name)
		}
		switch value {
		case 0:
			delete(held, code)
		case 1:
			held[code] = true
		}
	}
	return string(typed), slices.Sorted(maps.Keys(held))
}

// testManySwitches types one letter after each of 500 switches. What each guest's kernel has got, and what its terminal has, is
// compared with what was typed for it. A letter is waited for before the next: a guest here is slower than fingers, and Linux
// keeps 64 events for who reads late.
func (l *seatLab) testManySwitches(ctx context.Context, t *testing.T) {
	const switches = 500
	l.chordTo(ctx, t, work)
	var kernels, terminals [2]*stream
	var want [2]string
	for i, k := range desktops {
		kernels[i] = startStream(ctx, t, l.guests[k.Name], "keys")
		terminals[i] = startStream(ctx, t, l.guests[k.Name], "follow", "/tmp/typed")
	}
	var took []float64
	for n := range switches {
		i := (n + 1) % 2
		took = append(took, l.chord(ctx, t, i).TookUS)
		letter := string(rune('a' + n*7%26))
		want[i] += letter
		l.press(ctx, t, letter)
		terminals[i].await(ctx, t, fmt.Sprintf("%q in the terminal of %s", want[i], desktops[i].Name), func(got string) bool { return got == want[i] })
	}
	for i, k := range desktops {
		if got := terminals[i].printed(); got != want[i] {
			t.Errorf("guest %s: its terminal has %q, want %q", k.Name, got, want[i])
		}
		kernels[i].await(ctx, t, fmt.Sprintf("the letters %q, and no key held, in the kernel of %s", want[i], k.Name), func(account string) bool {
			got, held := letters(t, account)
			return got == want[i] && len(held) == 0
		})
		for _, s := range []*stream{kernels[i], terminals[i]} {
			if err := s.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	slices.Sort(took)
	t.Logf("%d switches: %.0f µs in the middle, %.0f µs at the most", switches, took[len(took)/2], took[len(took)-1])
}

// testFlood has the guest on screen draw as fast as it can and blink its keyboard's lights, while the mouse never stands
// still: the attention key is answered all the same, and the other guest is a chord away.
func (l *seatLab) testFlood(ctx context.Context, t *testing.T) {
	l.chordTo(ctx, t, home)
	m := l.guests[desktops[home].Name]
	var floods []*rpc.Process
	for _, args := range [][]string{
		{"env", "XDG_RUNTIME_DIR=/run/desktop", "WAYLAND_DISPLAY=wayland-1", "weston-simple-damage"},
		{rpc.Self, "blink", "1m"},
	} {
		p, err := m.Agent.Start(rpc.Cmd{Args: args, Stdout: io.Discard, Stderr: t.Output()})
		if err != nil {
			t.Fatal(err)
		}
		floods = append(floods, p)
	}
	l.draws(ctx, t, m)
	moving, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; moving.Err() == nil; n++ {
			if err := l.Move(ctx, n*97%desk.Width, n*61%desk.Height); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 5 {
		e := l.attention(ctx, t)
		t.Logf("Lodge's console was handed to the screen after %.0f µs", e.TookUS)
		l.leave(ctx, t, work)
		l.chord(ctx, t, home)
	}
	l.shoot(ctx, t, "flood")
	stop()
	wg.Wait()
	for _, p := range floods {
		select {
		case <-p.Done():
			s, err := p.Wait(ctx)
			t.Errorf("a program that was to flood had ended: %+v, %v", s, err)
		default:
		}
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	}
}

// draws waits until a guest draws without anybody's doing, elsewhere than at its clock.
func (l *seatLab) draws(ctx context.Context, t *testing.T, m *desk.Machine) {
	t.Helper()
	var last image.Image
	until(ctx, t, m.Name()+" draws", func() (bool, error) {
		now, err := m.Screen(ctx)
		if err != nil {
			return false, err
		}
		before := last
		last = now
		if before == nil {
			return false, errNotYet
		}
		moved := slices.ContainsFunc(desk.Differences(below(before), now), func(r image.Rectangle) bool { return !r.In(clock) })
		if !moved {
			return false, fmt.Errorf("%w: it shows the same as before", errNotYet)
		}
		return true, nil
	})
}

// below returns a guest's picture as it is on the notebook's screen, below a bar.
func below(guest image.Image) image.Image {
	img := image.NewRGBA(image.Rect(0, 0, desk.Width, desk.Bar+desk.Height))
	draw.Draw(img, image.Rect(0, desk.Bar, desk.Width, desk.Bar+desk.Height), guest, guest.Bounds().Min, draw.Src)
	return img
}

// testFalseBar has a guest paint the bar of another, with its name and colour, at the top of its screen. The real one is above
// it, and says whose screen it is.
func (l *seatLab) testFalseBar(ctx context.Context, t *testing.T) {
	l.chordTo(ctx, t, home)
	homeBar := barOf(l.shows(ctx, t, home, "bar-home"))
	l.chordTo(ctx, t, work)
	workBar := barOf(l.shows(ctx, t, work, "bar-work"))
	l.chordTo(ctx, t, home)
	if equalPart(homeBar, workBar) {
		t.Fatal("the bars of both guests are the same: see bar-home.png and bar-work.png")
	}
	m := l.guests[desktops[home].Name]
	painter, err := m.Paint(workBar, image.Point{}, limit)
	if err != nil {
		t.Fatal(err)
	}
	until(ctx, t, "the false bar below the real one", func() (bool, error) {
		img := l.shoot(ctx, t, "false-bar")
		if !equalPart(barOf(img), homeBar) {
			return false, fmt.Errorf("the bar is not the one of home, but what false-bar.png shows")
		}
		below := crop(img, image.Rect(0, desk.Bar, img.Bounds().Dx(), 2*desk.Bar))
		if !equalPart(below, workBar) {
			return false, fmt.Errorf("%w: what home has painted is not there", errNotYet)
		}
		return true, nil
	})
	if err := painter.Kill(); err != nil {
		t.Error(err)
	}
}

func barOf(img image.Image) *image.RGBA {
	return crop(img, image.Rect(0, 0, img.Bounds().Dx(), desk.Bar))
}

func crop(img image.Image, r image.Rectangle) *image.RGBA {
	to := image.NewRGBA(image.Rectangle{Max: r.Size()})
	draw.Draw(to, to.Rect, img, r.Min, draw.Src)
	return to
}

// equalPart compares the left half of two bars, which has the colour, the slot and the name; the clock is in the other.
func equalPart(a, b *image.RGBA) bool {
	half := image.Rect(0, 0, a.Rect.Dx()/2, a.Rect.Dy())
	return bytes.Equal(crop(a, half).Pix, crop(b, half).Pix)
}

// testRestore saves a guest that is on screen, ends it, and has it back on screen as it was.
func (l *seatLab) testRestore(ctx context.Context, t *testing.T) {
	for i, k := range desktops {
		l.chordTo(ctx, t, 1-i)
		l.chordTo(ctx, t, i)
		m := l.guests[k.Name]
		l.lodge(ctx, t, "pause", k.Name)
		before := l.shoot(ctx, t, "saved-"+k.Name)
		l.lodge(ctx, t, "save", k.Name)
		if _, err := m.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		l.shows(ctx, t, 1-i, "desktop-"+desktops[1-i].Name) // the focus goes back to the one before
		begin := time.Now()
		m = l.launch(ctx, t, i)
		if err := m.Connect(ctx); err != nil {
			t.Fatal(err)
		}
		l.chordTo(ctx, t, i)
		t.Logf("guest %s is on screen %.1f s after its restore", k.Name, time.Since(begin).Seconds())
		for _, r := range desk.Differences(l.shoot(ctx, t, "restored-"+k.Name), crop(before, image.Rect(0, desk.Bar, desk.Width, desk.Bar+desk.Height))) {
			if !r.In(clock) {
				t.Errorf("guest %s: its screen is another at %v: see saved-%s.png and restored-%[1]s.png", k.Name, r, k.Name)
			}
		}
		word := "restored"
		if err := l.Type(ctx, word+"\n"); err != nil {
			t.Fatal(err)
		}
		until(ctx, t, fmt.Sprintf("%q in the terminal of %s", word, k.Name), func() (bool, error) {
			got := l.typed(ctx, t, i)
			if !strings.Contains(got, word) {
				return false, fmt.Errorf("%w: it has %q", errNotYet, got)
			}
			return true, nil
		})
		l.sameAs(ctx, t, i)
	}
}
