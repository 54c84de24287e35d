// Package storaged runs qemu-storage-daemon, one process for each disk that raw files cannot be: qcow2 images in place, LUKS,
// NBD. A VMM reaches it over the socket (vhost-user-blk, see hypervisor/virtio/vhostuser).
//
// What an image claims to be is never guessed: whoever can write to a raw image could make it look like one of another format,
// which names other files of the host. For the same reason an image that builds on others is refused unless that is expected.
package storaged

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/internal/ratelog"
)

// Program is what Start runs, and the package of Debian that has it.
const (
	Program       = "qemu-storage-daemon"
	debianPackage = "qemu-system-common"
)

// Config is a disk to serve.
type Config struct {
	Name     string // for messages, such as "work.root"
	Socket   string // where to listen: a path of at most 107 bytes. What is there is replaced
	PIDFile  string // gets the daemon's number, as soon as there is one; "" is none. See PID
	Image    Image
	ReadOnly bool         // the guest must not write
	Queues   int          // request queues; 0 is 1
	Log      *slog.Logger // for what the daemon says, limited in rate: a guest can make it speak. nil is slog.Default
}

// Daemon is a running storage daemon. It outlives this process.
type Daemon struct {
	name, socket string
	cmd          *exec.Cmd
	capacity     uint64
	done         chan struct{} // closed when it has ended, with err set
	err          error
	said         *lines
}

// Start starts a daemon and returns when it serves cfg.Image. If ctx ends before, the daemon does too.
func Start(ctx context.Context, cfg Config) (*Daemon, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	d, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("storage daemon for %s: %w", cfg.Name, err)
	}
	return d, nil
}

func start(ctx context.Context, cfg Config) (*Daemon, error) {
	program, err := exec.LookPath(Program)
	if err != nil {
		return nil, fmt.Errorf("%w: install the package %s", err, debianPackage)
	}
	nodes, err := cfg.Image.nodes(cfg.ReadOnly)
	if err != nil {
		return nil, err
	}
	locked, err := cfg.Image.lock(cfg.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer locked.Close()
	listener, err := listen(cfg.Socket)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	ours, theirs, err := monitorSockets()
	if err != nil {
		return nil, errors.Join(err, os.Remove(cfg.Socket))
	}
	defer ours.Close()
	defer theirs.Close()
	d := &Daemon{name: cfg.Name, socket: cfg.Socket, done: make(chan struct{}), said: &lines{}}
	d.cmd = exec.Command(program, arguments(cfg, nodes)...)
	// Descriptors 3, 4 and 5, and the secret 6. The lock is the daemon's as long as it has the file.
	d.cmd.ExtraFiles = []*os.File{listener, theirs, locked}
	d.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	d.cmd.Stdout, d.cmd.Stderr = d.said, d.said
	if len(cfg.Image.Secret) > 0 {
		secret, err := secretFile(cfg.Image.Secret)
		if err != nil {
			return nil, errors.Join(err, os.Remove(cfg.Socket))
		}
		defer secret.Close()
		d.cmd.ExtraFiles = append(d.cmd.ExtraFiles, secret)
	}
	limited := ratelog.New(cfg.Log.With("disk", cfg.Name).Handler(), logBurst, time.Second)
	d.said.log = slog.New(limited)
	endLog := func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = limited.Close(ctx) // a reader that is slower than that loses the last lines
	}
	if err := d.cmd.Start(); err != nil {
		endLog()
		return nil, errors.Join(err, os.Remove(cfg.Socket))
	}
	if cfg.PIDFile != "" { // the daemon writes it too, but only when it has opened its image
		if err := os.WriteFile(cfg.PIDFile, []byte(strconv.Itoa(d.cmd.Process.Pid)), 0o600); err != nil {
			cfg.Log.Error("PID file of a storage daemon", "err", err)
		}
	}
	go func() {
		d.err = d.cmd.Wait()
		d.said.flush()
		endLog()
		close(d.done)
	}()
	// When the daemon ends, both sockets are to end as well.
	_, _ = listener.Close(), theirs.Close()
	if d.capacity, err = askCapacity(ctx, ours); err != nil {
		_ = d.cmd.Process.Kill()
		<-d.done
		_ = os.Remove(cfg.Socket)
		if said := d.said.last(); said != "" {
			err = errors.New(said)
		}
		return nil, err
	}
	return d, nil
}

