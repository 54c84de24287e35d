package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/gdamore/tcell/v3"

	"github.com/lodgehv/lodge/console/seat"
	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/internal/guests"
	"github.com/lodgehv/lodge/internal/managed"
)

// consoleCommand is the command "console".
type consoleCommand struct {
	Seat string `arg:"" optional:"" type:"path" name:"seat.toml" help:"A seat's file, which names guests and their definitions, in place of the guests of lodged."`
	TTY  string `name:"tty" placeholder:"DEVICE" type:"path" help:"Show it on this terminal, such as /dev/ttyS1, in place of the one that lodge was started from."`
	Term string `name:"term" placeholder:"NAME" env:"TERM" help:"The terminal's kind, such as vt100 or linux."`
	VMM  string `name:"vmm" placeholder:"FILE" type:"path" help:"The program lodge-vmm, if it is neither beside this one nor on the PATH."`
}

// Run shows the console until the user ends it.
func (c *consoleCommand) Run(ctx context.Context, m *manageCommands) error {
	system, err := c.system(ctx, m)
	if err != nil {
		return err
	}
	if c.Term == "" || c.Term == "dumb" {
		return fmt.Errorf("a terminal of kind %q cannot show it: name another by --term, such as --term=vt100", c.Term)
	}
	tty, err := c.terminal()
	if err != nil {
		return err
	}
	screen, err := tcell.NewTerminfoScreenFromTty(tty, tcell.OptTerm(c.Term), tcell.OptSanitizeContent(true))
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	if err := screen.Init(); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	defer screen.Fini() // also if there is a fault: what is said then is to be read
	for r, s := range map[rune]string{'─': "-", '│': "|", '┌': "+", '┐': "+", '└': "+", '┘': "+", '×': "x"} {
		screen.RegisterRuneFallback(r, s)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if lodged, ok := system.(*managed.Guests); ok {
		wg.Go(func() { lodged.Run(ctx) })
	}
	return textui.New(system, screen, textui.Options{Quit: true}).Run(ctx)
}

// system returns what is managed: the guests of lodged, or those of a file.
func (c *consoleCommand) system(ctx context.Context, m *manageCommands) (textui.System, error) {
	if c.Seat == "" {
		k, err := m.dial(ctx) // so that it is told at once, and not on the screen
		if err != nil {
			return nil, err
		}
		return managed.New(m.Bus), k.Close()
	}
	cfg, err := seat.Load(c.Seat)
	if err != nil {
		return nil, err
	}
	files := guests.FromSeat(cfg)
	files.VMM = c.VMM
	return guests.New(files), nil
}

// terminal opens the terminal.
func (c *consoleCommand) terminal() (tcell.Tty, error) {
	if c.TTY != "" {
		tty, err := tcell.NewDevTtyFromDev(c.TTY)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.TTY, err)
		}
		return tty, nil
	}
	tty, err := tcell.NewStdIoTty()
	if err != nil {
		return nil, errors.New("standard input is no terminal: start it from one, or name one by --tty")
	}
	if st, err := os.Stdout.Stat(); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return nil, errors.New("standard output is no terminal: start it from one, or name one by --tty")
	}
	return tty, nil
}
