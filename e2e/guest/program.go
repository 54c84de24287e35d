package guest

import (
	"context"
	"regexp"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
)

// Program is a program that runs on a host, and what it has printed.
type Program struct {
	*rpc.Process
	record record
}

// StartProgram starts a program; Stdout and Stderr of cmd are the Program's.
func (h *Host) StartProgram(cmd rpc.Cmd) (*Program, error) {
	p := &Program{record: newRecord(nil)}
	cmd.Stdout, cmd.Stderr = &p.record, &p.record
	var err error
	p.Process, err = h.Client.Start(cmd)
	return p, err
}

// Await waits until the program has printed something that re matches.
func (p *Program) Await(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	return p.record.await(ctx, 0, re, p.Done())
}

// Said returns what the program has printed.
func (p *Program) Said() string { return p.record.String() }
