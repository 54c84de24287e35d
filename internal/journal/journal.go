// Package journal has slog write to systemd's journal, each attribute a field of its own: journalctl GUEST=work finds what was said
// about one guest.
package journal

import (
	"context"
	"log/slog"
	"maps"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// Handler is an slog.Handler. An attribute "guest" becomes the field GUEST; of one in a group both names are joined by "_".
type Handler struct {
	// Send sends an entry; nil sends to journald.
	Send func(message string, priority journal.Priority, fields map[string]string) error

	prefix string
	fields map[string]string // of WithAttrs
}

// StderrIsJournal reports whether what goes to standard error ends in the journal, which wants structured entries then
// (JOURNAL_STREAM, systemd.exec(5)).
func StderrIsJournal() bool {
	is, err := journal.StderrIsJournalStream()
	return is && err == nil
}

// Enabled implements slog.Handler.
func (*Handler) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle implements slog.Handler. The message is followed by the attributes' values for people: journalctl shows no more.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	fields := make(map[string]string, len(h.fields)+r.NumAttrs())
	maps.Copy(fields, h.fields)
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		add(fields, h.prefix, a)
		text += " " + a.String()
		return true
	})
	send := h.Send
	if send == nil {
		send = journal.Send
	}
	return send(text, priority(r.Level), fields)
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	k := *h
	k.fields = maps.Clone(h.fields)
	if k.fields == nil {
		k.fields = make(map[string]string)
	}
	for _, a := range attrs {
		add(k.fields, h.prefix, a)
	}
	return &k
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	k := *h
	if name != "" {
		k.prefix = h.prefix + name + "_"
	}
	return &k
}

// add adds the fields of an attribute.
func add(fields map[string]string, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "_"
		}
		for _, e := range v.Group() {
			add(fields, prefix, e)
		}
		return
	}
	if name := field(prefix + a.Key); name != "" {
		fields[name] = v.String()
	}
}

// maxField is how long the name of a field may be (systemd.journal-fields(7)).
const maxField = 64

// field makes the name of a field: capital letters, digits and "_", and not one of those that journald gives, or that mean
// something else.
func field(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_':
			return r
		}
		return '_'
	}, name)
	name = strings.TrimLeft(name, "_0123456789")
	if name == "MESSAGE" || name == "PRIORITY" {
		name = "LODGE_" + name
	}
	return name[:min(len(name), maxField)]
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	}
	return journal.PriInfo
}
