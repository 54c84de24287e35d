package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/boot"
	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/balloon"
	"github.com/lodgehv/lodge/hypervisor/virtio/blk"
	"github.com/lodgehv/lodge/hypervisor/virtio/console"
	virtionet "github.com/lodgehv/lodge/hypervisor/virtio/net"
	"github.com/lodgehv/lodge/hypervisor/virtio/rng"
	"github.com/lodgehv/lodge/hypervisor/virtio/vsock"
)

// resources is what a guest has of the host: opened once, for all the machines of its life.
type resources struct {
	config  machine.Config
	closers []io.Closer
	serve   []func(context.Context, *guest) error // what has to run beside the guest, until the context ends
	balloon atomic.Pointer[balloon.Device]        // of the current machine, if it has one
	traffic traffic

	ignoreDiskChanges bool // of a restored guest: its disks are taken as they are
}

// Close closes everything, the last opened first.
func (r *resources) Close() error {
	var errs []error
	for i := len(r.closers) - 1; i >= 0; i-- {
		errs = append(errs, closeOnce(r.closers[i]))
	}
	r.closers = nil
	return errors.Join(errs...)
}

func (r *resources) opened(c io.Closer) { r.closers = append(r.closers, c) }

// compose opens what def names and makes the configuration of its machines, whose serial ports write to serial. On error
// nothing stays open.
func compose(def *definition.Definition, serial [2]io.Writer, log *slog.Logger) (r *resources, err error) {
	r = &resources{config: machine.Config{
		Name: def.Name, UUID: def.UUIDBytes(), CPUs: def.CPUs, Memory: uint64(def.Memory), Serial: serial, Log: log,
		Battery: new(legacy.Battery), SharedMemory: def.Display != nil && def.Display.Blob,
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
			r = nil
		}
	}()
	k, err := kvm.Open("/dev/kvm")
	if err != nil {
		return r, fmt.Errorf("%w: is KVM enabled in the firmware set-up, and may you read and write /dev/kvm?", err)
	}
	r.opened(k)
	r.config.KVM = k
	for _, step := range []func(*definition.Definition, *slog.Logger) error{r.boot, r.disks, r.nics, r.others, r.display} {
		if err := step(def, log); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (r *resources) boot(def *definition.Definition, _ *slog.Logger) error {
	b := &r.config.Boot
	b.Cmdline = def.Boot.Cmdline
	for _, p := range []boot.Protocol{boot.PVH, boot.Linux64, boot.Linux32, boot.Multiboot} {
		if p.String() == def.Boot.Protocol {
			b.Protocol = p
		}
	}
	image := func(path string) (*boot.Image, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		r.opened(f)
		img, err := boot.FileImage(f)
		return &img, err
	}
	var err error
	if def.Boot.Firmware != "" {
		if b.Firmware, err = image(def.Boot.Firmware); err != nil {
			return fmt.Errorf("firmware: %w", err)
		}
		return nil
	}
	if b.Kernel, err = image(def.Boot.Kernel); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if def.Boot.Initrd != "" {
		img, err := image(def.Boot.Initrd)
		if err != nil {
			return fmt.Errorf("initrd: %w", err)
		}
		b.Modules = []boot.Module{{Image: *img}}
	}
	return nil
}

func (r *resources) disks(def *definition.Definition, log *slog.Logger) error {
	for _, k := range def.Disks {
		f, err := openDisk(k)
		if err != nil {
			return fmt.Errorf("disk %q: %w", k.Name, err)
		}
		r.opened(f)
		r.add("blk."+k.Name, func() (virtio.Device, error) {
			return blk.New(blk.Config{
				Name: k.Name, File: f, ReadOnly: k.ReadOnly, Direct: k.Direct, Serial: k.Serial, Log: log,
				IgnoreChanges: r.ignoreDiskChanges,
			})
		})
	}
	return nil
}

// openDisk opens a disk and locks it, so that no two guests write to one image.
func openDisk(k definition.Disk) (*os.File, error) {
	flags, lock := os.O_RDWR, unix.LOCK_EX
	if k.ReadOnly {
		flags, lock = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := os.OpenFile(k.Path, flags, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), lock|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another guest: stop that one, or make the disk read-only in both", k.Path)
		}
		return nil, fmt.Errorf("lock %s: %w", k.Path, err)
	}
	return f, nil
}

func (r *resources) nics(def *definition.Definition, log *slog.Logger) error {
	for _, n := range def.NICs {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil {
			return fmt.Errorf("nic %q: %w", n.Name, err)
		}
		backend, err := openNIC(n, log)
		if err != nil {
			return fmt.Errorf("nic %q: %w", n.Name, err)
		}
		r.opened(backend)
		cfg := virtionet.Config{MAC: [6]byte(mac), Backend: &countedBackend{Backend: backend, to: &r.traffic}}
		r.add("net."+n.Name, func() (virtio.Device, error) { return virtionet.New(cfg), nil })
	}
	return nil
}

// closableBackend is what both kinds of network backends are.
type closableBackend interface {
	virtionet.Backend
	io.Closer
}

func openNIC(n definition.NIC, log *slog.Logger) (closableBackend, error) {
	if n.Tap != "" {
		return virtionet.OpenTap(n.Tap)
	}
	dial := virtionet.DialUnix(n.Socket)
	conn, err := dial(context.Background())
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w: is passt or gvproxy running?", n.Socket, err)
	}
	return virtionet.NewStream(conn, dial, log), nil
}

// others adds what a guest has at most one of.
func (r *resources) others(def *definition.Definition, log *slog.Logger) error {
	if def.Debug != "" {
		f, err := openLogFile(def.Debug)
		if err != nil {
			return fmt.Errorf("debug console: %w", err)
		}
		r.opened(f)
		r.config.DebugConsole = f
	}
	if *def.RNG {
		r.add("rng", func() (virtio.Device, error) { return &rng.Device{}, nil })
	}
	if def.Balloon {
		r.add("balloon", func() (virtio.Device, error) {
			b := balloon.New(log)
			if before := r.balloon.Swap(b); before != nil {
				b.SetTarget(before.Target()) // the host's wish outlives the guest's reboot
			}
			return b, nil
		})
	}
	if c := def.Console; c != nil {
		l, err := control.Listen(c.Path)
		if err != nil {
			return fmt.Errorf("console: %w", err)
		}
		r.opened(l)
		host := &socketConsole{l: l}
		var current atomic.Pointer[console.Device]
		r.add("console", func() (virtio.Device, error) {
			d := console.New(host)
			current.Store(d)
			return d, nil
		})
		r.serve = append(r.serve, func(ctx context.Context, g *guest) error {
			return host.serve(ctx, func(ctx context.Context, p []byte) error {
				return g.receive(ctx, p, func(life context.Context, _ *machine.Machine, p []byte) (int, error) {
					return current.Load().Receive(life, p) // there is one while there is a machine
				})
			})
		})
	}
	if v := def.Vsock; v != nil {
		l, err := control.Listen(v.Path)
		if err != nil {
			return fmt.Errorf("vsock: %w", err)
		}
		r.opened(l)
		cfg := vsock.Config{CID: uint64(v.CID), Listener: l, Dial: vsock.DialPath(v.Path)}
		r.add("vsock", func() (virtio.Device, error) { return vsock.New(cfg) })
	}
	return nil
}

func (r *resources) add(name string, make func() (virtio.Device, error)) {
	r.config.Slots = append(r.config.Slots, machine.Virtio(name, make))
}
