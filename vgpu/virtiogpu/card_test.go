package virtiogpu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"slices"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
	"github.com/lodgehv/lodge/vgpu/display"
)

// testMonitor is what stands at a screen of tests.
var testMonitor = display.Monitor{Connected: true, Width: 640, Height: 480, WidthMM: 300, HeightMM: 200, Name: "Test", Serial: 7}

// heapArena is an arena that the race detector sees.
func heapArena(limit int64) (*arena, error) {
	limit = roundUp(limit)
	return &arena{
		bytes: make([]byte, sparse*limit), limit: int(limit),
		punch: func(b []byte) error { clear(b); return nil },
		unmap: func() {},
	}, nil
}

// newDevice returns a card with a screen for each sink, and 1 MiB for pictures.
func newDevice(t testing.TB, sinks ...*recorder) *Device {
	t.Helper()
	cfg := Config{Blob: true, MaxBytes: 1 << 20}
	for i, k := range sinks {
		m := testMonitor
		m.Serial += uint32(i)
		s := display.NewScreen(m)
		s.Attach(k)
		k.calls = nil
		cfg.Screens = append(cfg.Screens, s)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d.newArena = heapArena
	return d
}

// recorder is a viewer: it has a copy of the picture, of which it updates only what it is told to.
type recorder struct {
	t       testing.TB
	calls   []string
	surface *display.Surface
	pixels  []byte // 4 bytes a pixel, without gaps
	cursor  *display.Cursor
	at      image.Point
}

func (k *recorder) Scanout(s *display.Surface) {
	k.surface, k.pixels = s, nil
	if s == nil {
		k.calls = append(k.calls, "off")
		return
	}
	if err := s.Check(); err != nil {
		k.t.Error(err)
	}
	k.calls = append(k.calls, fmt.Sprintf("show %d×%d %v", s.Width, s.Height, s.Format))
	k.pixels = make([]byte, 4*s.Width*s.Height)
	k.copy(s.Bounds())
}

func (k *recorder) Update(r image.Rectangle) {
	if r.Empty() || k.surface == nil || !r.In(k.surface.Bounds()) {
		k.t.Errorf("update of %v, with the surface %+v", r, k.surface)
		return
	}
	k.calls = append(k.calls, fmt.Sprintf("update %d,%d %d×%d", r.Min.X, r.Min.Y, r.Dx(), r.Dy()))
	k.copy(r)
}

func (k *recorder) copy(r image.Rectangle) {
	s := k.surface
	s.Mu.RLock()
	defer s.Mu.RUnlock()
	for y := r.Min.Y; y < r.Max.Y; y++ {
		copy(k.pixels[4*(y*s.Width+r.Min.X):][:4*r.Dx()], s.Pixels[y*s.Stride+4*r.Min.X:])
	}
}

func (k *recorder) Cursor(c *display.Cursor) {
	k.cursor = c
	if c == nil {
		k.calls = append(k.calls, "hide")
		return
	}
	k.calls = append(k.calls, fmt.Sprintf("cursor %d×%d %v", c.Width, c.Height, c.Hot))
}

func (k *recorder) MoveCursor(p image.Point) {
	k.at = p
	k.calls = append(k.calls, fmt.Sprintf("move %d,%d", p.X, p.Y))
}

// take returns the calls since the last time.
func (k *recorder) take() []string {
	c := k.calls
	k.calls = nil
	return c
}

// card is a device with its driver and viewers.
type card struct {
	*virtiotest.Rig
	d     *Device
	sinks []*recorder
}

func newCard(t testing.TB, screens int) *card {
	t.Helper()
	c := &card{}
	for range screens {
		c.sinks = append(c.sinks, &recorder{t: t})
	}
	c.d = newDevice(t, c.sinks...)
	c.Rig = virtiotest.New(t, c.d, 0)
	return c
}

// le returns the values of a structure as they are on the wire.
func le(values ...any) (b []byte) {
	for _, v := range values {
		switch v := v.(type) {
		case int:
			b = binary.LittleEndian.AppendUint32(b, uint32(v))
		case uint32:
			b = binary.LittleEndian.AppendUint32(b, v)
		case uint64:
			b = binary.LittleEndian.AppendUint64(b, v)
		case rect:
			b = append(b, le(v.x, v.y, v.w, v.h)...)
		case []span:
			for _, s := range v {
				b = append(b, le(uint64(s.gpa), uint32(s.size), 0)...)
			}
		case []byte:
			b = append(b, v...)
		default:
			panic(fmt.Sprintf("%T", v))
		}
	}
	return b
}

// head is the header of a command.
func head(typ uint32) []byte { return le(typ, make([]byte, headerSize-4)) }

// do executes a command and returns the type of the response and what follows its header.
func (c *card) do(typ uint32, body ...any) (uint32, []byte) {
	c.T.Helper()
	resp := c.raw(append(head(typ), le(body...)...), headerSize+maxReply)
	return fields(resp).u32(0), resp[headerSize:]
}

// raw sends a request with room for a response of n bytes and returns what was written of it.
func (c *card) raw(request []byte, n int) []byte {
	c.T.Helper()
	at := c.Alloc(0)
	defer c.Free(at)
	out, in := c.Out(request), c.In(n)
	written := c.Queues[controlQueue].Do(out, in)
	return bytes.Clone(c.Bytes(in.Addr, int(written)))
}

// must executes commands that succeed.
func (c *card) must(typ uint32, body ...any) {
	c.T.Helper()
	if resp, _ := c.do(typ, body...); resp != respOKNoData {
		c.T.Fatalf("command %#x: response %#x", typ, resp)
	}
}

// point sends a command of the cursor queue.
func (c *card) point(typ uint32, scanout, x, y, id, hotX, hotY int) {
	c.T.Helper()
	at := c.Alloc(0)
	defer c.Free(at)
	c.Queues[cursorQueue].Do(c.Out(append(head(typ), le(scanout, x, y, 0, id, hotX, hotY, 0)...)))
}

// buffer is memory of the guest for a resource.
type buffer struct {
	c      *card
	spans  []span
	stride int
}

// buffer returns memory for rows of stride bytes, in that many pieces of equal size that do not adjoin.
func (c *card) buffer(stride, rows, pieces int) buffer {
	c.T.Helper()
	b := buffer{c: c, stride: stride}
	size := (stride*rows + pieces - 1) / pieces
	for range pieces {
		s := span{c.Alloc(size), uint64(size)}
		clear(c.Bytes(s.gpa, size))
		b.spans = append(b.spans, s)
		c.Alloc(16)
	}
	slices.Reverse(b.spans)
	return b
}

// fill draws the rectangle r: every pixel gets a value that depends on where it is and on the seed.
func (b buffer) fill(r image.Rectangle, seed int) {
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			b.write(y*b.stride+4*x, le(pixel(x, y, seed)))
		}
	}
}

