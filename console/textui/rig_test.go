package textui

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/vt"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fakeSystem is a System that does what it is told and writes down what it is asked for.
type fakeSystem struct {
	mu       sync.Mutex
	guests   []Guest
	err      error
	details  map[string]Details
	logs     map[string]string
	done     []string
	do       func(ctx context.Context, guest string, c Command, progress func(Progress)) error
	switched error
	looks    int
	hold     chan struct{} // unless nil, guests are told once it is closed
	changed  chan struct{}
}

func newSystem(guests ...Guest) *fakeSystem {
	return &fakeSystem{guests: guests, changed: make(chan struct{}, 1), details: make(map[string]Details), logs: make(map[string]string)}
}

func (s *fakeSystem) Guests(ctx context.Context) ([]Guest, error) {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	return slices.Clone(s.guests), s.err
}

func (s *fakeSystem) Details(_ context.Context, guest string) (Details, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, ok := s.details[guest]
	if !ok {
		return d, fmt.Errorf("no details of %s: write its definition", guest)
	}
	return d, nil
}

func (s *fakeSystem) Log(_ context.Context, guest, log string, limit int) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := s.logs[guest+"/"+log]
	return []byte(text[max(0, len(text)-limit):]), nil
}

func (s *fakeSystem) Do(ctx context.Context, guest string, c Command, progress func(Progress)) error {
	s.mu.Lock()
	s.done = append(s.done, c.String()+" "+guest)
	do := s.do
	s.mu.Unlock()
	if do == nil {
		return nil
	}
	return do(ctx, guest, c, progress)
}

func (s *fakeSystem) Switch(_ context.Context, guest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = append(s.done, "switch "+guest)
	return s.switched
}

func (s *fakeSystem) Changed() <-chan struct{} { return s.changed }

// set changes what the system says, and tells the console.
func (s *fakeSystem) set(f func()) {
	s.mu.Lock()
	f()
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// asked waits until the system was asked to do exactly this since the last time.
func (s *fakeSystem) asked(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("asked for %q", want), func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if diff := cmp.Diff(want, s.done); diff != "" {
			return errors.New(diff)
		}
		s.done = nil
		return nil
	})
}

func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	err := f()
	for deadline := time.Now().Add(20 * time.Second); err != nil; err = f() {
		if time.Now().After(deadline) {
			t.Fatalf("not yet: %s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond) // to look costs as much as to draw
	}
}

// recorder is a terminal that keeps what is written to it.
type recorder struct {
	vt.MockTerm
	mu      sync.Mutex
	written []byte
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.written = append(r.written, p...)
	r.mu.Unlock()
	return r.MockTerm.Write(p)
}

// rig is a console on an emulated terminal.
type rig struct {
	t    *testing.T
	app  *App
	scr  tcell.Screen
	term *recorder
	done chan error
}

// terminal says what the emulated terminal is.
type terminal struct {
	w, h  int
	term  string
	color int
}

func newRig(t *testing.T, sys System, k terminal, opt Options) *rig {
	t.Helper()
	t.Setenv("LC_ALL", "C.UTF-8")
	if k.term == "" {
		k.term, k.color = "xterm-256color", 256
	}
	r := &rig{t: t, done: make(chan error, 1)}
	r.term = &recorder{MockTerm: vt.NewMockTerm(vt.MockOptSize{X: vt.Col(k.w), Y: vt.Row(k.h)}, vt.MockOptColors(k.color))}
	var err error
	if r.scr, err = tcell.NewTerminfoScreenFromTty(r.term, tcell.OptTerm(k.term), tcell.OptColors(k.color)); err != nil {
		t.Fatal(err)
	}
	if err := r.scr.Init(); err != nil {
		t.Fatal(err)
	}
	if opt.Every == 0 {
		opt.Every = time.Hour // what changes, changes by events
	}
	now := time.Date(2026, 3, 1, 14, 5, 0, 0, time.UTC)
	opt.Now = func() time.Time { now = now.Add(time.Second); return now }
	r.app = New(sys, r.scr, opt)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { r.done <- r.app.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.done; err != nil {
			t.Error(err)
		}
		r.scr.Fini()
	})
	return r
}

