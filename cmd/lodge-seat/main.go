// Command lodge-seat is the one process that owns the screen, the keyboards and the mice: it shows the guests of its
// configuration, one at a time, below a bar that no guest can draw, and gives keyboard and pointer to the one on screen.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/lodgehv/lodge/console/seat"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/console/vt"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/internal/guests"
	"github.com/lodgehv/lodge/internal/managed"
)

func main() {
	if guardian, err := vt.RunGuardian(os.Args); guardian {
		exit(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // who reads the events may go: the screen stays
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	exit(err)
}

func exit(err error) {
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.Is(err, errUsage):
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "lodge-seat:", err)
	os.Exit(1)
}

// errUsage says that the usage was shown.
var errUsage = errors.New("usage")

const usage = `usage: lodge-seat [--output OUTPUT] [--manager BUS] [--events] SEAT.TOML

Shows guests on this machine's screens and gives them its keyboards and mice.

  --output drm            all monitors of the first graphics card, and all input devices (the default)
  --output drm:PATH       of another card, such as drm:/dev/dri/card1
  --output rfb:HOST:PORT  no screen: a VNC viewer on this machine looks and types; add ,WIDTHxHEIGHT for another size
  --manager BUS           Lodge's console has all guests of the lodged on that bus, system, session or an address, in place of
                          those of SEAT.TOML that have a definition
  --events                print what happens as JSON lines: {"event":"guest",…}, "focus", "switched", "monitor";
                          "lost" counts those before it that nobody read in time

SEAT.TOML:

  control = "seat.ctl"     # a socket by which lodge console switches here, may be left out

  [[guest]]
  name = "work"            # as the bar shows it
  label = "the company's"  # a few words, may be left out
  color = "blue"           # %s
  slot = 1                 # 1 to 9, for Ctrl+Alt+1 to 9; 0 is none
  display = "work.sock"    # the [display] path of the guest's definition
  definition = "work.toml" # that; Lodge's console starts and commands it then, may be left out

  [monitors]               # if there are several; may be left out
  show = "one each"        # each further monitor a guest of its own; or "mirror", the default: all the same guest
  file = "monitors.json"   # remembers by their EDIDs what monitors show; if left out, until the end only

  [[monitor]]              # one that is to be used otherwise
  id = "DEL-a0b1-00000001" # as --events prints it
  guest = "work"           # that it always shows, as long as there is another monitor
  width = 1920             # of its mode; the preferred one if left out
  height = 1080

  [mouse]                  # may be left out
  edge = 300               # pixels that it has to be pushed beyond the left or right edge, within half a second, to go to
                           # the neighbour; 0, the default: there is no way through
  keyboard_follows = false # where monitors show one guest each: the keyboard goes there too with the next click only

  [chords]                 # those that are to be others
  attention = "ctrl+alt+esc"
  left = "ctrl+alt+left"
  right = "ctrl+alt+right"
  last = "ctrl+alt+tab"
`

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	fs := flag.NewFlagSet("lodge-seat", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	output := fs.String("output", "drm", "")
	manager := fs.String("manager", "", "")
	events := fs.Bool("events", false, "")
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(out, usage, strings.Join(trustbar.ColorNames(), ", "))
		return err
	}
	if err == nil && fs.NArg() != 1 {
		err = errors.New("name one file that describes the seat")
	}
	if err != nil {
		fmt.Fprintf(errOut, "lodge-seat: %v\n"+usage, err, strings.Join(trustbar.ColorNames(), ", "))
		return errUsage
	}
	cfg, err := seat.Load(fs.Arg(0))
	if err != nil {
		return err
	}
	if len(cfg.Guests) == 0 && *manager == "" {
		return fmt.Errorf("%s: no guest: add a table [[guest]]", fs.Arg(0))
	}
	var lights lights
	opt := seat.Options{OnLEDs: lights.set, Log: slog.New(slog.NewTextHandler(errOut, nil))}
	if *events {
		e := newEventLog(out)
		defer e.close() // when nobody tells anything any more
		opt.OnFocus, opt.OnGuest, opt.OnSwitched, opt.OnMonitor = e.focus, e.guest, e.switched, e.monitor
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	if *manager == "" {
		files := guests.FromSeat(cfg)
		files.Seat = "" // which we are
		opt.Manager = guests.New(files)
	} else {
		lodged := managed.New(*manager)
		wg.Go(func() { lodged.Run(ctx) })
		opt.Manager, opt.Ready = lodged, lodged.Ready()
	}
	s, err := seat.New(cfg, opt)
	if err != nil {
		return err
	}
	wg.Go(func() { s.Run(ctx) })
	if err := serveControl(ctx, &wg, cfg.Control, s, opt.Log); err != nil {
		return err
	}
	kind, where, _ := strings.Cut(*output, ":")
	switch kind {
	case "drm":
		return showDRM(ctx, s, where, &lights, opt.Log)
	case "rfb":
		return showRFB(ctx, s, where, opt.Log)
	}
	return fmt.Errorf("--output %s: one of drm, drm:PATH and rfb:HOST:PORT", *output)
}

// lights brings the lights of the guest in the focus to the keyboards, once there are any.
type lights struct {
	mu   sync.Mutex
	last hid.LEDs
	to   func(hid.LEDs)
}

func (l *lights) set(leds hid.LEDs) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last = leds; l.to != nil {
		l.to(leds)
	}
}

func (l *lights) connect(to func(hid.LEDs)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to = to
	to(l.last)
}
