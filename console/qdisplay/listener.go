package qdisplay

import (
	"context"
	"errors"
	"fmt"
	"image"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/vgpu/display"
)

const (
	// window is how many calls a listener has unanswered at most.
	window = 16
	// copyBand is how many bytes of a picture are copied while its device cannot draw.
	copyBand = 256 << 10
)

// listener is one who is told what a screen shows. As a sink it only notes what is to be told; a goroutine of its own tells it
// and waits for the answers. What happens meanwhile is joined: one who is slow gets fewer and larger updates, and of several
// scanouts the last.
type listener struct {
	conn  *peer.Conn
	files bool // descriptors can be sent to it
	maps  bool // it takes shared memory

	wake chan struct{}

	mu   sync.Mutex
	news news

	// pixels is held while those of the surface are copied: until Scanout has returned, they are there.
	pixels sync.Mutex
	shown  *display.Surface

	// Of the goroutine that tells.
	how     transfer // the listener has the surface
	noBuf   bool     // it does not take dmabufs
	body    peer.Encoder
	header  peer.Header
	answers chan peer.Reply
	waiting int // for answers
	timeout time.Duration
	timer   *time.Timer
}

// news are what a listener has to be told.
type news struct {
	scanout bool             // surface is new
	surface *display.Surface // what is shown
	file    *os.File         // a duplicate of its file, or nil; whoever takes the news closes it
	buf     *os.File         // of its dmabuf, likewise
	damage  damage
	define  bool // cursor is new
	cursor  *display.Cursor
	moved   bool // at or the cursor is new
	at      image.Point
}

// close closes the files.
func (n *news) close() {
	for _, f := range []*os.File{n.file, n.buf} {
		if f != nil {
			f.Close()
		}
	}
	n.file, n.buf = nil, nil
}

// transfer is how a listener has a surface.
type transfer uint8

const (
	byBytes  transfer = iota
	byMap             // as shared memory
	byDMABuf          // as memory that drivers share
)

// serveListener makes a listener of a socket and tells it what screen shows until it goes, or leaves something unanswered for
// too long. It takes the socket over.
func serveListener(screen *display.Screen, sock *net.UnixConn, timeout time.Duration) error {
	conn, err := peer.Accept(sock, peer.Config{Timeout: timeout})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	ended := make(chan struct{})
	var serveErr error
	wg.Go(func() {
		defer close(ended)
		serveErr = conn.Serve()
	})
	l := &listener{
		conn:    conn,
		files:   conn.SupportsFDs(),
		maps:    conn.SupportsFDs() && takesMaps(conn, timeout),
		wake:    make(chan struct{}, 1),
		answers: make(chan peer.Reply, window),
		timeout: timeout,
		timer:   time.NewTimer(timeout),
	}
	detach := screen.Attach(l)
	err = l.run(ended)
	conn.Close()
	detach()
	l.news.close()
	l.timer.Stop()
	wg.Wait()
	if serveErr != nil { // the reason of what else failed
		err = serveErr
	}
	if errors.Is(err, peer.ErrClosed) { // it has gone while it was told something
		err = nil
	}
	return err
}

// takesMaps asks the listener for its interfaces. Old ones have no such property.
func takesMaps(conn *peer.Conn, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var e peer.Encoder
	e.Str(ifaceListener)
	e.Str("Interfaces")
	r := conn.Call(ctx, &peer.Header{
		Type: peer.MethodCall, Path: pathListener, Interface: ifaceProperties, Member: "Get", Signature: "ss",
	}, e.Bytes())
	d, err := r.Message.Args("v")
	if r.Err != nil || err != nil || !d.Variant("as") {
		return false
	}
	return slices.Contains(d.Strs(), ifaceMap)
}

// Scanout notes a new surface. It waits until no pixel of the old one is being copied, which are some at a time.
func (l *listener) Scanout(s *display.Surface) {
	var file, buf *os.File
	if l.maps && s != nil && s.File != nil && s.Offset >= 0 && s.Offset <= math.MaxUint32 {
		file = duplicate(s.File)
	}
	if l.files && s != nil && s.DMABuf != nil {
		buf = duplicate(s.DMABuf)
	}
	l.pixels.Lock()
	l.shown = s
	l.pixels.Unlock()
	l.mu.Lock()
	l.news.close()
	l.news.scanout, l.news.surface, l.news.file, l.news.buf = true, s, file, buf
	l.news.damage.n = 0
	l.mu.Unlock()
	l.ring()
}

