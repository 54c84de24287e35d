package seat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/output"
)

// What monitors show.
const (
	showMirror  = "mirror"   // all of them the same guest
	showOneEach = "one each" // each further one a guest of its own
)

// Monitors says how guests are spread over several monitors.
type Monitors struct {
	Show string `toml:"show,omitempty"` // "mirror" or "one each"; mirror if it is missing
	File string `toml:"file,omitempty"` // where it is remembered what each monitor shows; nowhere if it is missing
}

// MonitorState says what a monitor shows now.
type MonitorState struct {
	Output  string // name of its connector
	Monitor string // what it is remembered by, see compose.MonitorID
	Guest   string // that is pinned to it; "": it shows the guest that is switched to
	There   bool   // false: it was unplugged
}

// monitors arranges the guests on the outputs that are there. One output, the main one, shows the guest that is switched to;
// others do too, or are pinned to a guest. A lone output is never pinned: when monitors are unplugged the guests come together.
type monitors struct {
	s *Seat

	mu     sync.Mutex
	layout *compose.Layout
	heads  []*monitor // in the order of their arrival
}

// monitor is an output that is there.
type monitor struct {
	head  *compose.Head
	info  output.Info
	id    string
	told  bool
	guest *guest // that it is pinned to, or nil
}

func newMonitors(s *Seat) (*monitors, error) {
	m := &monitors{s: s, layout: &compose.Layout{}}
	if file := s.cfg.Monitors.File; file != "" {
		var err error
		if m.layout, err = compose.LoadLayout(file); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Plug adds an output, which is the seat's from then on. run shows the seat on it until ctx is done or the output is gone, and
// closes it. With several outputs, the order in which they are plugged in is that of the monitors.
func (s *Seat) Plug(out output.Output) (run func(ctx context.Context) error, err error) {
	head, err := s.plug(out)
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return func(ctx context.Context) error {
		defer s.monitors.remove(head)
		return head.Run(ctx)
	}, nil
}

// plug adds an output, in the mode that its monitor is to have.
func (s *Seat) plug(out output.Output) (*compose.Head, error) {
	m := &monitor{info: out.Info()}
	s.monitors.mu.Lock()
	defer s.monitors.mu.Unlock()
	m.id = s.monitors.identify(m.info)
	if want, _ := s.monitors.find(m.id); want.Width > 0 {
		if mode, ok := want.Mode(out.Modes()); ok && mode.Size() != out.Mode().Size() {
			if err := out.SetMode(mode); err != nil {
				s.opt.Log.Warn("a monitor keeps its own size", "monitor", m.id, "err", err)
			}
		}
	}
	var err error
	if m.head, err = s.Compositor.Add(out); err != nil {
		return nil, err
	}
	s.own.fit()
	s.monitors.heads = append(s.monitors.heads, m)
	s.monitors.arrange()
	return m.head, nil
}

// identify returns what a new monitor is remembered by. Where two that are alike are there, the second is told by its
// connector too.
func (m *monitors) identify(info output.Info) string {
	id := compose.MonitorID(info)
	if slices.ContainsFunc(m.heads, func(k *monitor) bool { return k.id == id }) {
		id += "@" + info.Name
	}
	return id
}

// find returns how a monitor is to be used, and whether that is known.
func (m *monitors) find(id string) (compose.Monitor, bool) {
	for _, list := range [][]compose.Monitor{m.s.cfg.Monitor, m.layout.Monitors} {
		if i := slices.IndexFunc(list, func(k compose.Monitor) bool { return k.ID == id }); i >= 0 {
			return list[i], true
		}
	}
	return compose.Monitor{ID: id}, false
}

// listed reports whether a monitor is in the configuration, which is not to be remembered.
func (m *monitors) listed(id string) bool {
	return slices.ContainsFunc(m.s.cfg.Monitor, func(k compose.Monitor) bool { return k.ID == id })
}

func (m *monitors) remove(h *compose.Head) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, k := range m.heads {
		if k.head == h {
			m.heads = slices.Delete(m.heads, i, i+1)
			m.tell(k, false)
			break
		}
	}
	m.arrange()
}

// arrange says what each output shows, and remembers it. m.mu is held.
func (m *monitors) arrange() {
	s := m.s
	want := m.assign()
	for i, k := range m.heads {
		changed := !k.told || k.guest != want[i]
		if k.guest = want[i]; !changed {
			continue
		}
		if k.guest != nil {
			s.Pin(k.head, k.guest.source)
		} else {
			s.Pin(k.head, nil)
		}
		m.tell(k, true)
	}
	m.separate(want)
	m.remember()
	for _, g := range s.guests {
		g.moved()
	}
}

func (m *monitors) tell(k *monitor, there bool) {
	k.told = true
	if f := m.s.opt.OnMonitor; f != nil {
		st := MonitorState{Output: k.info.Name, Monitor: k.id, There: there}
		if k.guest != nil && there {
			st.Guest = k.guest.cfg.Name
		}
		f(st)
	}
}

// assign returns the guest for each output, nil where it shows the one that is switched to.
func (m *monitors) assign() []*guest {
	want := make([]*guest, len(m.heads))
	main := m.main()
	taken := make(map[*guest]bool)
	for i, k := range m.heads { // what was said or is remembered comes first
		if i == main {
			continue
		}
		if use, known := m.find(k.id); known && (m.listed(k.id) || m.s.cfg.Monitors.Show == showOneEach) {
			if g := m.s.guest(use.Guest); g != nil && !taken[g] {
				want[i], taken[g] = g, true
			}
		}
	}
	if m.s.cfg.Monitors.Show != showOneEach {
		return want
	}
	for i, k := range m.heads {
		if i == main || want[i] != nil || m.listed(k.id) {
			continue
		}
		if g := m.next(i, taken); g != nil {
			want[i], taken[g] = g, true
		}
	}
	return want
}

// next returns a guest for the monitor that came as number i: the second has the second guest, and so on, as far as they are
// free.
func (m *monitors) next(i int, taken map[*guest]bool) *guest {
	all, shown := m.s.guests, m.s.Shown()
	for k := range all {
		if g := all[(max(i, 1)+k)%len(all)]; !taken[g] && g.source != shown {
			return g
		}
	}
	return nil
}

// headOf returns where a guest is seen when it is switched to, and what its monitor is as large as: the output that is pinned to
// it, or else the main one. It is nil if there is none.
func (m *monitors) headOf(g *guest) *compose.Head {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.IndexFunc(m.heads, func(k *monitor) bool { return k.guest == g }); i >= 0 {
		return m.heads[i].head
	}
	if len(m.heads) == 0 {
		return nil
	}
	return m.heads[m.main()].head
}

// main returns which output is the main one: the notebook's own panel, else the one that was it before, else the first.
func (m *monitors) main() int {
	for _, is := range []func(*monitor) bool{
		func(k *monitor) bool { return k.info.Internal && !m.listed(k.id) },
		func(k *monitor) bool { use, known := m.find(k.id); return known && use.Guest == "" },
		func(k *monitor) bool { return !m.listed(k.id) },
	} {
		if i := slices.IndexFunc(m.heads, is); i >= 0 {
			return i
		}
	}
	return 0
}

// separate brings the guest with the input to where it can be seen now, and another to the main output if what that shows
// has got an output of its own.
func (m *monitors) separate(want []*guest) {
	s := m.s
	input, shown := s.InputTo(), s.Shown()
	if slices.ContainsFunc(want, func(g *guest) bool { return g != nil && g.source == shown }) {
		for _, g := range s.guests {
			if !slices.Contains(want, g) && g.sender.Load() != nil {
				s.Switch(g.source)
				break
			}
		}
	}
	s.Switch(input)
}

// remember notes down what each monitor shows, for when it is there again. With one monitor there is nothing to choose.
func (m *monitors) remember() {
	if m.s.cfg.Monitors.Show != showOneEach || len(m.heads) < 2 {
		return
	}
	before := slices.Clone(m.layout.Monitors)
	for _, k := range slices.Backward(m.heads) { // the first is the one that was used last, in the end
		if m.listed(k.id) {
			continue
		}
		use := m.layout.Find(k.id)
		if use.Guest = ""; k.guest != nil {
			use.Guest = k.guest.cfg.Name
		}
		m.layout.Remember(use)
	}
	file := m.s.cfg.Monitors.File
	if file == "" || slices.Equal(before, m.layout.Monitors) {
		return
	}
	if err := m.layout.Save(file); err != nil {
		m.s.opt.Log.Warn("what monitors show is forgotten at the end", "err", err)
	}
}

// checkMonitors checks what the configuration says of monitors.
func (c *Config) checkMonitors(names map[string]bool) error {
	switch c.Monitors.Show {
	case "":
		c.Monitors.Show = showMirror
	case showMirror, showOneEach:
	default:
		return fmt.Errorf("monitors: show = %q: one of %q and %q", c.Monitors.Show, showMirror, showOneEach)
	}
	ids := make(map[string]bool)
	for _, m := range c.Monitor {
		switch {
		case m.ID == "":
			return errors.New("monitor: set id to what lodge-seat --events calls it")
		case ids[m.ID]:
			return fmt.Errorf("two monitors are called %q: remove one", m.ID)
		case m.Guest != "" && !names[m.Guest]:
			return fmt.Errorf("monitor %q: guest %q: there is none of that name", m.ID, m.Guest)
		case (m.Width == 0) != (m.Height == 0) || m.Width < 0 || m.Height < 0:
			return fmt.Errorf("monitor %q: %d×%d pixels: give both width and height, or neither", m.ID, m.Width, m.Height)
		}
		ids[m.ID] = true
	}
	return nil
}
