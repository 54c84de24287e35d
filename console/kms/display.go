package kms

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/internal/uevent"
)

// Options are how a Display uses its card. The zero value is good.
type Options struct {
	Legacy     bool         // do not set modes atomically, even if the driver can
	SoftCursor bool         // do not use the card's pointers
	Log        *slog.Logger // nil is slog.Default
}

// Display is all the monitors of a card.
type Display struct {
	card   *Card
	opt    Options
	atomic bool
	crtcs  []*crtc // in the kernel's order, which is that of the bits of possible CRTCs

	changed  chan struct{} // of one: monitors may have been plugged in
	scanning sync.Mutex    // held while monitors are looked for
	mu       sync.Mutex
	active   bool
	screens  map[uint32]*Screen // by their connectors
}

// crtc is a CRTC and its planes.
type crtc struct {
	id       uint32
	props    map[string]uint32
	plane    uint32 // the primary one
	planeIDs map[string]uint32
	over     overlay
	saved    *CRTC    // what it showed before us
	savedOn  []uint32 // on these connectors
	user     *Screen  // under Display.scanning
}

// overlay is a plane above the primary one.
type overlay struct {
	id    uint32 // 0: there is none
	props map[string]uint32
}

// OpenDisplay opens a card for showing pictures, and becomes its master.
func OpenDisplay(path string, opt Options) (*Display, error) {
	card, err := Open(path)
	if err != nil {
		return nil, err
	}
	d, err := newDisplay(card, opt)
	if err != nil {
		return nil, errors.Join(err, card.Close())
	}
	return d, nil
}

func newDisplay(card *Card, opt Options) (*Display, error) {
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	d := &Display{card: card, opt: opt, active: true, screens: make(map[uint32]*Screen), changed: make(chan struct{}, 1)}
	if err := card.SetMaster(); err != nil {
		return nil, fmt.Errorf("%s: %w: another program shows its pictures there: stop it", card.path, err)
	}
	if card.GetCap(CapDumbBuffer) == 0 {
		return nil, fmt.Errorf("%s: its driver has no buffers that the CPU can write: it cannot be used", card.path)
	}
	planes := card.SetClientCap(ClientCapUniversalPlanes) == nil
	d.atomic = planes && !opt.Legacy && card.SetClientCap(ClientCapAtomic) == nil
	_ = card.SetClientCap(ClientCapCursorHotspot) // only virtual cards have it, and only new kernels
	res, err := card.Resources()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: it has no monitors", card.path, err)
	}
	for _, id := range res.CRTCs {
		k := &crtc{id: id}
		if k.saved, err = card.GetCRTC(id); err != nil {
			return nil, fmt.Errorf("%s: %w", card.path, err)
		}
		d.crtcs = append(d.crtcs, k)
	}
	if d.atomic {
		if err := d.findPlanes(); err != nil {
			d.opt.Log.Warn("modes are not set atomically", "card", card.path, "err", err)
			d.atomic = false
		}
	}
	for _, id := range res.Connectors {
		if err := d.saveConnector(id); err != nil {
			return nil, fmt.Errorf("%s: %w", card.path, err)
		}
	}
	return d, nil
}

// saveConnector notes down which CRTC a connector shows.
func (d *Display) saveConnector(id uint32) error {
	encoder, err := d.card.connectorEncoder(id)
	if err != nil || encoder == 0 {
		return err
	}
	enc, err := d.card.Encoder(encoder)
	if err != nil {
		return err
	}
	for _, k := range d.crtcs {
		if k.id == enc.CRTC {
			k.savedOn = append(k.savedOn, id)
		}
	}
	return nil
}

