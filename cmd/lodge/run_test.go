package main

import (
	"bytes"
	"errors"
	"image/png"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/internal/ptytest"
)

// patience is how long a machine may take that is busy.
const patience = 3 * time.Minute

// built says that programs was called.
var built bool

// programs builds, once, what lodge run starts, and returns their directory.
var programs = sync.OnceValues(func() (string, error) {
	built = true
	dir, err := os.MkdirTemp("", "lodge")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir, "github.com/lodgehv/lodge/cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return dir, errors.New(string(out))
	}
	return dir, nil
})

// guestRun is lodge run in a directory of its own, which it may leave nothing in.
type guestRun struct {
	t   *testing.T
	tmp string
	cmd *exec.Cmd
	out bytes.Buffer
}

func lodgeRun(t *testing.T, args ...string) *guestRun {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs /dev/kvm")
	}
	f.Close()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp("", "run") // short enough for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	r := &guestRun{t: t, tmp: tmp, cmd: exec.CommandContext(t.Context(), filepath.Join(dir, "lodge"), append([]string{"run"}, args...)...)}
	r.cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	return r
}

// ends waits for the end, and sees that nothing is left.
func (r *guestRun) ends(want int) {
	r.t.Helper()
	late := time.AfterFunc(patience, func() { _ = r.cmd.Process.Kill() })
	defer late.Stop()
	if err := r.cmd.Wait(); r.cmd.ProcessState.ExitCode() != want {
		r.t.Errorf("%v, want exit status %d:\n%s", err, want, r.out.String())
	}
	if left, err := os.ReadDir(r.tmp); err != nil || len(left) > 0 {
		r.t.Errorf("left behind: %v, %v", left, err)
	}
}

// bootDisk makes a disk whose first sector prints STARTED on the serial port, and then switches the machine off, or waits.
func bootDisk(t *testing.T, off bool) string {
	t.Helper()
	code := []byte{
		0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xfc, // cli, for the BIOS prints there too; xor ax, ax; mov ds, ax; cld
		0xbe, 0, 0x7c, // mov si, text
		0xba, 0xf8, 0x03, // mov dx, COM1
		0xac, 0x84, 0xc0, 0x74, 0x03, // next: lodsb; test al, al; jz over
		0xee, 0xeb, 0xf8, // out dx, al; jmp next
	}
	if off {
		code = append(code,
			0xba, 0x04, 0x06, // over: mov dx, the PM1 control register
			0xb8, 0, 0x20, // mov ax, SLP_EN, and 0 for S5
			0xef, // out dx, ax
		)
	}
	code = append(code, 0xf4, 0xeb, 0xfd) // over: hlt; jmp over
	code[7] = byte(len(code))
	image := make([]byte, 1<<20)
	copy(image, append(code, "STARTED\n"...))
	image[510], image[511] = 0x55, 0xaa
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(disk, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return disk
}

// A qcow2 image starts on serial, with a network, and switches itself off.
func TestRunDisk(t *testing.T) {
	disk := bootDisk(t, true)
	image := filepath.Join(t.TempDir(), "disk.qcow2")
	if out, err := exec.Command("qemu-img", "convert", "-O", "qcow2", disk, image).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	r := lodgeRun(t, image, "--display=serial", "--memory=64M", "--disk", disk)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.ends(0)
	if !strings.Contains(r.out.String(), "STARTED") {
		t.Errorf("it says:\n%s", r.out.String())
	}
	if after, err := os.ReadFile(image); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the image is another: %v", err)
	}
}

// An ISO that starts from a USB stick starts as a disk, which the guest cannot write to, and which is not copied.
func TestRunISO(t *testing.T) {
	iso, err := os.ReadFile(bootDisk(t, true))
	if err != nil {
		t.Fatal(err)
	}
	copy(iso[32<<10:], "\x01CD001\x01")
	file := filepath.Join(t.TempDir(), "cd.iso")
	if err := os.WriteFile(file, iso, 0o400); err != nil {
		t.Fatal(err)
	}
	r := lodgeRun(t, file, "--display=serial", "--memory=64M", "--net=none")
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.ends(0)
	if !strings.Contains(r.out.String(), "STARTED") || strings.Contains(r.out.String(), "copy ") {
		t.Errorf("it says:\n%s", r.out.String())
	}
}

// A VNC viewer sees the guest's screen; Ctrl-C ends all of it.
func TestRunRFB(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	r := lodgeRun(t, bootDisk(t, false), "--memory=64M", "--net=none", "--display=rfb:127.0.0.1:"+strconv.Itoa(port))
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	picture := filepath.Join(t.TempDir(), "screen.png")
	for deadline := time.Now().Add(patience); !hasText(picture); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("the guest's text is never on the screen")
			break
		}
		_ = exec.Command("gvnccapture", "127.0.0.1:"+strconv.Itoa(port-firstRFB), picture).Run() // not there yet
	}
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(ended); r.ends(0) }()
	<-ended
	if c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}

