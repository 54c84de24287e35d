package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/lodgehv/lodge/hypervisor/machine"
)

// outcomeFile is told how the guest ended, for a manager that is not this process's parent any more and so cannot ask for its
// exit status. It stays empty if the guest's end is not this program's doing: it was killed, or never began to run the guest.
type outcomeFile struct{ f *os.File }

// outcome is the content of an outcomeFile.
type outcome struct {
	Reason string `json:"reason"` // as machine.Reason has it: powered off, debug exit, crashed or closed
	Detail string `json:"detail,omitempty"`
	Code   int    `json:"code,omitempty"` // of a debug exit
}

// openOutcome takes the file that was handed over, or makes the one at path empty. There may be none.
func openOutcome(h *handed, path string) (*outcomeFile, error) {
	if f, ok := h.take("outcome"); ok {
		return &outcomeFile{f}, nil
	}
	if path == "" || h.sealed() {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("outcome: %w", err)
	}
	return &outcomeFile{f}, nil
}

func (f *outcomeFile) write(o machine.Outcome) error {
	if f == nil {
		return nil
	}
	told := outcome{Reason: o.Reason.String(), Detail: o.Detail, Code: o.Code}
	if o.Err != nil {
		told.Detail = errors.Join(errors.New(o.Detail), o.Err).Error()
	}
	b, err := json.Marshal(told)
	if err == nil {
		_, err = f.f.Write(b)
	}
	if err != nil {
		return fmt.Errorf("outcome: %w", err)
	}
	return nil
}

func (f *outcomeFile) close() {
	if f != nil {
		f.f.Close()
	}
}
