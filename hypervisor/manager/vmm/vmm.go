// Package vmm starts lodge-vmm in a cell: it opens all that a guest's definition names, and hands the descriptors over by the
// names that docs/cell.md lists. It also saves such a guest, which can open no file itself.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/snap"
	virtionet "github.com/lodgehv/lodge/hypervisor/virtio/net"
)

// Guest says what to start.
type Guest struct {
	Definition *definition.Definition
	File       string // absolute path of the definition, for messages
	Restore    string // directory of a saved state to go on from; empty for a fresh start

	// IgnoreDiskChanges has a state restored though a disk was written to since.
	IgnoreDiskChanges bool
	// LogSyscalls has the kernel log the system calls that lodge-vmm should not need, and allow them.
	LogSyscalls bool

	// Outcome is a file that is told how the guest ended; empty is none.
	Outcome string

	// Broker is the end of a broker.Pair that asks; nil leaves the guest without the host's vsock ports, and its network cards
	// and disks of other processes without another connection after their first, until it is given one (method "broker").
	Broker *os.File

	// Stdio is where a serial port of mode "stdio" writes to; nil is nobody.
	Stdio *os.File
}

// Open opens all that g needs. The caller closes the files: those that were opened are returned also with an error.
func Open(g *Guest) ([]cell.File, error) {
	var o opener
	err := o.all(g)
	return o.files, err
}

// Close closes the files of Open.
func Close(files []cell.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.File.Close())
	}
	return errors.Join(errs...)
}

// Start starts g in a cell. Of s, Program, Args, Files and Limits are set here; program is lodge-vmm.
func Start(ctx context.Context, g *Guest, program *os.File, s cell.Spec) (*cell.Process, error) {
	files, err := Open(g)
	var p *cell.Process
	if err == nil {
		s.Program, s.Args, s.Files = program, g.args(), files
		if s.Limits, err = g.limits(files); err == nil {
			p, err = cell.Start(ctx, s)
		}
	}
	if err := errors.Join(err, Close(files)); err != nil {
		return nil, fmt.Errorf("guest %s: %w", g.Definition.Name, err)
	}
	return p, nil
}

// What lodge-vmm needs beside the guest's memory, in bytes: private memory of its own; and files, which screens are, too.
const (
	ownData = 512 << 20
	ownFile = 1 << 30
)

// limits bounds what lodge-vmm can take where there is no control group. No file, such as a log, grows larger than the guest's
// largest disk, or its memory, which is saved to one.
func (g *Guest) limits(files []cell.File) (l cell.Limits, err error) {
	l.Data = uint64(g.Definition.Memory) + ownData
	l.FileSize = uint64(g.Definition.Memory) + ownFile
	for _, f := range files {
		st, err := f.File.Stat()
		if err != nil {
			return l, fmt.Errorf("%s: %w", f.Name, err)
		}
		if size := uint64(st.Size()); st.Mode().IsRegular() {
			l.FileSize = max(l.FileSize, size)
		}
	}
	return l, nil
}

// args is lodge-vmm's command line.
func (g *Guest) args() []string {
	a := []string{"lodge-vmm", "run"}
	if g.Restore != "" {
		a = append(a, "--restore", g.Restore)
		if g.IgnoreDiskChanges {
			a = append(a, "--ignore-disk-changes")
		}
	}
	if g.LogSyscalls {
		a = append(a, "--log-syscalls")
	}
	return append(a, g.File)
}

// opener opens files until one cannot be opened.
type opener struct {
	files []cell.File
}

func (o *opener) all(g *Guest) error {
	d := g.Definition
	for _, step := range []func(*Guest, *definition.Definition) error{o.start, o.disks, o.nics, o.sockets, o.serials} {
		if err := step(g, d); err != nil {
			return err
		}
	}
	return nil
}

// add adds f unless there is an error, which is about what.
func (o *opener) add(name string, f *os.File, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	o.files = append(o.files, cell.File{Name: name, File: f})
	return nil
}

func (o *opener) open(name, path string, flags int) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, flags, 0o600)
	return o.add(name, f, err)
}