// findPlanes gives each CRTC its primary plane: the one that it shows, or else one that it can. An overlay it gets if there
// are enough.
func (d *Display) findPlanes() error {
	planes, err := d.card.Planes()
	if err != nil {
		return err
	}
	ids, values := make(map[uint32]map[string]uint32), make(map[uint32]map[string]uint64)
	for _, p := range planes {
		if values[p.ID], ids[p.ID], err = d.card.ObjectProps(p.ID, ObjectPlane); err != nil {
			return err
		}
	}
	taken := make(map[uint32]bool)
	for _, current := range []bool{true, false} {
		for i, k := range d.crtcs {
			for _, p := range planes {
				if values[p.ID]["type"] == planePrimary && k.plane == 0 && !taken[p.ID] && p.PossibleCRTCs&(1<<i) != 0 && (!current || p.CRTC == k.id) {
					k.plane, k.planeIDs, taken[p.ID] = p.ID, ids[p.ID], true
				}
			}
		}
	}
	for i, k := range d.crtcs {
		for _, p := range planes {
			// Where the order of planes is said it has to be this one; else it is by their types.
			z, said := values[p.ID]["zpos"]
			if k.over.id == 0 && values[p.ID]["type"] == planeOverlay && !taken[p.ID] && p.PossibleCRTCs&(1<<i) != 0 &&
				(!said || z > values[k.plane]["zpos"]) {
				k.over, taken[p.ID] = overlay{p.ID, ids[p.ID]}, true
			}
		}
	}
	for _, k := range d.crtcs {
		if k.plane == 0 {
			return fmt.Errorf("CRTC %d has no primary plane", k.id)
		}
		if _, k.props, err = d.card.ObjectProps(k.id, ObjectCRTC); err != nil {
			return err
		}
	}
	return nil
}

// Atomic reports whether modes are set atomically.
func (d *Display) Atomic() bool { return d.atomic }

// Scan looks which monitors are there and returns those that are new, as screens. Those of monitors that are gone close
// their Flips.
func (d *Display) Scan() ([]*Screen, error) {
	d.scanning.Lock()
	defer d.scanning.Unlock()
	res, err := d.card.Resources()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.card.path, err)
	}
	there := make(map[uint32]bool)
	var fresh []*Connector
	for _, id := range res.Connectors {
		conn, err := d.card.Connector(id)
		if err != nil {
			d.opt.Log.Warn("a connector cannot be read", "card", d.card.path, "err", err) // it was unplugged with its dock
			continue
		}
		if conn.Connection != Connected || conn.Props["non-desktop"] == 1 || len(usable(conn.Modes)) == 0 {
			continue
		}
		s := d.screen(id)
		if s != nil && !s.same(d.edid(conn)) { // another monitor at the same cable
			d.drop(s)
			s = nil
		}
		there[id] = true
		if s == nil {
			fresh = append(fresh, conn)
		}
	}
	for _, s := range d.all() {
		if !there[s.conn.ID] {
			d.drop(s)
		}
	}
	return d.assign(fresh)
}

// usable returns the modes that a picture without interlacing can have, the preferred one first.
func usable(modes []ModeInfo) []ModeInfo {
	modes = slices.DeleteFunc(slices.Clone(modes), func(m ModeInfo) bool {
		return m.Flags&(modeFlagInterlace|modeFlagDblScan) != 0 || m.HDisplay == 0 || m.VDisplay == 0 || m.HTotal == 0 || m.VTotal == 0
	})
	slices.SortStableFunc(modes, func(a, b ModeInfo) int {
		return int(b.Type&modeTypePreferred) - int(a.Type&modeTypePreferred)
	})
	return modes
}

// edid returns a connector's EDID, nil if it has none.
func (d *Display) edid(conn *Connector) []byte {
	id := uint32(conn.Props["EDID"])
	if id == 0 {
		return nil
	}
	b, err := d.card.Blob(id)
	if err != nil {
		d.opt.Log.Warn("EDID cannot be read", "connector", conn.Name(), "err", err)
		return nil
	}
	return b
}

