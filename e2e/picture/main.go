// Command picture stands for a guest's machine in tests of the seat: a screen of one colour, as large as the monitor that it
// is told of, and a keyboard. It prints what it is given as JSON lines.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/color"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "picture:", err)
		os.Exit(1)
	}
}

// run serves a screen: the arguments are the name, the colour as RRGGBB, and the socket. With --dmabuf the picture is in memory
// that drivers share.
func run(ctx context.Context, args []string) error {
	var buffers *vgem
	if len(args) > 0 && args[0] == "--dmabuf" {
		var err error
		if buffers, err = openVGEM(); err != nil {
			return err
		}
		args = args[1:]
	}
	if len(args) != 3 {
		return errors.New("usage: picture [--dmabuf] NAME RRGGBB SOCKET")
	}
	var c color.RGBA
	if _, err := fmt.Sscanf(args[1], "%02x%02x%02x", &c.R, &c.G, &c.B); err != nil {
		return fmt.Errorf("colour %q: %w", args[1], err)
	}
	if err := os.Remove(args[2]); err != nil && !errors.Is(err, os.ErrNotExist) { // of one that was killed
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: args[2], Net: "unix"})
	if err != nil {
		return err
	}
	screen := display.NewScreen(display.Monitor{Connected: true, Width: 320, Height: 200})
	resized := make(chan display.Monitor, 1)
	defer screen.OnMonitor(func(m display.Monitor) {
		select {
		case <-resized: // the last one counts
		default:
		}
		resized <- m
	})()
	srv := qdisplay.NewServer(qdisplay.Config{
		Name: args[0], UUID: "00000000-0000-0000-0000-000000000000", Screens: []*display.Screen{screen}, Input: &keyboard{},
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer srv.Close()
	wg.Go(func() {
		if err := srv.Serve(l); err != nil {
			fmt.Fprintln(os.Stderr, "picture:", err)
		}
	})
	for m := screen.Monitor(); ; {
		s, err := surface(m, buffers)
		if err != nil {
			return err
		}
		for y := range s.Height {
			for x := range s.Width {
				copy(s.Pixels[y*s.Stride+x*display.BytesPerPixel:], []byte{c.B, c.G, c.R, 0xff})
			}
		}
		screen.Scanout(s)
		say(line{Size: fmt.Sprintf("%dx%d", m.Width, m.Height)})
		select {
		case m = <-resized:
		case <-ctx.Done():
			return nil
		}
	}
}

// surface returns a surface as large as a monitor, in shared memory or, if there are buffers, in a dmabuf.
func surface(m display.Monitor, buffers *vgem) (*display.Surface, error) {
	if buffers != nil {
		return buffers.surface(m.Width, m.Height)
	}
	s := &display.Surface{Width: m.Width, Height: m.Height, Stride: m.Width * display.BytesPerPixel, Format: display.XRGB8888}
	fd, err := unix.MemfdCreate("picture", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	s.File = os.NewFile(uintptr(fd), "picture") // the collector closes it, when the surface is no more
	size := s.Stride * s.Height
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		return nil, err
	}
	s.Pixels, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return s, err
}

// line is what is printed: a key, or a size of the picture.
type line struct {
	Key  string `json:"key,omitempty"` // "+a" is pressed, "-a" released
	Size string `json:"size,omitempty"`
}

var out sync.Mutex

func say(l line) {
	out.Lock()
	defer out.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(l) // who reads has gone
}

// keyboard prints keys.
type keyboard struct{}

func (*keyboard) Send(batch []hid.Event) {
	for _, e := range batch {
		if e.Type != hid.EVKey || e.Value > 1 {
			continue
		}
		sign := "-"
		if e.Value == 1 {
			sign = "+"
		}
		say(line{Key: sign + hid.KeyName(e.Code)})
	}
}
