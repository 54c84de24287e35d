package kms

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/vgpu/display"
)

// Screen is a monitor: an output.Output.
type Screen struct {
	d     *Display
	conn  *Connector
	crtc  *crtc
	edid  []byte
	modes []ModeInfo
	flips chan output.Flip

	// These are its user's goroutine's.
	mode     int // of modes
	buffers  map[uint32]*dumb
	noFlip   bool // the driver has no page flips: modes are set instead
	noDirty  bool // it does not want to know what has changed
	request  *Request
	clips    []clipRect
	damage   damageBlob
	pointers [2]*dumb // pictures of the pointer, shown in turn
	turn     int
	hot      image.Point
	noCursor bool
	move     cursor2 // argument of MoveCursor
	direct   direct

	mu      sync.Mutex
	active  bool   // the card is ours
	modeset bool   // the next Present sets the mode
	gone    bool   // Flips is closed
	serial  uint32 // of the last Present
	pending bool   // its Flip is to come
}

var (
	_ output.Output   = (*Screen)(nil)
	_ output.Director = (*Screen)(nil)
)

func newScreen(d *Display, conn *Connector, k *crtc, edid []byte) *Screen {
	s := &Screen{
		d: d, conn: conn, crtc: k, edid: edid, modes: usable(conn.Modes), flips: make(chan output.Flip, 1),
		buffers: make(map[uint32]*dumb), request: NewRequest(), noCursor: d.opt.SoftCursor, modeset: true,
	}
	s.damage.rects = make([]modeRect, 0, 16) // a compositor has no more
	s.direct.damage.rects = make([]modeRect, 0, 16)
	return s
}

// damageBlob makes blobs of FB_DAMAGE_CLIPS, without allocating.
type damageBlob struct {
	rects   []modeRect
	create  createBlob
	destroy uint32
	pin     runtime.Pinner
}

// make returns a blob with the damage, 0 if there is none or too much.
func (b *damageBlob) make(c *Card, damage []image.Rectangle) uint32 {
	if len(damage) == 0 || len(damage) > cap(b.rects) {
		return 0
	}
	b.rects = b.rects[:0]
	for _, d := range damage {
		b.rects = append(b.rects, modeRect{int32(d.Min.X), int32(d.Min.Y), int32(d.Max.X), int32(d.Max.Y)})
	}
	defer b.pin.Unpin()
	b.create = createBlob{data: address(&b.pin, b.rects), length: uint32(len(bytesOf(b.rects)))}
	if err := ioctl(c.dev, "DRM_IOCTL_MODE_CREATEPROPBLOB", nrCreatePropBlob, &b.create); err != nil {
		return 0 // then all is taken as changed
	}
	b.destroy = b.create.id
	return b.create.id
}

// done removes the blob that make has made: who needs it has it.
func (b *damageBlob) done(c *Card) error {
	return ioctl(c.dev, "DRM_IOCTL_MODE_DESTROYPROPBLOB", nrDestroyPropBlob, &b.destroy)
}

// Info implements output.Output.
func (s *Screen) Info() output.Info {
	return output.Info{
		Name: s.conn.Name(), Monitor: output.Identity(s.edid), WidthMM: int(s.conn.WidthMM), HeightMM: int(s.conn.HeightMM),
		Internal: s.conn.Internal(),
	}
}

// EDID returns the monitor's EDID, nil if it has none.
func (s *Screen) EDID() []byte { return s.edid }

func (s *Screen) same(edid []byte) bool { return bytes.Equal(s.edid, edid) }

// Mode returns the mode as the compositor knows it.
func (m *ModeInfo) output() output.Mode {
	return output.Mode{
		Width: int(m.HDisplay), Height: int(m.VDisplay),
		RefreshMilliHz: int(uint64(m.Clock) * 1e6 / (uint64(m.HTotal) * uint64(m.VTotal))),
		Preferred:      m.Type&modeTypePreferred != 0,
	}
}

// Modes implements output.Output.
func (s *Screen) Modes() []output.Mode {
	var modes []output.Mode
	for i := range s.modes {
		modes = append(modes, s.modes[i].output())
	}
	return modes
}

// Mode implements output.Output.
func (s *Screen) Mode() output.Mode { return s.modes[s.mode].output() }

