package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// managed is the figure of what a person waits for: from "lodge start", over D-Bus, lodged and the guest's cell, to the guest's
// first instruction. Beside it is lodge-vmm alone, started by hand. lodge and lodged lie beside vmm.
func managed(vmm, dir string) figure {
	return figure{
		name: "lodge start to first instruction", unit: "ms", goal: goal{over: 25}, runs: 21, peerName: "bare lodge-vmm",
		prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
			m, err := startManager(ctx, vmm, dir)
			if err != nil {
				return nil, nil, nil, err
			}
			bare := []string{vmm, "run", filepath.Join(m.dir, "guest.toml")}
			return m.startGuest, func(ctx context.Context) (float64, error) { return startTime(ctx, bare) }, m.close, nil
		},
	}
}

// managerOfOne is a lodged on a bus of its own, with one guest: that of guestFiles.
type managerOfOne struct {
	dir, bus, lodge string
	out             *os.File // what the guest says
	processes       []*exec.Cmd
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

func startManager(ctx context.Context, vmm, dir string) (_ *managerOfOne, err error) {
	m := &managerOfOne{lodge: filepath.Join(filepath.Dir(vmm), "lodge")}
	if m.dir, err = os.MkdirTemp(dir, "m"); err != nil {
		return nil, err
	}
	m.bus = "unix:path=" + filepath.Join(m.dir, "bus")
	guests, said := filepath.Join(m.dir, "etc", "guests"), filepath.Join(m.dir, "said")
	if err := errors.Join(guestFiles(m.dir), os.MkdirAll(guests, 0o700), syscall.Mkfifo(said, 0o600),
		os.WriteFile(filepath.Join(guests, "bench.toml"), fmt.Appendf(nil, managedGuest, m.dir), 0o600)); err != nil {
		return nil, err
	}
	if m.out, err = os.OpenFile(said, os.O_RDWR, 0); err != nil { // to write too: it has no end when the guest ends
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.close())
		}
	}()
	// Each says a line when it is there.
	if err := m.run(ctx, "dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address", "--address="+m.bus); err != nil {
		return nil, err
	}
	lodged := filepath.Join(filepath.Dir(vmm), "lodged")
	if err := m.run(ctx, lodged, "--bus", m.bus, "--vmm", vmm, "--config-dir", filepath.Join(m.dir, "etc"), "--state-dir",
		filepath.Join(m.dir, "var"), "--run-dir", filepath.Join(m.dir, "run")); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if err = m.command(ctx, "list"); err == nil || time.Now().After(deadline) {
			return m, err
		}
	}
}

// run starts a process that stays.
func (m *managerOfOne) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	m.processes = append(m.processes, cmd)
	if name == "dbus-daemon" {
		_, err = bufio.NewReader(out).ReadString('\n')
	}
	return err
}

// command runs lodge.
func (m *managerOfOne) command(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, m.lodge, append(args, "--bus", m.bus)...).CombinedOutput(); err != nil {
		return fmt.Errorf("lodge %v: %w: %s", args, err, out)
	}
	return nil
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

func (m *managerOfOne) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if len(m.processes) > 1 {
		_ = m.command(ctx, "stop", "--now", "bench") // it is off, mostly
	}
	for _, p := range m.processes {
		_ = p.Process.Kill()
		_ = p.Wait() // by the signal
	}
	return m.out.Close()
}