// start opens what a guest begins with.
func (o *opener) start(g *Guest, d *definition.Definition) error {
	if err := o.open("kvm", "/dev/kvm", os.O_RDWR); err != nil {
		return err
	}
	f, err := text("definition", d)
	if err := o.add("definition", f, err); err != nil {
		return err
	}
	if g.Restore != "" {
		if err := errors.Join(o.open("saved.state", filepath.Join(g.Restore, snap.StateName), os.O_RDONLY),
			o.open("saved.ram", filepath.Join(g.Restore, snap.RAMName), os.O_RDONLY)); err != nil {
			return err
		}
	}
	if err := o.open("outcome", g.Outcome, os.O_WRONLY|os.O_CREATE|os.O_TRUNC); err != nil {
		return err
	}
	err = errors.Join(o.open("kernel", d.Boot.Kernel, os.O_RDONLY), o.open("initrd", d.Boot.Initrd, os.O_RDONLY),
		o.open("firmware", d.Boot.Firmware, os.O_RDONLY))
	if d.Display != nil {
		err = errors.Join(err, o.open("vgarom", d.Display.ROM, os.O_RDONLY))
	}
	if g.Broker != nil {
		f, e := dup(g.Broker)
		err = errors.Join(err, o.add("broker", f, e))
	}
	return err
}

// text returns a file that holds the definition, whole: what is on disk may change meanwhile.
func text(name string, d *definition.Definition) (*os.File, error) {
	b, err := d.Marshal()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// disks opens the disks. lodge-vmm locks them: a lock is the open file's, and lasts as long as the guest has it.
func (o *opener) disks(_ *Guest, d *definition.Definition) error {
	for _, k := range d.Disks {
		if k.Socket != "" {
			f, err := Connect(k.Socket)
			if err := o.add("disk."+k.Name, f, err); err != nil {
				return fmt.Errorf("%w: is its storage daemon running?", err)
			}
			continue
		}
		flags := os.O_RDWR
		if k.ReadOnly {
			flags = os.O_RDONLY
		}
		if err := o.open("disk."+k.Name, k.Path, flags); err != nil {
			return err
		}
	}
	return nil
}

func (o *opener) nics(_ *Guest, d *definition.Definition) error {
	for _, n := range d.NICs {
		if n.Tap != "" {
			f, err := virtionet.AttachTap(n.Tap)
			if err := o.add("nic."+n.Name, f, err); err != nil {
				return err
			}
			continue
		}
		f, err := Connect(n.Socket)
		if err := o.add("nic."+n.Name, f, err); err != nil {
			return fmt.Errorf("%w: is passt or gvproxy running?", err)
		}
	}
	return nil
}

// Connect returns a connection to the Unix socket at path. It waits for nobody.
func Connect(path string) (*os.File, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.File()
}

func (o *opener) sockets(_ *Guest, d *definition.Definition) error {
	paths := []struct{ name, path string }{{"control", d.Control}}
	if d.Console != nil {
		paths = append(paths, struct{ name, path string }{"console", d.Console.Path})
	}
	if d.Vsock != nil {
		paths = append(paths, struct{ name, path string }{"vsock", d.Vsock.Path})
	}
	if d.Display != nil {
		paths = append(paths, struct{ name, path string }{"display", d.Display.Path})
	}
	for _, p := range paths {
		if err := o.listen(p.name, p.path); err != nil {
			return err
		}
	}
	return nil
}

// listen makes a socket at path, which stays when the guest has ended: the next start replaces it.
func (o *opener) listen(name, path string) error {
	if path == "" {
		return nil
	}
	l, err := control.Listen(path)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	return o.add(name, f, errors.Join(err, l.Close()))
}

// serials opens what the guest's serial ports and its debug console write to.
func (o *opener) serials(g *Guest, d *definition.Definition) error {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if err := o.open("debug", d.Debug, flags); err != nil {
		return err
	}
	for i, s := range []definition.Serial{d.Serial, d.Serial2} {
		name := [...]string{"serial", "serial2"}[i]
		var err error
		switch s.Mode {
		case "socket":
			err = errors.Join(o.listen(name, s.Path), o.open(name+".log", s.Log, flags))
		case "file":
			err = o.open(name, s.Path, flags)
		case "stdio":
			if g.Stdio == nil {
				err = o.open(name, os.DevNull, os.O_WRONLY)
				break
			}
			var f *os.File
			f, err = dup(g.Stdio)
			err = o.add(name, f, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Save saves the guest that listens on the control socket at path to dir, which appears complete or not at all. Until that it
// is paused; whether it then runs on is up to how it was before. progress may be nil.
func Save(ctx context.Context, path, dir string, progress func(control.Progress)) error {
	c, err := control.Dial(ctx, path)
	if err != nil {
		return err
	}
	defer c.Close()
	return snap.PublishDir(dir, func(tmp string) error {
		var files []*os.File
		defer func() {
			for _, f := range files {
				f.Close()
			}
		}()
		for _, name := range []string{snap.RAMName, snap.StateName} {
			f, err := os.OpenFile(filepath.Join(tmp, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return fmt.Errorf("save to %s: %w", dir, err)
			}
			files = append(files, f)
		}
		return c.Call(ctx, "save", nil, nil, progress, files...)
	})
}