// SetMode implements output.Output. A mode without a rate is the first of its size.
func (s *Screen) SetMode(m output.Mode) error {
	i := slices.IndexFunc(s.modes, func(k ModeInfo) bool {
		have := k.output()
		return have.Width == m.Width && have.Height == m.Height && (m.RefreshMilliHz == 0 || have.RefreshMilliHz == m.RefreshMilliHz)
	})
	if i < 0 {
		return fmt.Errorf("monitor at %s has no mode of %d×%d pixels at %d.%03d Hz", s.conn.Name(), m.Width, m.Height,
			m.RefreshMilliHz/1000, m.RefreshMilliHz%1000)
	}
	if i != s.mode {
		s.mode = i
		s.mu.Lock()
		s.modeset = true
		s.mu.Unlock()
	}
	return nil
}

// NewBuffer implements output.Output.
func (s *Screen) NewBuffer() (*output.Buffer, error) {
	m := s.Mode()
	d, err := s.d.card.createDumb(m.Width, m.Height)
	if err != nil {
		return nil, fmt.Errorf("monitor at %s: %w", s.conn.Name(), err)
	}
	fb, err := s.d.card.addFB(d.handle, m.Width, m.Height, d.pitch, display.XRGB8888)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("monitor at %s: %w", s.conn.Name(), err), s.d.card.destroyDumb(d))
	}
	s.buffers[fb] = d
	return &output.Buffer{
		Width: m.Width, Height: m.Height, Stride: int(d.pitch), Pixels: d.mem[:int(d.pitch)*m.Height], ID: fb,
	}, nil
}

// FreeBuffer implements output.Output.
func (s *Screen) FreeBuffer(b *output.Buffer) {
	d := s.buffers[b.ID]
	if d == nil {
		return
	}
	delete(s.buffers, b.ID)
	if err := errors.Join(s.d.card.RmFB(b.ID), s.d.card.destroyDumb(d)); err != nil {
		s.d.opt.Log.Warn("a buffer cannot be freed", "connector", s.conn.Name(), "err", err)
	}
	b.Pixels = nil
}

// Present implements output.Output.
func (s *Screen) Present(b *output.Buffer, damage []image.Rectangle) error {
	return s.present(b, damage, nil)
}

// present shows a buffer, and a guest's picture over it if over is not nil.
func (s *Screen) present(b *output.Buffer, damage []image.Rectangle, over *plane) error {
	m := s.Mode()
	if b.Width != m.Width || b.Height != m.Height {
		return fmt.Errorf("buffer of %d×%d pixels for a mode of %d×%d", b.Width, b.Height, m.Width, m.Height)
	}
	s.mu.Lock()
	switch {
	case s.gone || !s.active:
		s.mu.Unlock()
		return output.ErrInactive
	case s.pending:
		s.mu.Unlock()
		return output.ErrBusy
	case over != nil && s.modeset: // the mode comes first
		s.mu.Unlock()
		return output.ErrNoDirect
	}
	if over == nil && !s.direct.on { // what is on the screen now has none, and neither has what comes
		s.forget()
	}
	s.serial++
	s.pending = true
	serial, modeset := s.serial, s.modeset
	s.mu.Unlock()

	var event bool // the kernel will tell
	var err error
	if s.d.atomic {
		event, err = true, s.commit(b.ID, damage, over, modeset, s.user(serial))
	} else {
		event, err = s.legacy(b.ID, damage, modeset, s.user(serial))
	}
	if err == nil {
		s.mu.Lock()
		s.modeset = s.modeset && !modeset
		s.mu.Unlock()
		s.direct.on = over != nil
		if !event {
			s.flipped(serial, output.Flip{})
		}
		return nil
	}
	s.mu.Lock()
	s.pending = s.pending && s.serial != serial
	s.mu.Unlock()
	switch {
	case isDenied(err):
		return output.ErrInactive
	case errors.Is(err, unix.EBUSY):
		return output.ErrBusy
	}
	return fmt.Errorf("monitor at %s: %w", s.conn.Name(), err)
}

// user is what events of this screen carry.
func (s *Screen) user(serial uint32) uint64 { return uint64(s.conn.ID)<<32 | uint64(serial) }

// commit shows a framebuffer atomically.
func (s *Screen) commit(fb uint32, damage []image.Rectangle, over *plane, modeset bool, user uint64) error {
	r, k := s.request, s.crtc
	card := s.d.card
	r.Reset()
	if modeset {
		return s.commitMode(fb, user)
	}
	blob := s.setPlane(k.plane, k.planeIDs, fb, damage, &s.damage)
	var overBlob uint32
	switch {
	case over != nil:
		overBlob = s.setOver(over)
	case s.direct.on:
		k.over.disable(r)
	}
	err := card.Commit(r, flagFlipEvent|flagNonblock, user)
	if blob != 0 {
		err = errors.Join(err, s.damage.done(card))
	}
	if overBlob != 0 {
		err = errors.Join(err, s.direct.damage.done(card))
	}
	return err
}

