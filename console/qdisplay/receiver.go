package qdisplay

import (
	"context"
	"errors"
	"fmt"
	"image"
	"iter"
	"net"
	"os"
	"slices"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/vgpu/display"
	"github.com/lodgehv/lodge/vgpu/dmabuf"
)

const (
	maxCursor = 256 // pixels, as of display.Cursor
	// defaultMaxBytes is the size of the largest surface unless ReceiverConfig says otherwise: 7680×4320 pixels have 127 MiB.
	defaultMaxBytes = 128 << 20
	// maxMappings is how many surfaces are kept mapped: compositors draw into two or three in turn. Copies are not kept.
	maxMappings = 4
)

// ReceiverConfig is what a Receiver is made with.
type ReceiverConfig struct {
	// MaxBytes is the size of the largest surface that is taken; 0 is 128 MiB. Of those that come as bytes the largest has
	// 64 MiB in any case.
	MaxBytes int
	// NoMap refuses shared memory, dmabufs too.
	NoMap bool
}

// Receiver is a listener of a console: it gives what the console shows to a sink.
//
// Surfaces are its own: memory of the Go heap, or of the server, mapped read-only. They are there for as long as
// display.Sink says, until the sink's Scanout with the next one has returned; then Pixels may be unmapped and File closed. At
// the end the sink gets a Scanout of nil.
type Receiver struct {
	client  *Client
	console uint32
	sink    display.Sink
	max     int
	bufSize func(*os.File) (int64, error) // dmabuf.Size
	objects *objects
	done    chan struct{}
	err     error // once done is closed

	surface  *display.Surface // what is shown, nil if nothing is
	mapping  *mapping         // the memory of surface, nil if it came as bytes
	mappings []*mapping       // those that are kept, the latest last
	cursor   *display.Cursor
	visible  bool // the sink has the cursor
}

// Listen registers a listener at a console. The sink's methods are called by a goroutine of the receiver, one after the
// other; while one takes its time the guest's server waits. The context is that of registering. The receiver has a socket of
// its own: it may outlive the client.
func (c *Client) Listen(ctx context.Context, console uint32, sink display.Sink, cfg ReceiverConfig) (*Receiver, error) {
	r := newReceiver(c, console, sink, cfg)
	sock, err := c.register(ctx, console)
	if err == nil {
		err = r.connect(sock)
	}
	if err != nil {
		return nil, fmt.Errorf("display: listener of console %d: %w", console, err)
	}
	return r, nil
}

func newReceiver(c *Client, console uint32, sink display.Sink, cfg ReceiverConfig) *Receiver {
	r := &Receiver{client: c, console: console, sink: sink, max: cfg.MaxBytes, bufSize: dmabuf.Size, done: make(chan struct{})}
	if r.max == 0 {
		r.max = defaultMaxBytes
	}
	r.objects = newObjects([]object{r.object(!cfg.NoMap)})
	return r
}

// connect serves the socket that was registered.
func (r *Receiver) connect(sock *net.UnixConn) error {
	conn, err := peer.Connect(sock, peer.Config{
		Handler: r.objects.handle,
		MaxBody: min(r.max, maxBlob) + 1024, // a picture and what is said of it
	})
	if err != nil {
		return err
	}
	r.objects.conn = conn
	go r.run()
	return nil
}

func (r *Receiver) run() {
	defer close(r.done)
	if err := r.objects.conn.Serve(); err != nil {
		r.err = fmt.Errorf("display: listener of console %d: %w", r.console, err)
	}
	r.show(nil, nil)
	for _, m := range r.mappings {
		m.close()
	}
	r.mappings = nil
}

// Close ends the listener. When it returns the sink is not called any more. The sink itself may not call it.
func (r *Receiver) Close() error {
	r.objects.conn.Close()
	<-r.done
	return nil
}

// Done is closed when the listener has ended.
func (r *Receiver) Done() <-chan struct{} { return r.done }

// Err returns, once Done is closed, what the server did wrong, or nil if it or Close has closed the connection.
func (r *Receiver) Err() error {
	select {
	case <-r.done:
		return r.err
	default:
		return nil
	}
}

