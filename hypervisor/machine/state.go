package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/lodgehv/lodge/hypervisor/acpi"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/vcpu"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiopci"
)

// Sections of a state file beside the components'.
const (
	sectionBoard      = "board"
	sectionDefinition = "definition"
	boardVersion      = 1
)

// board is what has to be known before a machine can be built to restore into.
type board struct {
	cpus    int
	memory  uint64
	romSize uint64
}

func (b *board) state(c *snap.Codec) {
	c.Int(&b.cpus)
	c.U64(&b.memory)
	c.U64(&b.romSize)
}

// components returns all that has state, in the order in which it is saved and restored: the devices drive their lines
// first, then the vCPUs get their state, and KVM's own chips last, which overrule what the lines did.
func (m *Machine) components() []snap.Component {
	cs := append([]snap.Component(nil), m.devices...)
	for _, c := range m.cpus {
		cs = append(cs, c)
	}
	return append(cs, &vcpu.VMState{VM: m.vm})
}

// ErrEnded reports that a machine has had its Outcome.
var ErrEnded = errors.New("the guest has ended: there is nothing to save")

// Save writes the machine to the directory dir, which appears complete or not at all. A running guest is paused meanwhile.
// definition is kept beside the state for whoever restores it. progress may be nil. If ctx ends first, nothing is written.
// So it is with ErrEnded: a guest that has reset its machine would be saved between two lives.
func (m *Machine) Save(ctx context.Context, dir string, definition []byte, progress mem.Progress) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	wasRunning := m.running
	if err := m.pause(); err != nil {
		return err
	}
	err := ErrEnded
	if !m.ended.Load() { // no vCPU runs that could end it now
		err = snap.PublishDir(dir, func(tmp string) error { return m.write(ctx, tmp, definition, progress) })
		m.saved = err == nil
	}
	if wasRunning {
		err = errors.Join(err, m.resume())
	}
	return err
}

func (m *Machine) write(ctx context.Context, dir string, definition []byte, progress mem.Progress) error {
	b := board{m.cfg.CPUs, m.cfg.Memory, m.romSize}
	c := snap.NewEncoder(boardVersion)
	b.state(c)
	sections, err := snap.SaveAll(m.components(),
		snap.Section{ID: sectionBoard, Version: boardVersion, Data: c.Data()},
		snap.Section{ID: sectionDefinition, Data: definition})
	if err != nil {
		return err
	}
	f := &snap.File{Snapshot: snap.NewID(), Machine: m.cfg.UUID, Created: time.Now(), Writer: version(), Sections: sections}
	if err := m.mem.SaveFile(ctx, filepath.Join(dir, snap.RAMName), f.Snapshot, progress); err != nil {
		return err
	}
	return f.Write(filepath.Join(dir, snap.StateName))
}

// version names this program in a state file.
func version() string {
	v := "lodge"
	if info, ok := debug.ReadBuildInfo(); ok {
		v += " " + info.Main.Version
	}
	return v[:min(len(v), 60)]
}

// Saved is a saved machine whose state has been read and found whole.
type Saved struct {
	dir   string
	file  *snap.File
	board board
}

// OpenSaved reads the state in the directory dir. The errors name what is wrong with it: snap.ErrForeign, ErrNewer,
// ErrTruncated, ErrDamaged.
func OpenSaved(dir string) (*Saved, error) {
	f, err := snap.Read(filepath.Join(dir, snap.StateName))
	if err != nil {
		return nil, err
	}
	s := &Saved{dir: dir, file: f}
	section, ok := f.Section(sectionBoard)
	if !ok {
		return nil, fmt.Errorf("saved state %s: has no section %q: %w", dir, sectionBoard, snap.ErrDamaged)
	}
	if section.Version > boardVersion {
		return nil, fmt.Errorf("saved state %s: section %q: %w", dir, sectionBoard, snap.ErrNewer)
	}
	c := snap.NewDecoder(section.Data, section.Version)
	s.board.state(c)
	c.Done()
	if err := c.Err(); err != nil {
		return nil, fmt.Errorf("saved state %s: section %q: %w", dir, sectionBoard, err)
	}
	return s, nil
}

