// Package desk is the simulated notebook as a user has it: two guests with desktops, the seat on its screen, its keyboard, and
// pictures of its screen. `make run` shows it, and tests look at it.
package desk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/guest"
	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
)

// Desktop is a guest with a desktop.
type Desktop struct {
	Name, Color string // as the bar shows them
	Slot        int
	Card        string // virtio or vga
	Wallpaper   color.RGBA
	Firmware    bool // SeaBIOS and GRUB start it, else Lodge does
}

// Desktops are the two guests: Lodge starts one from its kernel, and it draws on virtio-gpu; the other starts as on a PC,
// with what it shows on the way, and draws on a VGA.
func Desktops() []Desktop {
	return []Desktop{
		{"work", "blue", 1, "virtio", color.RGBA{0x20, 0x3a, 0x5c, 255}, false},
		{"home", "green", 2, "vga", color.RGBA{0x2e, 0x5d, 0x34, 255}, true},
	}
}

// Bar is the height of the seat's bar on the notebook's screen, in pixels. A guest has the rest.
const Bar = 28

// Width and Height are the size of a guest's screen there.
const (
	Width  = 1024
	Height = 768 - Bar
)

// Config says how to set up a desk.
type Config struct {
	Bin     string // directory of Lodge's programs; they are built if empty
	Display string // QEMU's -display, to show the notebook's screen; none if empty
	Shots   string // directory for screenshots
	Log     io.Writer
	// Console returns where a guest's serial console goes beside the machine's own record; it may be nil.
	Console func(name string) io.Writer
}

// Desk is a notebook with what is on it.
type Desk struct {
	Hands
	Notebook *notebook.Notebook
	Manager  *guest.Manager
	Seat     *Seat // nil before StartSeat

	cfg   Config
	boots map[string]string // boot disks, by guest
}

