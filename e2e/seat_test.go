package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/guest"
	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
)

// desk is the notebook with two graphical guests and the seat on its screen.
type desk struct {
	nb     *notebook.Notebook
	host   *guest.Host
	guests map[string]*vm
	seat   *seatProcess
}

// desktops are the two guests: one draws by virtio-gpu, the other on a VGA. The colour is that of its wallpaper.
var desktops = []struct {
	name, card, color string
	slot              int
	wallpaper         color.RGBA
}{
	{"work", "virtio", "blue", 1, color.RGBA{0x20, 0x3a, 0x5c, 255}},
	{"home", "vga", "green", 2, color.RGBA{0x2e, 0x5d, 0x34, 255}},
}

func TestSeat(t *testing.T) {
	d := newDesk(t)
	for _, s := range []struct {
		name string
		run  func(d *desk, ctx context.Context, t *testing.T)
	}{
		{"desktops", (*desk).testDesktops},
		{"chords", (*desk).testChords},
		{"typing", (*desk).testTyping},
		{"attention", (*desk).testAttention},
		{"machine killed on screen", (*desk).testKilled},
		{"seat killed", (*desk).testSeatKilled},
	} {
		ok := t.Run(s.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("test %q takes longer than %v", s.name, limit))
			defer cancel()
			s.run(d, ctx, t)
		})
		if !ok {
			d.shoot(context.WithoutCancel(t.Context()), t, "failed")
			t.Logf("the seat says:\n%s", d.seat.text())
			for _, m := range d.guests {
				text := m.Console()
				t.Logf("the console of %s:\n%s", m.Name(), text[max(0, len(text)-2000):])
			}
			t.FailNow()
		}
	}
}

