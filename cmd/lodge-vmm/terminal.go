package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// escape is the key that leaves a guest's console: Ctrl-].
const escape = 0x1d

// typeAhead bounds what was typed and the guest has not taken, in bytes. More is lost.
const typeAhead = 1 << 20

// terminal is the terminal that lodge-vmm was started from, in raw mode if it is one.
type terminal struct {
	in    *os.File
	err   io.Writer // for what we have to say
	saved *unix.Termios
	quit  chan os.Signal
}

// raw makes the terminal hand on every key. It is undone by restore, and when the process is told to dump its goroutines.
func (t *terminal) raw() error {
	tio, err := unix.IoctlGetTermios(int(t.in.Fd()), unix.TCGETS)
	if err != nil {
		return nil // a pipe or a file
	}
	saved := *tio
	t.quit = make(chan os.Signal, 1)
	signal.Notify(t.quit, unix.SIGQUIT)
	go func() {
		if _, ok := <-t.quit; ok {
			_ = unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, &saved)
			signal.Reset(unix.SIGQUIT)
			_ = unix.Kill(unix.Getpid(), unix.SIGQUIT)
		}
	}()
	// No code of ours runs after a panic. Interactive shells put the terminal right after a program that a signal has
	// ended, but take over the state in which one leaves it that exits, as Go's do otherwise.
	debug.SetTraceback("crash")
	tio.Iflag &^= unix.BRKINT | unix.ICRNL | unix.INPCK | unix.ISTRIP | unix.IXON
	tio.Lflag &^= unix.ECHO | unix.ICANON | unix.IEXTEN | unix.ISIG
	tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 1, 0
	t.saved = &saved
	if err := unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, tio); err != nil {
		return errors.Join(fmt.Errorf("terminal: %w", err), t.restore())
	}
	return nil
}

func (t *terminal) restore() error {
	if t.saved == nil {
		return nil
	}
	signal.Stop(t.quit)
	close(t.quit)
	err := unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, t.saved)
	t.saved = nil
	return err
}

// say prints a line, unless the terminal takes nothing.
func (t *terminal) say(text string) {
	if d, ok := t.err.(interface{ SetWriteDeadline(time.Time) error }); ok {
		_ = d.SetWriteDeadline(time.Now().Add(time.Second))
	}
	fmt.Fprintf(t.err, "lodge-vmm: %s\n", text)
}

// serve gives what the terminal sends to receive, which may wait for the guest. The escape key presses the power button,
// and pulls the plug when it comes again. At the end of a file or pipe the guest runs on. The read that is under way when
// ctx ends is left behind: the process is about to end.
func (t *terminal) serve(ctx context.Context, button func(context.Context) error, plug func(), receive func(context.Context, []byte) error) error {
	raw := t.saved != nil
	if raw {
		t.say("Ctrl-] presses the guest's power button, and once more switches the guest off")
	}
	chunks := make(chan []byte)
	go t.read(ctx, chunks)
	typed := make(chan []byte)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(typed)
	wg.Go(func() {
		for b := range typed {
			if receive(ctx, b) != nil {
				return // ctx has ended
			}
		}
	})
	var pending []byte
	pressed := false
	for chunks != nil || len(pending) > 0 {
		in, out := chunks, typed
		if len(pending) == 0 {
			out = nil
		} else if !raw { // whoever writes to us waits; a person may want to leave
			in = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case out <- pending:
			pending = nil
		case b, ok := <-in:
			if !ok {
				chunks = nil
			}
			for _, key := range b {
				switch {
				case !raw || key != escape:
					if len(pending) < typeAhead {
						pending = append(pending, key)
					}
				case !pressed:
					pressed = true
					if err := button(ctx); err != nil {
						return nil // ctx has ended
					}
					t.say("the power button is pressed; Ctrl-] once more switches the guest off, as by pulling the plug")
				default:
					plug()
				}
			}
		}
	}
	return nil
}

// read sends what it reads, until ctx or the input ends.
func (t *terminal) read(ctx context.Context, chunks chan<- []byte) {
	defer close(chunks)
	for {
		b := make([]byte, 256)
		n, err := t.in.Read(b)
		if n > 0 {
			select {
			case chunks <- b[:n]:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}
