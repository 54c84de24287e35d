package qdisplay

import (
	"image"
	"io"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/vgpu/display"
)

// anyFile takes every file for a dmabuf: few machines have a driver that makes some.
func anyFile(f *os.File) (int64, error) { return f.Seek(0, io.SeekEnd) }

// listenDMABuf is listen, of a receiver that takes every file for a dmabuf.
func (g *guest) listenDMABuf(t testing.TB) (*shown, *Receiver) {
	t.Helper()
	s := &shown{}
	r := newReceiver(g.client(t, ClientConfig{}), 0, s, ReceiverConfig{})
	r.bufSize = anyFile
	sock, err := r.client.register(t.Context(), 0)
	if err == nil {
		err = r.connect(sock)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return s, r
}

// newBuf returns a surface with a dmabuf, as anyFile knows it.
func newBuf(t testing.TB, width, height int) *display.Surface {
	t.Helper()
	s := &display.Surface{Width: width, Height: height, Stride: 4*width + 64, Format: display.XRGB8888}
	s.DMABuf, s.Pixels = newMemfd(t, s.Stride*height, true)
	return s
}

// A dmabuf is mapped, not copied, and kept while the guest draws into two in turn.
func TestDMABuf(t *testing.T) {
	g := newGuest(t)
	s, r := g.listenDMABuf(t)
	front, back := newBuf(t, 64, 48), newBuf(t, 64, 48)
	var seen [2]*display.Surface
	for i := range 10 {
		paint(back, back.Bounds(), uint32(i+1))
		g.screen.Scanout(back)
		eventually(t, "a flip", func() bool { return s.pixel(1, 1) == uint32(i+1) })
		s.mu.Lock()
		if s.surface.DMABuf == nil || s.surface.File != nil || i >= 2 && seen[i%2] != s.surface {
			t.Errorf("flip %d: a dmabuf: %t, a file: %t", i, s.surface.DMABuf != nil, s.surface.File != nil)
		}
		seen[i%2] = s.surface
		s.mu.Unlock()
		front, back = back, front
	}
	paint(front, front.Bounds(), 0x123456)
	g.screen.Update(image.Rect(3, 4, 5, 6))
	eventually(t, "an update", func() bool { return s.pixel(3, 4) == 0x123456 })
	if _, updates, _ := s.seen(); len(updates) == 0 || updates[len(updates)-1] != image.Rect(3, 4, 5, 6) {
		t.Errorf("updates %v", updates)
	}
	// From here on it is shared memory again, and then nothing.
	shared := newSurface(t, 64, 48, true)
	paint(shared, shared.Bounds(), 0xabc)
	g.screen.Scanout(shared)
	eventually(t, "shared memory", func() bool { return s.pixel(1, 1) == 0xabc })
	g.screen.Scanout(nil)
	eventually(t, "nothing", s.off)
	r.Close()
	if n := len(r.mappings); n != 0 {
		t.Errorf("%d mappings are left", n)
	}
}

// One that takes no dmabufs gets the bytes, and is not asked again.
func TestListenerRefusesDMABuf(t *testing.T) {
	g := newGuest(t)
	g.screen.Scanout(newBuf(t, 64, 64))
	got := make(chan string, 10)
	g.rawListener(t, func(c *peer.Conn, m *peer.Message) {
		switch m.Member {
		case "Get":
			c.Fail(m, peer.ErrUnknownInterface, "there are no properties")
		case "ScanoutDMABUF":
			got <- m.Member
			c.Fail(m, peer.ErrNotSupported, "no")
		case "MouseSet":
			c.Reply(m, "", nil)
		default:
			got <- m.Member
			c.Reply(m, "", nil)
		}
	})
	next := func(want string) {
		t.Helper()
		if m := receive(t, got); m != want {
			t.Errorf("%s was called, want %s", m, want)
		}
	}
	next("ScanoutDMABUF")
	next("Scanout")
	g.screen.Update(image.Rect(0, 0, 1, 1))
	next("Update")
	g.screen.Scanout(newBuf(t, 32, 32))
	next("Scanout")
}

// What a server says of a dmabuf that cannot be, and what comes of it.
func TestReceiverRefusesDMABuf(t *testing.T) {
	buf := func(w, h, stride uint32, format display.Format, modifier uint64) func(*peer.Encoder) {
		return func(e *peer.Encoder) {
			for _, v := range []uint32{0, w, h, stride, uint32(format)} {
				e.Uint32(v)
			}
			e.Uint64(modifier)
			e.Bool(false)
		}
	}
	mem, _ := newMemfd(t, 1<<16, true)
	writeOnly, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writeOnly.Close()
	ask := func(vmm *peer.Conn, args func(*peer.Encoder), files ...*os.File) string {
		t.Helper()
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		return refusal(call(t, vmm, pathListener, ifaceListener, "ScanoutDMABUF", "huuuutb", args, fds...))
	}
	const xrgb = display.XRGB8888
	_, _, vmm := hostileVMM(t, ReceiverConfig{})
	if got := ask(vmm, buf(10, 10, 40, xrgb, 0), mem); got != errInvalid { // dmabuf.Size knows what is one
		t.Errorf("a memfd: %s", got)
	}
	_, _, vmm = hostileVMM(t, ReceiverConfig{NoMap: true})
	if got := ask(vmm, buf(10, 10, 40, xrgb, 0), mem); got != peer.ErrNotSupported {
		t.Errorf("without maps: %s", got)
	}
	s, _, vmm := hostileVMM(t, ReceiverConfig{}, func(r *Receiver) { r.bufSize = anyFile })
	before := openFDs(t)
	for _, tt := range []struct {
		name  string
		args  func(*peer.Encoder)
		files []*os.File
		want  string
	}{
		{"no file", buf(10, 10, 40, xrgb, 0), nil, peer.ErrInvalidArgs},
		{"no width", buf(0, 10, 40, xrgb, 0), []*os.File{mem}, errInvalid},
		{"too high", buf(1, 16385, 40, xrgb, 0), []*os.File{mem}, errInvalid},
		{"narrow stride", buf(10, 10, 39, xrgb, 0), []*os.File{mem}, errInvalid},
		{"overflowing stride", buf(1, 16384, 1<<32-1, xrgb, 0), []*os.File{mem}, peer.ErrLimitsExceeded},
		{"beyond the end", buf(128, 129, 512, xrgb, 0), []*os.File{mem}, errInvalid},
		{"tiles", buf(10, 10, 40, xrgb, 1<<56|1), []*os.File{mem}, errUnsupported},
		{"unknown modifier", buf(10, 10, 40, xrgb, 1<<56-1), []*os.File{mem}, errUnsupported},
		{"16 bits", buf(10, 10, 40, 'R'|'G'<<8|'1'<<16|'6'<<24, 0), []*os.File{mem}, errUnsupported},
		{"cannot be mapped", buf(10, 10, 40, xrgb, 0), []*os.File{writeOnly}, errInvalid},
	} {
		if got := ask(vmm, tt.args, tt.files...); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
	rect := func(e *peer.Encoder) { e.Int32(0); e.Int32(0); e.Int32(1); e.Int32(1) }
	if got := refusal(call(t, vmm, pathListener, ifaceListener, "UpdateDMABUF", "iiii", rect)); got != errInvalid {
		t.Errorf("an update of nothing: %s", got)
	}
	eventually(t, "all descriptors closed", func() bool { return openFDs(t) <= before })
	if got := ask(vmm, buf(128, 128, 512, xrgb, 0), mem); got != refusal(nil) {
		t.Errorf("a good one: %s", got)
	}
	if got := refusal(call(t, vmm, pathListener, ifaceMap, "UpdateMap", "iiii", rect)); got != errInvalid {
		t.Errorf("an update of a map that is a dmabuf: %s", got)
	}
	if err := call(t, vmm, pathListener, ifaceListener, "UpdateDMABUF", "iiii", rect); err != nil {
		t.Error(err)
	}
	n, updates, _ := s.seen()
	if diff := cmp.Diff([]image.Rectangle{image.Rect(0, 0, 1, 1)}, updates); n != 1 || diff != "" {
		t.Errorf("%d scanouts, %s", n, diff)
	}
}
