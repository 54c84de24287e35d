package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
	"github.com/lodgehv/lodge/internal/program"
)

// runCommand is the command "run": a guest without a manager, of which nothing is left afterwards.
type runCommand struct {
	Image    string          `arg:"" help:"A disk image (raw, qcow2, VMDK; compressed too), an ISO that starts from a USB stick, or a kernel; a disk image may be a URL."`
	Memory   definition.Size `default:"1G" placeholder:"SIZE" help:"Memory, such as 512M."`
	CPUs     int             `name:"cpus" default:"1" placeholder:"N" help:"Processors."`
	Display  string          `default:"auto" placeholder:"WHERE" help:"serial, this terminal; rfb or rfb:ADDRESS:PORT, for a VNC viewer on this machine; seat, the machine's own screen; auto, serial for a kernel and rfb for the rest."`
	Net      string          `default:"user" enum:"user,none" placeholder:"KIND" help:"user, a network of its own with a way out; or none."`
	Disk     []string        `placeholder:"IMAGE" sep:"none" help:"Another disk, after IMAGE if that is one. May be repeated."`
	Initrd   string          `type:"existingfile" placeholder:"FILE" help:"Initrd of the kernel."`
	Append   *string         `placeholder:"TEXT" help:"Command line of the kernel; console=ttyS0 on serial."`
	Firmware string          `type:"existingfile" default:"/usr/share/seabios/bios-256k.bin" placeholder:"FILE" help:"BIOS of a guest that starts from a disk."`
	Write    bool            `help:"Write to the disks themselves, which must be raw, and keep what was written."`
}

const (
	displaySerial = "serial"
	displayRFB    = "rfb"
	displaySeat   = "seat"
)

// Run runs the guest to its end.
func (c *runCommand) Run(ctx context.Context) (err error) {
	if err := usableKVM(); err != nil {
		return err
	}
	display, where, err := c.display()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "lodge-run-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &oneRun{ctx: ctx, dir: dir, write: c.Write}
	defer r.close()
	def := &definition.Definition{Name: guestName(c.Image), CPUs: c.CPUs, Memory: c.Memory, Control: r.path("control")}
	kernel, err := r.boot(c, def)
	if err != nil {
		return err
	}
	if display == "auto" {
		if display = displayRFB; kernel {
			display = displaySerial
		}
	}
	if display == displaySerial {
		def.Serial.Mode = "stdio"
	} else {
		def.Serial = definition.Serial{Mode: "socket", Path: r.path("serial"), Log: r.path("serial.log")}
		def.Display = &definition.Display{Path: r.path("display"), Card: definition.CardVirtio}
		if !kernel {
			def.Display.Card = definition.CardVGA // firmware knows no other
		}
	}
	if kernel {
		switch {
		case c.Append != nil:
			def.Boot.Cmdline = *c.Append
		case display == displaySerial:
			def.Boot.Cmdline = "console=ttyS0"
		}
	}
	if c.Net == "user" {
		def.NICs = []definition.NIC{{Name: "net", Socket: r.path("net")}}
	}
	text, err := def.Marshal()
	if err != nil {
		return err
	}
	if def, err = definition.Parse("lodge run", dir, text); err != nil {
		return err
	}
	if err := os.WriteFile(r.path("guest.toml"), text, 0o600); err != nil {
		return err
	}
	return r.run(def, display, where)
}

// display returns what the flag says: serial, rfb, seat or auto, and the address of rfb, if one was given.
func (c *runCommand) display() (kind, where string, err error) {
	kind, where, _ = strings.Cut(c.Display, ":")
	switch {
	case kind == displayRFB && where != "":
		_, _, err = net.SplitHostPort(where)
	case where == "" && (kind == displaySerial || kind == displaySeat || kind == displayRFB || kind == "auto"):
	default:
		err = errors.New("one of serial, rfb, rfb:ADDRESS:PORT, seat and auto")
	}
	if err != nil {
		return "", "", fmt.Errorf("--display=%s: %w", c.Display, err)
	}
	return kind, where, nil
}

// usableKVM says what is wrong with /dev/kvm, if something is.
func usableKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: join the group kvm (as root: adduser %s kvm) and log in again", err, os.Getenv("USER"))
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: see lodge doctor", err)
	}
	return err
}

// guestName makes the name of a guest from that of its image.
func guestName(image string) string {
	name := pool.NameFor(image)
	if name == "" || !definition.IsName(name) {
		return "guest"
	}
	return name
}

// oneRun is what one guest needs while it runs.
type oneRun struct {
	ctx   context.Context
	dir   string // its sockets and files; removed afterwards
	write bool
	files []io.Closer
}

