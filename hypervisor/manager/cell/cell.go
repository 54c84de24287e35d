// Package cell starts programs that deal with hostile data, such as a guest's VMM or the helper of a network, where they can
// reach nothing but the descriptors that they are given. docs/cell.md says what each layer is for.
//
//	caller ──clone into new namespaces──▶ init (the caller's own program, see RunInit)
//	                                        │ an empty root, no capabilities, another user, limits, Landlock
//	                                        └──exec──▶ the program, which gives up system calls of its own accord
//
// Go runs no code of its own between clone and exec, so that the inner steps are an init's: the caller's program, started once
// more. The program to run is handed to it as a descriptor, since its file cannot be reached any more when it is executed. It
// must be static.
package cell

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The users that guests and helpers run as: no system gives them to people (they are above those that the shadow tools hand
// out by default).
const (
	FirstUID = 0x4c4f0000
	LastUID  = 0x4c4fffff
)

// Spec says what to start in a cell.
type Spec struct {
	Program *os.File // a static executable
	Args    []string // the first is what the program is called
	Env     []string // what it needs of an environment; LISTEN_* are set by Start

	// Files are all that the program has of the world: it finds them as sd_listen_fds(3) describes.
	Files []File
	// Stdout and Stderr are its standard output and error; nil is /dev/null, as its standard input always is.
	Stdout, Stderr *os.File

	// UID is the user and group that the program runs as, from FirstUID to LastUID; no two cells should have the same. It
	// counts only if the caller is root: else the user is the caller.
	UID uint32

	Limits Limits
	Cgroup *Cgroup // where it runs; nil is the caller's

	// HostNetwork leaves the program in the caller's network, where it may make connections but listen to none: for a helper
	// whose work they are.
	HostNetwork bool

	// Record, if it is not nil, is called with the number of the program's process, as the caller sees it, when the cell is
	// whole. Only if it returns nil the program is executed: whenever the caller is killed, either Record has been called or
	// the process ends by itself.
	Record func(pid int, lacks []Lack) error

	// Strict makes any Lack an error.
	Strict bool
}

// File is a descriptor and what the program knows it by.
type File struct {
	Name string // of printable ASCII, without ':'
	File *os.File
}

// Limits are resource limits of the program, setrlimit(2), which hold also where there are no control groups. 0 stands for
// what comments say.
type Limits struct {
	Files     uint64 // open descriptors; 1024
	Processes uint64 // processes and threads of the user; 512
	Data      uint64 // bytes of private writable memory; unlimited
	FileSize  uint64 // bytes beyond which no file grows or is written to, in memory too (memfd_create(2)); unlimited
}

// Lack is a layer that a cell has to do without, because the kernel or the caller's rights do not allow it.
type Lack struct {
	Layer  string `json:"layer"`
	Reason string `json:"reason"`
}

// String returns l for people.
func (l Lack) String() string { return l.Layer + ": " + l.Reason }

// Process is a program that runs in a cell. It outlives the caller.
type Process struct {
	*os.Process
	Lacks []Lack // what its cell lacks
}

const (
	firstFile = 3 // after the standard ones
	maxFiles  = 256
)

// InitName is what a cell's init calls itself, in a list of processes, until it executes the program.
const InitName = "lodge-cell-init"

// startLimit bounds how long the init may take. It waits for nothing.
const startLimit = 30 * time.Second

// order is what the init is told.
type order struct {
	Args, Env, Names []string
	UID              uint32
	User             bool // a user namespace: UID does not count
	HostNetwork      bool
	Limits           Limits
}

// report is what the init answers before it executes the program.
type report struct {
	Lacks []Lack
	Error string // it ends, and this is why
}

// namespaces are those of every cell: of its own are mounts, network, processes, System V's shared objects, and the names of
// the host.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// Start starts a program. It returns when the program runs in its cell, whole but for Lacks. The files stay the caller's. The
// program's own program, such as lodged, must have called RunInit first of all.
func Start(ctx context.Context, s Spec) (*Process, error) {
	if len(s.Args) == 0 {
		return nil, errors.New("cell: no arguments, not even the program's name")
	}
	p, err := start(ctx, &s)
	if err != nil {
		return nil, fmt.Errorf("cell of %s: %w", s.Args[0], err)
	}
	return p, nil
}

func start(ctx context.Context, s *Spec) (*Process, error) {
	o := order{Args: s.Args, Env: s.Env, UID: s.UID, Limits: s.Limits, HostNetwork: s.HostNetwork, User: os.Geteuid() != 0}
	if err := s.check(); err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	defer theirs.Close()

	files := []*os.File{null, orElse(s.Stdout, null), orElse(s.Stderr, null)}
	for _, f := range s.Files {
		o.Names = append(o.Names, f.Name)
		files = append(files, f.File)
	}
	files = append(files, s.Program, theirs)

	var lacks []Lack
	attr := &syscall.SysProcAttr{Cloneflags: namespaces, Setsid: true}
	if s.HostNetwork {
		attr.Cloneflags &^= unix.CLONE_NEWNET
	}
	if o.User {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
		lacks = append(lacks, Lack{"user", "the program runs as the caller, who is not root"})
	}
	if s.Cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(s.Cgroup.dir.Fd())
		lacks = append(lacks, s.Cgroup.Lacks...)
	} else {
		lacks = append(lacks, Lack{"control group", "none was given"})
	}
	p, err := os.StartProcess("/proc/self/exe", []string{InitName, strconv.Itoa(len(s.Files))}, &os.ProcAttr{Files: files, Env: []string{}, Sys: attr})
	if err != nil {
		return nil, explain(err, o.User)
	}
	theirs.Close()
	err = converse(ctx, ours, &o, func(more []Lack) error {
		lacks = append(lacks, more...)
		switch {
		case s.Strict && len(lacks) > 0:
			return fmt.Errorf("it is not to lack anything: %v", lacks)
		case s.Record != nil:
			return s.Record(p.Pid, lacks)
		}
		return nil
	})
	if err != nil {
		_ = p.Kill() // it may have ended, which is what is wanted
		_, e := p.Wait()
		return nil, errors.Join(err, e)
	}
	return &Process{p, lacks}, nil
}

