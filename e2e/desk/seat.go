package desk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
)

// Seat is a running lodge-seat with what it has told.
type Seat struct {
	*rpc.Process
	mu     sync.Mutex
	log    bytes.Buffer
	events []Event
	told   chan struct{} // closed and replaced at each event
}

// Event is a line of "lodge-seat --events".
type Event struct {
	Event, Guest, New, Why string
	There                  bool
	TookUS                 float64 `json:"took_us"`
}

// StartSeat starts lodge-seat on the notebook's screen and keyboard.
func (d *Desk) StartSeat() error {
	out, in := io.Pipe()
	s := &Seat{told: make(chan struct{})}
	var err error
	s.Process, err = d.Notebook.Client.Start(rpc.Cmd{Args: []string{"/tools/bin/lodge-seat", "--manager", "system", "--events", seatFile}, Stdout: in, Stderr: in})
	if err != nil {
		return fmt.Errorf("lodge-seat: %w", err)
	}
	go func() {
		<-s.Done()
		in.Close()
	}()
	go s.read(out)
	d.Seat = s
	return nil
}

func (s *Seat) read(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var e Event
		err := json.Unmarshal(lines.Bytes(), &e)
		s.mu.Lock()
		fmt.Fprintln(&s.log, lines.Text())
		if err == nil {
			s.events = append(s.events, e)
			close(s.told)
			s.told = make(chan struct{})
		}
		s.mu.Unlock()
	}
}

// Log returns all that the seat has printed.
func (s *Seat) Log() string {
	if s == nil {
		return "it was not started"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// Seen returns how many events there are.
func (s *Seat) Seen() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events)
}

// Switched waits until the seat has handed a guest's picture to the screen, by an event after the first skip.
func (s *Seat) Switched(ctx context.Context, skip int, name string) (Event, error) {
	return s.Await(ctx, skip, "showing "+name, func(e Event) bool { return e.Event == "switched" && e.Guest == name })
}

// Await waits for an event after the first skip. what is what errors call it.
func (s *Seat) Await(ctx context.Context, skip int, what string, is func(Event) bool) (Event, error) {
	for {
		s.mu.Lock()
		events, told := s.events[skip:], s.told
		s.mu.Unlock()
		for _, e := range events {
			if is(e) {
				return e, nil
			}
		}
		select {
		case <-told:
		case <-s.Done():
			return Event{}, fmt.Errorf("the seat has ended before %s:\n%s", what, s.Log())
		case <-ctx.Done():
			return Event{}, fmt.Errorf("the seat does not tell of %s: %w", what, context.Cause(ctx))
		}
	}
}

// Chord presses the chord of a guest's slot, and waits until the seat has shown that guest, which was not on screen.
func (d *Desk) Chord(ctx context.Context, k Desktop) (Event, error) {
	seen := d.Seat.Seen()
	if err := d.Press(ctx, "ctrl", "alt", fmt.Sprint(k.Slot)); err != nil {
		return Event{}, err
	}
	return d.Seat.Switched(ctx, seen, k.Name)
}
