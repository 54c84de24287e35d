package main

import (
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/qdisplay"
	"github.com/lodgehv/lodge/console/seat"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// The screen of a seat that is measured, in pixels.
const (
	seatWidth  = 1920
	seatHeight = 1080
)

// seatOf returns a seat's configuration with n guests whose machines are in dir.
func seatOf(n int, dir string) seat.Config {
	var c seat.Config
	colors := trustbar.ColorNames()
	for i := range n {
		g := seat.Guest{Name: fmt.Sprint("guest", i), Color: colors[i%len(colors)], Display: screenSocket(dir, i)}
		if i < 9 {
			g.Slot = i + 1
		}
		c.Guests = append(c.Guests, g)
	}
	return c
}

func screenSocket(dir string, i int) string { return filepath.Join(dir, fmt.Sprint("screen", i)) }

// screens is a process of this program that stands for the machines of guests: each has a screen, and changes it all the
// time or never.
type screens struct {
	cmd *exec.Cmd
	in  io.Closer
}

// startScreens starts the machines of n guests and waits until they can be connected to.
func startScreens(ctx context.Context, n int, dir string, draw bool) (*screens, error) {
	s := &screens{}
	out, err := s.start(ctx, screensCommand, fmt.Sprint(n), dir, fmt.Sprint(draw))
	if err != nil {
		return nil, err
	}
	var b [1]byte
	if _, err := io.ReadFull(out, b[:]); err != nil {
		return nil, errors.Join(fmt.Errorf("screens: %w", err), s.close())
	}
	return s, nil
}

// start starts this program with args and returns its output. It ends by itself when its input does.
func (s *screens) start(ctx context.Context, args ...string) (*os.File, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s.cmd = exec.CommandContext(ctx, self, args...)
	s.cmd.Stderr = os.Stderr
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return out.(*os.File), s.cmd.Start() // it is the end of a pipe
}

func (s *screens) close() error { return errors.Join(s.in.Close(), s.cmd.Wait()) }

// screensCommand names what serveScreens does.
const screensCommand = "screens"

// serveScreens is the other end of startScreens: its arguments are how many guests, where, and whether they draw.
func serveScreens(args []string) error {
	var n int
	var draw bool
	if _, err := fmt.Sscan(strings.Join([]string{args[0], args[2]}, " "), &n, &draw); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		if err := serveScreen(ctx, &wg, screenSocket(args[1], i), draw); err != nil {
			cancel()
			return err
		}
	}
	if _, err := os.Stdout.Write([]byte{'!'}); err != nil {
		cancel()
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin) // until whoever has started us lets us go
	cancel()
	wg.Wait()
	return err
}

func serveScreen(ctx context.Context, wg *sync.WaitGroup, path string, draw bool) error {
	size := compose.GuestSize(image.Pt(seatWidth, seatHeight))
	surface, err := newSurface(size)
	if err != nil {
		return err
	}
	screen := display.NewScreen(display.Monitor{Connected: true, Width: size.X, Height: size.Y, Name: "bench"})
	screen.Scanout(surface)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	server := qdisplay.NewServer(qdisplay.Config{
		Name: filepath.Base(path), UUID: "00000000-0000-4000-8000-000000000000", Screens: []*display.Screen{screen}, Input: deaf{},
	})
	wg.Go(func() { _ = server.Serve(l) }) // ends with Close
	wg.Go(func() { <-ctx.Done(); _ = server.Close() })
	if draw {
		wg.Go(func() { animate(ctx, screen, surface) })
	}
	return nil
}

// animate changes a picture 60 times a second. That all of it has changed is told, which is the most work for who shows it,
// and only a row is, which is the least for who draws: it is not the drawing that is measured.
func animate(ctx context.Context, screen *display.Screen, s *display.Surface) {
	tick := time.NewTicker(time.Second / 60)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		row := s.Pixels[n%s.Height*s.Stride:][:s.Width*display.BytesPerPixel]
		s.Mu.Lock()
		for i := range row {
			row[i] = byte(n)
		}
		s.Mu.Unlock()
		screen.Update(s.Bounds())
	}
}

// newSurface returns a picture in memory as a graphics card of ours has it: a file that cannot shrink.
func newSurface(size image.Point) (*display.Surface, error) {
	s := &display.Surface{Width: size.X, Height: size.Y, Stride: display.BytesPerPixel * size.X, Format: display.XRGB8888}
	fd, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	s.File = os.NewFile(uintptr(fd), "bench")
	if err := s.File.Truncate(int64(s.Stride * s.Height)); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		return nil, err
	}
	s.Pixels, err = unix.Mmap(fd, 0, s.Stride*s.Height, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return s, err
}

// deaf is the input of a guest that does not listen.
type deaf struct{}

func (deaf) Send([]hid.Event) {}