func (r *oneRun) path(name string) string { return filepath.Join(r.dir, name) }

func (r *oneRun) close() {
	for _, f := range r.files {
		f.Close() // what was written to disks is of no interest, or on them
	}
}

// boot opens what the guest starts from, and its disks, and reports whether it is a kernel.
func (r *oneRun) boot(c *runCommand, def *definition.Definition) (kernel bool, err error) {
	disks := c.Disk
	if !isURL(c.Image) {
		if kernel, err = isKernel(c.Image); err != nil {
			return false, err
		}
	}
	if kernel {
		def.Boot = definition.Boot{Kernel: c.Image, Initrd: c.Initrd}
		if def.Boot.Kernel, err = filepath.Abs(c.Image); err != nil {
			return false, err
		}
	} else {
		if c.Initrd != "" || c.Append != nil {
			return false, fmt.Errorf("--initrd and --append belong to a kernel, which %s is not", c.Image)
		}
		def.Boot.Firmware = c.Firmware
		disks = append([]string{c.Image}, disks...)
	}
	for n, image := range disks {
		k, err := r.disk(image)
		if err != nil {
			return false, err
		}
		if k.Name = "disk" + strconv.Itoa(n); n == 0 && !kernel {
			if err := bootable(image, k.Path); err != nil {
				return false, err
			}
		}
		def.Disks = append(def.Disks, k)
	}
	return kernel, nil
}

// Where kernels are told by: the signatures of an ELF file, and of a bzImage (Documentation/arch/x86/boot.rst).
const (
	elfMagic     = "\x7fELF"
	bzImageMagic = "HdrS"
	bzImageAt    = 0x202
)

func isKernel(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, 1024)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return false, err
	}
	head = head[:n]
	return bytes.HasPrefix(head, []byte(elfMagic)) || n > bzImageAt && bytes.HasPrefix(head[bzImageAt:], []byte(bzImageMagic)), nil
}

func isURL(image string) bool {
	return strings.HasPrefix(image, "http://") || strings.HasPrefix(image, "https://")
}

// disk opens an image for the guest: itself, if it is to be written to or never is, else a copy that has no name any more.
func (r *oneRun) disk(image string) (definition.Disk, error) {
	none := definition.Disk{}
	var src *pool.Source
	if isURL(image) {
		if r.write {
			return none, fmt.Errorf("%s: --write is for files", image)
		}
		s, c, err := pool.FromURL(r.ctx, image)
		if err != nil {
			return none, err
		}
		defer c.Close()
		src = s
	} else {
		f, err := os.Open(image)
		if err != nil {
			return none, err
		}
		defer f.Close()
		head := make([]byte, format.HeadSize)
		n, err := f.ReadAt(head, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return none, err
		}
		kind, err := format.Detect(head[:n])
		if err != nil {
			return none, fmt.Errorf("%s: %w", image, err)
		}
		path, err := filepath.Abs(image)
		switch {
		case err != nil:
			return none, err
		case kind == format.ISO:
			return definition.Disk{Path: path, ReadOnly: true}, nil
		case r.write && kind != format.Raw:
			return none, fmt.Errorf("%s is %s: --write is for raw images: convert it, such as by qemu-img convert -O raw", image, kind)
		case r.write:
			return definition.Disk{Path: path}, nil
		}
		if src, err = pool.FromFile(f); err != nil {
			return none, err
		}
	}
	copied, err := r.copy(src)
	if err != nil {
		return none, err
	}
	r.files = append(r.files, copied)
	return definition.Disk{Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), copied.Fd())}, nil
}