// assign makes screens of connectors, as far as there are CRTCs for them.
func (d *Display) assign(conns []*Connector) ([]*Screen, error) {
	can := make([][]int, len(conns))
	for i, conn := range conns {
		var possible, current uint32
		for _, id := range conn.Encoders {
			enc, err := d.card.Encoder(id)
			if err != nil {
				return nil, fmt.Errorf("connector %s: %w", conn.Name(), err)
			}
			possible |= enc.PossibleCRTCs
			if id == conn.Encoder {
				current = enc.CRTC
			}
		}
		for j, k := range d.crtcs {
			switch {
			case possible&(1<<j) == 0 || k.user != nil:
			case k.id == current: // first: its picture changes without a change of mode
				can[i] = slices.Insert(can[i], 0, j)
			default:
				can[i] = append(can[i], j)
			}
		}
	}
	var screens []*Screen
	for i, j := range match(can, len(d.crtcs)) {
		if j < 0 {
			d.opt.Log.Warn("the card can show no more monitors", "connector", conns[i].Name())
			continue
		}
		s := newScreen(d, conns[i], d.crtcs[j], d.edid(conns[i]))
		d.crtcs[j].user = s
		d.mu.Lock()
		d.screens[conns[i].ID] = s
		s.active = d.active
		d.mu.Unlock()
		screens = append(screens, s)
	}
	return screens, nil
}

// match gives each of the first as many of the second kind as possible: can lists those that it can have, the best first;
// -1 is none. (A matching in a bipartite graph, by augmenting paths.)
func match(can [][]int, n int) []int {
	owner := slices.Repeat([]int{-1}, n)
	var try func(i int, seen []bool) bool
	try = func(i int, seen []bool) bool {
		for _, j := range can[i] {
			if seen[j] {
				continue
			}
			seen[j] = true
			if owner[j] < 0 || try(owner[j], seen) {
				owner[j] = i
				return true
			}
		}
		return false
	}
	for i := range can {
		try(i, make([]bool, n))
	}
	got := slices.Repeat([]int{-1}, len(can))
	for j, i := range owner {
		if i >= 0 {
			got[i] = j
		}
	}
	return got
}

func (d *Display) screen(connector uint32) *Screen {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.screens[connector]
}

func (d *Display) all() (all []*Screen) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.screens {
		all = append(all, s)
	}
	return all
}

// drop forgets a screen whose monitor is gone. Its user closes it.
func (d *Display) drop(s *Screen) {
	d.mu.Lock()
	delete(d.screens, s.conn.ID)
	d.mu.Unlock()
	s.crtc.user = nil
	s.unplug() // first: nothing is presented any more
	s.turnOff()
}

// Run tells of page flips, and of monitors that are plugged in, until ctx is done: added is called for each, first for
// those that are there. Then it closes all screens' Flips. Close the screens after that, and then the display. It fails if
// the card's events cannot be given up.
func (d *Display) Run(ctx context.Context, added func(*Screen)) error {
	var others sync.WaitGroup
	others.Go(func() {
		for d.card.ReadEvents(d.flipped) == nil {
		}
	})
	events, err := uevent.Listen()
	if err == nil {
		others.Go(func() {
			if err := events.Follow(ctx, "drm", func(*uevent.Event) { d.look() }); err != nil {
				d.opt.Log.Error("monitors that are plugged in are not noticed any more", "err", err)
			}
		})
	} else {
		d.opt.Log.Warn("monitors that are plugged in are not noticed", "err", err)
	}
	for d.look(); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-d.changed:
			screens, err := d.Scan()
			if err != nil {
				d.opt.Log.Error("cannot look for monitors", "err", err)
			}
			for _, s := range screens {
				added(s)
			}
		}
	}
	for _, s := range d.all() {
		s.unplug()
	}
	err = d.card.dev.wake()
	others.Wait()
	return err
}

// look has Run look for monitors.
func (d *Display) look() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// flipped is called for each event of the card.
func (d *Display) flipped(e Event) {
	if s := d.screen(uint32(e.User >> 32)); s != nil {
		s.flipped(uint32(e.User), output.Flip{Sequence: e.Sequence, Time: e.Time})
	}
}

