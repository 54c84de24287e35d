package seat

import (
	"context"
	"sync"
	"time"

	"github.com/lodgehv/lodge/console/trustbar"
)

// newsTime is how long the bar tells of a guest that has become ready and is not looked at.
const newsTime = time.Minute

// news is what the bar tells of guests that are not on screen.
type news struct {
	changed chan struct{}

	mu   sync.Mutex
	last trustbar.News
}

func newNews() *news { return &news{changed: make(chan struct{}, 1)} }

// now returns what there is to tell.
func (n *news) now() trustbar.News {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.last
}

// set tells k from now on.
func (n *news) set(k trustbar.News) {
	n.mu.Lock()
	old := n.last
	n.last = k
	n.mu.Unlock()
	if old != k {
		select {
		case n.changed <- struct{}{}:
		default:
		}
	}
}

// seen says that a guest is looked at: what there is to tell of it is none any more.
func (n *news) seen(guest string) {
	if n.now().Guest.Name == guest {
		n.set(trustbar.News{})
	}
}

// tellReady tells of guests that have become ready while another one is on screen, until ctx is done.
func (s *Seat) tellReady(ctx context.Context) {
	over := time.NewTimer(0)
	defer over.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-over.C:
			s.news.set(trustbar.News{})
		case name := <-s.opt.Ready:
			g := s.guest(name)
			if g == nil || s.Shown() == g.source {
				continue
			}
			k := trustbar.News{Guest: g.bar}
			if g.cfg.Slot > 0 {
				k.Chord = title(s.cfg.Chords.chords().Slots[g.cfg.Slot-1].String())
			}
			s.news.set(k)
			over.Reset(newsTime)
		}
	}
}
