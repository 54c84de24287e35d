package journal

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/google/go-cmp/cmp"
)

type entry struct {
	Message  string
	Priority journal.Priority
	Fields   map[string]string
}

func TestHandler(t *testing.T) {
	var got []entry
	h := &Handler{Send: func(message string, p journal.Priority, fields map[string]string) error {
		got = append(got, entry{message, p, fields})
		return nil
	}}
	log := slog.New(h)
	log.Info("plain")
	log.Debug("not told")
	log.Warn("guest", "guest", "work", "state", "running", "took", 2*time.Second, "err", errors.New("a\nb"))
	guest := log.With("guest", "work")
	guest.Error("ended", slog.Group("exit", "code", 1))
	guest.WithGroup("net").With("port", 80).Info("open", "0 odd-Key", true, "message", "x")
	guest.WithGroup("").Info("same")
	log.Info("nothing of others", slog.Attr{})
	want := []entry{
		{"plain", journal.PriInfo, map[string]string{}},
		{"guest guest=work state=running took=2s err=a\nb", journal.PriWarning,
			map[string]string{"GUEST": "work", "STATE": "running", "TOOK": "2s", "ERR": "a\nb"}},
		{"ended exit=[code=1]", journal.PriErr, map[string]string{"GUEST": "work", "EXIT_CODE": "1"}},
		{"open 0 odd-Key=true message=x", journal.PriInfo,
			map[string]string{"GUEST": "work", "NET_PORT": "80", "NET_0_ODD_KEY": "true", "NET_MESSAGE": "x"}},
		{"same", journal.PriInfo, map[string]string{"GUEST": "work"}},
		{"nothing of others =<nil>", journal.PriInfo, map[string]string{}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestField(t *testing.T) {
	for name, want := range map[string]string{"guest": "GUEST", "_PID": "PID", "0": "", "message": "LODGE_MESSAGE", "ü": "", "a.b": "A_B"} {
		if got := field(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}
