// Package ratelog is a slog.Handler for what a guest can cause to be logged: it limits the rate of lines and says how many
// it has dropped, and it never waits for whoever reads the log, as vCPUs' threads log too.
package ratelog

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// queueSize is how many lines wait for the reader of the log.
const queueSize = 64

// Handler hands records to another handler, by a goroutine of its own.
type Handler struct {
	inner     slog.Handler
	unlimited bool
	*queue
}

// entry is a record and the handler that writes it.
type entry struct {
	h slog.Handler
	r slog.Record
}

// queue is what all handlers that were derived from one share.
type queue struct {
	root  slog.Handler // says what was dropped
	burst int
	every time.Duration

	entries    chan entry
	stop, done chan struct{}

	mu      sync.Mutex
	tokens  int
	filled  time.Time // when tokens was right
	dropped int       // lines, since that was said last
	timer   *time.Timer
	closed  bool
}

// New returns a handler that hands inner up to burst records at once, and one more every so often. It must be closed.
func New(inner slog.Handler, burst int, every time.Duration) *Handler {
	q := &queue{root: inner, burst: burst, every: every, tokens: burst, filled: time.Now(),
		entries: make(chan entry, queueSize), stop: make(chan struct{}), done: make(chan struct{})}
	q.timer = time.AfterFunc(every, q.report)
	go q.run()
	return &Handler{inner: inner, queue: q}
}

// Unlimited returns a handler with the same queue that drops records only if the reader is too slow. It is for what a guest
// does not cause.
func (h *Handler) Unlimited() *Handler { return &Handler{h.inner, true, h.queue} }

// Enabled implements slog.Handler.
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool { return h.inner.Enabled(ctx, l) }

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{h.inner.WithAttrs(attrs), h.unlimited, h.queue}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.inner.WithGroup(name), h.unlimited, h.queue}
}

// Handle implements slog.Handler. It returns at once.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	if !h.unlimited && !h.take() {
		h.drop()
		return nil
	}
	h.tell()
	h.put(entry{h.inner, r.Clone()})
	return nil
}

// Close waits until everything is written, or for ctx, whose error it returns then. What is logged afterwards is lost.
func (h *Handler) Close(ctx context.Context) error {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		h.timer.Stop()
		close(h.stop)
	}
	h.mu.Unlock()
	select {
	case <-h.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// take takes a token if there is one. The lock is held, as in drop, put and tell.
func (q *queue) take() bool {
	if n := int(time.Since(q.filled) / q.every); n > 0 {
		q.tokens = min(q.tokens+n, q.burst)
		q.filled = q.filled.Add(time.Duration(n) * q.every)
	}
	if q.tokens == 0 {
		return false
	}
	q.tokens--
	return true
}

func (q *queue) drop() {
	if q.dropped == 0 {
		q.timer.Reset(q.every) // in case that nothing follows
	}
	q.dropped++
}

// put queues e, or drops it.
func (q *queue) put(e entry) {
	select {
	case q.entries <- e:
	default:
		q.drop()
	}
}

// tell says how many lines were dropped.
func (q *queue) tell() {
	if n := q.dropped; n > 0 {
		r := slog.NewRecord(time.Now(), slog.LevelWarn, "too much to log: lines were dropped", 0)
		r.AddAttrs(slog.Int("lines", n))
		q.dropped = 0
		q.put(entry{q.root, r})
		if q.dropped > 0 { // this one was as well
			q.dropped = n
		}
	}
}

// report tells when nothing has followed what was dropped.
func (q *queue) report() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.dropped == 0 {
		return
	}
	if q.take() {
		q.tell()
	}
	if q.dropped > 0 {
		q.timer.Reset(q.every)
	}
}

func (q *queue) run() {
	defer close(q.done)
	for {
		select {
		case e := <-q.entries:
			_ = e.h.Handle(context.Background(), e.r) // there is nobody to tell
		case <-q.stop:
			if len(q.entries) > 0 {
				continue
			}
			q.mu.Lock()
			q.tell()
			q.mu.Unlock()
			if len(q.entries) == 0 {
				return
			}
		}
	}
}