// object is what the server sees of the listener.
func (r *Receiver) object(maps bool) object {
	var extra []string
	if maps {
		extra = []string{ifaceMap}
	}
	rect := []arg{{"x", "i"}, {"y", "i"}, {"width", "i"}, {"height", "i"}}
	picture := []arg{{"width", "u"}, {"height", "u"}, {"stride", "u"}, {"pixman_format", "u"}}
	scanoutDMABuf, updateDMABuf := r.scanoutDMABuf, r.updateDMABuf
	if !maps {
		refuse := func(*peer.Message, *peer.Decoder) error { return failf(peer.ErrNotSupported, "DMABUFs are not taken") }
		scanoutDMABuf, updateDMABuf = refuse, refuse
	}
	o := object{pathListener, []iface{{
		name: ifaceListener,
		methods: []method{
			{name: "Scanout", args: append(picture[:4:4], arg{"data", "ay"}), call: r.scanout},
			{name: "Update", args: append(rect[:4:4], arg{"stride", "u"}, arg{"pixman_format", "u"}, arg{"data", "ay"}), call: r.update},
			{name: "ScanoutDMABUF", args: []arg{{"dmabuf", "h"}, {"width", "u"}, {"height", "u"}, {"stride", "u"}, {"fourcc", "u"},
				{"modifier", "t"}, {"y0_top", "b"}}, call: scanoutDMABuf},
			{name: "UpdateDMABUF", args: rect, call: updateDMABuf},
			{name: "Disable", call: r.disable},
			{name: "MouseSet", args: []arg{{"x", "i"}, {"y", "i"}, {"on", "i"}}, call: r.mouseSet},
			{name: "CursorDefine", args: []arg{{"width", "i"}, {"height", "i"}, {"hot_x", "i"}, {"hot_y", "i"}, {"data", "ay"}},
				call: r.cursorDefine},
		},
		properties: []property{texts("Interfaces", extra...)},
	}}}
	if maps {
		o.ifaces = append(o.ifaces, iface{name: ifaceMap, methods: []method{
			{name: "ScanoutMap", args: append([]arg{{"handle", "h"}, {"offset", "u"}}, picture...), call: r.scanoutMap},
			{name: "UpdateMap", args: rect, call: r.updateMap},
		}})
	}
	return o
}

// show gives another surface to the sink, and lets go of the mappings that are too many.
func (r *Receiver) show(s *display.Surface, m *mapping) {
	if s == nil && r.surface == nil {
		return
	}
	r.surface, r.mapping = s, m
	if s != nil {
		r.client.resize(r.console, size{uint32(s.Width), uint32(s.Height)})
	}
	r.sink.Scanout(s)
	kept := r.mappings[:0]
	for i, have := range r.mappings {
		if have == m || have.mem != nil && len(r.mappings)-i <= maxMappings {
			kept = append(kept, have)
		} else {
			have.close()
		}
	}
	clear(r.mappings[len(kept):])
	r.mappings = kept
}

// picture takes the geometry of a surface and checks it.
func (r *Receiver) picture(d *peer.Decoder) (*display.Surface, error) {
	width, height, stride, code := d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32()
	if err := d.Err(); err != nil {
		return nil, err
	}
	format, ok := formatOf(code)
	if !ok {
		return nil, failf(errUnsupported, "pixels of the format %#x are not taken", code)
	}
	return r.geometry(width, height, stride, format)
}

// geometry returns a surface without pixels, whose size is not more than is taken.
func (r *Receiver) geometry(width, height, stride uint32, format display.Format) (*display.Surface, error) {
	if width < 1 || height < 1 || width > display.MaxSize || height > display.MaxSize || uint64(stride) < uint64(width)*display.BytesPerPixel {
		return nil, failf(errInvalid, "a picture of %d×%d pixels with a stride of %d", width, height, stride)
	}
	s := &display.Surface{Width: int(width), Height: int(height), Stride: int(stride), Format: format}
	if need(s) > uint64(r.max) {
		return nil, failf(peer.ErrLimitsExceeded, "a picture of %d bytes: %d are the most", need(s), r.max)
	}
	return s, nil
}

// need returns how many bytes a surface has, its last row without what follows its pixels.
func need(s *display.Surface) uint64 {
	return uint64(s.Stride)*uint64(s.Height-1) + uint64(s.Width)*display.BytesPerPixel
}

// rect takes a rectangle and cuts off what is outside of the surface. An empty one is an error.
func (r *Receiver) rect(d *peer.Decoder) (image.Rectangle, error) {
	x, y, w, h := int(d.Int32()), int(d.Int32()), int(d.Int32()), int(d.Int32())
	if err := d.Err(); err != nil {
		return image.Rectangle{}, err
	}
	if r.surface == nil {
		return image.Rectangle{}, failf(errInvalid, "an update without a scanout")
	}
	if w <= 0 || h <= 0 {
		return image.Rectangle{}, failf(errInvalid, "an update of %d×%d pixels", w, h)
	}
	all := image.Rect(x, y, x+w, y+h)
	if part := all.Intersect(r.surface.Bounds()); !part.Empty() {
		return part, nil
	}
	return image.Rectangle{}, failf(errInvalid, "an update of %v, which is outside of the surface", all)
}

