package manager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/life"
)

// record is what is on the disk of a guest that is not simply off, so that the next manager knows what this one knew when it
// was killed. It is written whenever the state changes, and before a VMM runs.
type record struct {
	Boot  string     `json:"boot"` // of the host
	State life.State `json:"state"`
	Note  string     `json:"note,omitempty"`
	Since time.Time  `json:"since"`

	PID   int    `json:"pid,omitempty"`   // of the VMM
	Start uint64 `json:"start,omitempty"` // when it was started, in clock ticks since the boot

	Began    time.Time   `json:"began,omitzero"`     // when the VMM was started
	Tag      string      `json:"tag,omitempty"`      // of the definition that it was started with
	Restored bool        `json:"restored,omitempty"` // from the saved state, which is used up once the guest runs
	Ready    bool        `json:"ready,omitempty"`
	Template bool        `json:"template,omitempty"` // it came from its template
	Key      templateKey `json:"key,omitempty"`      // of the template that it came from, or that is to be made of it
	Resume   bool        `json:"resume,omitempty"`   // it was paused for a snapshot only
	Again    bool        `json:"again,omitempty"`    // it is stopped to be started again
	Deadline time.Time   `json:"deadline,omitzero"`  // of Stopping: when it is switched off
	Restarts int         `json:"restarts,omitempty"` // since it last ran for a while

	SerialFrom int64 `json:"serial_from,omitempty"` // where in the log of its serial port its output begins
}

const (
	recordName = "run.json"
	tmpPrefix  = ".lodge-new-"
)

// readRecord returns the record in dir: nil if there is none. One that a crash of the host has left empty is none.
func readRecord(dir string) (*record, error) {
	b, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, recordName), err)
	}
	return r, nil
}

// write replaces the record in dir. It is not synced: after a crash of the host no VMM runs, and at worst nobody remembers one.
func (r *record) write(dir string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, tmpPrefix+recordName)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, recordName))
}

func removeRecord(dir string) error {
	if err := os.Remove(filepath.Join(dir, recordName)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeFile makes the file path with v as JSON: whole, and on the disk when it returns.
func writeFile(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	dir, name := filepath.Split(path)
	tmp := filepath.Join(dir, tmpPrefix+name)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	return errors.Join(err, syncPath(dir))
}

// syncPath brings a file, or what a directory says of its files, to the disk.
func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
