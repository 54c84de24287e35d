package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/qdisplay"
	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/desk"
	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
	"github.com/lodgehv/lodge/vgpu/display"
)

// monitorRig is a notebook to which monitors and keyboards are plugged, with the seat and two guests that are only pictures.
type monitorRig struct {
	nb      *notebook.Notebook
	display *qdisplay.Client // of QEMU: what it is told of monitors
	seat    *output
	guests  [2]*output
}

// pictures are the guests.
var pictures = [2]struct {
	name, color string
	rgb         color.RGBA
}{
	{"work", "red", color.RGBA{0xb0, 0x20, 0x20, 255}},
	{"home", "blue", color.RGBA{0x20, 0x30, 0xb0, 255}},
}

// layoutFile is where the seat remembers monitors, in the notebook.
const layoutFile = "/run/monitors.json"

func TestMonitors(t *testing.T) {
	r := newMonitorRig(t)
	for _, s := range []struct {
		name string
		run  func(r *monitorRig, ctx context.Context, t *testing.T)
	}{
		{"input devices", (*monitorRig).testEvdev}, // before the seat grabs all that there are
		{"one", (*monitorRig).testOne},
		{"second", (*monitorRig).testSecond},
		{"remembered", (*monitorRig).testRemembered},
		{"first unplugged", (*monitorRig).testFirst},
		{"keyboard unplugged", (*monitorRig).testKeyboard},
		{"dmabuf", (*monitorRig).testDMABuf},
		{"mirror", (*monitorRig).testMirror},
	} {
		ok := t.Run(s.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("test %q takes longer than %v", s.name, limit))
			defer cancel()
			s.run(r, ctx, t)
		})
		if !ok {
			for _, o := range []*output{r.seat, r.guests[0], r.guests[1]} {
				if o != nil {
					t.Logf("%s says:\n%s", o.name, o.text())
				}
			}
			t.FailNow()
		}
	}
}

func newMonitorRig(t *testing.T) *monitorRig {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU (package qemu-system-x86)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // the first time, images are built
	defer cancel()
	b, err := lodgeimage.NewBuilder(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	tools := make(map[string]string)
	for _, p := range []string{"cmd/lodge-seat", "e2e/picture"} {
		if tools["bin/"+filepath.Base(p)], _, err = b.GoProgram(ctx, "./"+p, "amd64"); err != nil {
			t.Fatal(err)
		}
	}
	tests := filepath.Join(t.TempDir(), "evdev.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", tests, "./hid/evdev")
	build.Dir, build.Env = b.Repo, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	tools["bin/evdev.test"] = tests
	nb, err := notebook.Start(ctx, notebook.Config{Builder: b, Tools: tools, CPUs: 1, Args: notebook.DisplayArgs(), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	r := &monitorRig{nb: nb}
	t.Cleanup(func() {
		if err := nb.Close(); err != nil {
			t.Error(err)
		}
	})
	conn, err := nb.Display(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r.display, err = qdisplay.NewClient(conn, qdisplay.ClientConfig{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.display.Close() }) // its error is the notebook's end
	// QEMU takes no notice of what it believes to be so already: that there is nothing at the first output.
	if err := r.display.SetMonitor(ctx, 0, testMonitors[0]); err != nil {
		t.Fatal(err)
	}
	return r
}

// output is a process in the notebook with the lines that it prints.
type output struct {
	*rpc.Process
	name  string
	mu    sync.Mutex
	lines []string
	told  chan struct{} // closed and replaced at each line
}

func (r *monitorRig) start(t *testing.T, args ...string) *output {
	t.Helper()
	out, in := io.Pipe()
	o := &output{name: filepath.Base(args[0]), told: make(chan struct{})}
	var err error
	if o.Process, err = r.nb.Start(rpc.Cmd{Args: args, Stdout: in, Stderr: in}); err != nil {
		t.Fatal(err)
	}
	go func() {
		<-o.Done()
		in.Close()
	}()
	go func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			o.mu.Lock()
			o.lines = append(o.lines, s.Text())
			close(o.told)
			o.told = make(chan struct{})
			o.mu.Unlock()
		}
	}()
	return o
}

func (o *output) text() string { return o.since(0) }

// since returns the lines after the first skip.
func (o *output) since(skip int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(o.lines[skip:], "\n")
}

// seen returns how many lines there are.
func (o *output) seen() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.lines)
}