func (s *Spec) check() error {
	if s.Program == nil {
		return errors.New("no program")
	}
	if os.Geteuid() == 0 && (s.UID < FirstUID || s.UID > LastUID) {
		return fmt.Errorf("user %d: from %d to %d are for cells", s.UID, FirstUID, LastUID)
	}
	if len(s.Files) > maxFiles {
		return fmt.Errorf("%d files: at most %d are possible", len(s.Files), maxFiles)
	}
	for _, f := range s.Files {
		if f.Name == "" || len(f.Name) > 255 || strings.ContainsFunc(f.Name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
			return fmt.Errorf("file %q: its name has to be of printable ASCII without ':'", f.Name)
		}
		if f.File == nil {
			return fmt.Errorf("file %q: is nil", f.Name)
		}
	}
	return nil
}

func orElse(f, other *os.File) *os.File {
	if f != nil {
		return f
	}
	return other
}

// explain says what to do about an error of clone.
func explain(err error, user bool) error {
	switch {
	case user && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EACCES)):
		return fmt.Errorf("%w: this system does not let users make user namespaces: run as root, or allow them "+
			"(the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the kernel lacks a kind of namespace, or a cgroup cannot be cloned into (needs Linux 5.7)", err)
	}
	return err
}

func socketPair() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "init's socket")
	f := os.NewFile(uintptr(fds[0]), "socket to init")
	c, err := net.FileConn(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return c.(*net.UnixConn), theirs, nil // of AF_UNIX it is one
}

// converse tells the init what to do. It calls ready when the cell is whole, and has the program executed if that returns nil.
// An init that says nothing of an error and closes its socket has executed it.
func converse(ctx context.Context, c *net.UnixConn, o *order, ready func(lacks []Lack) error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	in, out := json.NewDecoder(io.LimitReader(c, 64<<10)), json.NewEncoder(c)
	early := func(err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("its init has ended early (%w): does the program call cell.RunInit?", err)
	}
	var r report
	if err := out.Encode(o); err != nil {
		return early(err)
	}
	if err := in.Decode(&r); err != nil {
		return early(err)
	}
	if r.Error != "" {
		return errors.New(r.Error)
	}
	if err := ready(r.Lacks); err != nil {
		return err
	}
	if err := out.Encode(true); err != nil {
		return early(err)
	}
	switch err := in.Decode(&r); { // comes if the program cannot be executed
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return early(err)
	}
	return errors.New(r.Error)
}