func newDesk(t *testing.T) *desk {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (package qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // the first time, images are built
	defer cancel()
	b, err := lodgeimage.NewBuilder(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	vmm, _, err := b.GoProgram(ctx, "./cmd/lodge-vmm", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	tools, err := guest.Tools(ctx, b, vmm)
	if err != nil {
		t.Fatal(err)
	}
	if tools["bin/lodge-seat"], _, err = b.GoProgram(ctx, "./cmd/lodge-seat", "amd64"); err != nil {
		t.Fatal(err)
	}
	g, err := b.Desktop(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cfg := notebook.Config{Builder: b, Tools: tools, CPUs: 1, Log: t.Output()}
	for _, k := range desktops {
		cfg.Disks = append(cfg.Disks, notebook.Disk{Name: k.name, Base: g.Disk})
	}
	nb, err := notebook.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{nb: nb, host: guest.InNotebook(nb), guests: make(map[string]*vm)}
	t.Cleanup(func() {
		if err := nb.Close(); err != nil {
			t.Error(err)
		}
	})
	var seat strings.Builder
	for _, k := range desktops {
		fmt.Fprintf(&seat, "[[guest]]\nname = %q\ncolor = %q\nslot = %d\ndisplay = %q\n", k.name, k.color, k.slot, d.host.Path(k.name, ".display"))
	}
	if err := nb.Put(ctx, strings.NewReader(seat.String()), "/run/seat.toml", 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

// launch starts a guest.
func (d *desk) launch(ctx context.Context, t *testing.T, i int) *vm {
	t.Helper()
	k := desktops[i]
	g, err := d.host.Start(ctx, guest.Config{
		Name: k.name, Arch: "amd64", MemoryMB: 384, CID: uint32(20 + i), Disk: "/disk/" + k.name,
		Cmdline: fmt.Sprintf("lodge.color=%02x%02x%02x", k.wallpaper.R, k.wallpaper.G, k.wallpaper.B),
		Extra:   fmt.Sprintf("[display]\npath = %q\ncard = %q\nwidth = 1024\nheight = 740\n", d.host.Path(k.name, ".display"), k.card),
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &vm{Guest: g, begin: time.Now()}
	d.guests[k.name] = m
	return m
}

// await waits until a guest's desktop is up, and connects to its agent.
func (d *desk) await(ctx context.Context, t *testing.T, m *vm) {
	t.Helper()
	if _, err := m.Await(ctx, 0, regexp.MustCompile(`lodge-guest: terminal [0-9.]+`)); err != nil {
		t.Fatal(err)
	}
	t.Logf("guest %s: its terminal is there after %.1f s", m.Name(), time.Since(m.begin).Seconds())
	var err error
	if m.agent, err = m.Agent(ctx); err != nil {
		t.Fatal(err)
	}
}

// seatProcess is a running lodge-seat with what it has told.
type seatProcess struct {
	*rpc.Process
	mu     sync.Mutex
	log    bytes.Buffer
	events []seatEvent
	told   chan struct{} // closed and replaced at each event
}

// seatEvent is a line of "lodge-seat --events".
type seatEvent struct {
	Event, Guest, New, Why string
	There                  bool
	TookUS                 float64 `json:"took_us"`
}

func (d *desk) startSeat(t *testing.T) {
	t.Helper()
	out, in := io.Pipe()
	s := &seatProcess{told: make(chan struct{})}
	var err error
	s.Process, err = d.nb.Start(rpc.Cmd{Args: []string{"/tools/bin/lodge-seat", "--events", "/run/seat.toml"}, Stdout: in, Stderr: in})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-s.Done()
		in.Close()
	}()
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e seatEvent
			err := json.Unmarshal(lines.Bytes(), &e)
			s.mu.Lock()
			fmt.Fprintln(&s.log, lines.Text())
			if err == nil {
				s.events = append(s.events, e)
				close(s.told)
				s.told = make(chan struct{})
			}
			s.mu.Unlock()
		}
	}()
	d.seat = s
}

func (s *seatProcess) text() string {
	if s == nil {
		return "it was not started"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// seen returns how many events there are.
func (s *seatProcess) seen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events)
}

// switched waits until the seat has shown a guest, by an event after the first skip.
func (s *seatProcess) switched(ctx context.Context, t *testing.T, skip int, name string) seatEvent {
	t.Helper()
	return s.await(ctx, t, skip, name+" on screen", func(e seatEvent) bool { return e.Event == "switched" && e.Guest == name })
}

// await waits for an event after the first skip.
func (s *seatProcess) await(ctx context.Context, t *testing.T, skip int, what string, is func(seatEvent) bool) seatEvent {
	t.Helper()
	for {
		s.mu.Lock()
		events, told := s.events[skip:], s.told
		s.mu.Unlock()
		for _, e := range events {
			if is(e) {
				return e
			}
		}
		select {
		case <-told:
		case <-s.Done():
			t.Fatalf("the seat has ended before %s:\n%s", what, s.text())
		case <-ctx.Done():
			t.Fatalf("the seat does not tell of %s: %v", what, context.Cause(ctx))
		}
	}
}

// press presses keys of the notebook's keyboard together, by QEMU's names.
func (d *desk) press(ctx context.Context, t *testing.T, keys ...string) {
	t.Helper()
	type key struct {
		Type string `json:"type"`
		Data string `json:"data"`
	}
	var all []key
	for _, k := range keys {
		all = append(all, key{"qcode", k})
	}
	if _, err := d.nb.QMP(ctx, "send-key", map[string]any{"keys": all, "hold-time": 50}); err != nil {
		t.Fatal(err)
	}
}

// shots is where screenshots are left for people to look at.
const shots = "../out/seat"

// shoot takes a picture of the notebook's screen, and leaves it in the directory shots.
func (d *desk) shoot(ctx context.Context, t *testing.T, name string) image.Image {
	t.Helper()
	b, err := d.nb.Screendump(ctx, "vga", 0)
	if err != nil {
		t.Error(err)
		return image.NewRGBA(image.Rectangle{})
	}
	if err := os.MkdirAll(shots, 0o755); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(shots, name+".png"), b, 0o644); err != nil {
		t.Error(err)
	}
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Error(err)
		return image.NewRGBA(image.Rectangle{})
	}
	return img
}

// share returns which part of a picture below the bar has a colour, from 0 to 1.
func share(img image.Image, c color.RGBA) float64 {
	const bar = 28
	n, all := 0, 0
	for y := bar; y < img.Bounds().Dy(); y += 3 {
		for x := 0; x < img.Bounds().Dx(); x += 3 {
			all++
			if color.RGBAModel.Convert(img.At(x, y)).(color.RGBA) == c {
				n++
			}
		}
	}
	return float64(n) / float64(max(all, 1))
}

// shows waits until the screen shows a guest's desktop.
func (d *desk) shows(ctx context.Context, t *testing.T, i int, shot string) {
	t.Helper()
	var img image.Image
	until(ctx, t, "the desktop of "+desktops[i].name+" on the screen", func() (bool, error) {
		img = d.shoot(ctx, t, shot)
		other := share(img, desktops[1-i].wallpaper)
		if own := share(img, desktops[i].wallpaper); own < 0.2 || other > 0.01 {
			return false, fmt.Errorf("%w: %.2f of the screen is its wallpaper's colour, %.2f the other's", errNotYet, own, other)
		}
		return true, nil
	})
	for y := range 2 { // the bar's rows are no guest's
		if c := color.RGBAModel.Convert(img.At(512, y)).(color.RGBA); c == desktops[0].wallpaper || c == desktops[1].wallpaper {
			t.Errorf("row %d of the screen, which is the bar's, has the colour of a guest's wallpaper", y)
		}
	}
}

// testDesktops starts both guests and the seat, and waits for their desktops.
func (d *desk) testDesktops(ctx context.Context, t *testing.T) {
	d.startSeat(t)
	for i := range desktops {
		d.launch(ctx, t, i)
	}
	for _, k := range desktops {
		d.await(ctx, t, d.guests[k.name])
	}
}

// chord presses a guest's chord and waits until it is on screen.
func (d *desk) chord(ctx context.Context, t *testing.T, i int) seatEvent {
	t.Helper()
	seen := d.seat.seen()
	d.press(ctx, t, "ctrl", "alt", fmt.Sprint(desktops[i].slot))
	return d.seat.switched(ctx, t, seen, desktops[i].name)
}

func (d *desk) testChords(ctx context.Context, t *testing.T) {
	d.chordTo(ctx, t, 0) // which guest came first is chance
	for range 3 {
		for _, i := range []int{1, 0} {
			e := d.chord(ctx, t, i)
			t.Logf("the picture of %s was handed to the screen after %.0f µs", desktops[i].name, e.TookUS)
			d.shows(ctx, t, i, "desktop-"+desktops[i].name)
		}
	}
}

// typed returns what was typed in a guest's terminal.
func (d *desk) typed(ctx context.Context, t *testing.T, i int) string {
	t.Helper()
	return d.guests[desktops[i].name].shell(ctx, t, "cat /tmp/typed")
}

func (d *desk) testTyping(ctx context.Context, t *testing.T) {
	for i, word := range []string{"lodge", "guest"} {
		other := d.typed(ctx, t, 1-i)
		d.chordTo(ctx, t, i)
		for _, r := range word {
			d.press(ctx, t, string(r))
		}
		d.press(ctx, t, "ret")
		until(ctx, t, fmt.Sprintf("%q in the terminal of %s", word, desktops[i].name), func() (bool, error) {
			got := d.typed(ctx, t, i)
			if !strings.Contains(got, word) {
				return false, fmt.Errorf("%w: it has %q", errNotYet, got)
			}
			return true, nil
		})
		if got := d.typed(ctx, t, 1-i); got != other {
			t.Errorf("guest %s, which is not on screen, got %q", desktops[1-i].name, strings.TrimPrefix(got, other))
		}
		d.shoot(ctx, t, "typed-"+desktops[i].name)
	}
}

// chordTo goes to a guest, which may be on screen.
func (d *desk) chordTo(ctx context.Context, t *testing.T, i int) {
	t.Helper()
	d.press(ctx, t, "ctrl", "alt", fmt.Sprint(desktops[i].slot))
	d.shows(ctx, t, i, "desktop-"+desktops[i].name)
}

func (d *desk) testAttention(ctx context.Context, t *testing.T) {
	d.chordTo(ctx, t, 0)
	seen := d.seat.seen()
	d.press(ctx, t, "ctrl", "alt", "esc")
	d.seat.switched(ctx, t, seen, "Lodge")
	before := d.typed(ctx, t, 0)
	d.press(ctx, t, "x") // for nobody
	d.shoot(ctx, t, "attention")
	seen = d.seat.seen()
	d.press(ctx, t, "2")
	d.seat.switched(ctx, t, seen, "home")
	d.shows(ctx, t, 1, "desktop-home")
	if got := d.typed(ctx, t, 0); got != before {
		t.Errorf("guest work got %q of what was typed for Lodge", strings.TrimPrefix(got, before))
	}
}

func (d *desk) testKilled(ctx context.Context, t *testing.T) {
	d.chordTo(ctx, t, 0)
	d.chordTo(ctx, t, 1)
	if err := d.guests["home"].Kill(ctx); err != nil {
		t.Fatal(err)
	}
	d.shows(ctx, t, 0, "after-kill") // the focus goes back to the one before
	d.press(ctx, t, "ctrl", "alt", "2")
	m := d.launch(ctx, t, 1)
	d.await(ctx, t, m)
	d.shows(ctx, t, 1, "desktop-home")
}

func (d *desk) testSeatKilled(ctx context.Context, t *testing.T) {
	if err := d.seat.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.seat.Wait(ctx); err != nil && !errors.Is(err, rpc.ErrClosed) {
		t.Fatal(err)
	}
	d.startSeat(t)
	for _, k := range desktops {
		d.seat.await(ctx, t, 0, k.name, func(e seatEvent) bool { return e.Event == "guest" && e.Guest == k.name && e.There })
	}
	d.chordTo(ctx, t, 1)
	d.chordTo(ctx, t, 0)
}
