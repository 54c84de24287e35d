package seat

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/console/textui/fbscreen"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/hid"
)

// ownConsole is Lodge's own place on the seat: what the attention key opens. The console (console/textui) has goroutines of its own,
// and nothing of the seat waits for it: keys that it does not take are lost.
type ownConsole struct {
	s      *Seat
	source *compose.Source
	screen *fbscreen.Screen
	app    *textui.App
	keys   keyboard      // with the router locked
	news   chan struct{} // a guest is there, or gone
	size   chan struct{} // the outputs may be others
	first  atomic.Bool   // a guest was shown
}

func newOwnConsole(s *Seat) *ownConsole {
	o := &ownConsole{
		s:      s,
		source: s.NewSource(trustbar.Guest{Name: ownName, Label: "the machine's own console", Color: trustbar.Lodge()}),
		news:   make(chan struct{}, 1),
		size:   make(chan struct{}, 1),
	}
	o.screen = fbscreen.New(o.source)
	o.app = textui.New((*system)(s), o.screen, textui.Options{Back: s.leaveConsole})
	return o
}

// leaveConsole goes back to where one was.
func (s *Seat) leaveConsole() { s.Router.LeaveConsole() }

// Send implements hid.Sink. It is called with the router locked.
func (o *ownConsole) Send(batch []hid.Event) {
	for _, e := range batch {
		if ev := o.keys.event(e); ev != nil {
			o.screen.Post(ev)
		}
	}
}

// run shows the console until ctx is done.
func (o *ownConsole) run(ctx context.Context) {
	defer o.source.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := o.app.Run(ctx); err != nil {
			o.s.opt.Log.Error("console", "err", err)
		}
	})
	var managed <-chan struct{}
	if m := o.s.opt.Manager; m != nil {
		managed = m.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-managed:
			o.changed()
		case <-o.size:
			heads := o.s.Heads()
			if len(heads) == 0 {
				continue
			}
			if err := o.screen.Resize(heads[0].GuestSize()); err != nil {
				o.s.opt.Log.Error("console", "err", err)
			}
		}
	}
}

// focused says whether the console is what is seen. It is called with the router locked.
func (o *ownConsole) focused(yes bool) {
	o.app.SetVisible(yes)
	if yes {
		o.fit()
	}
}

// fit has the picture made as large as the first output.
func (o *ownConsole) fit() {
	select {
	case o.size <- struct{}{}:
	default:
	}
}

// changed has the console look at the guests.
func (o *ownConsole) changed() {
	select {
	case o.news <- struct{}{}:
	default:
	}
}

// system is what the console on the seat manages: what the manager tells, with what the seat knows better.
type system Seat

var errNoManager = errors.New("this seat has nothing that manages guests: name their definitions in its file")

// Guests implements textui.System. A guest that the manager knows nothing of is there if it has a picture.
func (y *system) Guests(ctx context.Context) ([]textui.Guest, error) {
	managed := make(map[string]textui.Guest)
	if m := y.opt.Manager; m != nil {
		list, err := m.Guests(ctx)
		if err != nil {
			return nil, err
		}
		for _, k := range list {
			managed[k.Name] = k
		}
	}
	var list []textui.Guest
	for _, g := range y.guests {
		k, ok := managed[g.cfg.Name]
		if !ok {
			k = textui.Guest{Name: g.cfg.Name, CPU: -1}
		}
		k.Color, k.Slot = g.cfg.Color, g.cfg.Slot
		if k.State == textui.Unknown {
			if k.State = textui.Off; g.sender.Load() != nil {
				k.State = textui.Running
			}
		}
		list = append(list, k)
	}
	return list, nil
}

// Details implements textui.System.
func (y *system) Details(ctx context.Context, guest string) (textui.Details, error) {
	if y.opt.Manager == nil {
		return textui.Details{}, errNoManager
	}
	return y.opt.Manager.Details(ctx, guest)
}

// Log implements textui.System.
func (y *system) Log(ctx context.Context, guest, log string, limit int) ([]byte, error) {
	if y.opt.Manager == nil {
		return nil, errNoManager
	}
	return y.opt.Manager.Log(ctx, guest, log, limit)
}

// Do implements textui.System.
func (y *system) Do(ctx context.Context, guest string, c textui.Command, progress func(textui.Progress)) error {
	if y.opt.Manager == nil {
		return errNoManager
	}
	return y.opt.Manager.Do(ctx, guest, c, progress)
}

// Switch implements textui.System.
func (y *system) Switch(_ context.Context, guest string) error { return y.Router.SetFocus(guest) }

// Changed implements textui.System.
func (y *system) Changed() <-chan struct{} { return y.own.news }
