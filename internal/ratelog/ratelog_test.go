package ratelog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHandler(t *testing.T) {
	var b bytes.Buffer
	h := New(slog.NewJSONHandler(&b, nil), 1000, time.Second)
	results := func() (all []map[string]any) {
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(b.String()) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Error(err)
			}
			all = append(all, m)
		}
		return all
	}
	if err := slogtest.TestHandler(h, results); err != nil {
		t.Error(err)
	}
}

// text returns a handler that writes lines without time and level.
func text(b *bytes.Buffer) slog.Handler {
	return slog.NewTextHandler(b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		h := New(text(&b), 2, time.Second)
		log := slog.New(h)
		dropped := func(n int) string {
			r := slog.New(text(&b))
			b.Reset()
			r.Warn("too much to log: lines were dropped", "lines", n)
			defer b.Reset()
			return b.String()
		}
		d3, d1 := dropped(3), dropped(1)
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(want, b.String()); diff != "" {
				t.Errorf("the log (-want +got):\n%s", diff)
			}
			b.Reset()
		}
		for range 5 {
			log.Info("a")
		}
		slog.New(h.Unlimited()).Info("b")
		expect("msg=a\nmsg=a\n" + d3 + "msg=b\n")
		log.Info("c")
		time.Sleep(time.Second) // nothing follows
		expect(d1)
		time.Sleep(time.Hour) // no more than a burst is saved up
		for range 3 {
			log.Info("d")
		}
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
		expect("msg=d\nmsg=d\n" + d1)
		log.Info("e")
		expect("")
	})
}

// stuck is a handler whose reader does not read.
type stuck struct {
	slog.Handler
	release chan struct{}
}

func (s stuck) Handle(ctx context.Context, r slog.Record) error {
	<-s.release
	return s.Handler.Handle(ctx, r)
}

func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		s := stuck{text(&b), make(chan struct{})}
		h := New(s, 1000, time.Second)
		log := slog.New(h)
		log.Info("a")
		synctest.Wait()
		for range 2 * queueSize {
			log.Info("a")
		}
		time.Sleep(time.Minute) // it tries to say so meanwhile
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close: %v", err)
		}
		close(s.release)
		if err := h.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if n := strings.Count(b.String(), "msg=a"); n != queueSize+1 {
			t.Errorf("%d lines written, want %d", n, queueSize+1)
		}
		if want := fmt.Sprintf("lines=%d", queueSize); !strings.Contains(b.String(), want) {
			t.Errorf("no %s in:\n%s", want, b.String())
		}
	})
}
