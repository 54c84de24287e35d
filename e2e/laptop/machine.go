// Package laptop is a simulated notebook that has nothing but Lodge: its firmware starts what lodge-image makes, from a disk or from the
// flash. Unlike package notebook, which has a Debian with an agent, it is looked at from outside alone: screen, keyboard, serial console.
package laptop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/png"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lodgehv/lodge/e2e/desk"
	"github.com/lodgehv/lodge/e2e/notebook"
)

// How long a machine may take, under load too: to say something, to end, and until something is on its screen (the guest's first
// boot, and the firmware before it).
const (
	sayLimit  = 90 * time.Second
	endLimit  = 60 * time.Second
	lookLimit = 5 * time.Minute
)

// Machine is a PC of QEMU's. What it says is on its serial port, which is its console.
type Machine struct {
	desk.Hands
	On time.Time // when it was switched on

	serial net.Conn
	qmp    *notebook.QMP
	cmd    *exec.Cmd
	dir    string // of its sockets
	done   chan struct{}
	err    error // how QEMU has ended, once done is closed

	mu  sync.Mutex
	out bytes.Buffer
}

// Accelerators of a machine: QEMU's arguments.
var (
	emulated = []string{"-accel", "tcg,thread=multi"}
	// counted has a clock that advances by one nanosecond for each instruction: what it says of times is a count of them, and of waiting.
	counted = []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on"}
)

// Start switches on a machine of some parts, which are QEMU's arguments. Close it.
func Start(ctx context.Context, parts ...string) (*Machine, error) {
	dir, err := os.MkdirTemp("", "laptop-")
	if err != nil {
		return nil, err
	}
	m := &Machine{On: time.Now(), dir: dir, done: make(chan struct{})}
	m.Hands = desk.Hands{QMP: func(ctx context.Context, command string, args any) (json.RawMessage, error) {
		return m.qmp.Do(ctx, command, args)
	}}
	if err := m.start(ctx, parts); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return m, nil
}

func (m *Machine) start(ctx context.Context, parts []string) error {
	args := append([]string{"-cpu", "EPYC,+svm,+npt", "-M", "q35,sata=off,max-fw-size=16777216", "-nodefaults", "-no-reboot"}, parts...)
	if !slices.Contains(parts, "-accel") {
		args = append(args, emulated...)
	}
	conns := make([]net.Conn, 2)
	listeners := make([]net.Listener, 2)
	for i, option := range []string{"-serial", "-qmp"} {
		path := filepath.Join(m.dir, option[1:])
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		defer l.Close()
		listeners[i] = l
		args = append(args, option, "unix:"+path)
	}
	m.cmd = exec.Command("qemu-system-x86_64", args...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var fault bytes.Buffer
	m.cmd.Stderr = &fault
	if err := m.cmd.Start(); err != nil {
		return err
	}
	go func() {
		defer close(m.done)
		if m.err = m.cmd.Wait(); m.err != nil {
			m.err = fmt.Errorf("QEMU: %w: %s", m.err, &fault)
		}
	}()
	for i, l := range listeners {
		if err := l.(*net.UnixListener).SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return errors.Join(err, m.Cut())
		}
		c, err := l.Accept()
		if err != nil {
			return errors.Join(err, m.Cut(), m.err)
		}
		conns[i] = c
	}
	m.serial = conns[0]
	go m.listen()
	var err error
	if m.qmp, err = notebook.NewQMP(ctx, conns[1].(*net.UnixConn)); err != nil {
		return errors.Join(err, m.Cut())
	}
	return nil
}

func (m *Machine) listen() {
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

// Close takes the power away, if it is on, and removes what the machine has left.
func (m *Machine) Close() error { return errors.Join(m.Cut(), os.RemoveAll(m.dir)) }

// Done is closed when the machine is off.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Said returns what is on the console.
func (m *Machine) Said() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.String()
}

// Await waits until all of some texts are on the console.
func (m *Machine) Await(ctx context.Context, texts ...string) error {
	began := time.Now()
	for _, text := range texts {
		for !strings.Contains(m.Said(), text) {
			select {
			case <-m.done:
				return fmt.Errorf("the machine has ended (%w) and has not said %q", m.err, text)
			case <-ctx.Done():
				return fmt.Errorf("waiting for %q: %w", text, context.Cause(ctx))
			case <-time.After(20 * time.Millisecond):
			}
			if time.Since(began) > sayLimit {
				return fmt.Errorf("the machine has not said %q in %s", text, sayLimit)
			}
		}
	}
	return nil
}

// Clock returns when the kernel first said a line that a pattern matches, by its clock, in seconds.
func (m *Machine) Clock(pattern string) (float64, error) {
	found := regexp.MustCompile(`(?m)^\[ *([0-9.]+)\] .*` + pattern).FindStringSubmatch(m.Said())
	if found == nil {
		return 0, fmt.Errorf("the machine has not said %q", pattern)
	}
	return strconv.ParseFloat(found[1], 64)
}

// Key types on the console.
func (m *Machine) Key(k string) error {
	_, err := m.serial.Write([]byte(k))
	return err
}

// PowerButton presses the power button, and waits for the end.
func (m *Machine) PowerButton(ctx context.Context) error {
	if _, err := m.qmp.Do(ctx, "system_powerdown", nil); err != nil {
		return err
	}
	return m.Ends(ctx)
}

// Ends waits until the machine is off, which it is to be by itself and in order.
func (m *Machine) Ends(ctx context.Context) error {
	select {
	case <-m.done:
		if m.err != nil {
			return m.err
		}
	case <-ctx.Done():
		return fmt.Errorf("waiting for the machine's end: %w", context.Cause(ctx))
	case <-time.After(endLimit):
		return fmt.Errorf("the machine is not off after %s", endLimit)
	}
	for _, want := range []string{"step=guests", "step=services", "step=processes", "step=disks", "reboot: Power down"} {
		if !strings.Contains(m.Said(), want) {
			return fmt.Errorf("the machine did not say %q before it was off", want)
		}
	}
	if strings.Contains(m.Said(), "has not ended in time") {
		return errors.New("a part of the shutdown did not end in time")
	}
	return nil
}

// Cut takes the power away.
func (m *Machine) Cut() error {
	_ = m.cmd.Process.Kill() // it may have ended
	select {
	case <-m.done:
		return nil
	case <-time.After(endLimit):
		return errors.New("QEMU does not end")
	}
}

// Shoot returns what is on the screen, and leaves it in a file, a PNG.
func (m *Machine) Shoot(ctx context.Context, file string) (image.Image, error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	if _, err := m.qmp.Do(ctx, "screendump", map[string]any{"filename": abs, "format": "png"}); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(abs)
	if err != nil {
		return nil, err
	}
	return png.Decode(bytes.NewReader(b))
}

// Sees waits until the screen is as ok wants it, and leaves the last look at it in a file. An error says that what is not there.
func (m *Machine) Sees(ctx context.Context, file, what string, ok func(img image.Image) bool) (image.Image, error) {
	for begin := time.Now(); ; {
		img, err := m.Shoot(ctx, file)
		if err != nil || ok(img) {
			return img, err
		}
		if time.Since(begin) > lookLimit {
			return nil, fmt.Errorf("%s is not on the screen after %s: see %s", what, lookLimit, file)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s on the screen: %w", what, context.Cause(ctx))
		}
	}
}