// await waits for lines with the given texts, after the first skip and in that order.
func (o *output) await(ctx context.Context, t *testing.T, skip int, want ...string) {
	t.Helper()
	for {
		o.mu.Lock()
		left, told := want, o.told
		for _, l := range o.lines[skip:] {
			if len(left) > 0 && strings.Contains(l, left[0]) {
				left = left[1:]
			}
		}
		o.mu.Unlock()
		if len(left) == 0 {
			return
		}
		select {
		case <-told:
		case <-o.Done():
			t.Fatalf("it has ended before it printed %q:\n%s", left, o.text())
		case <-ctx.Done():
			t.Fatalf("it does not print %q: %v\n%s", left, context.Cause(ctx), o.text())
		}
	}
}

// testEvdev runs the tests of the input devices that need /dev/uinput, which few machines that build Lodge have.
func (r *monitorRig) testEvdev(ctx context.Context, t *testing.T) {
	out, err := r.nb.Shell(ctx, "modprobe uinput && cd /tmp && evdev.test -test.v -test.run 'Uinput|Monitor'")
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for l := range strings.Lines(out) {
		if strings.HasPrefix(strings.TrimSpace(l), "--- SKIP") {
			t.Error(strings.TrimSpace(l))
		}
		if strings.HasPrefix(l, "--- PASS: TestUinput") {
			passed++
		}
	}
	if passed < 6 {
		t.Errorf("%d tests with /dev/uinput have passed:\n%s", passed, out)
	}
}

// startSeat starts the seat, anew if it runs.
func (r *monitorRig) startSeat(ctx context.Context, t *testing.T, show string) {
	t.Helper()
	if r.seat != nil {
		if err := r.seat.Kill(); err != nil {
			t.Fatal(err)
		}
		<-r.seat.Done()
	}
	text := fmt.Sprintf("[monitors]\nshow = %q\nfile = %q\n", show, layoutFile)
	for i, k := range pictures {
		text += fmt.Sprintf("[[guest]]\nname = %q\ncolor = %q\nslot = %d\ndisplay = \"/run/%s.display\"\n", k.name, k.color, i+1, k.name)
	}
	if err := r.nb.Put(ctx, strings.NewReader(text), "/run/seat.toml", 0o644); err != nil {
		t.Fatal(err)
	}
	r.seat = r.start(t, "/tools/bin/lodge-seat", "--events", "/run/seat.toml")
	for _, k := range pictures {
		r.seat.await(ctx, t, 0, fmt.Sprintf(`"guest":%q,"there":true`, k.name))
	}
	r.seat.await(ctx, t, 0, `name="QEMU Virtio Keyboard" kind=keyboard`) // which chords are pressed on
}

// testMonitors are what can be plugged into the notebook's outputs.
var testMonitors = [2]display.Monitor{
	{Connected: true, Width: 1024, Height: 768, WidthMM: 300, HeightMM: 225},
	{Connected: true, Width: 800, Height: 600, WidthMM: 250, HeightMM: 180},
}

// plug plugs a monitor into an output of the notebook, or unplugs it, and waits until the seat knows.
func (r *monitorRig) plug(ctx context.Context, t *testing.T, head int, there bool) {
	t.Helper()
	var m display.Monitor
	if there {
		m = testMonitors[head]
	}
	seen := r.seat.seen()
	if err := r.display.SetMonitor(ctx, uint32(head), m); err != nil {
		t.Fatal(err)
	}
	r.seat.await(ctx, t, seen, fmt.Sprintf(`"output":"Virtual-%d"`, head+1))
}

// press presses keys together.
func (r *monitorRig) press(ctx context.Context, t *testing.T, keys ...string) {
	t.Helper()
	all := make([]map[string]string, len(keys))
	for i, k := range keys {
		all[i] = map[string]string{"type": "qcode", "data": k}
	}
	if _, err := r.nb.QMP(ctx, "send-key", map[string]any{"keys": all, "hold-time": 50}); err != nil {
		t.Fatal(err)
	}
}

