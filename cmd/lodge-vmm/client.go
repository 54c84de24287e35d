package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lodgehv/lodge/hypervisor/boot"
	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/machine"
)

// call calls one method of a guest.
func call(ctx context.Context, guest, method string, params, result any, progress func(control.Progress)) error {
	c, err := dialGuest(ctx, guest)
	if err != nil {
		return err
	}
	return errors.Join(c.Call(ctx, method, params, result, progress), c.Close())
}

// simple returns the command that calls a method without parameters.
func simple(method string) func(context.Context, *environment, []string) error {
	return func(ctx context.Context, _ *environment, args []string) error {
		args, err := flags(args, nil)
		if err != nil {
			return err
		}
		if len(args) != 1 {
			return usagef("want one guest: its definition or its control socket")
		}
		return call(ctx, args[0], method, nil, nil, nil)
	}
}

func status(ctx context.Context, e *environment, args []string) error {
	var asJSON bool
	args, err := flags(args, map[string]*bool{"--json": &asJSON})
	if err != nil {
		return err
	}
	if len(args) != 1 {
		return usagef("want one guest: its definition or its control socket")
	}
	var s guestStatus
	if err := call(ctx, args[0], "status", nil, &s, nil); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(e.stdout).Encode(s)
	}
	state := s.State
	if s.Reason != "" {
		state += " (" + s.Reason + ")"
	}
	fmt.Fprintf(e.stdout, "name     %s\nuuid     %s\nstate    %s\nuptime   %.0f s\ncpus     %d\nmemory   %v\n",
		s.Name, s.UUID, state, s.Uptime, s.CPUs, definition.Size(s.Memory))
	if b := s.Balloon; b != nil {
		fmt.Fprintf(e.stdout, "balloon  %v", definition.Size(b.Actual))
		if b.Available != 0 {
			fmt.Fprintf(e.stdout, " (the guest has %d MiB available, %d MiB free)", b.Available>>20, b.Free>>20)
		}
		fmt.Fprintln(e.stdout)
	}
	fmt.Fprintf(e.stdout, "reboots  %d\nprocess  %d\n", s.Reboots, s.PID)
	return nil
}

func save(ctx context.Context, e *environment, args []string) error {
	var p saveParams
	args, err := flags(args, map[string]*bool{"--stop": &p.Stop})
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return usagef("want a guest and a directory")
	}
	if p.Dir, err = filepath.Abs(args[1]); err != nil {
		return err
	}
	bar := newProgress(e.stderr, "saving")
	defer bar.end()
	return call(ctx, args[0], "save", p, nil, func(c control.Progress) { bar.set(c.Done, c.Total) })
}

func balloonTarget(ctx context.Context, _ *environment, args []string) error {
	args, err := flags(args, nil)
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return usagef("want a guest and a size")
	}
	var size definition.Size
	if err := size.UnmarshalText([]byte(args[1])); err != nil {
		return usagef("%v", err)
	}
	target := uint64(size)
	return call(ctx, args[0], "balloon", balloonParams{Target: &target}, nil, nil)
}

// check is the command "check". It says nothing when all is well.
func check(ctx context.Context, e *environment, args []string) error {
	args, err := flags(args, nil)
	if err != nil {
		return err
	}
	if len(args) != 1 {
		return usagef("want one definition or one directory")
	}
	st, err := os.Stat(args[0])
	if err != nil {
		return err
	}
	if !st.IsDir() {
		def, err := definition.Load(args[0])
		if err != nil {
			return err
		}
		return def.CheckHost(args[0])
	}
	saved, err := machine.OpenSaved(args[0])
	if err != nil {
		return err
	}
	bar := newProgress(e.stderr, "checking")
	defer bar.end()
	return saved.Verify(ctx, bar.set)
}

// extractKernel is the command "extract-kernel".
func extractKernel(_ context.Context, _ *environment, args []string) error {
	args, err := flags(args, nil)
	if err != nil {
		return err
	}
	if len(args) != 2 {
		return usagef("want a kernel image and the file to make")
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	img, err := boot.FileImage(f)
	if err != nil {
		return err
	}
	vmlinux, err := boot.ExtractVMLinux(img)
	if err != nil {
		return err
	}
	tmp := args[1] + ".tmp"
	if err := os.WriteFile(tmp, vmlinux, 0o644); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, args[1])
}