// scanout is Scanout. A picture like the last one is an update of it.
func (r *Receiver) scanout(_ *peer.Message, d *peer.Decoder) error {
	from, err := r.picture(d)
	if err != nil {
		return err
	}
	from.Pixels = d.Blob()
	if err := errors.Join(d.End(), from.Check()); err != nil {
		return err
	}
	s := r.surface
	again := s != nil && r.mapping == nil && s.Width == from.Width && s.Height == from.Height && s.Format == from.Format
	if !again {
		s = &display.Surface{Width: from.Width, Height: from.Height, Stride: from.Width * display.BytesPerPixel, Format: from.Format}
		s.Pixels = make([]byte, s.Stride*s.Height)
	}
	blit(s, s.Bounds(), from)
	if again {
		r.sink.Update(s.Bounds())
	} else {
		r.show(s, nil)
	}
	return nil
}

// update is Update.
func (r *Receiver) update(_ *peer.Message, d *peer.Decoder) error {
	at := *d // the whole rectangle, of which data has all pixels
	x, y := int(at.Int32()), int(at.Int32())
	w, h := at.Int32(), at.Int32()
	part, err := r.rect(d)
	if err != nil {
		return err
	}
	if r.mapping != nil {
		return failf(errInvalid, "an update with data of a picture in shared memory")
	}
	stride, code := d.Uint32(), d.Uint32()
	data := d.Blob()
	if err := d.End(); err != nil {
		return err
	}
	if format, ok := formatOf(code); !ok || format != r.surface.Format {
		return failf(errUnsupported, "an update with the format %#x, which is not the scanout's", code)
	}
	from := &display.Surface{Width: int(w), Height: int(h), Stride: int(stride), Pixels: data}
	if err := from.Check(); err != nil {
		return err
	}
	from.Pixels = data[(part.Min.Y-y)*from.Stride+(part.Min.X-x)*display.BytesPerPixel:]
	blit(r.surface, part, from)
	r.sink.Update(part)
	return nil
}

// blit copies the pixels of from, from their first on, to a part of a surface.
func blit(to *display.Surface, part image.Rectangle, from *display.Surface) {
	row := part.Dx() * display.BytesPerPixel
	for first, end := range bands(to, row, part.Dy()) {
		for y := first; y < end; y++ {
			at := (part.Min.Y+y)*to.Stride + part.Min.X*display.BytesPerPixel
			copy(to.Pixels[at:at+row], from.Pixels[y*from.Stride:])
		}
	}
}

// bands yields the first row and the end of each band of so many rows, of row bytes, while the surface is locked. Who reads it
// draws the screens of all guests: it is let in between two bands.
func bands(s *display.Surface, row, rows int) iter.Seq2[int, int] {
	return func(yield func(first, end int) bool) {
		band := max(1, copyBand/row)
		for first := 0; first < rows; first += band {
			s.Mu.Lock()
			more := yield(first, min(first+band, rows))
			s.Mu.Unlock()
			if !more {
				return
			}
		}
	}
}

// scanoutMap is ScanoutMap.
func (r *Receiver) scanoutMap(m *peer.Message, d *peer.Decoder) error {
	handle, offset := d.Uint32(), d.Uint32()
	s, err := r.picture(d)
	if err = errors.Join(err, d.End()); err != nil {
		return err
	}
	f, err := m.File(handle)
	if err != nil {
		return err
	}
	key, sealed, err := identify(f, offset, s)
	if err != nil {
		f.Close()
		return failf(errInvalid, "shared memory: %v", err)
	}
	if have := r.latest(key); have != nil {
		f.Close()
		if have.mem == nil {
			err = have.copy(s.Bounds())
		}
		if err != nil {
			return failf(errInvalid, "shared memory: %v", err)
		}
		r.show(have.surface, have)
		return nil
	}
	mapped, err := newMapping(f, key, sealed, s)
	if err != nil {
		return failf(errInvalid, "shared memory: %v", err)
	}
	r.mappings = append(r.mappings, mapped)
	r.show(mapped.surface, mapped)
	return nil
}