// setPlane has the request show a framebuffer in a plane, and returns the blob of its damage, 0 if there is none.
func (s *Screen) setPlane(id uint32, props map[string]uint32, fb uint32, damage []image.Rectangle, b *damageBlob) (blob uint32) {
	s.request.Set(id, props["FB_ID"], uint64(fb))
	if prop := props["FB_DAMAGE_CLIPS"]; prop != 0 {
		if blob = b.make(s.d.card, damage); blob != 0 {
			s.request.Set(id, prop, uint64(blob))
		}
	}
	return blob
}

// commitMode sets the mode and shows a framebuffer.
func (s *Screen) commitMode(fb uint32, user uint64) error {
	card, r, k, m := s.d.card, s.request, s.crtc, &s.modes[s.mode]
	blob, err := card.CreateBlob(bytesOf(s.modes[s.mode : s.mode+1]))
	if err != nil {
		return err
	}
	r.Set(s.conn.ID, s.conn.PropIDs["CRTC_ID"], uint64(k.id))
	r.Set(k.id, k.props["MODE_ID"], uint64(blob))
	r.Set(k.id, k.props["ACTIVE"], 1)
	for _, p := range []struct {
		name  string
		value uint64
	}{
		{"FB_ID", uint64(fb)}, {"CRTC_ID", uint64(k.id)},
		{"SRC_X", 0}, {"SRC_Y", 0}, {"SRC_W", uint64(m.HDisplay) << 16}, {"SRC_H", uint64(m.VDisplay) << 16}, // in 1/65536 pixels
		{"CRTC_X", 0}, {"CRTC_Y", 0}, {"CRTC_W", uint64(m.HDisplay)}, {"CRTC_H", uint64(m.VDisplay)},
	} {
		r.Set(k.plane, k.planeIDs[p.name], p.value)
	}
	// As another program may have left it: turned, or half transparent.
	r.Set(k.plane, k.planeIDs["rotation"], rotate0)
	r.Set(k.plane, k.planeIDs["alpha"], noAlpha)
	if err := s.d.disablePlanes(r, k); err != nil {
		return errors.Join(err, card.DestroyBlob(blob))
	}
	err = card.Commit(r, flagFlipEvent|flagAllowModeset, user)
	if errors.Is(err, unix.EINVAL) {
		// Perhaps the connector hangs at a CRTC that another program has left on.
		if err = s.d.disableOthers(s); err == nil {
			err = card.Commit(r, flagFlipEvent|flagAllowModeset, user)
		}
	}
	return errors.Join(err, card.DestroyBlob(blob))
}

// legacy shows a framebuffer by the older ioctls, and reports whether an event will tell when.
func (s *Screen) legacy(fb uint32, damage []image.Rectangle, modeset bool, user uint64) (event bool, err error) {
	card := s.d.card
	if !modeset && !s.noFlip {
		err := card.PageFlip(s.crtc.id, fb, user)
		if err == nil {
			return true, s.dirty(fb, damage)
		}
		if !isMissing(err) {
			return false, err
		}
		s.noFlip = true
	}
	k := CRTC{ID: s.crtc.id, FB: fb, ModeValid: 1, Mode: s.modes[s.mode]}
	if err := card.SetCRTC(k, s.conn.ID); err != nil {
		return false, err
	}
	return false, s.dirty(fb, damage)
}

// dirty tells drivers that want to know it what has changed.
func (s *Screen) dirty(fb uint32, damage []image.Rectangle) error {
	if s.noDirty {
		return nil
	}
	s.clips = s.clips[:0]
	if len(damage) <= maxDirtyClips {
		for _, d := range damage {
			s.clips = append(s.clips, clipRect{uint16(d.Min.X), uint16(d.Min.Y), uint16(d.Max.X), uint16(d.Max.Y)})
		}
	}
	err := s.d.card.dirtyFB(fb, s.clips)
	if isMissing(err) {
		s.noDirty, err = true, nil
	}
	return err
}

// Flips implements output.Output.
func (s *Screen) Flips() <-chan output.Flip { return s.flips }

// flipped tells that the frame of Present number serial is on the screen.
func (s *Screen) flipped(serial uint32, f output.Flip) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pending || s.serial != serial || s.gone {
		return
	}
	s.pending = false
	select {
	case s.flips <- f:
	default: // cannot be: there is one Flip for each Present
	}
}

