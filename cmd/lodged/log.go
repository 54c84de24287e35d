package main

import (
	"io"
	"log/slog"

	"github.com/lodgehv/lodge/internal/journal"
)

// newLog returns a log: in the journal with fields, if errOut ends there, or else as text.
func newLog(errOut io.Writer) *slog.Logger {
	if journal.StderrIsJournal() {
		return slog.New(&journal.Handler{})
	}
	return slog.New(slog.NewTextHandler(errOut, nil))
}