// Release lets another program show its pictures: screens are ErrInactive until Acquire.
func (d *Display) Release() error {
	d.setActive(false)
	if err := d.card.DropMaster(); err != nil {
		return fmt.Errorf("%s: %w", d.card.path, err)
	}
	return nil
}

// Acquire takes the card back. The screens have forgotten what they showed.
func (d *Display) Acquire() error {
	if err := d.card.SetMaster(); err != nil {
		return fmt.Errorf("%s: %w", d.card.path, err)
	}
	d.setActive(true)
	d.look() // the other program may have seen monitors come and go
	return nil
}

func (d *Display) setActive(active bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active = active
	for _, s := range d.screens {
		s.setActive(active)
	}
}

// disableOthers turns everything off that no screen of ours uses: another program may have left the card in any state.
func (d *Display) disableOthers(but *Screen) error {
	d.scanning.Lock()
	defer d.scanning.Unlock()
	res, err := d.card.Resources()
	if err != nil {
		return err
	}
	r := NewRequest()
	for _, id := range res.Connectors {
		if d.screen(id) != nil {
			continue
		}
		_, ids, err := d.card.ObjectProps(id, ObjectConnector)
		if err != nil {
			return err
		}
		r.Set(id, ids["CRTC_ID"], 0)
	}
	for _, k := range d.crtcs {
		if k.user == nil || k.user == but {
			k.disable(r)
		}
	}
	if but != nil {
		r.Set(but.conn.ID, but.conn.PropIDs["CRTC_ID"], 0)
	}
	return d.card.Commit(r, flagAllowModeset, 0)
}

// Values of properties of planes (drivers/gpu/drm/drm_blend.c in Linux).
const (
	rotate0 = 1 << 0 // DRM_MODE_ROTATE_0
	noAlpha = 0xffff
)

// disablePlanes turns off the planes of a CRTC that are above its primary one, or may be, but for the pointer's: what another
// program has left there could lie above the bar.
func (d *Display) disablePlanes(r *Request, k *crtc) error {
	k.over.disable(r)
	planes, err := d.card.Planes()
	if err != nil {
		return err
	}
	for _, p := range planes {
		if p.CRTC != k.id || p.ID == k.plane || p.ID == k.over.id {
			continue
		}
		values, ids, err := d.card.ObjectProps(p.ID, ObjectPlane)
		if err != nil {
			return err
		}
		if values["type"] != planeCursor {
			(&overlay{p.ID, ids}).disable(r)
		}
	}
	return nil
}

// disable turns a CRTC off.
func (k *crtc) disable(r *Request) {
	r.Set(k.id, k.props["ACTIVE"], 0)
	r.Set(k.id, k.props["MODE_ID"], 0)
	r.Set(k.plane, k.planeIDs["FB_ID"], 0)
	r.Set(k.plane, k.planeIDs["CRTC_ID"], 0)
	k.over.disable(r)
}

// disable turns an overlay off, if there is one.
func (o *overlay) disable(r *Request) {
	r.Set(o.id, o.props["FB_ID"], 0)
	r.Set(o.id, o.props["CRTC_ID"], 0)
}

// Close shows what was shown before, as far as that is there still, and closes the card. The kernel draws its text console
// anew when nobody has the card open any more.
func (d *Display) Close() error {
	d.mu.Lock()
	active := d.active
	d.mu.Unlock()
	for _, k := range d.crtcs {
		if active && k.saved.ModeValid != 0 && k.saved.FB != 0 && len(k.savedOn) > 0 {
			if err := d.card.SetCRTC(*k.saved, k.savedOn...); err != nil {
				d.opt.Log.Debug("what was shown before cannot be shown again", "card", d.card.path, "err", err)
			}
		}
	}
	return d.card.Close()
}
