package main

import (
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/seat"
)

const (
	// maxEvents is how many events wait to be written: more than there are in any second.
	maxEvents = 256
	// lastWords is how long events may take to be written once the seat is at its end.
	lastWords = time.Second
)

// eventLog writes events as JSON lines, in the order in which they are told, without holding up who tells them: some do so
// with the router locked. What nobody reads in time is counted and lost.
type eventLog struct {
	wake chan struct{}
	stop chan struct{}
	done chan struct{} // closed when nothing is written any more

	mu    sync.Mutex
	queue []any
	lost  int // since the queue was full
}

func newEventLog(out io.Writer) *eventLog {
	e := &eventLog{wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go e.write(out)
	return e
}

// close has the events written that there are, unless nobody reads them.
func (e *eventLog) close() {
	close(e.stop)
	select {
	case <-e.done:
	case <-time.After(lastWords):
	}
}

// write writes events until stop, or until out fails.
func (e *eventLog) write(out io.Writer) {
	defer close(e.done)
	to := json.NewEncoder(out)
	for last := false; !last; {
		select {
		case <-e.wake:
		case <-e.stop:
			last = true
		}
		for _, v := range e.take() {
			if to.Encode(v) != nil {
				return
			}
		}
	}
}

// take returns what has been told since it was called last.
func (e *eventLog) take() []any {
	e.mu.Lock()
	defer e.mu.Unlock()
	told := e.queue
	if e.lost > 0 {
		told = append(told, lostEvents{"lost", time.Now(), e.lost})
	}
	e.queue, e.lost = nil, 0
	return told
}

func (e *eventLog) tell(v any) {
	e.mu.Lock()
	if len(e.queue) < maxEvents {
		e.queue = append(e.queue, v)
	} else {
		e.lost++
	}
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

type lostEvents struct {
	Event string    `json:"event"`
	Time  time.Time `json:"time"`
	Count int       `json:"count"`
}

func (e *eventLog) focus(old, now, why string) {
	e.tell(struct {
		Event string    `json:"event"`
		Time  time.Time `json:"time"`
		Old   string    `json:"old"`
		New   string    `json:"new"`
		Why   string    `json:"why"`
	}{"focus", time.Now(), old, now, why})
}

func (e *eventLog) guest(name string, there bool) {
	e.tell(struct {
		Event string    `json:"event"`
		Time  time.Time `json:"time"`
		Guest string    `json:"guest"`
		There bool      `json:"there"`
	}{"guest", time.Now(), name, there})
}

func (e *eventLog) switched(s compose.Switched) {
	e.tell(struct {
		Event  string    `json:"event"`
		Time   time.Time `json:"time"`
		Output string    `json:"output"`
		Guest  string    `json:"guest"`
		TookUS float64   `json:"took_us"`
		Waited float64   `json:"waited_us"`
		Behind bool      `json:"behind,omitempty"`
	}{"switched", time.Now(), s.Output, s.Source.Guest().Name, micros(s.Took), micros(s.Waited), s.Behind})
}

func (e *eventLog) monitor(m seat.MonitorState) {
	e.tell(struct {
		Event   string    `json:"event"`
		Time    time.Time `json:"time"`
		Output  string    `json:"output"`
		Monitor string    `json:"monitor"`
		Guest   string    `json:"guest"`
		There   bool      `json:"there"`
	}{"monitor", time.Now(), m.Output, m.Monitor, m.Guest, m.There})
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
