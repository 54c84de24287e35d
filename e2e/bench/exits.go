package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/vcpu"
)

//go:embed testdata/pio.c
var pioSource []byte

// exitsPerRun is how many exits a run takes the mean of.
const exitsPerRun = 20_000

// exits is the figure of one port-I/O exit: out of the guest, through the bus to a device, and back. The peer does
// nothing but KVM_RUN.
func exits(dir string) figure {
	return figure{
		name: "port I/O exit", unit: "µs", goal: goal{ratio: 1.05}, runs: 21, peerName: "loop in C",
		prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
			loop := filepath.Join(dir, "pio")
			cc := exec.CommandContext(ctx, "gcc", "-O2", "-Wall", "-o", loop, "-x", "c", "-")
			cc.Stdin = bytes.NewReader(pioSource)
			if out, err := cc.CombinedOutput(); err != nil {
				return nil, nil, nil, fmt.Errorf("gcc: %w: %s", err, out)
			}
			g, err := newGuest()
			if err != nil {
				return nil, nil, nil, err
			}
			ours := func(context.Context) (float64, error) { return g.exits(exitsPerRun) }
			peer := func(ctx context.Context) (float64, error) {
				out, err := exec.CommandContext(ctx, loop, strconv.Itoa(exitsPerRun)).Output()
				if err != nil {
					return 0, err
				}
				return strconv.ParseFloat(string(bytes.TrimSpace(out)), 64)
			}
			return ours, peer, g.close, nil
		},
	}
}

// guest is a small machine that does nothing but write to a port.
type guest struct {
	sys    *kvm.System
	vm     *kvm.VM
	memory []byte
	cpu    *vcpu.CPU
	ports  bus.Bus
	mmio   bus.Bus
	device counter
	failed chan vcpu.Event
}

// counter is a device that tells when it has been written to as often as asked for.
type counter struct {
	left atomic.Int64
	done chan struct{}
}

func (c *counter) Read(bus.Access, []byte) {}

func (c *counter) Write(bus.Access, []byte) {
	if c.left.Add(-1) == 0 {
		c.done <- struct{}{}
	}
}

// newGuest makes the machine that testdata/pio.c makes, and a bus as long as a board's.
func newGuest() (g *guest, err error) {
	g = &guest{device: counter{done: make(chan struct{}, 1)}, failed: make(chan vcpu.Event, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if g.sys, err = kvm.Open("/dev/kvm"); err != nil {
		return g, err
	}
	if g.vm, err = g.sys.CreateVM(); err != nil {
		return g, err
	}
	g.memory, err = unix.Mmap(-1, 0, romSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return g, err
	}
	copy(g.memory, rom(outForever...))
	if err := g.vm.SetUserMemoryRegion(0, 0, 1<<32-romSize, g.memory); err != nil {
		return g, err
	}
	if err := g.vm.CreateIRQChip(); err != nil {
		return g, err
	}
	for port := range uint64(16) {
		if err := g.ports.Map(bus.Range{Base: exitPort + 0x10*port, Size: 8}, &g.device); err != nil {
			return g, err
		}
	}
	k, err := g.vm.CreateVCPU(0)
	if err != nil {
		return g, err
	}
	g.cpu, err = vcpu.New(k, 0, nil, &g.ports, &g.mmio, func(e vcpu.Event) { g.failed <- e })
	return g, err
}

// exits returns the mean time of n exits, in microseconds.
func (g *guest) exits(n int64) (float64, error) {
	g.device.left.Store(n)
	begin := time.Now()
	if err := g.cpu.Resume(); err != nil {
		return 0, err
	}
	select {
	case <-g.device.done:
	case e := <-g.failed:
		return 0, fmt.Errorf("the vCPU stopped: %v: %w", e.Kind, e.Err)
	}
	took := time.Since(begin)
	return float64(took) / float64(time.Microsecond) / float64(n), g.cpu.Pause()
}

func (g *guest) close() error {
	var errs []error
	if g.cpu != nil {
		errs = append(errs, g.cpu.Stop())
	}
	if g.vm != nil {
		errs = append(errs, g.vm.Close())
	}
	if g.sys != nil {
		errs = append(errs, g.sys.Close())
	}
	if g.memory != nil {
		errs = append(errs, unix.Munmap(g.memory))
	}
	return errors.Join(errs...)
}
