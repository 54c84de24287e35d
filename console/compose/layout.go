package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/lodgehv/lodge/console/output"
)

// Layout is what is remembered of monitors, so that each is used as it was when it is plugged in again.
type Layout struct {
	Monitors []Monitor `json:"monitors"` // the one that was used last is first
}

// Monitor is how one monitor is used.
type Monitor struct {
	ID     string `json:"id" toml:"id"`                             // see MonitorID
	Guest  string `json:"guest,omitempty" toml:"guest,omitempty"`   // name of the guest that it is pinned to; "": it shows what the others do
	Width  int    `json:"width,omitempty" toml:"width,omitempty"`   // of the mode, in pixels; 0: the preferred mode
	Height int    `json:"height,omitempty" toml:"height,omitempty"` // likewise
}

// maxMonitors is how many monitors are remembered.
const maxMonitors = 64

// maxLayout is the size in bytes of a layout's file that is read.
const maxLayout = 64 << 10

// MonitorID returns what an output's monitor is remembered by: its EDID's identity, or the connector's name if it has none.
func MonitorID(i output.Info) string {
	if i.Monitor != "" {
		return i.Monitor
	}
	return "connector-" + i.Name
}

// LoadLayout reads a layout from a file. It is empty if there is no such file.
func LoadLayout(file string) (*Layout, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return &Layout{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("layout of monitors: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("layout of monitors: %w", err)
	}
	if info.Size() > maxLayout {
		return nil, fmt.Errorf("layout of monitors %s: %d bytes are too many: remove the file", file, info.Size())
	}
	var l Layout
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return nil, fmt.Errorf("layout of monitors %s: %w: remove the file", file, err)
	}
	l.Monitors = l.Monitors[:min(len(l.Monitors), maxMonitors)]
	return &l, nil
}

// Save writes the layout to a file: at any moment there is the old one or the new one, whole.
func (l *Layout) Save(file string) error {
	b, err := json.MarshalIndent(l, "", "\t")
	if err != nil {
		return fmt.Errorf("layout of monitors: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".layout-*")
	if err != nil {
		return fmt.Errorf("layout of monitors: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("layout of monitors: %w", err)
	}
	return nil
}

// Find returns how a monitor is used: as it was, or as the others if it is new.
func (l *Layout) Find(id string) Monitor {
	if i := slices.IndexFunc(l.Monitors, func(m Monitor) bool { return m.ID == id }); i >= 0 {
		return l.Monitors[i]
	}
	return Monitor{ID: id}
}

// Remember notes how a monitor is used, and forgets the one that was not used for the longest time if there are too many.
func (l *Layout) Remember(m Monitor) {
	l.Monitors = slices.DeleteFunc(l.Monitors, func(k Monitor) bool { return k.ID == m.ID })
	l.Monitors = slices.Insert(l.Monitors, 0, m)
	l.Monitors = l.Monitors[:min(len(l.Monitors), maxMonitors)]
}

// Mode returns which of an output's modes m stands for: the first of its size, or the preferred one.
func (m Monitor) Mode(modes []output.Mode) (output.Mode, bool) {
	for _, k := range modes {
		if k.Width == m.Width && k.Height == m.Height {
			return k, true
		}
	}
	if len(modes) == 0 {
		return output.Mode{}, false
	}
	return modes[0], true
}
