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
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/api"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
)

// noMachine is a host on which no VMM can be started.
type noMachine struct{}

// Program implements manager.Launcher.
func (noMachine) Program() string { return "/absent" }

// Launch implements manager.Launcher.
func (noMachine) Launch(context.Context, manager.Launch, func(int, []cell.Lack) error) error {
	return errors.New("no machine can be made here")
}

// onSeat is a seat on which only the guest work is.
func onSeat(_ context.Context, guest string) error {
	if guest != "work" {
		return fmt.Errorf("guest %s is not running", guest)
	}
	return nil
}

// TestManage runs the scripts in testdata/manage, each with a manager on a bus of its own.
func TestManage(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/manage",
		Setup: func(e *testscript.Env) error {
			address, _, err := startManager(e.Defer)
			e.Setenv("LODGE_BUS", address)
			return err
		},
	})
}

// startManager starts a manager and its bus, until what cleanup is told is done, and returns the bus's address.
func startManager(cleanup func(func())) (address string, m *manager.Manager, err error) {
	dir, err := os.MkdirTemp("", "lodge") // short enough for sockets
	if err != nil {
		return "", nil, err
	}
	cleanup(func() { os.RemoveAll(dir) })
	if address, err = startBus(cleanup, dir); err != nil {
		return "", nil, err
	}
	m, err = manager.New(manager.Config{ConfigDir: filepath.Join(dir, "etc"), StateDir: filepath.Join(dir, "var"),
		RunDir: filepath.Join(dir, "run"), Launcher: noMachine{}})
	if err != nil {
		return "", nil, err
	}
	cleanup(m.Close)
	ctx, cancel := context.WithCancel(context.Background())
	ready, end := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		end <- api.Serve(ctx, api.Config{Bus: address, Manager: m, Auth: api.Owner{}, Version: "1.2.3", Switch: onSeat}, func() { ready <- struct{}{} })
	}()
	cleanup(func() { cancel(); <-end })
	select {
	case <-ready:
		return address, m, nil
	case err := <-end:
		end <- err
		return "", nil, err
	}
}

func startBus(cleanup func(func()), dir string) (address string, err error) {
	address = "unix:path=" + filepath.Join(dir, "bus")
	cmd := exec.Command("dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address", "--address="+address)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return "", err
	}
	cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	_, err = bufio.NewReader(out).ReadString('\n')
	return address, err
}
