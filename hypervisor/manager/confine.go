package manager

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// uidName is the file in a directory of STATE-DIR/*/ that has the user of the process which the directory belongs to.
const uidName = "uid"

// uid returns the user that the process runs as to which dir belongs, such as a guest's VMM. It is nobody else's as long as the
// directory is there, whether the process runs or not.
func (m *Manager) uid(dir string) (uint32, error) {
	m.naming.Lock()
	defer m.naming.Unlock()
	id, err := readUID(filepath.Join(dir, uidName))
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	files, err := filepath.Glob(filepath.Join(m.cfg.StateDir, "*", "*", uidName))
	if err != nil {
		return 0, err
	}
	taken := make(map[uint32]bool)
	for _, f := range files {
		id, err := readUID(f)
		if err != nil {
			return 0, err
		}
		taken[id] = true
	}
	for id := uint32(cell.FirstUID); id <= cell.LastUID; id++ {
		if !taken[id] {
			return id, writeFile(filepath.Join(dir, uidName), id)
		}
	}
	return 0, fmt.Errorf("%s: there are %d already: no user is left", dir, len(taken))
}

func readUID(path string) (uint32, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	if err != nil || id < cell.FirstUID || id > cell.LastUID {
		return 0, fmt.Errorf("%s: %q is no user from %d to %d: remove the file", path, b, cell.FirstUID, cell.LastUID)
	}
	return uint32(id), nil
}

// maxProcesses is how many threads a VMM may have.
const maxProcesses = 512

func (g *guest) cgroupName() string { return "guest-" + g.name }

// newCgroup makes the control group of the guest's VMM; nil if there are none.
func (g *guest) newCgroup(s store.Shares) (*cell.Cgroup, error) {
	if g.m.cfg.Cgroups == nil {
		return nil, nil
	}
	return g.m.cfg.Cgroups.NewCgroup(g.cgroupName(), cell.GroupLimits{Memory: uint64(s.Memory), Processes: maxProcesses, CPUWeight: uint64(s.CPU)})
}

// removeCgroup removes it, once the VMM has gone.
func (g *guest) removeCgroup() {
	if g.m.cfg.Cgroups == nil {
		return
	}
	if err := g.m.cfg.Cgroups.RemoveCgroup(g.cgroupName()); err != nil {
		g.log.Warn("left over of the guest's machine", "err", err)
	}
}
