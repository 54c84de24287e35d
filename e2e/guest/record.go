package guest

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
)

// record is what a program or a guest has printed, for who waits for something in it.
type record struct {
	also io.Writer // gets it too; may be nil

	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{} // closed and replaced when text grows
}

func newRecord(also io.Writer) record { return record{also: also, changed: make(chan struct{})} }

// Write implements io.Writer.
func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.text.Write(p)
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	if r.also != nil {
		return r.also.Write(p)
	}
	return len(p), nil
}

// String returns all of it.
func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// await waits for something that re matches, after the first skip bytes, and returns the match with its groups. The error, if
// ctx ends first or what prints has ended, shows the end of the record.
func (r *record) await(ctx context.Context, skip int, re *regexp.Regexp, ended <-chan struct{}) ([]string, error) {
	for over := false; ; {
		r.mu.Lock()
		text, changed := r.text.String(), r.changed
		r.mu.Unlock()
		if m := re.FindStringSubmatch(text[min(skip, len(text)):]); m != nil {
			return m, nil
		}
		if over {
			return nil, fmt.Errorf("ended before %q:\n%s", re, tail(text))
		}
		select {
		case <-changed:
		case <-ended:
			over = true // and all is written that it has printed
		case <-ctx.Done():
			return nil, fmt.Errorf("no %q: %w:\n%s", re, context.Cause(ctx), tail(text))
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-4000):] }
