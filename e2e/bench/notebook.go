package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
)

// notebookLimit bounds a step in the notebook. The first start builds its images.
const notebookLimit = 20 * time.Minute

// startNotebook starts a notebook with our VMM in it. The base of disks is the guest's, if they have none.
func startNotebook(ctx context.Context, vmm string, icount bool, disks ...notebook.Disk) (*notebook.Notebook, error) {
	log := io.Discard // progress is the notebook's business; its errors carry what is needed
	b, err := image.NewBuilder(log)
	if err != nil {
		return nil, err
	}
	stopwatch, _, err := b.GoProgram(ctx, "./e2e/bench/stopwatch", "amd64")
	if err != nil {
		return nil, err
	}
	for i := range disks {
		if disks[i].Base == "" {
			g, err := b.Guest(ctx, image.AMD64())
			if err != nil {
				return nil, err
			}
			disks[i].Base = g.Disk
		}
	}
	return notebook.Start(ctx, notebook.Config{
		Builder: b, CPUs: 1, ICount: icount, Disks: disks, Log: log,
		Tools: map[string]string{"bin/lodge-vmm": vmm, "bin/stopwatch": stopwatch},
	})
}

const (
	guestKernel  = "/guests/amd64/vmlinux"
	guestInitrd  = "/guests/amd64/initrd"
	guestCmdline = "console=ttyS0 root=/dev/vda rw panic=-1 quiet"
)

// ourGuest is the definition of the Debian guest whose root is disk.
func ourGuest(name, disk, more string) string {
	return fmt.Sprintf("name = %q\nmemory = \"256M\"\n[boot]\nkernel = %q\ninitrd = %q\ncmdline = %q\n[serial]\nmode = \"stdio\"\n"+
		"[[disk]]\nname = \"root\"\npath = %q\n%s", name, guestKernel, guestInitrd, guestCmdline, disk, more)
}

// peersGuest is QEMU's command line for the same guest. Its microvm has PCI, for Debian's initrd has no driver of
// virtio-mmio.
func peersGuest(disk string, more ...string) []string {
	return append([]string{
		qemu, "-M", "microvm,accel=kvm,acpi=on,pcie=on,rtc=on", "-cpu", "host", "-m", "256",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
		"-kernel", guestKernel, "-initrd", guestInitrd, "-append", guestCmdline,
		"-drive", "if=none,id=root,format=raw,cache=none,aio=io_uring,file=" + disk,
		"-device", "virtio-blk-pci,drive=root,disable-legacy=on",
	}, more...)
}

// starts is how many instructions a VMM and its guest execute from exec to the guest's init, in millions: in a notebook
// that counts them a second is 10⁹, whatever else this machine does. What the notebook waits for its own disk is in it, too.
func starts(vmm string) figure {
	return figure{
		name: "Debian guest, start to init, in the notebook", unit: "Minstr", goal: goal{ratio: 0.95}, runs: 5, peerName: "QEMU microvm",
		prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
			return prepareStarts(ctx, vmm)
		},
	}
}

func prepareStarts(ctx context.Context, vmm string) (ours, peer measurement, done func() error, err error) {
	s := &starter{vmm: vmm}
	of := func(args ...string) measurement {
		args = append([]string{"/tools/bin/stopwatch", "lodge-guest: init "}, args...)
		return func(ctx context.Context) (float64, error) { return s.measure(ctx, args) }
	}
	return of("lodge-vmm", "run", "/run/guest.toml"), of(peersGuest("/disk/amd64")...), s.close, nil
}

// starter is a notebook that counts instructions, and starts guests.
type starter struct {
	vmm string
	nb  *notebook.Notebook // nil if it must be started first
}

func (s *starter) close() error {
	nb := s.nb
	s.nb = nil
	if nb == nil {
		return nil
	}
	return nb.Close()
}

// QEMU, when it counts instructions and its guest has guests, sometimes stops in the middle of one: its processor's thread
// runs on, and nothing happens. A start that takes startLimit is tried again in another notebook, so often.
const (
	startLimit = 90 * time.Second
	startTries = 3
)

func (s *starter) measure(ctx context.Context, args []string) (float64, error) {
	for try := 1; ; try++ {
		ns, err := s.try(ctx, args)
		if err == nil || try == startTries || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return ns / 1e6, err
		}
		if err := s.close(); err != nil {
			return 0, err
		}
	}
}

// try returns what the stopwatch says, in nanoseconds.
func (s *starter) try(ctx context.Context, args []string) (float64, error) {
	if s.nb == nil {
		nb, err := startNotebook(ctx, s.vmm, true)
		if err != nil {
			return 0, err
		}
		s.nb = nb
		definition := strings.NewReader(ourGuest("bench", "/disk/amd64", ""))
		if err := nb.Put(ctx, definition, "/run/guest.toml", 0o644); err != nil {
			return 0, err
		}
		// The images into the notebook's memory, so that no start waits for a disk of ours.
		if _, err := nb.Shell(ctx, "cat "+guestKernel+" "+guestInitrd+" >/dev/null"); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var r struct{ NS float64 }
	err := output(ctx, s.nb.Client, &r, args...)
	return r.NS, err
}

// output runs a command and decodes the JSON that it prints.
func output(ctx context.Context, c *rpc.Client, v any, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, notebookLimit)
	defer cancel()
	r, err := c.Run(ctx, args...)
	if err == nil {
		err = r.Check(args...)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(r.Stdout), v); err != nil {
		return fmt.Errorf("%s: %w: %s", args[0], err, r.Stdout)
	}
	return nil
}
