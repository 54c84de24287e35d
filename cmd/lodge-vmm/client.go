package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

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
	fmt.Fprintf(e.stdout, "reboots  %d\n", s.Reboots)
	if s.PID != 0 {
		fmt.Fprintf(e.stdout, "process  %d\n", s.PID)
	}
	return nil
}

// savedJSON is what "save --json" prints.
type savedJSON struct {
	Dir     string  `json:"dir"`
	Bytes   uint64  `json:"bytes"`   // of memory
	Seconds float64 `json:"seconds"` // that it took
	Stopped bool    `json:"stopped"`
}

func save(ctx context.Context, e *environment, args []string) error {
	var p saveParams
	var asJSON bool
	args, err := flags(args, map[string]*bool{"--stop": &p.Stop, "--json": &asJSON})
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
	result := savedJSON{Dir: p.Dir, Stopped: p.Stop}
	began := time.Now()
	if err := call(ctx, args[0], "save", p, nil, func(c control.Progress) {
		result.Bytes = c.Total
		bar.set(c.Done, c.Total)
	}); err != nil || !asJSON {
		return err
	}
	result.Seconds = time.Since(began).Seconds()
	return json.NewEncoder(e.stdout).Encode(result)
}

func balloonTarget(ctx context.Context, e *environment, args []string) error {
	var asJSON bool
	args, err := flags(args, map[string]*bool{"--json": &asJSON})
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
	p := balloonParams{Target: new(uint64(size))}
	if err := call(ctx, args[0], "balloon", p, nil, nil); err != nil || !asJSON {
		return err
	}
	return json.NewEncoder(e.stdout).Encode(p)
}

// checkedJSON is what "check --json" prints, be it good or not.
type checkedJSON struct {
	Path     string   `json:"path"`
	OK       bool     `json:"ok"`
	Problems []string `json:"problems"`
}

// check is the command "check". It says nothing when all is well, save as JSON.
func check(ctx context.Context, e *environment, args []string) error {
	var asJSON bool
	args, err := flags(args, map[string]*bool{"--json": &asJSON})
	if err != nil {
		return err
	}
	if len(args) != 1 {
		return usagef("want one definition or one directory")
	}
	err = checkPath(ctx, e, args[0])
	if !asJSON || errors.Is(err, context.Canceled) {
		return err
	}
	result := checkedJSON{Path: args[0], OK: err == nil, Problems: []string{}}
	if err == nil {
		return json.NewEncoder(e.stdout).Encode(result)
	}
	result.Problems = strings.Split(err.Error(), "\n") // a join of errors has one on each line
	return errors.Join(json.NewEncoder(e.stdout).Encode(result), exitStatus(exitError))
}

// checkPath checks a definition, or a directory with a saved state.
func checkPath(ctx context.Context, e *environment, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		def, err := definition.Load(path)
		if err != nil {
			return err
		}
		return def.CheckHost(path)
	}
	saved, err := machine.OpenSaved(path)
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
