package manager

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/job"
)

// EventKind says what an event is about.
type EventKind string

// The kinds.
const (
	GuestChanged   EventKind = "guest"           // Guest is how it is now; also a new one
	GuestDeleted   EventKind = "deleted"         // Name is gone
	GuestStep      EventKind = "step"            // Text is what is being done to it
	JobChanged     EventKind = "job"             // Job is how it is now
	SavedChanged   EventKind = "saved"           // the snapshots of a guest are others
	PoolChanged    EventKind = "pool"            // the pool Name is another: new, gone, or with another level of space
	ImagesChanged  EventKind = "images"          // the images of the pool Name are others
	NetworkChanged EventKind = "network"         // Network is how it is now; also a new one
	NetworkDeleted EventKind = "network-deleted" // Name is gone
	Lost           EventKind = "lost"            // the subscriber was too slow: look at everything again
)

// Event is something that a subscriber hears of.
type Event struct {
	Kind    EventKind
	Time    time.Time
	Name    string // of the guest, pool or network, if it is about one
	Guest   *Guest
	Network *Network
	Job     *job.Status
	Text    string
}

// maxPending bounds what a slow subscriber can make us keep. Beyond it, it hears Lost.
const maxPending = 1024

// Subscription is what one subscriber has not heard yet. What is overtaken, such as an earlier state of the same guest, is
// dropped.
type Subscription struct {
	bus *bus

	mu     sync.Mutex
	queue  []key // in the order in which they came first
	latest map[key]Event
	wake   chan struct{} // capacity 1
	closed bool
}

// key is what an event is overtaken by: one that has the same.
type key struct {
	kind EventKind
	name string
	job  uint64
	text string
}

func (e *Event) key() key {
	k := key{kind: e.Kind, name: e.Name, text: e.Text}
	if e.Job != nil {
		k.job = e.Job.ID
	}
	return k
}

// bus brings events to all subscribers.
type bus struct {
	mu   sync.Mutex
	subs map[*Subscription]struct{}
}

// errUnsubscribed says that a subscription was closed.
var errUnsubscribed = errors.New("the subscription was closed")

func (b *bus) subscribe() *Subscription {
	s := &Subscription{bus: b, latest: make(map[key]Event), wake: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs == nil {
		b.subs = make(map[*Subscription]struct{})
	}
	b.subs[s] = struct{}{}
	return s
}

// send waits for nobody.
func (b *bus) send(e Event) {
	e.Time = time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		s.put(e)
	}
}

func (s *Subscription) put(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := e.key()
	if _, pending := s.latest[k]; !pending {
		if len(s.queue) >= maxPending {
			clear(s.latest)
			e = Event{Kind: Lost, Time: e.Time}
			k = e.key()
			s.queue = s.queue[:0]
		}
		s.queue = append(s.queue, k)
	}
	s.latest[k] = e
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Next returns the next event, when there is one.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return Event{}, errUnsubscribed
		}
		if len(s.queue) > 0 {
			k := s.queue[0]
			s.queue = s.queue[1:]
			e := s.latest[k]
			delete(s.latest, k)
			s.mu.Unlock()
			return e, nil
		}
		s.mu.Unlock()
		select {
		case <-s.wake:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.bus.mu.Lock()
	delete(s.bus.subs, s)
	s.bus.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed, s.queue, s.latest = true, nil, map[key]Event{}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
