package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"
)

type event struct {
	Event, New, Guest string
	Count             int
}

func readEvent(t *testing.T, s *bufio.Scanner) event {
	t.Helper()
	var e event
	if !s.Scan() {
		t.Fatalf("no more events: %v", s.Err())
	}
	if err := json.Unmarshal(s.Bytes(), &e); err != nil {
		t.Fatalf("%q: %v", s.Text(), err)
	}
	return e
}

// Events come in their order, and those that were told before the end too.
func TestEventOrder(t *testing.T) {
	r, w := io.Pipe()
	e := newEventLog(w)
	go func() {
		for i := range 200 {
			if i%3 == 0 {
				e.guest(fmt.Sprint(i), true)
			} else {
				e.focus("", fmt.Sprint(i), "chord")
			}
		}
		e.close()
		w.Close()
	}()
	s := bufio.NewScanner(r)
	for i := range 200 {
		if got := readEvent(t, s); got.New+got.Guest != fmt.Sprint(i) {
			t.Fatalf("event %d is %+v", i, got)
		}
	}
	if s.Scan() {
		t.Errorf("and one more: %q", s.Text())
	}
}

// Nobody reads: who tells goes on, and whoever reads at last is told how much is missing, and where.
func TestEventsLost(t *testing.T) {
	r, w := io.Pipe()
	e := newEventLog(w)
	const told = 10 * maxEvents
	for i := range told {
		e.focus("", fmt.Sprint(i), "chord")
	}
	s := bufio.NewScanner(r)
	lost := 0
	for n := 0; n < told; {
		switch got := readEvent(t, s); {
		case got.Event == "lost" && got.Count > 0:
			n, lost = n+got.Count, lost+got.Count
		case got.New == fmt.Sprint(n):
			n++
		default:
			t.Fatalf("event %d is %+v", n, got)
		}
	}
	if lost == 0 || told-lost < maxEvents {
		t.Errorf("%d of %d events are lost", lost, told)
	}
	e.guest("x", true)
	if got := readEvent(t, s); got.Guest != "x" {
		t.Errorf("then %+v", got)
	}
	e.focus("", "y", "chord")
	e.close() // nobody reads this one: it ends all the same
	r.Close()
}

// Nothing is written after an error, and nothing hangs.
func TestEventsNobody(t *testing.T) {
	r, w := io.Pipe()
	r.CloseWithError(errors.New("gone"))
	e := newEventLog(w)
	for range 3 * maxEvents {
		e.guest("x", true)
	}
	e.close()
	<-e.done
}