// text returns what the terminal shows.
func (r *rig) text() string {
	size := r.term.Backend().GetSize()
	var b strings.Builder
	for y := range size.Y {
		var line strings.Builder
		for x := vt.Col(0); x < size.X; {
			c := r.term.GetCell(vt.Coord{X: x, Y: y})
			if c.C == "" {
				c.C = " "
			}
			line.WriteString(c.C)
			x += vt.Col(max(c.W, 1))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

// press types keys, by the names that keyOf gives them.
func (r *rig) press(keys ...string) {
	r.t.Helper()
	special := map[string]tcell.Key{
		"up": tcell.KeyUp, "down": tcell.KeyDown, "pgup": tcell.KeyPgUp, "pgdn": tcell.KeyPgDn, "home": tcell.KeyHome,
		"end": tcell.KeyEnd, "enter": tcell.KeyEnter, "esc": tcell.KeyEsc, "tab": tcell.KeyTab, "backtab": tcell.KeyBacktab,
		"ctrl-l": tcell.KeyCtrlL, "ctrl-c": tcell.KeyCtrlC,
	}
	for _, k := range keys {
		ev := tcell.NewEventKey(tcell.KeyRune, k, tcell.ModNone)
		if code, ok := special[k]; ok {
			ev = tcell.NewEventKey(code, "", tcell.ModNone)
		}
		select {
		case r.scr.EventQ() <- ev:
		case <-time.After(20 * time.Second):
			r.t.Fatalf("nobody takes the key %s", k)
		}
	}
}

// shows waits until the terminal shows a text.
func (r *rig) shows(want string) {
	r.t.Helper()
	eventually(r.t, "shows "+want, func() error {
		if got := r.text(); !strings.Contains(got, want) {
			return errors.New("it shows:\n" + got)
		}
		return nil
	})
}

// settled returns what the terminal shows when it is drawn to the end: the emulated one takes it in pieces.
func (r *rig) settled() string {
	r.t.Helper()
	last := ""
	eventually(r.t, "a picture that stays", func() error {
		got := r.text()
		if got == last {
			return nil
		}
		last = got
		time.Sleep(50 * time.Millisecond)
		return errors.New("it shows:\n" + got)
	})
	return last
}

// golden waits until the terminal shows what testdata/NAME.txt has.
func (r *rig) golden(name string) {
	r.t.Helper()
	file := filepath.Join("testdata", name+".txt")
	if *update {
		time.Sleep(300 * time.Millisecond)
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(r.text()), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, file, func() error {
		if diff := cmp.Diff(string(want), r.text()); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

// three are guests in three states.
func three() []Guest {
	return []Guest{
		{Name: "work", Color: "blue", Slot: 1, State: Running, OnScreen: true, CPU: 12.4, CPUs: 2, Memory: 1 << 30, Resident: 212 << 20, Uptime: 2*time.Hour + 5*time.Minute},
		{Name: "home", Color: "green", Slot: 2, State: Paused, CPUs: 1, Memory: 512 << 20, Resident: 300 << 20, Uptime: 42 * time.Second},
		{Name: "bank", Color: "yellow", Slot: 3, State: Saved, CPU: -1, CPUs: 1, Memory: 512 << 20},
	}
}

// furnished returns three guests with details and logs.
func furnished() *fakeSystem {
	s := newSystem(three()...)
	s.details["work"] = Details{
		Sections: []Section{
			{"Machine", []Fact{{"CPUs", "2"}, {"memory", "1G"}, {"process", "4711"}, {"starts from", "/srv/lodge/vmlinux, root=/dev/vda console=ttyS0"}}},
			{"Devices", []Fact{{"disk root", "/srv/lodge/work.img, 8.0G"}, {"disk data", "/srv/lodge/data.img, 20G, read-only"},
				{"nic lan", "52:54:00:12:34:56, socket /run/lodge/net.sock"}, {"display", "virtio, 1024×768, /run/lodge/work.display"}}},
			{"Control", []Fact{{"socket", "/run/lodge/work.sock"}, {"definition", "/srv/lodge/work.toml"}}},
		},
		Logs: []string{"machine", "serial port"},
	}
	s.logs["work/machine"] = "time=2026-03-01T14:00:00 level=INFO msg=\"guest reboots\"\n"
	var log strings.Builder
	for i := range 100 {
		fmt.Fprintf(&log, "[%5d.000000] \x1b[1;32mline %d\x1b[0m of the kernel's log\r\n", i, i)
	}
	log.WriteString("a long line, " + strings.Repeat("which goes on and on, ", 8) + "and ends\n")
	s.logs["work/serial port"] = log.String()
	return s
}