// listen makes the socket. A daemon that gets it listening is reached at once, though it has still to start.
func listen(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	return l.File()
}

// secretFile returns a file in memory that holds p: a secret on the command line or in the environment could be read by others.
func secretFile(p []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("secret", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("secret: %w", err)
	}
	f := os.NewFile(uintptr(fd), "secret")
	if _, err := f.Write(p); err != nil {
		return nil, errors.Join(fmt.Errorf("secret: %w", err), f.Close())
	}
	return f, nil
}

// logBurst is how many lines of a daemon are logged at once: more than it says when it starts or fails.
const logBurst = 10

// startLimit is how long a daemon may take to open its image.
const startLimit = 30 * time.Second

// PID returns the number of the daemon that was started with that PID file, whoever has started it. It reports whether there is
// one.
func PID(file string) (pid int, ok bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		return 0, false
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return 0, false
	}
	words := strings.Split(string(args), "\x00")
	return pid, filepath.Base(words[0]) == Program && slices.Contains(words, file)
}

// Capacity returns the disk's size in bytes.
func (d *Daemon) Capacity() uint64 { return d.capacity }

// Done is closed when the daemon has ended, by itself or by Stop.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Err says how the daemon ended, after Done: nil if Stop asked for it, else what it said last.
func (d *Daemon) Err() error {
	if d.err == nil {
		return nil
	}
	return fmt.Errorf("storage daemon for %s: %w: %s", d.name, d.err, d.said.last())
}

// Stop has the daemon write what it keeps and end, and returns when it has. If ctx ends before, it is killed, and what the
// guest has not flushed may be lost.
func (d *Daemon) Stop(ctx context.Context) error {
	_ = d.cmd.Process.Signal(unix.SIGTERM) // it may have ended already
	var err error
	select {
	case <-d.done:
		err = d.Err()
	case <-ctx.Done():
		_ = d.cmd.Process.Kill()
		<-d.done
		err = fmt.Errorf("storage daemon for %s: did not end by itself: %w", d.name, ctx.Err())
	}
	if rm := os.Remove(d.socket); rm != nil && !errors.Is(rm, os.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}

// arguments returns the command line.
func arguments(cfg Config, nodes []node) []string {
	var args []string
	if len(cfg.Image.Secret) > 0 {
		args = append(args, "--object", object{"qom-type": "secret", "id": secretID, "file": "/proc/self/fd/6"}.String())
	}
	for _, n := range nodes {
		args = append(args, "--blockdev", object(n).String())
	}
	if cfg.PIDFile != "" {
		args = append(args, "--pidfile", cfg.PIDFile)
	}
	args = append(args, "--chardev", "socket,id=monitor,fd=4", "--monitor", "chardev=monitor")
	return append(args, "--export", object{"type": "vhost-user-blk", "id": "disk", "node-name": topNode,
		"addr": object{"type": "fd", "str": "3"}, "writable": !cfg.ReadOnly, "num-queues": max(cfg.Queues, 1)}.String())
}

// lines logs what the daemon says, line by line, and remembers the last ones.
type lines struct {
	log *slog.Logger
	buf []byte // the current line; written by one goroutine of exec's
	end []string
}

// maxLine bounds a line, in bytes, and maxLines how many are remembered: an error and what the daemon advises.
const (
	maxLine  = 1000
	maxLines = 2
)

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	for _, c := range p {
		if c == '\n' {
			l.flush()
		} else if len(l.buf) < maxLine {
			l.buf = append(l.buf, c)
		}
	}
	return len(p), nil
}

func (l *lines) flush() {
	if len(l.buf) == 0 {
		return
	}
	line := strings.TrimPrefix(string(l.buf), Program+": ")
	l.buf = l.buf[:0]
	if l.end = append(l.end, line); len(l.end) > maxLines {
		l.end = l.end[1:]
	}
	l.log.Warn("storage daemon", "says", line)
}

// last returns the last lines, once the daemon has ended.
func (l *lines) last() string { return strings.Join(l.end, ": ") }