// hasText reports whether a picture has light grey, the colour of a BIOS's letters, at least a few of them below the bar, and is
// black elsewhere.
func hasText(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	img, err := png.Decode(f)
	if err != nil {
		return false
	}
	const bar = 40
	grey, other := 0, 0
	for y := bar; y < img.Bounds().Dy(); y++ {
		for x := range img.Bounds().Dx() {
			switch r, g, b, _ := img.At(x, y).RGBA(); {
			case r == 0 && g == 0 && b == 0:
			case r == g && g == b && r > 0xa000 && r < 0xb000:
				grey++
			default:
				other++
			}
		}
	}
	return grey > 500 && other == 0
}

// A kernel runs on the terminal, which Ctrl-] leaves, and gets its command line.
func TestRunKernel(t *testing.T) {
	image := kvmtest.Image(kvmtest.Program{Main: func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RDX, 0x3f8)
		for _, c := range "KERNEL" {
			a.Mov(kvmtest.RAX, uint64(c)).Out8()
		}
		a.Spin()
	}})
	text := make([]byte, image.Size)
	if _, err := image.R.ReadAt(text, 0); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, text, 0o600); err != nil {
		t.Fatal(err)
	}
	host, terminal := ptytest.Open(t)
	before := ptytest.Termios(t, terminal)
	r := lodgeRun(t, kernel, "--memory=16M", "--net=none")
	r.cmd.Stdin, r.cmd.Stdout, r.cmd.Stderr = terminal, terminal, terminal
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = host.SetReadDeadline(time.Now().Add(patience))
	var seen []byte
	read := func() bool {
		b := make([]byte, 1024)
		n, err := host.Read(b)
		seen = append(seen, b[:n]...)
		return err == nil
	}
	for !bytes.Contains(seen, []byte("KERNEL")) && read() {
	}
	if !bytes.Contains(seen, []byte("KERNEL")) {
		t.Errorf("it says %q", seen)
	}
	if _, err := host.Write([]byte{0x1d, 0x1d}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for read() {
		}
	}()
	r.ends(0)
	if after := ptytest.Termios(t, terminal); after != before {
		t.Errorf("the terminal was left as %+v, was %+v", after, before)
	}
}

// The disk of a guest is a copy, unless it is to be written to.
func TestRunCopies(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(file, bytes.Repeat([]byte("original"), 1<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, write := range []bool{false, true} {
		r := &oneRun{ctx: t.Context(), dir: t.TempDir(), write: write}
		k, err := r.disk(file)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(k.Path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Errorf("the guest cannot lock it: %v", err)
		}
		b := make([]byte, 8)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != "original" {
			t.Errorf("it begins with %q, %v", b, err)
		}
		if _, err := f.WriteAt([]byte("written!"), 0); err != nil {
			t.Error(err)
		}
		f.Close()
		r.close()
		got, err := os.ReadFile(file)
		if changed := bytes.HasPrefix(got, []byte("written!")); err != nil || changed != write {
			t.Errorf("write is %v, and the image is changed: %v, %v", write, changed, err)
		}
	}
}

// What cannot be started is told, with what to do, and leaves nothing.
func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	iso := make([]byte, 64<<10)
	copy(iso[32<<10:], "\x01CD001\x01")
	qcow2 := at("small.qcow2", nil)
	if out, err := exec.Command("qemu-img", "create", "-f", "qcow2", qcow2, "1M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	zeros := at("zeros.raw", make([]byte, 1<<20))
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{filepath.Join(dir, "absent")}, exitError, "absent: no such file"},
		{[]string{zeros}, exitError, "nothing that a BIOS could start"},
		{[]string{at("cd.iso", iso)}, exitError, "from a CD drive only, start its kernel"},
		{[]string{qcow2, "--write"}, exitError, "--write is for raw images: convert it, such as by qemu-img convert"},
		{[]string{zeros, "--append", "quiet"}, exitError, "--initrd and --append belong to a kernel"},
		{[]string{zeros, "--display", "window"}, exitError, "--display=window: one of serial, rfb,"},
		{[]string{zeros, "--net", "tap"}, exitUsage, `must be one of "user","none"`},
		{[]string{at("elf", []byte("\x7fELF")), "--memory=16M", "--net=none"}, exitError, "ELF header"},
		{[]string{bootDisk(t, true), "--memory=3"}, exitError, `memory = "3": from 2M`},
	} {
		r := lodgeRun(t, tc.args...)
		if err := r.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r.ends(tc.code)
		if !strings.Contains(r.out.String(), tc.want) {
			t.Errorf("%v: %s\nwant %q", tc.args, r.out.String(), tc.want)
		}
	}
}