// duplicate returns a file of its own, nil if that cannot be.
func duplicate(f *os.File) *os.File {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil
	}
	dup := -1
	if err := raw.Control(func(fd uintptr) { dup, _ = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || dup < 0 {
		return nil
	}
	return os.NewFile(uintptr(dup), f.Name())
}

// Update notes damage.
func (l *listener) Update(r image.Rectangle) {
	l.mu.Lock()
	if !l.news.scanout { // which is all of it
		l.news.damage.add(r)
	}
	l.mu.Unlock()
	l.ring()
}

// Cursor notes another picture of the pointer.
func (l *listener) Cursor(c *display.Cursor) {
	l.mu.Lock()
	l.news.define, l.news.moved = c != nil, true
	l.news.cursor = c
	l.mu.Unlock()
	l.ring()
}

// MoveCursor notes where the pointer is.
func (l *listener) MoveCursor(p image.Point) {
	l.mu.Lock()
	l.news.moved, l.news.at = true, p
	l.mu.Unlock()
	l.ring()
}

func (l *listener) ring() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run tells the listener what there is until ended is closed, or it does not answer.
func (l *listener) run(ended <-chan struct{}) error {
	for {
		select {
		case <-l.wake:
		case <-ended:
			return nil
		}
		l.mu.Lock()
		n := l.news
		l.news.scanout, l.news.file, l.news.buf, l.news.define, l.news.moved = false, nil, nil, false, false
		l.news.damage.n = 0
		l.mu.Unlock()
		err := l.tell(&n)
		n.close()
		for err == nil && l.waiting > 0 {
			_, err = l.await()
		}
		if err != nil {
			return err
		}
	}
}

// tell sends calls for the news, and waits for answers where it must.
func (l *listener) tell(n *news) error {
	if n.scanout {
		if err := l.scanout(n); err != nil {
			return err
		}
	}
	if n.define {
		if err := l.defineCursor(n.cursor); err != nil {
			return err
		}
	}
	if n.moved {
		l.body.Reset()
		l.body.Int32(int32(n.at.X))
		l.body.Int32(int32(n.at.Y))
		on := int32(1)
		if n.cursor == nil {
			on = 0
		}
		l.body.Int32(on)
		if err := l.call(ifaceListener, "MouseSet", "iii"); err != nil {
			return err
		}
	}
	for _, r := range n.damage.rects[:n.damage.n] {
		if err := l.update(n.surface, r); err != nil {
			return err
		}
	}
	return nil
}

// scanout tells of a surface: as a dmabuf or shared memory if that can be, else as bytes.
func (l *listener) scanout(n *news) error {
	s := n.surface
	l.how = byBytes
	l.body.Reset()
	if s == nil {
		return l.call(ifaceListener, "Disable", "")
	}
	if n.buf != nil && !l.noBuf {
		l.body.Uint32(0) // the first descriptor
		for _, v := range [...]int{s.Width, s.Height, s.Stride} {
			l.body.Uint32(uint32(v))
		}
		l.body.Uint32(uint32(s.Format))
		l.body.Uint64(modifierLinear)
		l.body.Bool(false) // as QEMU says of pictures that begin with their top row
		ok, err := l.ask(ifaceListener, "ScanoutDMABUF", "huuuutb", n.buf)
		if err != nil {
			return err
		}
		if ok {
			l.how = byDMABuf
			return nil
		}
		l.noBuf = true
		l.body.Reset()
	}
	if n.file != nil {
		l.body.Uint32(0) // the first descriptor
		l.body.Uint32(uint32(s.Offset))
		l.surface(s.Width, s.Height, s.Stride, s.Format)
		ok, err := l.ask(ifaceMap, "ScanoutMap", "huuuuu", n.file)
		if err != nil {
			return err
		}
		if ok {
			l.how = byMap
			return nil
		}
		l.body.Reset() // one who cannot map this may take the bytes
	}
	if s.Width*s.Height*display.BytesPerPixel > maxBlob {
		return l.call(ifaceListener, "Disable", "")
	}
	l.surface(s.Width, s.Height, s.Width*display.BytesPerPixel, s.Format)
	if !l.copy(s, s.Bounds()) {
		return nil // there is another scanout
	}
	return l.call(ifaceListener, "Scanout", "uuuuay")
}

// ask sends l.body with a file, waits for the answer, and reports whether it was taken.
func (l *listener) ask(iface, member, sig string, f *os.File) (ok bool, err error) {
	for l.waiting > 0 { // the next answer is to be that of this call
		if _, err := l.await(); err != nil {
			return false, err
		}
	}
	if err := l.call(iface, member, sig, int(f.Fd())); err != nil {
		return false, err
	}
	return l.await()
}

// surface encodes the geometry of a picture.
func (l *listener) surface(width, height, stride int, f display.Format) {
	l.body.Uint32(uint32(width))
	l.body.Uint32(uint32(height))
	l.body.Uint32(uint32(stride))
	l.body.Uint32(pixmanCode(f))
}

// update tells of damage.
func (l *listener) update(s *display.Surface, r image.Rectangle) error {
	l.body.Reset()
	l.body.Int32(int32(r.Min.X))
	l.body.Int32(int32(r.Min.Y))
	l.body.Int32(int32(r.Dx()))
	l.body.Int32(int32(r.Dy()))
	switch l.how {
	case byDMABuf:
		return l.call(ifaceListener, "UpdateDMABUF", "iiii")
	case byMap:
		return l.call(ifaceMap, "UpdateMap", "iiii")
	}
	if s == nil || s.Width*s.Height*display.BytesPerPixel > maxBlob {
		return nil
	}
	l.body.Uint32(uint32(r.Dx() * display.BytesPerPixel))
	l.body.Uint32(pixmanCode(s.Format))
	if !l.copy(s, r) {
		return nil
	}
	return l.call(ifaceListener, "Update", "iiiiuuay")
}

// copy encodes the pixels of a part of a surface, row after row. It returns false if the surface is shown no more.
func (l *listener) copy(s *display.Surface, r image.Rectangle) bool {
	row := r.Dx() * display.BytesPerPixel
	out := l.body.Blob(row * r.Dy())
	band := max(1, copyBand/row)
	for y := r.Min.Y; y < r.Max.Y; y += band {
		s.BeginRead() // first: a device may hold it while it calls Scanout
		l.pixels.Lock()
		shown := l.shown == s
		if shown {
			for k := y; k < min(y+band, r.Max.Y); k++ {
				at := k*s.Stride + r.Min.X*display.BytesPerPixel
				copy(out, s.Pixels[at:at+row])
				out = out[row:]
			}
		}
		l.pixels.Unlock()
		s.EndRead()
		if !shown {
			return false
		}
	}
	return true
}

func (l *listener) defineCursor(c *display.Cursor) error {
	l.body.Reset()
	l.body.Int32(int32(c.Width))
	l.body.Int32(int32(c.Height))
	l.body.Int32(int32(c.Hot.X))
	l.body.Int32(int32(c.Hot.Y))
	copy(l.body.Blob(len(c.Pixels)), c.Pixels)
	return l.call(ifaceListener, "CursorDefine", "iiiiay")
}

// call sends l.body. When too many calls are unanswered it waits.
func (l *listener) call(iface, member, sig string, fds ...int) error {
	for l.waiting >= window {
		if _, err := l.await(); err != nil {
			return err
		}
	}
	l.header = peer.Header{Type: peer.MethodCall, Path: pathListener, Interface: iface, Member: member, Signature: sig}
	if err := l.conn.Go(&l.header, l.body.Bytes(), l.answers, fds...); err != nil {
		return err
	}
	l.waiting++
	return nil
}

// await waits for an answer. That the listener has refused a call is none of our problems, but for a scanout.
func (l *listener) await() (ok bool, err error) {
	l.timer.Reset(l.timeout)
	defer l.timer.Stop() // it would wake us for nothing
	select {
	case r := <-l.answers:
		l.waiting--
		if r.Err == nil {
			return true, nil
		}
		var refused *peer.CallError
		if errors.As(r.Err, &refused) {
			return false, nil
		}
		return false, r.Err
	case <-l.timer.C:
		return false, fmt.Errorf("a listener has not answered for %v", l.timeout)
	}
}