// shows waits until a monitor shows a guest below the bar, and leaves a picture of it.
func (r *monitorRig) shows(ctx context.Context, t *testing.T, head, guest int, shot string) {
	t.Helper()
	until(ctx, t, fmt.Sprintf("guest %s on monitor %d", pictures[guest].name, head), func() (bool, error) {
		b, err := r.nb.Screendump(ctx, "vga", head)
		if err != nil {
			return false, err
		}
		if err := os.MkdirAll(shots, 0o755); err != nil {
			return false, err
		}
		if err := os.WriteFile(filepath.Join(shots, fmt.Sprintf("monitors-%s-%d.png", shot, head)), b, 0o644); err != nil {
			return false, err
		}
		img, err := png.Decode(bytes.NewReader(b))
		if err != nil {
			return false, err
		}
		below := image.Rect(0, desk.Bar, img.Bounds().Dx(), img.Bounds().Dy())
		if part := desk.Share(img, below, pictures[guest].rgb); part < 0.9 {
			return false, fmt.Errorf("%w: %.2f of it has its colour", errNotYet, part)
		}
		return true, barred(img)
	})
}

// barred returns an error if a guest's colour is in the rows of the bar.
func barred(img image.Image) error {
	for y := range 2 {
		for x := 0; x < img.Bounds().Dx(); x += 7 {
			for _, k := range pictures {
				if color.RGBAModel.Convert(img.At(x, y)).(color.RGBA) == k.rgb {
					return fmt.Errorf("pixel %d,%d, which is the bar's, has the colour of guest %s", x, y, k.name)
				}
			}
		}
	}
	return nil
}

// typed types a key, which only that guest is to get.
func (r *monitorRig) typed(ctx context.Context, t *testing.T, guest int, key string) {
	t.Helper()
	seen, other := r.guests[guest].seen(), r.guests[1-guest].seen()
	r.press(ctx, t, key)
	r.guests[guest].await(ctx, t, seen, `"+`+key+`"`, `"-`+key+`"`)
	// The modifiers of a chord go to who has the input before it.
	if l := r.guests[1-guest].since(other); strings.Contains(l, `"+`+key+`"`) {
		t.Errorf("guest %s, which is without the input, got %s", pictures[1-guest].name, l)
	}
}

// launch starts a guest.
func (r *monitorRig) launch(t *testing.T, i int, flags ...string) {
	t.Helper()
	k := pictures[i]
	args := append([]string{"/tools/bin/picture"}, flags...)
	r.guests[i] = r.start(t, append(args, k.name, fmt.Sprintf("%02x%02x%02x", k.rgb.R, k.rgb.G, k.rgb.B), "/run/"+k.name+".display")...)
}

func (r *monitorRig) testOne(ctx context.Context, t *testing.T) {
	for i := range pictures {
		r.launch(t, i)
	}
	r.startSeat(ctx, t, "one each")
	r.press(ctx, t, "ctrl", "alt", "2")
	r.shows(ctx, t, 0, 1, "one")
	r.press(ctx, t, "ctrl", "alt", "1")
	r.shows(ctx, t, 0, 0, "one")
	r.typed(ctx, t, 0, "a")
}

func (r *monitorRig) testSecond(ctx context.Context, t *testing.T) {
	r.plug(ctx, t, 1, true)
	r.shows(ctx, t, 1, 1, "second")
	r.shows(ctx, t, 0, 0, "second")
	r.guests[1].await(ctx, t, 0, `"size":"800x`) // it fits below the bar
	r.press(ctx, t, "ctrl", "alt", "2")
	r.typed(ctx, t, 1, "b")
	r.shows(ctx, t, 0, 0, "second-input")
	r.shows(ctx, t, 1, 1, "second-input")
}

