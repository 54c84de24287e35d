package display

import "slices"

// watcher is a device that draws only while somebody looks.
type watcher struct {
	watched func(bool)
	draw    func()
}

// OnWatch is for a device that renders its picture itself, and need not while nobody looks: sinks that Follow do not count.
// watched is called at once, when the first sink is attached and when the last has gone; it may not call the screen. draw is
// called before a Snapshot: it brings the surface up to date, by Scanout and Update if it likes. Neither is called any more
// when stop has returned, save for a draw that runs already.
func (s *Screen) OnWatch(watched func(bool), draw func()) (stop func()) {
	w := &watcher{watched, draw}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers = append(s.watchers[:len(s.watchers):len(s.watchers)], w)
	watched(s.watched())
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, have := range s.watchers {
			if have == w {
				s.watchers = append(s.watchers[:i:i], s.watchers[i+1:]...)
				return
			}
		}
	}
}

// watched reports whether somebody looks. s is locked.
func (s *Screen) watched() bool {
	return slices.ContainsFunc(s.sinks, func(a *attached) bool { return a.looks })
}

// tellWatchers is called with s locked when a sink was added or has gone. was is what watched returned before.
func (s *Screen) tellWatchers(was bool) {
	now := s.watched()
	if now == was {
		return
	}
	for _, w := range s.watchers {
		w.watched(now)
	}
}

// refresh has the devices draw, without holding the lock: they call the screen.
func (s *Screen) refresh() {
	s.mu.Lock()
	watchers := s.watchers // never changed in place
	s.mu.Unlock()
	for _, w := range watchers {
		w.draw()
	}
}
