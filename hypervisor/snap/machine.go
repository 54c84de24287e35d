package snap

import (
	"errors"
	"fmt"
	"slices"
)

// ErrMismatch reports a state of a machine that is built otherwise than this one.
var ErrMismatch = errors.New("saved from another definition: restore with the definition that the guest was saved with")

// SaveAll returns the sections of the components, which are paused, in their order, and then extra: what is saved but is
// no Component, such as vCPUs.
func SaveAll(components []Component, extra ...Section) ([]Section, error) {
	sections := make([]Section, 0, len(components)+len(extra))
	for _, c := range components {
		codec := NewEncoder(c.SnapVersion())
		c.State(codec)
		if err := codec.Err(); err != nil {
			return nil, fmt.Errorf("save %s: %w", c.SnapID(), err)
		}
		sections = append(sections, Section{ID: c.SnapID(), Version: c.SnapVersion(), Data: codec.Data()})
	}
	sections = append(sections, extra...)
	seen := make(map[string]bool, len(sections))
	for _, s := range sections {
		if seen[s.ID] {
			return nil, fmt.Errorf("save %s: two components have this id", s.ID)
		}
		seen[s.ID] = true
	}
	return sections, nil
}

// LoadAll gives every component its state from f, in the order of components. extra are the ids of the sections that the
// caller reads itself; they must be there. Before the first component changes, all is checked that can be: that f has a
// section for every component and extra, that it has no other (ErrMismatch), and that no version is 0 (ErrDamaged) or newer
// than the component's (ErrNewer). An error from then on leaves a machine that must be thrown away.
func LoadAll(f *File, components []Component, extra ...string) error {
	sections := make(map[string]Section, len(f.Sections))
	for _, s := range f.Sections {
		if _, twice := sections[s.ID]; twice {
			return fmt.Errorf("saved state: section %q is there twice: %w", s.ID, ErrDamaged)
		}
		sections[s.ID] = s
	}
	wanted := make(map[string]bool, len(components)+len(extra))
	want := func(id string) error {
		if wanted[id] {
			return fmt.Errorf("restore %s: two components have this id", id)
		}
		wanted[id] = true
		if _, ok := sections[id]; !ok {
			return fmt.Errorf("restore %s: the saved machine has none: %w", id, ErrMismatch)
		}
		return nil
	}
	for _, c := range components {
		if err := want(c.SnapID()); err != nil {
			return err
		}
		v := sections[c.SnapID()].Version
		if v == 0 {
			return fmt.Errorf("restore %s: its state has version 0: %w", c.SnapID(), ErrDamaged)
		}
		if v > c.SnapVersion() {
			return fmt.Errorf("restore %s: its state has version %d, at most %d is known: %w", c.SnapID(), v, c.SnapVersion(), ErrNewer)
		}
	}
	for _, id := range extra {
		if err := want(id); err != nil {
			return err
		}
	}
	for _, s := range f.Sections {
		if !wanted[s.ID] {
			return fmt.Errorf("restore %s: the saved machine has it, this one does not: %w", s.ID, ErrMismatch)
		}
	}
	for _, c := range components {
		s := sections[c.SnapID()]
		codec := NewDecoder(s.Data, s.Version)
		c.State(codec)
		codec.Done()
		if err := codec.Err(); err != nil {
			return fmt.Errorf("restore %s: %w", c.SnapID(), err)
		}
	}
	return nil
}

// PauseAll pauses the components in their order. If one cannot be paused, those before it run again.
func PauseAll(components []Component) error {
	for i, c := range components {
		if err := c.Pause(); err != nil {
			err = fmt.Errorf("pause %s: %w", c.SnapID(), err)
			for _, c := range slices.Backward(components[:i]) {
				if e := c.Resume(); e != nil {
					err = errors.Join(err, fmt.Errorf("resume %s: %w", c.SnapID(), e))
				}
			}
			return err
		}
	}
	return nil
}

// ResumeAll resumes the components in the reverse of their order. If one cannot be resumed, those that already run are
// paused again.
func ResumeAll(components []Component) error {
	for i, c := range slices.Backward(components) {
		if err := c.Resume(); err != nil {
			err = fmt.Errorf("resume %s: %w", c.SnapID(), err)
			for _, c := range components[i+1:] {
				if e := c.Pause(); e != nil {
					err = errors.Join(err, fmt.Errorf("pause %s: %w", c.SnapID(), e))
				}
			}
			return err
		}
	}
	return nil
}
