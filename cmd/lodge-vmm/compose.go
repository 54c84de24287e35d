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
	"github.com/lodgehv/lodge/hypervisor/virtio/vhostuser"
	"github.com/lodgehv/lodge/hypervisor/virtio/vsock"
	"github.com/lodgehv/lodge/internal/broker"
)

// resources is what a guest has of the host: opened once, for all the machines of its life.
type resources struct {
	config  machine.Config
	closers []io.Closer
	serve   []func(context.Context, *guest) error // what has to run beside the guest, until the context ends
	balloon atomic.Pointer[balloon.Device]        // of the current machine, if it has one
	traffic traffic

	diskFull          func(error) // is told that the host has no space for a disk; it does not wait. The guest sets it
	ignoreDiskChanges bool        // of a restored guest: its disks are taken as they are

	handed *handed
	broker *broker.Client // whom a guest asks that was handed its descriptors; nil for others
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

// compose opens what def names, or takes it from what was handed over, and makes the configuration of its machines, whose
// serial ports write to serial. On error nothing stays open.
func compose(def *definition.Definition, serial [2]io.Writer, h *handed, log *slog.Logger) (r *resources, err error) {
	r = &resources{handed: h, config: machine.Config{
		Name: def.Name, UUID: def.UUIDBytes(), CPUs: def.CPUs, Memory: uint64(def.Memory), Serial: serial, Log: log,
		Battery: new(legacy.Battery), SharedMemory: def.SharesMemory(), OnVCPUThread: h.narrow,
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
			r = nil
		}
	}()
	k, err := openKVM(h)
	if err != nil {
		return r, err
	}
	r.opened(k)
	r.config.KVM = k
	if h.sealed() {
		r.broker = new(broker.Client)
		r.opened(r.broker)
		if f, ok := h.take("broker"); ok {
			if err := r.broker.Use(f); err != nil {
				return r, err
			}
		}
	}
	for _, step := range []func(*definition.Definition, *slog.Logger) error{r.boot, r.disks, r.nics, r.others, r.display} {
		if err := step(def, log); err != nil {
			return r, err
		}
	}
	return r, nil
}

func openKVM(h *handed) (*kvm.System, error) {
	if h.sealed() {
		f, err := h.open("kvm", nil)
		if err != nil {
			return nil, err
		}
		k, err := kvm.NewSystem(f)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return k, nil
	}
	k, err := kvm.Open("/dev/kvm")
	if err != nil {
		return nil, fmt.Errorf("%w: is KVM enabled in the firmware set-up, and may you read and write /dev/kvm?", err)
	}
	return k, nil
}

func (r *resources) boot(def *definition.Definition, _ *slog.Logger) error {
	b := &r.config.Boot
	b.Cmdline = def.Boot.Cmdline
	for _, p := range []boot.Protocol{boot.PVH, boot.Linux64, boot.Linux32, boot.Multiboot} {
		if p.String() == def.Boot.Protocol {
			b.Protocol = p
		}
	}
	image := func(name, path string) (*boot.Image, error) {
		f, err := r.handed.open(name, func() (*os.File, error) { return os.Open(path) })
		if err != nil {
			return nil, err
		}
		r.opened(f)
		img, err := boot.FileImage(f)
		return &img, err
	}
	var err error
	if def.Boot.Firmware != "" {
		if b.Firmware, err = image("firmware", def.Boot.Firmware); err != nil {
			return fmt.Errorf("firmware: %w", err)
		}
		return nil
	}
	if b.Kernel, err = image("kernel", def.Boot.Kernel); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if def.Boot.Initrd != "" {
		img, err := image("initrd", def.Boot.Initrd)
		if err != nil {
			return fmt.Errorf("initrd: %w", err)
		}
		b.Modules = []boot.Module{{Image: *img}}
	}
	return nil
}

func (r *resources) disks(def *definition.Definition, log *slog.Logger) error {
	for _, k := range def.Disks {
		if k.Socket != "" {
			if err := r.remoteDisk(def, k, log); err != nil {
				return err
			}
			continue
		}
		f, err := openDisk(k, r.handed)
		if err != nil {
			return fmt.Errorf("disk %q: %w", k.Name, err)
		}
		r.opened(f)
		r.add("blk."+k.Name, func() (virtio.Device, error) {
			return blk.New(blk.Config{
				Name: k.Name, File: f, ReadOnly: k.ReadOnly, Direct: k.Direct, Serial: k.Serial, Log: log,
				IgnoreChanges: r.ignoreDiskChanges, Full: func(err error) { r.diskFull(err) },
			})
		})
	}
	return nil
}

// remoteDisk adds a disk that another process serves. It has as many queues as the guest has CPUs, if the other has.
func (r *resources) remoteDisk(def *definition.Definition, k definition.Disk, log *slog.Logger) error {
	dial := vhostuser.DialPath(k.Socket)
	if r.handed.sealed() {
		dial = r.handedDisk(k.Name)
	}
	b, err := vhostuser.Open(context.Background(), vhostuser.Config{Name: k.Name, Dial: dial, Reconnect: k.Reconnect, Log: log})
	if err != nil {
		return err
	}
	r.opened(b)
	opt := vhostuser.Options{Queues: def.CPUs, ReadOnly: k.ReadOnly}
	if _, err := vhostuser.New(b, opt); err != nil { // now rather than when there is a machine
		return err
	}
	r.add("blk."+k.Name, func() (virtio.Device, error) { return vhostuser.New(b, opt) })
	return nil
}

// handedDisk returns what connects to the process that serves a disk: by the socket that was handed over, and when that has
// gone away by those that the broker gives.
func (r *resources) handedDisk(name string) func(context.Context) (*net.UnixConn, error) {
	return func(ctx context.Context) (*net.UnixConn, error) {
		var c net.Conn
		var err error
		if f, ok := r.handed.take("disk." + name); ok {
			c, err = net.FileConn(f)
			err = errors.Join(err, f.Close())
		} else {
			c, err = r.broker.Dial(ctx, broker.Request{What: broker.Disk, Name: name})
		}
		if err != nil {
			return nil, err
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			return nil, errors.Join(fmt.Errorf("descriptor of disk %q: not a Unix socket", name), c.Close())
		}
		return u, nil
	}
}

// takeBroker takes the end of a broker that came with a request: whoever answered before has gone.
func (r *resources) takeBroker(c *control.Call) error {
	if r.broker == nil {
		return &control.Error{Code: control.CodeBadRequest, Message: "broker: this guest opens what it needs by itself"}
	}
	f, err := c.Files(1)
	if err != nil {
		return err
	}
	return r.broker.Use(f[0])
}

// openDisk opens a disk and locks it, so that no two guests write to one image.
func openDisk(k definition.Disk, h *handed) (*os.File, error) {
	flags, lock := os.O_RDWR, unix.LOCK_EX
	if k.ReadOnly {
		flags, lock = os.O_RDONLY, unix.LOCK_SH
	}
	f, err := h.open("disk."+k.Name, func() (*os.File, error) { return os.OpenFile(k.Path, flags, 0) })
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
		backend, err := r.openNIC(n, log)
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

func (r *resources) openNIC(n definition.NIC, log *slog.Logger) (closableBackend, error) {
	if r.handed.sealed() {
		return r.handedNIC(n, log)
	}
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

// handedNIC makes a backend of the tap or the connected socket that was handed over. When the socket's peer goes away, the
// broker is asked for another one.
func (r *resources) handedNIC(n definition.NIC, log *slog.Logger) (closableBackend, error) {
	f, err := r.handed.open("nic."+n.Name, nil)
	if err != nil {
		return nil, err
	}
	if n.Tap != "" {
		return virtionet.NewTap(f)
	}
	conn, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		return r.broker.Dial(ctx, broker.Request{What: broker.NIC, Name: n.Name})
	}
	return virtionet.NewStream(conn, dial, log), nil
}

// others adds what a guest has at most one of.
func (r *resources) others(def *definition.Definition, log *slog.Logger) error {
	if def.Debug != "" {
		f, err := r.handed.logFile("debug", def.Debug)
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
		l, err := r.handed.listen("console", c.Path)
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
		l, err := r.handed.listen("vsock", v.Path)
		if err != nil {
			return fmt.Errorf("vsock: %w", err)
		}
		r.opened(l)
		cfg := vsock.Config{CID: uint64(v.CID), Listener: l, Dial: r.vsockDial(v.Path)}
		r.add("vsock", func() (virtio.Device, error) { return vsock.New(cfg) })
	}
	return nil
}

// vsockDial returns what connects the guest to ports of the host.
func (r *resources) vsockDial(path string) func(context.Context, uint32) (net.Conn, error) {
	if !r.handed.sealed() {
		return vsock.DialPath(path)
	}
	return func(ctx context.Context, port uint32) (net.Conn, error) {
		return r.broker.Dial(ctx, broker.Request{What: broker.Vsock, Port: port})
	}
}

func (r *resources) add(name string, make func() (virtio.Device, error)) {
	r.config.Slots = append(r.config.Slots, machine.Virtio(name, make))
}