func pixel(x, y, seed int) uint32 { return uint32(seed)<<24 | uint32(y&0xfff)<<12 | uint32(x&0xfff) }

func (b buffer) write(off int, p []byte) {
	for _, s := range b.spans {
		for len(p) > 0 && off < int(s.size) {
			n := copy(b.c.Bytes(s.gpa, int(s.size))[off:], p)
			p, off = p[n:], off+n
		}
		off -= int(s.size)
	}
}

// want is a picture that a test expects.
type want struct {
	w, h   int
	pixels []byte
}

func blank(w, h int) want { return want{w, h, make([]byte, 4*w*h)} }

// draw puts what buffer.fill draws at r into the picture, whose corner is the point at of the buffer.
func (p want) draw(r image.Rectangle, at image.Point, seed int) want {
	r = r.Intersect(image.Rect(0, 0, p.w, p.h).Add(at))
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			copy(p.pixels[4*((y-at.Y)*p.w+x-at.X):], le(pixel(x, y, seed)))
		}
	}
	return p
}

// sees fails the test if the viewer does not see the picture.
func (k *recorder) sees(p want) {
	k.t.Helper()
	if k.surface == nil || k.surface.Width != p.w || k.surface.Height != p.h {
		k.t.Fatalf("sees %+v, want %d×%d pixels", k.surface, p.w, p.h)
	}
	for i := 0; i < len(p.pixels); i += 4 {
		if got, want := fields(k.pixels).u32(i), fields(p.pixels).u32(i); got != want {
			k.t.Fatalf("pixel %d,%d is %#x, want %#x", i/4%p.w, i/4/p.w, got, want)
		}
	}
}

// create2D makes a resource with a backing in pieces.
func (c *card) create2D(id, format, w, h, pieces int) buffer {
	c.T.Helper()
	b := c.buffer(4*w, h, pieces)
	c.must(cmdResourceCreate2D, id, format, w, h)
	c.must(cmdResourceAttachBacking, id, len(b.spans), b.spans)
	return b
}

// createBlob makes a blob of rows of stride bytes.
func (c *card) createBlob(id, stride, rows, pieces int) buffer {
	c.T.Helper()
	b := c.buffer(stride, rows, pieces)
	c.must(cmdResourceCreateBlob, id, blobMemGuest, 2, len(b.spans), uint64(0), uint64(stride*rows), b.spans)
	return b
}

func (c *card) transfer(id int, r rect, stride int) {
	c.T.Helper()
	c.must(cmdTransferToHost2D, r, uint64(int(r.y)*stride+4*int(r.x)), id, 0)
}

func (c *card) flush(id int, r rect) { c.T.Helper(); c.must(cmdResourceFlush, r, id, 0) }

// showBlob makes a scanout show r of w × h pixels at off in a blob.
func (c *card) showBlob(scanout, id int, r rect, w, h, stride, off int) uint32 {
	c.T.Helper()
	resp, _ := c.do(cmdSetScanoutBlob, r, scanout, id, w, h, formatB8G8R8X8, 0, stride, 0, 0, 0, off, 0, 0, 0)
	return resp
}

// check fails the test if the accounts of d are wrong. Its queues are idle.
func check(t testing.TB, d *Device) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	entries, used := 0, map[extent]bool{}
	own := func(p picture) {
		if p.pixels != nil {
			used[p.extent] = true
		}
	}
	for _, r := range d.resources {
		entries += len(r.backing.pieces)
		own(r.picture)
	}
	for i := range d.scanouts {
		s := &d.scanouts[i]
		own(s.picture)
		if s.res != nil && (d.resources[s.res.id] != s.res || !canShow(s.res, s.fb, s.r)) {
			t.Errorf("scanout %d shows what it cannot: %+v of %+v", i, s.r, s.fb)
		}
		if s.res != nil && s.surface != nil && s.surface.Check() != nil {
			t.Errorf("scanout %d: %v", i, s.surface.Check())
		}
	}
	if entries != d.entries {
		t.Errorf("%d entries are counted, %d are there", d.entries, entries)
	}
	if d.arena == nil {
		return
	}
	total, end := 0, 0
	for _, e := range d.arena.used {
		if e.off < end || !used[e] {
			t.Errorf("extent %v of the arena overlaps another, or is nobody's", e)
		}
		total, end = total+e.size, e.off+e.size
	}
	if len(used) != len(d.arena.used) || total != d.arena.total || total > d.arena.limit {
		t.Errorf("%d extents of %d bytes in the arena; used are %d, counted %d bytes", len(d.arena.used), total, len(used), d.arena.total)
	}
}
