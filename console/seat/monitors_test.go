package seat

import (
	"context"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/headless"
	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/hid"
)

// plugged is a monitor that is there, with an EDID.
type plugged struct {
	*headless.Screen
	info   output.Info
	unplug func()
}

func (p *plugged) Info() output.Info { return p.info }

// Modes lets the monitor have another mode than the preferred one.
func (p *plugged) Modes() []output.Mode {
	return append(p.Screen.Modes(), output.Mode{Width: 800, Height: 500, RefreshMilliHz: 60000})
}

// desk is a seat with two guests, and monitors that come and go.
type desk struct {
	*Seat
	t         *testing.T
	file      string
	red, blue *machine
}

func newDesk(t *testing.T, text string) *desk {
	t.Helper()
	dir := t.TempDir()
	d := &desk{
		t: t, file: filepath.Join(dir, "monitors.json"),
		red: newMachine(t, filepath.Join(dir, "red"), red), blue: newMachine(t, filepath.Join(dir, "blue"), blue),
	}
	cfg, err := Parse("seat.toml", dir, text+`
[[guest]]
name = "Work"
color = "red"
slot = 1
display = "red"
[[guest]]
name = "Home"
color = "blue"
slot = 2
display = "blue"
`)
	if err != nil {
		t.Fatal(err)
	}
	d.run(cfg)
	return d
}

// run starts the seat, whose guests arrive.
func (d *desk) run(cfg Config) (stop func()) {
	d.t.Helper()
	var err error
	if d.Seat, err = New(cfg, Options{}); err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	s := d.Seat
	wg.Go(func() { s.Run(ctx) })
	stop = func() { cancel(); wg.Wait() }
	d.t.Cleanup(stop)
	eventually(d.t, "both guests are there", func() bool {
		return s.guests[0].sender.Load() != nil && s.guests[1].sender.Load() != nil && s.Router.Focus() != ""
	})
	return stop
}

// plug plugs a monitor in.
func (d *desk) plug(info output.Info, width, height int) *plugged {
	d.t.Helper()
	screen, err := headless.NewScreen(info.Name, width, height)
	if err != nil {
		d.t.Fatal(err)
	}
	p := &plugged{Screen: screen, info: info}
	show, err := d.Plug(p)
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := show(ctx); err != nil {
			d.t.Error(err)
		}
	})
	p.unplug = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	d.t.Cleanup(p.unplug)
	return p
}

// shows waits until a monitor shows a guest.
func (d *desk) shows(p *plugged, c color.RGBA) {
	d.t.Helper()
	size := p.Mode().Size().Max
	eventually(d.t, fmt.Sprintf("%s shows %v", p.info.Name, c), func() bool {
		return p.Image().RGBAAt(size.X/2, size.Y/2+20) == c
	})
}

// press presses keys together.
func (d *desk) press(codes ...uint16) {
	for _, down := range []int32{1, 0} {
		for _, c := range codes {
			d.Input(1, monotonic(), []hid.Event{{Type: hid.EVKey, Code: c, Value: down}})
		}
	}
}

func (d *desk) chord(code uint16) { d.press(hid.KeyLeftCtrl, hid.KeyLeftAlt, code) }

var (
	monitorA = output.Info{Name: "DP-1", Monitor: "AAA-0001-00000001"}
	monitorB = output.Info{Name: "DP-2", Monitor: "BBB-0002-00000002"}
)

const oneEach = "[monitors]\nshow = \"one each\"\nfile = \"monitors.json\"\n"

func TestMirror(t *testing.T) {
	d := newDesk(t, "")
	b, a := d.plug(monitorB, 640, 480), d.plug(monitorA, 640, 480)
	panel := d.plug(output.Info{Name: "eDP-1", Monitor: "LGD", Internal: true}, 800, 600)
	eventually(t, "the guests have a monitor as large as the panel", func() bool {
		return d.red.screen.Monitor().Width == 800 && d.blue.screen.Monitor().Width == 800
	})
	panel.unplug()
	eventually(t, "the guests have a monitor as large as the others", func() bool {
		return d.red.screen.Monitor().Width == 640 && d.blue.screen.Monitor().Width == 640
	})
	for _, k := range []struct {
		key uint16
		c   color.RGBA
	}{{hid.Key1, red}, {hid.Key2, blue}} {
		d.chord(k.key)
		d.shows(a, k.c)
		d.shows(b, k.c)
	}
	if _, err := os.Stat(d.file); err == nil {
		t.Error("monitors that show the same are remembered")
	}
}