// Start starts the notebook, with lodged and the guests' definitions, but no guest and without the seat, after having built their
// images if need be.
func Start(ctx context.Context, cfg Config) (*Desk, error) {
	b, err := lodgeimage.NewBuilder(cfg.Log)
	if err != nil {
		return nil, err
	}
	tools, err := guest.ManagerTools(ctx, b, cfg.Bin)
	if err != nil {
		return nil, err
	}
	g, err := b.Desktop(ctx)
	if err != nil {
		return nil, err
	}
	d := &Desk{cfg: cfg, boots: make(map[string]string)}
	// With two processors the emulator resets the notebook within minutes when guests run on both: see e2e/README.md.
	nb := notebook.Config{Builder: b, Tools: tools, CPUs: 1, Display: cfg.Display, Log: cfg.Log}
	for _, k := range Desktops() {
		nb.Disks = append(nb.Disks, notebook.Disk{Name: k.Name, Base: g.Disk})
		if !k.Firmware {
			continue
		}
		boot, err := b.BootDisk(ctx, g, "Debian "+k.Name, "console=tty0 console=ttyS0 loglevel=6 root=/dev/vdb rw panic=-1 lodge.name="+k.Name+" "+k.cmdline())
		if err != nil {
			return nil, err
		}
		nb.Disks = append(nb.Disks, notebook.Disk{Name: "boot-" + k.Name, Base: boot})
		d.boots[k.Name] = "/disk/boot-" + k.Name
	}
	if d.Notebook, err = notebook.Start(ctx, nb); err != nil {
		return nil, err
	}
	d.Hands = Hands{d.Notebook.QMP}
	if err := d.startManager(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Where the seat's configuration and its control socket are in the notebook.
const (
	seatFile   = "/run/seat.toml"
	seatSocket = "/run/seat.ctl"
)

// startManager starts lodged, defines the guests, and describes them to the seat.
func (d *Desk) startManager(ctx context.Context) (err error) {
	host := guest.InNotebook(d.Notebook)
	if err := host.StartBus(ctx); err != nil {
		return err
	}
	if d.Manager, err = host.StartManager(ctx, nil, "--seat", seatSocket); err != nil {
		return err
	}
	for _, k := range Desktops() {
		if err := d.Manager.Define(ctx, d.config(k)); err != nil {
			return err
		}
	}
	return d.describe(ctx, Desktops()...)
}

// describe writes the seat's configuration, for guests that are defined.
func (d *Desk) describe(ctx context.Context, guests ...Desktop) error {
	var s strings.Builder
	fmt.Fprintf(&s, "control = %q\n", seatSocket)
	for _, k := range guests {
		fmt.Fprintf(&s, "[[guest]]\nname = %q\ncolor = %q\nslot = %d\ndisplay = %q\n",
			k.Name, k.Color, k.Slot, d.Manager.RunDir(k.Name)+"/display.sock")
	}
	return d.Notebook.Put(ctx, strings.NewReader(s.String()), seatFile, 0o644)
}

func (k Desktop) cmdline() string {
	return fmt.Sprintf("lodge.color=%02x%02x%02x", k.Wallpaper.R, k.Wallpaper.G, k.Wallpaper.B)
}

// Close ends the notebook with all that is in it.
func (d *Desk) Close() error { return d.Notebook.Close() }

// Machine is a guest that was started.
type Machine struct {
	*guest.Guest
	Desktop Desktop
	Agent   *rpc.Client // nil before Await or Connect
	Begin   time.Time
}

// config describes a desktop's machine.
func (d *Desk) config(k Desktop) guest.Config {
	c := guest.Config{
		Name: k.Name, Arch: "amd64", MemoryMB: 384, CID: uint32(20 + k.Slot),
		Disk: "/disk/" + k.Name, BootDisk: d.boots[k.Name], Cmdline: k.cmdline(),
		Flags: fmt.Sprintf("color = %q\nslot = %d", k.Color, k.Slot),
		Extra: fmt.Sprintf("[display]\ncard = %q\nwidth = %d\nheight = %d\n", k.Card, Width, Height),
	}
	if d.cfg.Console != nil {
		c.Console = d.cfg.Console(k.Name)
	}
	return c
}

// Launch has lodged start a guest, from its saved state if there is one, and does not wait for what runs in it.
func (d *Desk) Launch(ctx context.Context, k Desktop) (*Machine, error) {
	m := &Machine{Desktop: k, Begin: time.Now()}
	_, err := d.Manager.Lodge(ctx, "start", k.Name)
	if err == nil {
		m.Guest, err = d.Manager.Attach(ctx, d.config(k))
	}
	return m, err
}

var terminalRE = regexp.MustCompile(`lodge-guest: terminal [0-9.]+`)

// Await waits until the guest's desktop has its terminal, and connects to its agent.
func (m *Machine) Await(ctx context.Context) error {
	if _, err := m.Guest.Await(ctx, 0, terminalRE); err != nil {
		return err
	}
	return m.Connect(ctx)
}

// Connect connects to the agent of a guest.
func (m *Machine) Connect(ctx context.Context) (err error) {
	m.Agent, err = m.Guest.Agent(ctx)
	return err
}

// Screen returns the picture that the guest itself has: what its kernel shows on its monitor.
func (m *Machine) Screen(ctx context.Context) (image.Image, error) {
	r, err := m.Agent.Run(ctx, rpc.Self, "screen")
	if err == nil {
		err = r.Check("agent screen")
	}
	if err != nil {
		return nil, err
	}
	return png.Decode(strings.NewReader(r.Stdout))
}

// Paint draws a picture on the guest's screen for a while, behind the back of its desktop. It does not wait for the end.
func (m *Machine) Paint(img image.Image, at image.Point, d time.Duration) (*rpc.Process, error) {
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		return nil, err
	}
	return m.Agent.Start(rpc.Cmd{Args: []string{rpc.Self, "paint", fmt.Sprint(at.X), fmt.Sprint(at.Y), d.String()}, Stdin: &b})
}

// Typed returns what was typed in the guest's terminal, of which it gets lines.
func (m *Machine) Typed(ctx context.Context) (string, error) {
	return m.Agent.Shell(ctx, "cat /tmp/typed")
}

// Shoot returns a picture of the notebook's screen, and leaves it as name.png among the screenshots.
func (d *Desk) Shoot(ctx context.Context, name string) (image.Image, error) {
	b, err := d.Notebook.Screendump(ctx, "vga", 0)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(d.cfg.Shots, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(d.cfg.Shots, name+".png"), b, 0o644); err != nil {
		return nil, err
	}
	return png.Decode(bytes.NewReader(b))
}

// AwaitDesktop waits until the notebook's screen has a guest's desktop below the bar, by the colour of its wallpaper, and
// nothing of the others'. The last look at it stays among the screenshots.
func (d *Desk) AwaitDesktop(ctx context.Context, k Desktop, name string) (image.Image, error) {
	for {
		img, err := d.Shoot(ctx, name)
		if err != nil {
			return nil, err
		}
		below := image.Rect(0, Bar, img.Bounds().Dx(), img.Bounds().Dy())
		own, others := Share(img, below, k.Wallpaper), 0.0
		for _, other := range Desktops() {
			if other.Name != k.Name {
				others += Share(img, img.Bounds(), other.Wallpaper)
			}
		}
		if own >= 0.2 && others == 0 {
			return img, nil
		}
		if err := pause(ctx, lookPause); err != nil {
			return nil, fmt.Errorf("the desktop of %s is not on the screen: %.2f of it has its wallpaper's colour, %.2f the other's: %w", k.Name, own, others, err)
		}
	}
}

// Share returns which part of r in a picture has a colour, from 0 to 1. It looks at every third pixel of every third row.
func Share(img image.Image, r image.Rectangle, c color.RGBA) float64 {
	n, all := 0, 0
	for y := r.Min.Y; y < r.Max.Y; y += 3 {
		for x := r.Min.X; x < r.Max.X; x += 3 {
			all++
			if color.RGBAModel.Convert(img.At(x, y)) == c {
				n++
			}
		}
	}
	return float64(n) / float64(max(all, 1))
}

// Differences compares what is below the bar with a guest's picture, in squares of 32 pixels, and returns those that are not
// the same in every pixel, as rectangles of the guest's. Of another size, all is different.
func Differences(screen, guest image.Image) []image.Rectangle {
	const square = 32
	size := screen.Bounds().Size().Sub(image.Pt(0, Bar))
	if size != guest.Bounds().Size() {
		return []image.Rectangle{guest.Bounds()}
	}
	var diff []image.Rectangle
	for y := 0; y < size.Y; y += square {
		for x := 0; x < size.X; x += square {
			r := image.Rect(x, y, x+square, y+square).Intersect(guest.Bounds())
			if !same(screen, guest, r) {
				diff = append(diff, r)
			}
		}
	}
	return diff
}

func same(screen, guest image.Image, r image.Rectangle) bool {
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			if color.RGBAModel.Convert(screen.At(x, y+Bar)) != color.RGBAModel.Convert(guest.At(x, y)) {
				return false
			}
		}
	}
	return true
}
