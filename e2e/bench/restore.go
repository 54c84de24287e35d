package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lodgehv/lodge/hypervisor/boot"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/mem"
)

// restore is the figure of bringing back a saved machine of 1 GiB, in a process that runs already, until its guest goes
// on. The saved guest waits for a flag in its memory, which is set between restoring and starting it.
func restore(dir string) figure {
	return figure{
		name: "restore of 1 GiB to first instruction", unit: "ms", goal: goal{value: 1}, runs: 21,
		prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
			sys, err := kvm.Open("/dev/kvm")
			if err != nil {
				return nil, nil, nil, err
			}
			saved := filepath.Join(dir, "saved")
			cfg, closeROM, err := savedGuest(ctx, sys, dir, saved)
			done := func() error { return errors.Join(closeROM(), sys.Close(), os.RemoveAll(saved)) }
			return func(ctx context.Context) (float64, error) { return restoreTime(ctx, cfg, saved) }, nil, done, err
		},
	}
}

// savedGuest saves a machine with 1 GiB, of which a quarter has content.
func savedGuest(ctx context.Context, sys *kvm.System, dir, to string) (cfg machine.Config, done func() error, err error) {
	done = func() error { return nil }
	file := filepath.Join(dir, "wait.bin")
	if err := os.WriteFile(file, rom(waitForFlag...), 0o644); err != nil {
		return cfg, done, err
	}
	f, err := os.Open(file)
	if err != nil {
		return cfg, done, err
	}
	done = f.Close
	img, err := boot.FileImage(f)
	if err != nil {
		return cfg, done, err
	}
	cfg = machine.Config{Name: "bench", KVM: sys, CPUs: 1, Memory: 1 << 30, Boot: machine.Boot{Firmware: &img}}
	m, err := machine.New(cfg)
	if err != nil {
		return cfg, done, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := fill(m); err != nil {
		return cfg, done, err
	}
	if err := m.Start(); err != nil {
		return cfg, done, err
	}
	return cfg, done, m.Save(ctx, to, nil, nil)
}

// fill writes to every fourth MiB from 1 MiB on.
func fill(m *machine.Machine) error {
	for at := mem.GPA(1 << 20); at < 1<<30; at += 4 << 20 {
		b, err := m.Memory().Slice(at, 1<<20)
		if err != nil {
			return err
		}
		for i := range b {
			b[i] = byte(i>>12) | 1
		}
	}
	return nil
}

// restoreTime returns how long it takes, in milliseconds.
func restoreTime(ctx context.Context, cfg machine.Config, dir string) (_ float64, err error) {
	begin := time.Now()
	saved, err := machine.OpenSaved(dir)
	if err != nil {
		return 0, err
	}
	m, err := machine.Restore(cfg, saved, machine.RestoreOptions{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.Memory().WriteAt([]byte{1}, flagAddr); err != nil {
		return 0, err
	}
	if err := m.Start(); err != nil {
		return 0, err
	}
	o, err := m.Wait(ctx)
	took := time.Since(begin)
	if err != nil {
		return 0, err
	}
	if o.Reason != machine.DebugExit {
		return 0, fmt.Errorf("the guest ended otherwise: %v: %s: %w", o.Reason, o.Detail, o.Err)
	}
	return float64(took) / float64(time.Millisecond), nil
}
