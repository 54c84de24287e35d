package seatctl

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/control"
)

// fakeSeat has two guests, one of which is there.
type fakeSeat struct {
	mu    sync.Mutex
	focus string
}

func (s *fakeSeat) Focus() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.focus
}

func (s *fakeSeat) SetFocus(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != "work" && name != "Lodge" {
		return errors.New("it is not running")
	}
	s.focus = name
	return nil
}

func (s *fakeSeat) Each(f func(string, int, bool)) {
	f("work", 1, true)
	f("home", 0, false)
}

func serve(t testing.TB) (*fakeSeat, string) {
	t.Helper()
	s, path := &fakeSeat{focus: "Lodge"}, filepath.Join(t.TempDir(), "seat.sock")
	l, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- (&control.Server{Methods: Methods(s)}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, path
}

func TestSeat(t *testing.T) {
	_, path := serve(t)
	st, err := Look(t.Context(), path)
	want := Status{"Lodge", []Guest{{"work", 1, true}, {"home", 0, false}}}
	if diff := cmp.Diff(want, st); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if err := Focus(t.Context(), path, "work"); err != nil {
		t.Error(err)
	}
	if err := Focus(t.Context(), path, "home"); err == nil || err.Error() != "it is not running" {
		t.Errorf("%v", err)
	}
	if err := Focus(t.Context(), path, ""); err == nil || !strings.Contains(err.Error(), "name is missing") {
		t.Errorf("%v", err)
	}
	if st, err = Look(t.Context(), path); err != nil || st.Focus != "work" {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := Look(t.Context(), path+"x"); !errors.Is(err, ErrNone) {
		t.Errorf("%v", err)
	}
}

// reply is a line of the server's.
type reply struct {
	ID     uint64
	Result json.RawMessage
	Error  *control.Error
}

// exchange sends a line, and returns what is answered.
func exchange(t testing.TB, path, line string) (r reply) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = conn.Write([]byte(line + "\n")) // it may have been cut off already
	answer, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		t.Fatalf("%.80q: %v", line, err)
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		t.Fatalf("%.80q: %.80q: %v", line, answer, err)
	}
	return r
}

// What is no request, or one that does not fit, is refused and changes nothing.
func TestHostileClient(t *testing.T) {
	s, path := serve(t)
	for line, code := range map[string]string{
		"{":                         control.CodeBadRequest,
		`{"id":1,"method":"fly"}`:   control.CodeNotFound,
		`{"id":1,"method":"focus"}`: control.CodeBadRequest,
		`{"id":1,"method":"focus","params":{"name":1}}`:                                    control.CodeBadRequest,
		`{"id":1,"method":"focus","params":{"name":"work","now":true}}`:                    control.CodeBadRequest,
		`{"id":1,"method":"status","params":{"x":1}}`:                                      control.CodeBadRequest,
		`{"id":1,"method":"focus","params":{"name":"` + strings.Repeat("x", 60000) + `"}}`: control.CodeFailed,
		`{"id":1,"method":"focus","params":{"name":"` + strings.Repeat("x", 1<<20) + `"}}`: control.CodeBadRequest,
		`{"id":1,"method":"focus","params":{"name":"work\u0000"}}`:                         control.CodeFailed,
	} {
		if r := exchange(t, path, line); r.Error == nil || r.Error.Code != code {
			t.Errorf("%.80q: %+v, want %s", line, r, code)
		}
	}
	if s.Focus() != "Lodge" {
		t.Errorf("%s has the focus", s.Focus())
	}
}

// Whatever a client says, the seat answers it, or has moved the focus to a guest that is there, and goes on.
func FuzzMethods(f *testing.F) {
	for _, s := range []string{`{"id":1,"method":"status"}`, `{"id":2,"method":"focus","params":{"name":"work"}}`, `{"id":-1}`, "\x00"} {
		f.Add(s)
	}
	s, path := serve(f)
	f.Fuzz(func(t *testing.T, line string) {
		exchange(t, path, strings.ReplaceAll(line, "\n", " "))
		if name := s.Focus(); name != "work" && name != "Lodge" {
			t.Fatalf("%q has the focus", name)
		}
	})
}
