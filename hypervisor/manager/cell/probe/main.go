// Probe tries what a program that somebody else has taken over would try, and prints a JSON object of what came of it:
// "reached", or why not. Tests run it in a cell, and outside of one, where it shows that the attempts are real.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/cell/probe/target"
)

func main() {
	var t target.Target
	files := map[string]*os.File{}
	for _, f := range activation.Files(true) {
		files[f.Name()] = f
	}
	if err := json.Unmarshal([]byte(os.Args[2]), &t); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	modes := map[string]func() map[string]string{
		"reach":  func() map[string]string { return reach(&t, files) },
		"exceed": func() map[string]string { return exceed(files) },
		"hog":    hog,
		"sleep":  sleep,
	}
	if err := json.NewEncoder(os.Stdout).Encode(modes[os.Args[1]]()); err != nil {
		os.Exit(1)
	}
}

// sleep says that it is there, and stays until somebody ends it.
func sleep() map[string]string {
	fmt.Println("here")
	time.Sleep(time.Minute)
	return nil
}

// reach tries to reach what is not its own.
func reach(t *target.Target, files map[string]*os.File) map[string]string {
	r := map[string]string{
		"who":   fmt.Sprintf("process %d user %d group %d", os.Getpid(), os.Getuid(), os.Getgid()),
		"given": read(files["given"]),
	}
	try := func(what string, err error) {
		if r[what] = "reached"; err != nil {
			r[what] = err.Error()
		}
	}
	open := func(path string, flags int) error {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	for _, path := range []string{t.File, "/etc/passwd", "/proc/self/status", "/sys/kernel", "/dev/null", "/"} {
		try("open "+path, open(path, unix.O_RDONLY))
	}
	try("create a file", create(t.Dir))
	try("make a directory", mkdir(t.Dir))
	if d := files["directory"]; d != nil {
		fd, err := unix.Openat(int(d.Fd()), "inside", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		try("open beneath a directory", err)
		fd, err = unix.Openat(int(d.Fd()), "../../../../../../../../etc/passwd", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		try("open from a directory upwards", err)
	}
	for _, network := range [][2]string{{"tcp", t.TCP}, {"unix", t.Unix}, {"unix", "@" + t.Abstract}} {
		c, err := net.DialTimeout(network[0], network[1], time.Second)
		if err == nil {
			c.Close()
		}
		try("connect to "+network[0]+" "+network[1], err)
	}
	try("send raw packets", socket(unix.AF_PACKET, unix.SOCK_RAW, 0))
	try("see network interfaces", interfaces())

	try("signal a process", unix.Kill(t.PID, 0))
	try("signal process 1 of the host", signalOthers())
	try("trace a process", trace(t.PID))
	try("read a process's memory", processRead(t.PID))
	_, err := unix.PidfdOpen(t.PID, 0)
	try("open a process", err)
	try("see shared memory", shared(t.SHM))
	_, err = unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", t.Key, 0)
	try("find a key", err)

	try("become root", syscall.Setresuid(0, 0, 0))
	_, err = unix.Fsopen("tmpfs", 0)
	try("make a file system", err)
	for name, flag := range map[string]int{
		"user": unix.CLONE_NEWUSER, "mount": unix.CLONE_NEWNS, "network": unix.CLONE_NEWNET, "process": unix.CLONE_NEWPID,
	} {
		try("make a "+name+" namespace", fork(uintptr(flag)))
	}
	try("change the root", chroot(t.Dir))
	try("set the clock", setClock())
	try("name the host", setHostname())
	try("use more priority", unix.Setpriority(unix.PRIO_PROCESS, 0, -5))
	_, _, errno := unix.Syscall(unix.SYS_KEXEC_LOAD, 0, 0, 0)
	try("load a kernel", errnoErr(errno))
	_, err = unix.PerfEventOpen(&unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}, -1, 0, -1, 0)
	try("watch all of a processor", err)
	attr := struct{ kind, key, value, entries uint32 }{1, 4, 4, 1} // BPF_MAP_CREATE of a hash
	_, _, errno = unix.Syscall(unix.SYS_BPF, 0, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	try("make a BPF map", errnoErr(errno))
	_, err = unix.Klogctl(3, make([]byte, 1024))
	try("read the kernel's log", err)
	return r
}

func errnoErr(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func read(f *os.File) string {
	if f == nil {
		return "not there"
	}
	b := make([]byte, 100)
	n, err := f.ReadAt(b, 0)
	if n == 0 && err != nil {
		return err.Error()
	}
	return string(b[:n])
}

// create makes a file in dir, or in the root if there is no dir.
func create(dir string) error {
	fd, err := unix.Open(dir+"/made", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == unix.ENOENT {
		fd, err = unix.Open("/made", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	}
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func mkdir(dir string) error {
	err := unix.Mkdir(dir+"/directory", 0o700)
	if err == unix.ENOENT {
		err = unix.Mkdir("/directory", 0o700)
	}
	return err
}

func socket(domain, kind, proto int) error {
	fd, err := unix.Socket(domain, kind, proto)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func interfaces() error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.Flags&net.FlagUp != 0 {
			return nil
		}
	}
	return fmt.Errorf("only %d that are down", len(all))
}

// signalOthers signals process 1 if that is somebody else.
func signalOthers() error {
	if os.Getpid() == 1 {
		return unix.Kill(2, 0) // whoever comes next to it
	}
	return unix.Kill(1, 0)
}

func trace(pid int) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil // our end lets it go
}

func processRead(pid int) error {
	local := unix.Iovec{Base: new(byte), Len: 1}
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: 1, Len: 1}}, 0)
	if err == unix.EFAULT { // we may: there is nothing
		return nil
	}
	return err
}

func shared(id int) error {
	_, err := unix.SysvShmAttach(id, 0, unix.SHM_RDONLY)
	return err
}

// fork makes a process in a new namespace, which ends at once.
func fork(flag uintptr) error {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, flag|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	_, err := unix.Wait4(int(pid), nil, 0, nil)
	return err
}

// chroot tries dir, and the root if there is no dir.
func chroot(dir string) error {
	err := unix.Chroot(dir)
	if err == unix.ENOENT {
		err = unix.Chroot("/")
	}
	return err
}

// setClock sets the clock to what it is.
func setClock() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		return err
	}
	return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
}

