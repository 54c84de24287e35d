package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/internal/ratelog"
)

// runGuest is the command "run".
func runGuest(ctx context.Context, e *environment, args []string) error {
	dir, args := valueFlag(args, "--restore")
	outcome, args := valueFlag(args, "--outcome")
	var ignore, logOnly bool
	args, err := flags(args, map[string]*bool{ignoreDiskChanges: &ignore, logSyscalls: &logOnly})
	if err != nil {
		return err
	}
	if len(args) != 1 || ignore && dir == "" {
		return usagef("want one definition, and %s with --restore only", ignoreDiskChanges)
	}
	if err := e.handed.seal(logOnly, args[0]); err != nil {
		return err
	}
	def, err := loadDefinition(e.handed, args[0])
	if err != nil {
		return err
	}
	if e.outcome, err = openOutcome(e.handed, outcome); err != nil {
		return err
	}
	defer e.outcome.close()
	if dir == "" {
		return serve(ctx, e, def, machine.New, false)
	}
	saved, err := openSaved(e.handed, dir)
	if err != nil {
		return err
	}
	return serve(ctx, e, def, restored(saved, machine.RestoreOptions{Lazy: lazy(e, def)}), ignore)
}

// loadDefinition reads the definition at path, or the one that was handed over: whoever did that has checked the host.
func loadDefinition(h *handed, path string) (*definition.Definition, error) {
	if !h.sealed() {
		def, err := definition.Load(path)
		if err != nil {
			return nil, err
		}
		return def, def.CheckHost(path)
	}
	f, err := h.open("definition", nil)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return definition.Read(io.NewSectionReader(f, 0, math.MaxInt64), path) // wherever others have read to
}

// openSaved opens the saved state in dir, or the one that was handed over.
func openSaved(h *handed, dir string) (*machine.Saved, error) {
	if !h.sealed() {
		return machine.OpenSaved(dir)
	}
	state, err := h.open("saved.state", nil)
	if err != nil {
		return nil, err
	}
	defer state.Close()
	ram, err := h.open("saved.ram", nil)
	if err != nil {
		return nil, err
	}
	return machine.OpenSavedFiles(dir, state, ram)
}

// restoreGuest is the command "restore".
func restoreGuest(ctx context.Context, e *environment, args []string) error {
	var opt machine.RestoreOptions
	var ignore bool
	args, err := flags(args, map[string]*bool{"--shared": &opt.Shared, ignoreDiskChanges: &ignore})
	if err != nil {
		return err
	}
	if len(args) != 1 {
		return usagef("want one directory")
	}
	if e.handed.sealed() {
		return usagef("a guest that is handed its descriptors is restored by run --restore")
	}
	saved, err := machine.OpenSaved(args[0])
	if err != nil {
		return err
	}
	def, err := definition.Parse(args[0]+" (definition)", "/", saved.Definition())
	if err != nil {
		return err
	}
	opt.Lazy.Failed = lazy(e, def).Failed
	return serve(ctx, e, def, restored(saved, opt), ignore)
}

// lazy says how memory that is shared is brought back.
func lazy(e *environment, def *definition.Definition) mem.LazyOptions {
	return mem.LazyOptions{Failed: func(err error) { e.log.Error("guest memory cannot be read", "guest", def.Name, "err", err) }}
}

// What a guest can have logged: so many lines at once, then one every so often. logLimit bounds how long the end waits for
// somebody to read the log.
const (
	logBurst = 20
	logEvery = 5 * time.Second
	logLimit = time.Second
)

// ignoreDiskChanges is the flag that has a state restored though a disk was written to since.
const ignoreDiskChanges = "--ignore-disk-changes"

// serve runs a guest with its console and control socket. build makes the first machine; ignoreDisks is that of a state.
func serve(
	ctx context.Context, e *environment, def *definition.Definition,
	build func(machine.Config) (*machine.Machine, error), ignoreDisks bool,
) (err error) {
	// A goroutine that is woken needs a free P: without spare ones it would wait until the scheduler takes one back
	// from a vCPU that is in the guest, which may be milliseconds.
	runtime.GOMAXPROCS(runtime.NumCPU() + def.CPUs)

	// The guest outlives whoever reads its console and the log: what is written then is dropped.
	signal.Ignore(unix.SIGPIPE)

	limited := ratelog.New(e.log.With("guest", def.Name).Handler(), logBurst, logEvery)
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), logLimit)
		defer cancel()
		_ = limited.Close(ctx) // whoever does not read it loses it
	}()
	log := slog.New(limited)
	var serial [2]*serialPort
	var out [2]io.Writer
	for i, s := range [2]definition.Serial{def.Serial, def.Serial2} {
		port, e := openSerial(i, s, e)
		if e != nil {
			return e
		}
		defer func() { err = errors.Join(err, port.close()) }()
		serial[i], out[i] = port, port.out
	}
	res, err := compose(def, out, e.handed, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, res.Close()) }()
	res.ignoreDiskChanges = ignoreDisks
	g := newGuest(def, res, log)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before waiting
	background := func(what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				log.Error(what, "err", err)
			}
		})
	}
	for _, port := range serial {
		background("serial port", func() error { return port.serve(ctx, g) })
	}
	if def.Control != "" || e.handed.has("control") {
		l, err := e.handed.listen("control", def.Control)
		if err != nil {
			return err
		}
		server := &control.Server{Methods: g.methods()}
		background("control", func() error { return server.Serve(ctx, l) })
	}
	if err := e.handed.leftOver(); err != nil {
		return err
	}
	for _, f := range res.serve {
		background("device", func() error { return f(ctx, g) })
	}
	o, err := g.run(ctx, build)
	if err != nil {
		return fmt.Errorf("guest %s: %w", def.Name, err)
	}
	return errors.Join(e.outcome.write(o), outcomeStatus(slog.New(limited.Unlimited()), o))
}