// copy returns a raw copy of an image. It has no name: it is gone when we are.
func (r *oneRun) copy(src *pool.Source) (_ *os.File, err error) {
	where := os.Getenv("TMPDIR")
	if where == "" {
		where = "/var/tmp" // on a disk, where /tmp may be memory
	}
	dir, err := os.MkdirTemp(where, "lodge-run-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p, err := pool.Open(dir, pool.Options{})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	b := newBar(os.Stderr)
	done, err := p.Import(r.ctx, "disk", src, pool.ImportOptions{}, func(done, total int64) {
		b.set(client.Job{Kind: "copy", Object: src.Origin, Done: uint64(done), Total: uint64(total)})
	})
	b.end()
	if err != nil {
		return nil, err
	}
	if len(done.Images) != 1 {
		return nil, fmt.Errorf("%s has %d disks: import it as a guest, by lodge import", src.Origin, len(done.Images))
	}
	f, err := p.OpenDisk(done.Images[0].Name, false)
	if err != nil {
		return nil, err
	}
	return f, unix.Flock(int(f.Fd()), unix.LOCK_UN) // the lock is for the guest
}

// bootable says why a BIOS cannot start from a disk, if it cannot: it wants code in the first sector, and has no CD drive.
func bootable(image, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var mbr [512]byte
	if _, err := f.ReadAt(mbr[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if binary.LittleEndian.Uint16(mbr[510:]) == 0xaa55 && mbr[0] != 0 {
		return nil
	}
	return fmt.Errorf("%s: its first sector has nothing that a BIOS could start: if it starts by UEFI or from a CD drive only, start "+
		"its kernel: lodge run VMLINUZ --initrd INITRD --append 'root=/dev/vda1' --disk %[1]s", image)
}

// run starts the guest's programs and waits for their end. The first that ends takes the others with it.
func (r *oneRun) run(def *definition.Definition, display, where string) error {
	// A program of ours ends with us, however that comes: with the thread that has started it (PR_SET_PDEATHSIG(2const)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	ends := make(chan error)
	started := 0
	start := func(name string, cmd *exec.Cmd) error {
		cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGTERM}
		if err := cmd.Start(); err != nil {
			return err
		}
		started++
		go func() {
			err := cmd.Wait()
			if quiet, ok := cmd.Stderr.(*lastWords); ok && err != nil {
				err = fmt.Errorf("%w: %s", err, quiet)
			}
			if err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
			cancel()
			ends <- err
		}()
		return nil
	}
	err := r.startAll(ctx, def, display, where, start)
	if err != nil {
		cancel()
	}
	for range started {
		if e := <-ends; err == nil {
			err = e // of the first that has ended
		}
	}
	if r.ctx.Err() != nil {
		return nil // as the user wished
	}
	return err
}

func (r *oneRun) startAll(ctx context.Context, def *definition.Definition, display, where string, start func(name string, cmd *exec.Cmd) error) error {
	vmm, err := program.Find("lodge-vmm")
	if err != nil {
		return err
	}
	if len(def.NICs) > 0 {
		cmd, err := r.network(ctx, def)
		if err != nil {
			return fmt.Errorf("network: %w", err)
		}
		if err := start("lodge-net", cmd); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, vmm, "run", r.path("guest.toml"))
	if display == displaySerial {
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	}
	cmd.Stderr = os.Stderr
	if err := start("lodge-vmm", cmd); err != nil || display == displaySerial {
		return err
	}
	seat, err := r.seat(ctx, def, display, where)
	if err != nil {
		return err
	}
	return start("lodge-seat", seat)
}

// seat returns the program that shows the guest.
func (r *oneRun) seat(ctx context.Context, def *definition.Definition, display, where string) (*exec.Cmd, error) {
	seat, err := program.Find("lodge-seat")
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf("[[guest]]\nname = %q\ncolor = \"green\"\nslot = 1\ndisplay = %q\ndefinition = %q\n",
		def.Name, def.Display.Path, r.path("guest.toml"))
	if err := os.WriteFile(r.path("seat.toml"), []byte(text), 0o600); err != nil {
		return nil, err
	}
	output := "drm"
	if display == displayRFB {
		if where == "" {
			where = freeRFB()
		}
		output = "rfb:" + where
		fmt.Fprintf(os.Stderr, "look at %s with a VNC viewer, such as: vncviewer %s\nCtrl-C here switches the guest off\n", def.Name, vncName(where))
	}
	cmd := exec.CommandContext(ctx, seat, "--output", output, r.path("seat.toml"))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// vncName writes an address as VNC viewers want it: with the number of the display, or two colons and the port.
func vncName(address string) string {
	host, port, err := net.SplitHostPort(address)
	if n, e := strconv.Atoi(port); err == nil && e == nil && n >= firstRFB && n <= lastRFB {
		return fmt.Sprintf("%s:%d", host, n-firstRFB)
	}
	return host + "::" + port
}

// The ports of VNC displays 0 to 99.
const (
	firstRFB = 5900
	lastRFB  = 5999
)

// freeRFB returns the first address of a VNC display that nobody listens on.
func freeRFB() string {
	for port := firstRFB; port < lastRFB; port++ {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	return fmt.Sprintf("127.0.0.1:%d", lastRFB)
}

// lastWords keeps the end of what a program says.
type lastWords []byte

// Write implements io.Writer.
func (l *lastWords) Write(p []byte) (int, error) {
	*l = append(*l, p...)
	*l = (*l)[max(len(*l)-1024, 0):]
	return len(p), nil
}

// String returns the last line.
func (l *lastWords) String() string {
	text := strings.TrimSpace(string(*l))
	return text[strings.LastIndexByte(text, '\n')+1:]
}
