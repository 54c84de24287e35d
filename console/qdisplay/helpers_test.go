package qdisplay

import (
	"context"
	"encoding/binary"
	"fmt"
	"image"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// deadline is how long a test waits for what must come.
const deadline = time.Minute

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", deadline, what)
		}
	}
}

// receive waits for what comes from c.
func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(deadline):
		t.Fatalf("nothing came for %v", deadline)
		panic("unreachable")
	}
}

// socketpair returns two sockets that are connected to each other.
func socketpair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var socks [2]*net.UnixConn
	for i, fd := range fds {
		if socks[i], err = unixConn(os.NewFile(uintptr(fd), "pair")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { socks[i].Close() })
	}
	return socks[0], socks[1]
}

// guestInput is the input of a guest, which notes what comes.
type guestInput struct {
	mu       sync.Mutex
	batches  [][]hid.Event
	leds     hid.LEDs
	absolute bool
	onLEDs   func(hid.LEDs)
	onMode   func(bool)
}

func (g *guestInput) Send(batch []hid.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.batches = append(g.batches, append([]hid.Event(nil), batch...))
}

func (g *guestInput) LEDs() hid.LEDs {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.leds
}

func (g *guestInput) OnLEDs(f func(hid.LEDs)) func() {
	g.onLEDs = f
	return func() {}
}

func (g *guestInput) WantsAbsolute() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.absolute
}

func (g *guestInput) OnWantsAbsolute(f func(bool)) func() {
	g.onMode = f
	return func() {}
}

func (g *guestInput) set(leds hid.LEDs, absolute bool) {
	g.mu.Lock()
	g.leds, g.absolute = leds, absolute
	g.mu.Unlock()
	g.onLEDs(leds)
	g.onMode(absolute)
}

// taken returns the batches so far.
func (g *guestInput) taken() [][]hid.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([][]hid.Event(nil), g.batches...)
}

// shown is a sink that copies what is shown, as who shows it does.
type shown struct {
	mu       sync.Mutex
	surface  *display.Surface
	pixels   []byte // 4 × width × height
	scanouts int
	updates  []image.Rectangle
	cursor   *display.Cursor
	at       image.Point
}

func (s *shown) Scanout(f *display.Surface) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scanouts++
	s.surface, s.pixels = f, nil
	if f != nil {
		if err := f.Check(); err != nil {
			panic(err)
		}
		s.pixels = make([]byte, 4*f.Width*f.Height)
		s.copy(f.Bounds())
	}
}

func (s *shown) Update(r image.Rectangle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.surface == nil || r.Empty() || !r.In(s.surface.Bounds()) {
		panic(fmt.Sprint("update of ", r))
	}
	s.updates = append(s.updates, r)
	s.copy(r)
}

func (s *shown) copy(r image.Rectangle) {
	f := s.surface
	f.Mu.RLock()
	defer f.Mu.RUnlock()
	for y := r.Min.Y; y < r.Max.Y; y++ {
		copy(s.pixels[4*(y*f.Width+r.Min.X):][:4*r.Dx()], f.Pixels[y*f.Stride+4*r.Min.X:])
	}
}

func (s *shown) Cursor(c *display.Cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cursor = c
}

func (s *shown) MoveCursor(p image.Point) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = p
}

// pixel returns a pixel that is shown.
func (s *shown) pixel(x, y int) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.surface == nil || x >= s.surface.Width || y >= s.surface.Height {
		return 0
	}
	return binary.LittleEndian.Uint32(s.pixels[4*(y*s.surface.Width+x):])
}

// seen returns what the sink was told so far.
func (s *shown) seen() (scanouts int, updates []image.Rectangle, cursor *display.Cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scanouts, append(updates, s.updates...), s.cursor
}

// off says whether nothing is shown.
func (s *shown) off() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.surface == nil
}

// newMemfd returns a file in memory, sealed as a card seals its own or not, and what is in it.
func newMemfd(t testing.TB, size int, sealed bool) (*os.File, []byte) {
	t.Helper()
	fd, err := unix.MemfdCreate("surface", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "surface")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	if sealed {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_FUTURE_WRITE); err != nil {
			t.Fatal(err)
		}
	}
	return f, mem
}

// newSurface returns a surface as a device has it: with some bytes between the rows, in a memfd if shared.
func newSurface(t testing.TB, width, height int, shared bool) *display.Surface {
	t.Helper()
	s := &display.Surface{Width: width, Height: height, Stride: 4*width + 64, Format: display.XRGB8888}
	if shared {
		s.Offset = 4096 + 64
		var mem []byte
		s.File, mem = newMemfd(t, int(s.Offset)+s.Stride*height, true)
		s.Pixels = mem[s.Offset:]
	} else {
		s.Pixels = make([]byte, s.Stride*height)
	}
	return s
}

// paint fills a part of a surface.
func paint(s *display.Surface, r image.Rectangle, value uint32) {
	s.Mu.Lock()
	defer s.Mu.Unlock()
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			binary.LittleEndian.PutUint32(s.Pixels[y*s.Stride+4*x:], value)
		}
	}
}

// guest is a server with a screen and an input, as a VMM has them.
type guest struct {
	screen *display.Screen
	input  *guestInput
	server *Server
}

func newGuest(t testing.TB) *guest {
	t.Helper()
	g := &guest{screen: display.NewScreen(display.Monitor{Connected: true, Width: 640, Height: 480}), input: &guestInput{absolute: true}}
	g.server = NewServer(Config{
		Name: "work", UUID: "6f1c2ae6-0d0f-4f4c-9f5b-2f3ab3f3a2d1", DeviceAddress: "pci/0000/01.0",
		Screens: []*display.Screen{g.screen}, Input: g.input,
	})
	t.Cleanup(func() { g.server.Close() })
	return g
}

// sock returns the client's end of a socket that the guest serves.
func (g *guest) sock(t testing.TB) *net.UnixConn {
	t.Helper()
	a, b := socketpair(t)
	go g.server.ServeConn(a)
	return b
}

// client returns a client of the guest.
func (g *guest) client(t testing.TB, cfg ClientConfig) *Client {
	t.Helper()
	c, err := NewClient(g.sock(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// listen returns what a listener of the guest's console shows.
func (g *guest) listen(t testing.TB, cfg ReceiverConfig) (*shown, *Receiver) {
	t.Helper()
	s := &shown{}
	r, err := g.client(t, ClientConfig{}).Listen(context.Background(), 0, s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return s, r
}

// tempSocket returns a path for a socket.
func tempSocket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qdisplay") // t.TempDir is too long for a socket's name in some tests
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "display")
}

// openFDs returns how many descriptors are open.
func openFDs(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
