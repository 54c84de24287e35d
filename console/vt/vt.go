package vt

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNone says that the machine has no virtual terminals.
var ErrNone = errors.New("no virtual terminals")

// The signals by which the kernel asks for the screen and gives it back.
const (
	relSignal = unix.SIGUSR1
	acqSignal = unix.SIGUSR2
)

// patience is how long a change of terminals may take: the program that has the other one may have to let it go.
const patience = 5 * time.Second

// Config is what a Console calls when the user changes terminals, by a goroutine of its own, in turn.
type Config struct {
	// Release lets go of screen, keyboards and mice. The terminals do not change before it returns.
	Release func()
	// Acquire takes them back. It is not called by Open: then they are there.
	Acquire func()
	Log     *slog.Logger // nil is slog.Default
}

// Console is a virtual terminal that is ours. The process needs CAP_SYS_TTY_CONFIG for as long as it has one.
type Console struct {
	cfg      Config
	n        int // /dev/tty<n>
	before   int // the terminal that was active
	kbMode   int // of the keyboard, before us
	tty      terminal
	guardian *guardian // nil in tests
	signals  chan os.Signal
	stop     chan struct{}
	ended    chan struct{}
	once     sync.Once
	err      error // of Close

	mu     sync.Mutex
	active bool
}

// Open takes a free terminal and changes to it. It is ErrNone if the machine has none. The program's main has to call
// RunGuardian first of all.
func Open(cfg Config) (*Console, error) {
	control, err := openTTY("/dev/tty0")
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("text console: %w", err)
	}
	defer control.close()
	n, err := control.get("VT_OPENQRY", nrOpenQry)
	if errors.Is(err, unix.ENOTTY) { // a serial line is the console
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("text console: %w", err)
	}
	if n < 1 {
		return nil, errors.New("text console: all virtual terminals are in use")
	}
	t, err := openTTY(fmt.Sprintf("/dev/tty%d", n))
	if err != nil {
		return nil, fmt.Errorf("text console: %w", err)
	}
	c, err := take(cfg, t, n)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("text console: %w", err), t.close())
	}
	return c, nil
}

// take takes the terminal t, whose number is n, with a guardian.
func take(cfg Config, t terminal, n int) (*Console, error) {
	c, err := newConsole(cfg, t, n)
	if err != nil {
		return nil, err
	}
	// Before anything is changed.
	if c.guardian, err = startGuardian(t.file(), restore{n, c.before, c.kbMode}); err != nil {
		return nil, err
	}
	if err := c.start(); err != nil {
		return nil, errors.Join(err, c.guardian.dismiss())
	}
	return c, nil
}

// newConsole notes down how everything is.
func newConsole(cfg Config, t terminal, n int) (*Console, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c := &Console{cfg: cfg, n: n, tty: t, signals: make(chan os.Signal, 8), stop: make(chan struct{}), ended: make(chan struct{})}
	s, err := t.state()
	if err != nil {
		return nil, err
	}
	c.before = int(s.active)
	c.kbMode, err = t.get("KDGKBMODE", nrKDGKBMode)
	return c, err
}

// start takes the terminal and changes to it.
func (c *Console) start() error {
	signal.Notify(c.signals, relSignal, acqSignal)
	ready := make(chan error, 1)
	go c.run(ready)
	if err := <-ready; err != nil {
		<-c.ended
		return err
	}
	return nil
}

// run has the terminal until Close.
func (c *Console) run(ready chan<- error) {
	// The kernel notes down the thread that has called VT_SETMODE, and takes the process for dead when that has ended. Go
	// ends threads that goroutines were locked to: this one stays as long as the terminal is ours.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(c.ended)
	defer signal.Stop(c.signals)
	err := errors.Join(
		c.tty.setMode(mode{mode: vtProcess, relSig: int16(relSignal), acqSig: int16(acqSignal)}),
		c.tty.set("KDSETMODE", nrKDSetMode, kdGraphics),
		c.tty.set("KDSKBMODE", nrKDSKBMode, kOff),
	)
	if err == nil {
		err = c.enter()
	}
	if err != nil {
		ready <- errors.Join(err, restore{c.n, c.before, c.kbMode}.do(c.tty))
		return
	}
	ready <- nil
	for {
		select {
		case s := <-c.signals:
			c.signalled(s)
		case <-c.stop:
			c.err = restore{c.n, c.before, c.kbMode}.do(c.tty)
			return
		}
	}
}

// enter changes to our terminal. The kernel says by acqSignal when it is ours, if it was not before.
func (c *Console) enter() error {
	if c.before == c.n { // fresh terminals are not active, but another program may have been faster than VT_OPENQRY
		c.setActive(true)
		return nil
	}
	if err := c.tty.set("VT_ACTIVATE", nrActivate, c.n); err != nil {
		return err
	}
	for timeout := time.After(patience); ; {
		select {
		case s := <-c.signals:
			if s != acqSignal {
				c.signalled(s)
				continue
			}
			if err := c.tty.set("VT_RELDISP", nrRelDisp, vtAckAcq); err != nil {
				return err
			}
			c.setActive(true)
			return nil
		case <-timeout:
			return fmt.Errorf("terminal %d, which is on the screen, is not let go by the program that has it", c.before)
		}
	}
}

// signalled answers the kernel.
func (c *Console) signalled(s os.Signal) {
	var err error
	switch {
	case s == relSignal:
		if c.Active() {
			c.setActive(false)
			if c.cfg.Release != nil {
				c.cfg.Release()
			}
		}
		err = c.tty.set("VT_RELDISP", nrRelDisp, 1)
	case s == acqSignal:
		err = c.tty.set("VT_RELDISP", nrRelDisp, vtAckAcq)
		if !c.Active() {
			c.setActive(true)
			if c.cfg.Acquire != nil {
				c.cfg.Acquire()
			}
		}
	}
	if err != nil { // anybody who may can send us a signal that the kernel has not
		c.cfg.Log.Warn("text console", "err", err)
	}
}

func (c *Console) setActive(active bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active = active
}

// Active reports whether our terminal is on the screen.
func (c *Console) Active() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.active
}

// Switch asks for a change to terminal n, as the kernel's own chord Ctrl+Alt+F<n> would. It does not wait for it.
func (c *Console) Switch(n int) error {
	if n < 1 || n > 63 {
		return fmt.Errorf("text console %d: 1 to 63 are possible", n)
	}
	return c.tty.set("VT_ACTIVATE", nrActivate, n)
}

// Close gives the terminal back as it was, and changes to the one that was on the screen before, if ours is. The screen is
// released before. It may be called more than once.
func (c *Console) Close() error {
	c.once.Do(func() {
		close(c.stop)
		<-c.ended
		c.setActive(false)
		if c.guardian != nil {
			c.err = errors.Join(c.err, c.guardian.dismiss())
		}
		c.err = errors.Join(c.err, c.tty.close())
	})
	return c.err
}