func (r *monitorRig) testRemembered(ctx context.Context, t *testing.T) {
	r.plug(ctx, t, 1, false)
	r.shows(ctx, t, 0, 1, "together") // the guest with the input comes to the first monitor
	r.typed(ctx, t, 1, "c")
	text, err := r.nb.Shell(ctx, "cat "+layoutFile)
	if err != nil {
		t.Fatal(err)
	}
	var l compose.Layout
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatal(err)
	}
	// QEMU's monitors have no serial numbers: the second is told by its connector as well.
	if got := l.Find("RHT-1234-00000000@Virtual-2"); got.Guest != "home" {
		t.Errorf("what is remembered is %s", text)
	}
	r.plug(ctx, t, 1, true)
	r.shows(ctx, t, 1, 1, "again")
	r.shows(ctx, t, 0, 0, "again")
}

func (r *monitorRig) testFirst(ctx context.Context, t *testing.T) {
	r.plug(ctx, t, 0, false)
	r.press(ctx, t, "ctrl", "alt", "1")
	r.shows(ctx, t, 1, 0, "without-first")
	r.typed(ctx, t, 0, "d")
	r.plug(ctx, t, 0, true)
	r.shows(ctx, t, 0, 0, "first-again")
	r.shows(ctx, t, 1, 1, "first-again")
	r.typed(ctx, t, 0, "e")
}

// testKeyboard unplugs a keyboard while a key on it is held.
func (r *monitorRig) testKeyboard(ctx context.Context, t *testing.T) {
	if _, err := r.nb.Shell(ctx, "modprobe usbhid && modprobe hid-generic && modprobe evdev"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := r.nb.QMP(ctx, "device_add", map[string]any{"driver": "usb-kbd", "id": "kbd", "bus": "xhci.0"}); err != nil {
			t.Fatal(err)
		}
		seen := r.guests[0].seen()
		until(ctx, t, "the seat has the keyboard", func() (bool, error) {
			r.press(ctx, t, "q") // QEMU gives keys to the keyboard that came last
			if !strings.Contains(r.guests[0].since(seen), `"-q"`) {
				return false, errNotYet
			}
			return true, nil
		})
		seen = r.guests[0].seen()
		if _, err := r.nb.QMP(ctx, "input-send-event", map[string]any{"events": []any{map[string]any{
			"type": "key", "data": map[string]any{"down": true, "key": map[string]string{"type": "qcode", "data": "w"}},
		}}}); err != nil {
			t.Fatal(err)
		}
		r.guests[0].await(ctx, t, seen, `"+w"`)
		if _, err := r.nb.QMP(ctx, "device_del", map[string]string{"id": "kbd"}); err != nil {
			t.Fatal(err)
		}
		r.guests[0].await(ctx, t, seen, `"+w"`, `"-w"`) // no key sticks
		r.typed(ctx, t, 0, "r")                         // on the other keyboard
	}
}

// testDMABuf has a guest show memory that drivers share. The seat maps it: the notebook's card cannot import it.
func (r *monitorRig) testDMABuf(ctx context.Context, t *testing.T) {
	const maps = "for p in $(pidof lodge-seat); do cat /proc/$p/maps; done | grep -c dmabuf || true" // the guardian too
	if n, err := r.nb.Shell(ctx, "modprobe vgem && "+maps); err != nil || n != "0" {
		t.Fatalf("%s dmabufs are mapped before: %v", n, err)
	}
	k := pictures[1]
	if err := r.guests[1].Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.guests[1].Done()
	seen := r.seat.seen()
	r.launch(t, 1, "--dmabuf")
	r.seat.await(ctx, t, seen, fmt.Sprintf(`"guest":%q,"there":true`, k.name))
	until(ctx, t, "a dmabuf is mapped", func() (bool, error) {
		n, err := r.nb.Shell(ctx, maps)
		return n != "0", err
	})
	r.shows(ctx, t, 1, 1, "dmabuf")
}

func (r *monitorRig) testMirror(ctx context.Context, t *testing.T) {
	r.startSeat(ctx, t, "mirror")
	for _, g := range []int{1, 0} {
		r.press(ctx, t, "ctrl", "alt", fmt.Sprint(g+1))
		for head := range 2 {
			r.shows(ctx, t, head, g, fmt.Sprintf("mirror-%s", pictures[g].name))
		}
	}
}