// setHostname gives the host the name that it has.
func setHostname() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	return unix.Sethostname([]byte(unix.ByteSliceToString(u.Nodename[:])))
}

// exceed tries to have more than its limits of everything, and says how much it had.
func exceed(files map[string]*os.File) map[string]string {
	signal.Ignore(unix.SIGXFSZ)
	r := make(map[string]string)
	note := func(what string, n int, err error) { r[what] = strconv.Itoa(n) + " " + err.Error() }

	const piece = 16 << 20
	n, err := 0, error(nil)
	for ; err == nil; n++ {
		_, err = unix.Mmap(-1, 0, piece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	}
	note("bytes of memory", (n-1)*piece, err)

	at := int64(0)
	for err = nil; err == nil; at += 1 << 16 {
		_, err = files["disk"].WriteAt(make([]byte, 1<<16), at)
	}
	note("bytes of a file", int(at), err)

	for n, err = 0, nil; err == nil; n++ {
		_, err = unix.Dup(0)
	}
	note("descriptors", n, err)

	for n, err = 0, nil; err == nil; n++ {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			err = errno
		} else if pid == 0 {
			for {
				_, _, _ = unix.RawSyscall(unix.SYS_PAUSE, 0, 0, 0)
			}
		}
	}
	note("processes", n, err)
	return r
}

// hog uses shared memory, which no resource limit bounds, until somebody ends it.
func hog() map[string]string {
	fd, err := unix.MemfdCreate("hog", unix.MFD_CLOEXEC)
	if err != nil {
		return map[string]string{"memfd": err.Error()}
	}
	b := make([]byte, 1<<20)
	for n := range 4096 { // 4 GiB, of which there is less in a group of its own
		if _, err := unix.Pwrite(fd, b, int64(n)<<20); err != nil {
			return map[string]string{"written": strconv.Itoa(n), "error": err.Error()}
		}
	}
	return map[string]string{"written": "all"}
}