func TestOneEach(t *testing.T) {
	d := newDesk(t, oneEach)
	a := d.plug(monitorA, 640, 480)
	d.chord(hid.Key1)
	d.shows(a, red)
	b := d.plug(monitorB, 800, 600)
	d.shows(b, blue)
	d.shows(a, red)
	bar := trustbar.Height(b.Mode().Size().Max)
	eventually(t, "the guest has a monitor of that size", func() bool {
		m := d.blue.screen.Monitor()
		return m.Width == 800 && m.Height == 600-bar
	})
	d.chord(hid.Key2) // the input goes there, and the pictures stay
	d.press(hid.KeyA)
	d.blue.typed(t, "a+1", "a-1")
	d.shows(a, red)
	d.shows(b, blue)

	b.unplug() // the guests come together, and the one with the input is seen
	d.shows(a, blue)
	eventually(t, "the guest has the first monitor", func() bool { return d.blue.screen.Monitor().Width == 640 })
	d.chord(hid.Key1)
	d.shows(a, red)
	d.chord(hid.Key2)
	d.shows(a, blue)

	b = d.plug(monitorB, 800, 600) // and part again
	d.shows(b, blue)
	d.shows(a, red)
	d.press(hid.KeyB)
	d.blue.typed(t, "b+1", "b-1")

	a.unplug() // the first one goes and comes
	d.shows(b, blue)
	d.chord(hid.Key1)
	d.shows(b, red)
	a = d.plug(monitorA, 640, 480)
	d.shows(a, red)
	d.shows(b, blue)
}

// TestRemembered has another seat find the monitors as they were, in whatever order they come.
func TestRemembered(t *testing.T) {
	d := newDesk(t, oneEach)
	a := d.plug(monitorA, 640, 480)
	d.chord(hid.Key2)
	d.shows(a, blue)
	b := d.plug(monitorB, 640, 480)
	d.shows(b, red) // the one that is free
	b.unplug()
	a.unplug()
	text, err := os.ReadFile(d.file)
	if err != nil || !strings.Contains(string(text), `"guest": "Work"`) || !strings.Contains(string(text), monitorB.Monitor) {
		t.Fatalf("%s: %v", text, err)
	}
	d.run(d.cfg)
	b = d.plug(monitorB, 640, 480)
	d.chord(hid.Key2)
	d.shows(b, blue)
	a = d.plug(monitorA, 640, 480)
	d.shows(b, red)
	d.shows(a, blue)
}

// TestListedMonitor has the configuration say what a monitor shows.
func TestListedMonitor(t *testing.T) {
	d := newDesk(t, "[[monitor]]\nid = \"BBB-0002-00000002\"\nguest = \"Home\"\nwidth = 800\nheight = 500\n")
	b := d.plug(monitorB, 640, 480)
	d.chord(hid.Key1)
	d.shows(b, red) // while it is alone it shows all
	if got := b.Mode(); got.Width != 800 || got.Height != 500 {
		t.Errorf("its mode is %+v", got)
	}
	a := d.plug(monitorA, 640, 480)
	d.shows(a, red)
	d.shows(b, blue)
	c := d.plug(output.Info{Name: "DP-3", Monitor: "CCC"}, 640, 480) // which mirrors
	d.shows(c, red)
}

// TestAlike has two monitors without a serial number.
func TestAlike(t *testing.T) {
	d := newDesk(t, oneEach)
	first := output.Info{Name: "DP-1", Monitor: "RHT-1234-00000000"}
	second := first
	second.Name = "DP-2"
	a := d.plug(first, 640, 480)
	d.chord(hid.Key1)
	d.shows(a, red)
	b := d.plug(second, 640, 480)
	d.shows(b, blue)
	l, err := compose.LoadLayout(d.file)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Find("RHT-1234-00000000@DP-2").Guest; got != "Home" {
		t.Errorf("%q is remembered: %+v", got, l)
	}
}

// TestInternal has the notebook's own panel be the main one, whenever it comes.
func TestInternal(t *testing.T) {
	d := newDesk(t, oneEach)
	a := d.plug(monitorA, 640, 480)
	d.chord(hid.Key1)
	d.shows(a, red)
	p := d.plug(output.Info{Name: "eDP-1", Monitor: "LGD", Internal: true}, 640, 480)
	d.shows(p, red)
	d.shows(a, blue)
}