// Definition returns what Save was given to keep.
func (s *Saved) Definition() []byte {
	section, _ := s.file.Section(sectionDefinition)
	return section.Data
}

// Created returns when the machine was saved.
func (s *Saved) Created() time.Time { return s.file.Created }

// Verify reads all of what was saved, memory too, and returns what is wrong with it.
func (s *Saved) Verify(ctx context.Context, progress mem.Progress) error {
	for _, section := range s.file.Sections {
		if newest := newestVersion(section.ID); section.Version > newest {
			return fmt.Errorf("saved state %s: section %q has version %d, at most %d is known: %w",
				s.dir, section.ID, section.Version, newest, snap.ErrNewer)
		}
	}
	return mem.VerifyFile(ctx, filepath.Join(s.dir, snap.RAMName), s.file.Snapshot, progress)
}

// newestVersion returns the newest version that this program knows of the section of the given id.
func newestVersion(id string) uint16 {
	switch {
	case id == sectionBoard:
		return boardVersion
	case id == sectionDefinition:
		return 0
	case id == "com1", id == "com2":
		return new(legacy.UART).SnapVersion()
	case id == "mch", id == "lpc":
		return new(pci.Function).SnapVersion()
	case strings.HasPrefix(id, "vcpu."):
		return new(vcpu.CPU).SnapVersion()
	}
	for _, c := range []snap.Component{
		new(acpi.VMGenID), new(legacy.I8042), new(legacy.CMOS), new(legacy.PM), new(legacy.FWCfg), new(legacy.FastA20),
		new(legacy.DebugExit), new(legacy.DebugConsole), new(legacy.ResetControl), new(pci.Root), new(vcpu.VMState),
	} {
		if c.SnapID() == id {
			return c.SnapVersion()
		}
	}
	return new(virtiopci.Transport).SnapVersion() // a card, whose name is free
}

// RestoreOptions says how memory comes back.
type RestoreOptions struct {
	// Shared brings memory back lazily into a memfd that other processes can be given, as Config.SharedMemory does too.
	// Otherwise the saved file is mapped privately, which is fastest.
	Shared bool
	Lazy   mem.LazyOptions // for either
}

// Restore builds the machine that s was saved from, in the state that it was saved in. cfg must be the Config it had.
// Nothing runs before Start.
func Restore(cfg Config, s *Saved, opt RestoreOptions) (*Machine, error) {
	if cfg.CPUs != s.board.cpus || cfg.Memory != s.board.memory {
		return nil, fmt.Errorf("saved state %s: has %d CPUs and %d MiB, the definition %d and %d: %w", s.dir,
			s.board.cpus, s.board.memory>>20, cfg.CPUs, cfg.Memory>>20, snap.ErrMismatch)
	}
	if snap.ID(cfg.UUID) != s.file.Machine {
		return nil, fmt.Errorf("saved state %s: is of guest %v, not of %v: %w", s.dir, s.file.Machine, snap.ID(cfg.UUID), snap.ErrMismatch)
	}
	ranges, err := ramRanges(cfg.Memory, s.board.romSize)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(s.dir, snap.RAMName))
	if err != nil {
		return nil, fmt.Errorf("saved state %s: %w", s.dir, err)
	}
	var memory *mem.Memory
	if opt.Shared || cfg.SharedMemory {
		memory, err = mem.Lazy(f, s.file.Snapshot, ranges, opt.Lazy)
	} else {
		memory, err = mem.MapPrivate(f, s.file.Snapshot, ranges)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return build(cfg, memory, s.board.romSize, func(m *Machine) error {
		if cfg.Boot.Firmware != nil {
			if err := m.addFirmwareFiles(); err != nil {
				return err
			}
		}
		return snap.LoadAll(s.file, m.components(), sectionBoard, sectionDefinition)
	})
}
