package main

import (
	"context"
	"io"
	"log/slog"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/job"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/internal/journal"
)

// newLog returns a log: in the journal with fields, if errOut ends there, or else as text.
func newLog(errOut io.Writer) *slog.Logger {
	if journal.StderrIsJournal() {
		return slog.New(&journal.Handler{})
	}
	return slog.New(slog.NewTextHandler(errOut, nil))
}

// tell logs what becomes of guests, and work that fails, until ctx ends.
func tell(ctx context.Context, s *manager.Subscription, log *slog.Logger) {
	last := make(map[string]manager.Guest) // by name
	for {
		e, err := s.Next(ctx)
		if err != nil {
			return
		}
		switch e.Kind {
		case manager.GuestChanged:
			g, before := *e.Guest, last[e.Name]
			last[e.Name] = g
			if g.State == before.State && g.Note == before.Note && g.Fault == before.Fault {
				continue
			}
			level, attrs := slog.LevelInfo, []any{"guest", g.Name, "state", string(g.State)}
			if g.State == life.Crashed || g.Fault != "" {
				level = slog.LevelWarn
			}
			for _, a := range []struct{ name, text string }{{"note", g.Note}, {"fault", g.Fault}} {
				if a.text != "" {
					attrs = append(attrs, a.name, a.text)
				}
			}
			if g.PID != 0 {
				attrs = append(attrs, "vmm_pid", g.PID)
			}
			log.Log(ctx, level, "guest is "+string(g.State), attrs...)
		case manager.GuestDeleted:
			delete(last, e.Name)
			log.Info("guest is deleted", "guest", e.Name)
		case manager.GuestStep:
			log.Info(e.Text, "guest", e.Name)
		case manager.JobChanged:
			if e.Job.State == job.Failed {
				log.Warn("job failed", "job", e.Job.Kind, "object", e.Job.Object, "err", e.Job.Err)
			}
		}
	}
}