// setActive says whether the card is ours. When it is not, no event comes for a frame that is on its way.
func (s *Screen) setActive(active bool) {
	s.mu.Lock()
	serial := s.serial
	s.active = active
	s.modeset = s.modeset || active
	s.mu.Unlock()
	if !active {
		s.flipped(serial, output.Flip{})
	}
}

// unplug closes Flips.
func (s *Screen) unplug() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gone {
		s.gone = true
		close(s.flips)
	}
}

// turnOff turns the monitor off.
func (s *Screen) turnOff() {
	s.mu.Lock()
	active := s.active
	s.mu.Unlock()
	if !active {
		return
	}
	var err error
	if s.d.atomic {
		r := NewRequest()
		s.crtc.disable(r)
		r.Set(s.conn.ID, s.conn.PropIDs["CRTC_ID"], 0)
		err = s.d.card.Commit(r, flagAllowModeset, 0)
	} else {
		err = s.d.card.SetCRTC(CRTC{ID: s.crtc.id})
	}
	if err != nil {
		s.d.opt.Log.Debug("a monitor cannot be turned off", "connector", s.conn.Name(), "err", err)
	}
}

// SetCursor implements output.Output.
func (s *Screen) SetCursor(c *display.Cursor) error {
	if err := s.usable(); err != nil {
		return err
	}
	if s.noCursor {
		if c == nil {
			return nil
		}
		return output.ErrNoCursor
	}
	if c == nil {
		return s.cursor(&cursor2{flags: cursorBO, crtc: s.crtc.id})
	}
	p, err := s.pointer()
	if err == nil && (c.Width > p.width || c.Height > p.height) {
		err = output.ErrNoCursor
	}
	if err != nil {
		return errors.Join(err, s.SetCursor(nil))
	}
	clear(p.mem)
	for y := range c.Height {
		copy(p.mem[y*int(p.pitch):], c.Pixels[4*y*c.Width:4*(y+1)*c.Width])
	}
	s.hot, s.turn = c.Hot, 1-s.turn
	return s.cursor(&cursor2{
		flags: cursorBO, crtc: s.crtc.id, width: uint32(p.width), height: uint32(p.height), handle: p.handle,
		hotX: int32(c.Hot.X), hotY: int32(c.Hot.Y),
	})
}

// pointer returns the buffer for the next picture of the pointer, of the size that the card wants.
func (s *Screen) pointer() (*dumb, error) {
	if p := s.pointers[1-s.turn]; p != nil {
		return p, nil
	}
	size := func(capa uint64) int {
		if v := s.d.card.GetCap(capa); v > 0 && v <= 1024 {
			return int(v)
		}
		return 64 // which every card has
	}
	p, err := s.d.card.createDumb(size(CapCursorWidth), size(CapCursorHeight))
	s.pointers[1-s.turn] = p
	return p, err
}

// MoveCursor implements output.Output.
func (s *Screen) MoveCursor(at image.Point) error {
	if err := s.usable(); err != nil {
		return err
	}
	at = at.Sub(s.hot)
	s.move = cursor2{flags: cursorMove, crtc: s.crtc.id, x: int32(at.X), y: int32(at.Y)}
	return s.cursor(&s.move)
}

// cursor issues DRM_IOCTL_MODE_CURSOR2, which drivers that set modes atomically have as well: it does not wait for the
// frame that is on its way.
func (s *Screen) cursor(a *cursor2) error {
	err := ioctl(s.d.card.dev, "DRM_IOCTL_MODE_CURSOR2", nrCursor2, a)
	switch {
	case err == nil:
		return nil
	case isDenied(err):
		return output.ErrInactive
	case isMissing(err):
		s.noCursor = true
		if a.handle == 0 {
			return nil
		}
		return output.ErrNoCursor
	}
	return fmt.Errorf("monitor at %s: %w", s.conn.Name(), err)
}

// usable returns ErrInactive if the screen is not ours.
func (s *Screen) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || !s.active {
		return output.ErrInactive
	}
	return nil
}

// Close implements output.Output. It does not wait for the frame that is on its way.
func (s *Screen) Close() error {
	s.unplug()
	var errs []error
	for fb, d := range s.buffers {
		errs = append(errs, s.d.card.RmFB(fb), s.d.card.destroyDumb(d))
	}
	clear(s.buffers)
	s.forget()
	for _, p := range s.pointers {
		if p != nil {
			errs = append(errs, s.d.card.destroyDumb(p))
		}
	}
	return errors.Join(errs...)
}