// latest returns the mapping that is kept for key, which becomes the latest, or nil.
func (r *Receiver) latest(key mapKey) *mapping {
	i := slices.IndexFunc(r.mappings, func(m *mapping) bool { return m.key == key })
	if i < 0 {
		return nil
	}
	have := r.mappings[i]
	r.mappings = append(slices.Delete(r.mappings, i, i+1), have)
	return have
}

// scanoutDMABuf is ScanoutDMABUF. What the argument y0_top means depends on who says it: it is not looked at, since a picture
// in memory begins with its top row, be it QEMU's or ours.
func (r *Receiver) scanoutDMABuf(m *peer.Message, d *peer.Decoder) error {
	handle, width, height, stride := d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32()
	format, modifier := display.Format(d.Uint32()), d.Uint64()
	_ = d.Bool()
	if err := d.End(); err != nil {
		return err
	}
	if !slices.Contains(formats[:], format) || modifier != modifierLinear {
		return failf(errUnsupported, "pixels of the format %v with the modifier %#x are not taken", format, modifier)
	}
	s, err := r.geometry(width, height, stride, format)
	if err != nil {
		return err
	}
	f, err := m.File(handle)
	if err != nil {
		return err
	}
	key, err := identifyDMABuf(f, s, r.bufSize)
	if err != nil {
		f.Close()
		return failf(errInvalid, "DMABUF: %v", err)
	}
	if have := r.latest(key); have != nil {
		f.Close()
		r.show(have.surface, have)
		return nil
	}
	mapped, err := newDMABuf(f, key, s)
	if err != nil {
		return failf(errInvalid, "DMABUF: %v", err)
	}
	r.mappings = append(r.mappings, mapped)
	r.show(mapped.surface, mapped)
	return nil
}

// updateDMABuf is UpdateDMABUF.
func (r *Receiver) updateDMABuf(_ *peer.Message, d *peer.Decoder) error {
	part, err := r.rect(d)
	if err = errors.Join(err, d.End()); err != nil {
		return err
	}
	if r.mapping == nil || !r.mapping.buf {
		return failf(errInvalid, "an update of a DMABUF, of which there is none")
	}
	r.sink.Update(part)
	return nil
}

// updateMap is UpdateMap.
func (r *Receiver) updateMap(_ *peer.Message, d *peer.Decoder) error {
	part, err := r.rect(d)
	if err = errors.Join(err, d.End()); err != nil {
		return err
	}
	if r.mapping == nil || r.mapping.buf {
		return failf(errInvalid, "an update of shared memory, of which there is none")
	}
	if r.mapping.mem == nil {
		if err := r.mapping.copy(part); err != nil {
			return failf(errInvalid, "shared memory: %v", err)
		}
	}
	r.sink.Update(part)
	return nil
}

// disable is Disable.
func (r *Receiver) disable(*peer.Message, *peer.Decoder) error {
	r.show(nil, nil)
	return nil
}

// mouseSet is MouseSet.
func (r *Receiver) mouseSet(_ *peer.Message, d *peer.Decoder) error {
	x, y, on := d.Int32(), d.Int32(), d.Int32()
	if err := d.End(); err != nil {
		return err
	}
	r.sink.MoveCursor(image.Pt(int(x), int(y)))
	r.point(on != 0)
	return nil
}

// cursorDefine is CursorDefine.
func (r *Receiver) cursorDefine(_ *peer.Message, d *peer.Decoder) error {
	w, h, x, y := d.Int32(), d.Int32(), d.Int32(), d.Int32()
	data := d.Blob()
	if err := d.End(); err != nil {
		return err
	}
	if w < 1 || h < 1 || w > maxCursor || h > maxCursor || len(data) != int(w*h)*display.BytesPerPixel {
		return failf(errInvalid, "a pointer of %d×%d pixels in %d bytes", w, h, len(data))
	}
	r.cursor = &display.Cursor{
		Width: int(w), Height: int(h), Hot: image.Pt(int(min(max(x, 0), w-1)), int(min(max(y, 0), h-1))),
		Pixels: append([]byte(nil), data...),
	}
	r.visible = false
	r.point(true)
	return nil
}

// point shows or hides the pointer.
func (r *Receiver) point(on bool) {
	switch {
	case on && !r.visible && r.cursor != nil:
		r.sink.Cursor(r.cursor)
	case !on && r.visible:
		r.sink.Cursor(nil)
	default:
		return
	}
	r.visible = on
}
