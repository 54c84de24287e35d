package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// managed is the figure of what a person waits for: from "lodge start", over D-Bus, lodged and the guest's cell, to the guest's
// first instruction. Beside it is lodge-vmm alone, started by hand. lodge and lodged lie beside vmm.
func managed(vmm, dir string) figure {
	return figure{
		name: "lodge start to first instruction", unit: "ms", goal: goal{over: 25}, runs: 21, peerName: "bare lodge-vmm",
		prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
			m, err := startManagerOfOne(ctx, vmm, dir)
			if err != nil {
				return nil, nil, nil, err
			}
			bare := []string{vmm, "run", filepath.Join(m.dir, "guest.toml")}
			return m.startGuest, func(ctx context.Context) (float64, error) { return startTime(ctx, bare) }, m.close, nil
		},
	}
}

// lodged is a lodged on a bus of its own.
type lodged struct {
	dir, bus, lodge string
	guests          []string
	pid             int
	processes       []*exec.Cmd
}

// startManager starts a lodged with guests, whose definitions it is given by their names. lodge and lodged lie beside vmm.
func startManager(ctx context.Context, vmm, dir string, guests map[string]string) (_ *lodged, err error) {
	m := &lodged{dir: dir, bus: "unix:path=" + filepath.Join(dir, "bus"), lodge: filepath.Join(filepath.Dir(vmm), "lodge")}
	etc := filepath.Join(dir, "etc", "guests")
	if err := os.MkdirAll(etc, 0o700); err != nil {
		return nil, err
	}
	for name, text := range guests {
		m.guests = append(m.guests, name)
		if err := os.WriteFile(filepath.Join(etc, name+".toml"), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	bus, err := m.run(ctx, "dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address", "--address="+m.bus)
	if err != nil {
		return nil, err
	}
	if _, err := bufio.NewReader(bus).ReadString('\n'); err != nil { // the address, when it can be used
		return nil, fmt.Errorf("dbus-daemon: %w", err)
	}
	program := filepath.Join(filepath.Dir(vmm), "lodged")
	if _, err := m.run(ctx, program, "--bus", m.bus, "--vmm", vmm, "--config-dir", filepath.Join(dir, "etc"), "--state-dir",
		filepath.Join(dir, "var"), "--run-dir", filepath.Join(dir, "run")); err != nil {
		return nil, err
	}
	m.pid = m.processes[1].Process.Pid
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if err = m.command(ctx, "list"); err == nil || time.Now().After(deadline) {
			return m, err
		}
	}
}

// run starts a process that stays.
func (m *lodged) run(ctx context.Context, name string, args ...string) (io.Reader, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	m.processes = append(m.processes, cmd)
	return out, nil
}

// command runs lodge.
func (m *lodged) command(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, m.lodge, append(args, "--bus", m.bus)...).CombinedOutput(); err != nil {
		return fmt.Errorf("lodge %v: %w: %s", args, err, out)
	}
	return nil
}

// close switches all guests off and ends the processes: lodged, which removes its control group, before the bus.
func (m *lodged) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if m.pid != 0 {
		_ = m.command(ctx, append([]string{"stop", "--now"}, m.guests...)...) // some are off
	}
	for _, p := range slices.Backward(m.processes) {
		_ = p.Process.Signal(syscall.SIGTERM)
		_ = p.Wait()
	}
	return os.RemoveAll(m.dir)
}

// managerOfOne is a lodged with one guest: that of guestFiles.
type managerOfOne struct {
	*lodged
	out *os.File // what the guest says
}

// managedGuest is the definition of lodged's guest. Its serial port is a pipe, from which is read what it says.
const managedGuest = `name = "bench"
memory = "256M"
balloon = true
boot = { firmware = "%[1]s/rom.bin" }
serial = { mode = "file", path = "%[1]s/said" }
disk = [{ name = "root", path = "%[1]s/disk.raw" }]
console = {}
vsock = { cid = 3 }
`

func startManagerOfOne(ctx context.Context, vmm, parent string) (*managerOfOne, error) {
	dir, err := os.MkdirTemp(parent, "m")
	if err != nil {
		return nil, err
	}
	said := filepath.Join(dir, "said")
	if err := errors.Join(guestFiles(dir), syscall.Mkfifo(said, 0o600)); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(said, os.O_RDWR, 0) // to write too: it has no end when the guest ends
	if err != nil {
		return nil, err
	}
	m, err := startManager(ctx, vmm, dir, map[string]string{"bench": fmt.Sprintf(managedGuest, dir)})
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return &managerOfOne{m, out}, nil
}

// startGuest returns how long the guest takes to say its byte, in milliseconds, and switches it off.
func (m *managerOfOne) startGuest(ctx context.Context) (float64, error) {
	begin := time.Now()
	failed := make(chan error, 1)
	go func() { failed <- m.command(ctx, "start", "bench") }()
	if err := m.out.SetReadDeadline(begin.Add(time.Minute)); err != nil {
		return 0, err
	}
	if _, err := m.out.Read(make([]byte, 1)); err != nil {
		return 0, fmt.Errorf("no sign of the guest: %w", err)
	}
	took := time.Since(begin)
	if err := <-failed; err != nil {
		return 0, err
	}
	return float64(took) / float64(time.Millisecond), m.command(ctx, "stop", "--now", "bench")
}

func (m *managerOfOne) close() error { return errors.Join(m.lodged.close(), m.out.Close()) }
