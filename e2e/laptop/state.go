package laptop

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/lodgehv/lodge/hypervisor/bootimage/fat"
)

// TemplateDir is where the state has the instant-on guest's template.
const TemplateDir = "/lib/guests/instant/template/"

// State has debugfs(8) do something with the state partition, while the notebook is off, which it was switched off to in order: debugfs does not
// replay the journal. It returns what debugfs says.
func (l *Laptop) State(ctx context.Context, command string) (string, error) {
	at, err := l.StateAt()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "/usr/sbin/debugfs", "-w", "-R", command, fmt.Sprintf("%s?offset=%d", l.Disk, at))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	_, fault, _ := strings.Cut(said.String(), "\n") // the first line is its version; what goes wrong is no bad exit status
	if err == nil && fault != "" {
		err = errors.New(strings.TrimSpace(fault))
	}
	if err != nil {
		return "", fmt.Errorf("debugfs %s: %w", command, err)
	}
	return string(out), nil
}

// StateAt returns where the state partition is on the disk, in bytes.
func (l *Laptop) StateAt() (int64, error) {
	f, err := os.Open(l.Disk)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	table, err := gpt.Read(file.New(f, true), fat.Sector, fat.Sector)
	if err != nil {
		return 0, err
	}
	for _, p := range table.Partitions {
		if p.Name == "Lodge state" {
			return int64(p.Start) * fat.Sector, nil
		}
	}
	return 0, errors.New("the disk has no state: the notebook was never switched on")
}
