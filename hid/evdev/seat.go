package evdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hid"
)

// Config is what a Seat is made from.
type Config struct {
	// Use says whether a device is to be used. If it is nil, those are that have something for a guest (keyboards, mice,
	// touch devices, tablets) and, if Raw takes them, power buttons and switches. Others stay with whoever has them: a lid
	// that is grabbed and not looked at would never suspend the machine.
	Use func(*Info) bool
	// Options says what a person wants of a device. If it is nil, nothing special.
	Options func(*Info) Options

	// Plugged tells a new device, before its input, and Unplugged that it is gone, after it. The id is the seat's, and not
	// used again. They are called by the device's goroutine, as Input is: each device for itself, two devices at once.
	Plugged   func(id int, d *Device)
	Unplugged func(id int)
	// Input takes what is for guests: of the power button, nothing. The batch is good until it returns.
	Input func(id int, at time.Duration, batch []hid.Event)
	// Raw takes each report as it is, before Input: for switches and power buttons. It may be nil.
	Raw func(id int, r Report)

	Log *slog.Logger // nil: none

	dir  string                        // of tests; /dev/input
	open func(string) (*Device, error) // of tests; Open
}

// Seat has all input devices that are used, those that are plugged in later too. Each is grabbed: what cannot be had alone is
// not used.
type Seat struct {
	cfg   Config
	ports map[string]*port // by the name of the node; Run's alone

	mu   sync.Mutex
	leds hid.LEDs
	ids  int
	open map[*Device]struct{}
}

// port is a node's place, and the goroutine that looks after it.
type port struct {
	leave   func()        // the goroutine is to end
	leaving bool          // and has been told so
	done    chan struct{} // it has ended
}

func (p *port) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// How long an unusable node is tried again: a rule of udev's may still have to give it to us, or a seat that crashed to let
// go of it.
const (
	retryFor   = 10 * time.Second
	retryFirst = 5 * time.Millisecond
	retryMost  = 500 * time.Millisecond
)

// NewSeat returns a seat, which has no devices before Run.
func NewSeat(cfg Config) *Seat {
	if cfg.Use == nil {
		use := forGuests
		if cfg.Raw != nil {
			use |= PowerButton | Switches
		}
		cfg.Use = func(i *Info) bool { return i.Kind()&use != 0 }
	}
	if cfg.Options == nil {
		cfg.Options = func(*Info) Options { return Options{} }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.dir == "" {
		cfg.dir = "/dev/input"
	}
	if cfg.open == nil {
		cfg.open = Open
	}
	return &Seat{cfg: cfg, ports: make(map[string]*port), open: make(map[*Device]struct{})}
}

// SetLEDs switches the lock lights of all keyboards, those that are plugged in later too.
func (s *Seat) SetLEDs(leds hid.LEDs) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leds = leds
	for d := range s.open {
		s.light(d)
	}
}

func (s *Seat) light(d *Device) {
	if err := d.SetLEDs(s.leds); err != nil && !errors.Is(err, unix.ENODEV) {
		s.cfg.Log.Warn("input", "err", err)
	}
}

// Run looks after the devices until ctx is done. When it returns, all are closed and their goroutines have ended.
func (s *Seat) Run(ctx context.Context) error {
	m, err := newMonitor()
	if err != nil {
		return err
	}
	return s.run(ctx, m.next, func() { _ = m.close() })
}

// run takes uevents from next, which fails after stop.
func (s *Seat) run(ctx context.Context, next func() (uevent, error), stop func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.wait()
	defer cancel()
	defer context.AfterFunc(ctx, stop)()
	if err := s.scan(ctx); err != nil { // after the monitor has begun: nothing falls between
		return err
	}
	for {
		u, err := next()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == errOverrun:
			if err := s.scan(ctx); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		switch name := u.node(); {
		case name == "":
		case u.action == "add":
			s.plug(ctx, name)
		case u.action == "remove":
			s.unplug(name)
		}
	}
}

// scan looks after all nodes that are there.
func (s *Seat) scan(ctx context.Context) error {
	entries, err := os.ReadDir(s.cfg.dir)
	if errors.Is(err, fs.ErrNotExist) { // it comes with the first device
		return nil
	}
	if err != nil {
		return fmt.Errorf("input devices: %w", err)
	}
	for _, e := range entries {
		if isNode(e.Name()) {
			s.plug(ctx, e.Name())
		}
	}
	return nil
}

// plug begins to look after a node, if nobody does. Where one of that name was before, its goroutine ends first.
func (s *Seat) plug(ctx context.Context, name string) {
	before := s.ports[name]
	if before != nil && !before.leaving && !before.ended() {
		return
	}
	ctx, leave := context.WithCancel(ctx)
	p := &port{leave: leave, done: make(chan struct{})}
	s.ports[name] = p
	go func() {
		defer close(p.done)
		defer leave()
		if before != nil {
			<-before.done
		}
		s.serve(ctx, filepath.Join(s.cfg.dir, name))
	}()
}

// unplug ends what plug began.
func (s *Seat) unplug(name string) {
	if p := s.ports[name]; p != nil {
		p.leaving = true
		p.leave()
	}
}

// wait returns when all goroutines have ended. Each waits for the one before it.
func (s *Seat) wait() {
	for _, p := range s.ports {
		<-p.done
	}
}

// serve reads the device at path until it is gone, and the one that may have taken its name meanwhile.
func (s *Seat) serve(ctx context.Context, path string) {
	for {
		d := s.acquire(ctx, path)
		if d == nil {
			return
		}
		err := s.read(ctx, d)
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, unix.ENODEV) {
			s.cfg.Log.Warn("input", "err", err)
			return
		}
		// The node is removed before its readers hear of it.
		if _, err := os.Lstat(path); err != nil {
			return
		}
	}
}

// acquire opens and grabs the device at path. It returns nil if the device is not to be used, or cannot be.
func (s *Seat) acquire(ctx context.Context, path string) *Device {
	begin, pause := time.Now(), retryFirst
	for ctx.Err() == nil {
		d, err := s.cfg.open(path)
		if err == nil {
			if !s.cfg.Use(d.Info()) {
				d.Close()
				return nil
			}
			if err = d.Grab(); err == nil {
				return d
			}
			d.Close()
		}
		if time.Since(begin) > retryFor {
			s.cfg.Log.Warn("input device is not used", "err", err)
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMost)
	}
	return nil
}

// read passes on what d reports until it fails, or until ctx is done, and closes d.
func (s *Seat) read(ctx context.Context, d *Device) error {
	defer context.AfterFunc(ctx, func() { d.Close() })()
	defer d.Close()
	s.mu.Lock()
	s.ids++
	id := s.ids
	s.open[d] = struct{}{}
	s.light(d)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, d)
	}()
	if s.cfg.Plugged != nil {
		s.cfg.Plugged(id, d)
	}
	if s.cfg.Unplugged != nil {
		defer s.cfg.Unplugged(id)
	}
	s.cfg.Log.Info("input device", "path", d.Info().Path, "name", d.Info().Name, "kind", d.Info().Kind())
	t := NewTranslator(d.Info(), s.cfg.Options(d.Info()))
	send := func(at time.Duration, batch []hid.Event) {
		if s.cfg.Input != nil {
			s.cfg.Input(id, at, batch)
		}
	}
	for {
		r, err := d.Read()
		if err != nil {
			return err
		}
		if s.cfg.Raw != nil {
			s.cfg.Raw(id, r)
		}
		if d.Info().Kind()&forGuests != 0 {
			t.Translate(r, send)
		}
	}
}
