package seat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/gdamore/tcell/v3"

	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/hid"
)

// fakeManager knows one of the guests, and writes down what it is to do.
type fakeManager struct {
	mu      sync.Mutex
	done    []string
	looks   int // how often it was asked for the guests
	stuck   bool
	changed chan struct{}
}

func (m *fakeManager) Guests(ctx context.Context) ([]textui.Guest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stuck {
		m.mu.Unlock()
		<-ctx.Done()
		m.mu.Lock()
		return nil, ctx.Err()
	}
	m.looks++
	return []textui.Guest{{Name: "Work", State: textui.Paused, CPU: 7, CPUs: 2}}, nil
}

func (m *fakeManager) Details(context.Context, string) (textui.Details, error) {
	return textui.Details{Logs: []string{"a"}}, nil
}

func (m *fakeManager) Log(context.Context, string, string, int) ([]byte, error) {
	return []byte("log"), nil
}

func (m *fakeManager) Do(_ context.Context, guest string, c textui.Command, _ func(textui.Progress)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = append(m.done, c.String()+" "+guest)
	return nil
}

func (m *fakeManager) Switch(context.Context, string) error { return errors.New("asked the manager") }
func (m *fakeManager) Changed() <-chan struct{}             { return m.changed }

func (m *fakeManager) asked(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprint(want), func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return slices.Equal(m.done, want)
	})
}

// known waits until the console knows the guests: it does not ask again before it has taken the answer.
func (m *fakeManager) known(t *testing.T) {
	t.Helper()
	eventually(t, "the console knows the guests", func() bool {
		select {
		case m.changed <- struct{}{}:
		default:
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.looks > 1
	})
}

// In Lodge's console keys are commands, which no guest sees; it goes where it is told to, and back.
func TestConsole(t *testing.T) {
	m := &fakeManager{changed: make(chan struct{}, 1)}
	r := newManagedRig(t, m, "")
	r.chord(hid.Key1)
	r.shows(red)
	r.chord(hid.KeyEsc)
	eventually(t, "Lodge has the focus", func() bool { return r.Focus() == ownName })
	m.known(t)
	r.typeKey(hid.KeyP) // the guest is paused, says the manager
	m.asked(t, "resume Work")
	r.typeKey(hid.KeyX)
	r.typeKey(hid.KeyF)
	m.asked(t, "resume Work", "force off Work")
	r.typeKey(hid.KeyDown)
	r.typeKey(hid.KeyG) // "Home", which the manager does not know
	r.shows(blue)
	r.chord(hid.KeyEsc)
	eventually(t, "Lodge has the focus", func() bool { return r.Focus() == ownName })
	r.typeKey(hid.KeyEnter)
	r.typeKey(hid.KeyEsc) // from the details
	r.typeKey(hid.KeyEsc) // and from the console
	r.shows(blue)
	r.red.typed(t)
	r.blue.typed(t)
}

// A manager that hangs holds up neither the console's keys nor the seat.
func TestStuckManager(t *testing.T) {
	m := &fakeManager{stuck: true}
	r := newManagedRig(t, m, "")
	r.chord(hid.Key1)
	r.shows(red)
	r.chord(hid.KeyEsc)
	eventually(t, "Lodge has the focus", func() bool { return r.Focus() == ownName })
	r.typeKey(hid.KeyEsc)
	r.shows(red)
	r.chord(hid.KeyEsc)
	for range 1000 {
		r.typeKey(hid.KeyDown)
	}
	r.chord(hid.Key2)
	r.shows(blue)
}

// What the seat tells of itself, and does.
func TestSeatStatus(t *testing.T) {
	r := newRig(t)
	if err := r.SetFocus("Home"); err != nil {
		t.Fatal(err)
	}
	if got := r.Focus(); got != "Home" {
		t.Errorf("%s has the focus", got)
	}
	r.shows(blue)
	if err := r.SetFocus("Lodge"); err != nil || r.Focus() != "Lodge" {
		t.Errorf("%s, %v", r.Focus(), err)
	}
	if err := r.SetFocus("nobody"); err == nil {
		t.Error("nobody has the focus")
	}
	r.red.off()
	var got []string
	eventually(t, "a guest is gone", func() bool {
		got = nil
		r.Each(func(name string, slot int, there bool) { got = append(got, fmt.Sprint(name, slot, there)) })
		return slices.Equal(got, []string{"Work1 false", "Home2 true"})
	})
	list, err := (*system)(r.Seat).Guests(t.Context())
	if err != nil || len(list) != 2 || list[0].State != textui.Off || list[1].State != textui.Running || list[1].Color != "blue" || list[1].Slot != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if err := (*system)(r.Seat).Do(t.Context(), "Work", textui.Start, nil); !errors.Is(err, errNoManager) {
		t.Errorf("%v", err)
	}
}

func TestKeyboard(t *testing.T) {
	var k keyboard
	press := func(code uint16, value int32) string {
		ev := k.event(hid.Event{Type: hid.EVKey, Code: code, Value: value})
		if ev == nil {
			return ""
		}
		if ev.Key() == tcell.KeyRune {
			return fmt.Sprintf("%q %d", ev.Str(), ev.Modifiers())
		}
		return ev.Name()
	}
	for i, c := range []struct {
		code  uint16
		value int32
		want  string
	}{
		{hid.KeyA, 1, `"a" 0`}, {hid.KeyA, 2, ""}, {hid.KeyA, 0, ""},
		{hid.KeyLeftShift, 1, ""}, {hid.KeyA, 1, `"A" 0`}, {hid.Key1, 1, `"!" 0`}, {hid.KeyTab, 1, "Backtab"}, {hid.KeyLeftShift, 0, ""},
		{hid.KeyRightCtrl, 1, ""}, {hid.KeyL, 1, "Ctrl+L"}, {hid.KeyRightCtrl, 0, ""},
		{hid.KeyLeftAlt, 1, ""}, {hid.KeyA, 1, `"a" 4`}, {hid.KeyLeftAlt, 0, ""},
		{hid.KeyUp, 1, "Up"}, {hid.KeyUp, 2, "Up"}, {hid.KeyUp, 0, ""}, {hid.KeyEnter, 1, "Enter"}, {hid.KeyEnter, 2, ""},
		{hid.KeyKP1, 1, `"1" 0`}, {hid.KeyF1, 1, ""}, {hid.BtnLeft, 1, ""}, {hid.KeyMax, 1, ""}, {0xffff, 1, ""},
	} {
		if got := press(c.code, c.value); got != c.want {
			t.Errorf("%d: %s %d is %s, want %s", i, hid.KeyName(c.code), c.value, got, c.want)
		}
	}
	if ev := k.event(hid.Event{Type: hid.EVRel, Code: hid.KeyA, Value: 1}); ev != nil {
		t.Errorf("a movement is %s", ev.Name())
	}
}
