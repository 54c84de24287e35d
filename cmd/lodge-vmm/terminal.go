package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// escape is the key that leaves a guest's console: Ctrl-].
const escape = 0x1d

// terminal is the terminal that lodge-vmm was started from, in raw mode if it is one.
type terminal struct {
	in    *os.File
	saved *unix.Termios
}

// raw makes the terminal hand on every key. It is undone by restore.
func (t *terminal) raw() error {
	tio, err := unix.IoctlGetTermios(int(t.in.Fd()), unix.TCGETS)
	if err != nil {
		return nil // a pipe or a file
	}
	saved := *tio
	tio.Iflag &^= unix.BRKINT | unix.ICRNL | unix.INPCK | unix.ISTRIP | unix.IXON
	tio.Lflag &^= unix.ECHO | unix.ICANON | unix.IEXTEN | unix.ISIG
	tio.Cc[unix.VMIN], tio.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, tio); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	t.saved = &saved
	return nil
}

func (t *terminal) restore() error {
	if t.saved == nil {
		return nil
	}
	return unix.IoctlSetTermios(int(t.in.Fd()), unix.TCSETS, t.saved)
}

// serve gives what the terminal sends to receive, until the escape key, for which it calls quit. At the end of a file or
// pipe the guest runs on. The read that is under way when ctx ends is left behind: the process is about to end.
func (t *terminal) serve(ctx context.Context, quit func(), receive func(context.Context, []byte) error) error {
	chunks := make(chan []byte)
	go func() {
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
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case b, ok := <-chunks:
			if !ok {
				return nil
			}
			if t.saved != nil {
				for i, key := range b {
					if key == escape {
						err := receive(ctx, b[:i])
						quit()
						return err
					}
				}
			}
			if err := receive(ctx, b); err != nil {
				return nil // ctx has ended
			}
		}
	}
}
