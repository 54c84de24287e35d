package appliance

import (
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/notebook"
)

// How long a machine may take, under load too: to say something, and to end.
const (
	sayLimit = 90 * time.Second
	endLimit = 60 * time.Second
)

// machine is a PC of QEMU's. What it says is on its serial port, which is its console.
type machine struct {
	t      *testing.T
	serial net.Conn
	qmp    *notebook.QMP
	kill   func()
	done   chan error

	mu  sync.Mutex
	out bytes.Buffer
}

// boot starts a machine that boots a kernel directly, with a disk, unless that is "".
func boot(t *testing.T, kernel, initramfs, disk, diskOptions string) *machine {
	t.Helper()
	args := []string{"-m", "768", "-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 panic=-1"}
	if disk != "" {
		args = append(args, "-drive", "if=none,id=d,format=raw,file="+disk+diskOptions, "-device", "virtio-blk-pci,drive=d")
	}
	return start(t, args...)
}

// start starts a machine of some parts.
func start(t *testing.T, parts ...string) *machine {
	t.Helper()
	dir := t.TempDir()
	args := append([]string{"-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt", "-M", "q35", "-nodefaults", "-display", "none", "-no-reboot"}, parts...)
	conns := make([]net.Conn, 2)
	listeners := make([]net.Listener, 2)
	for i, option := range []string{"-serial", "-qmp"} {
		path := filepath.Join(dir, option[1:])
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		listeners[i] = l
		args = append(args, option, "unix:"+path)
	}
	m := &machine{t: t, done: make(chan error, 1)}
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var fault bytes.Buffer
	cmd.Stderr = &fault
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		err := cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, &fault)
		}
		m.done <- err
	}()
	m.kill = func() { _ = cmd.Process.Kill() } // it may have ended
	t.Cleanup(func() {
		m.kill()
		if t.Failed() {
			t.Logf("console:\n%s", m.said())
		}
	})
	for i, l := range listeners {
		if err := l.(*net.UnixListener).SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c
	}
	m.serial = conns[0]
	go m.listen()
	var err error
	if m.qmp, err = notebook.NewQMP(t.Context(), conns[1].(*net.UnixConn)); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) listen() {
	b := make([]byte, 4096)
	for {
		n, err := m.serial.Read(b)
		m.mu.Lock()
		m.out.Write(b[:n])
		m.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (m *machine) said() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.String()
}

// await waits until all of some texts are on the console.
func (m *machine) await(texts ...string) {
	m.t.Helper()
	began := time.Now()
	for _, text := range texts {
		for !strings.Contains(m.said(), text) {
			select {
			case err := <-m.done:
				m.t.Fatalf("the machine has ended (%v) and has not said %q", err, text)
			case <-time.After(20 * time.Millisecond):
			}
			if time.Since(began) > sayLimit {
				m.t.Fatalf("the machine has not said %q in %s", text, sayLimit)
			}
		}
	}
	m.t.Logf("%q after %s", texts, time.Since(began).Round(time.Millisecond))
}

// key types on the console.
func (m *machine) key(k string) {
	m.t.Helper()
	if _, err := m.serial.Write([]byte(k)); err != nil {
		m.t.Fatal(err)
	}
}

// button presses the power button, and waits for the end.
func (m *machine) button() {
	m.t.Helper()
	if _, err := m.qmp.Do(m.t.Context(), "system_powerdown", nil); err != nil {
		m.t.Fatal(err)
	}
	m.ends()
}

// ends waits until the machine is off, which it is to be by itself and in order.
func (m *machine) ends() {
	m.t.Helper()
	began := time.Now()
	select {
	case err := <-m.done:
		if err != nil {
			m.t.Fatal(err)
		}
	case <-time.After(endLimit):
		m.t.Fatalf("the machine is not off after %s", endLimit)
	}
	m.t.Logf("off after %s", time.Since(began).Round(time.Millisecond))
	for _, want := range []string{"step=guests", "step=services", "step=processes", "step=disks", "reboot: Power down"} {
		if !strings.Contains(m.said(), want) {
			m.t.Errorf("the machine did not say %q before it was off", want)
		}
	}
	if strings.Contains(m.said(), "has not ended in time") {
		m.t.Error("a part of the shutdown did not end in time")
	}
}
