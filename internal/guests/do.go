package guests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/internal/program"
	"github.com/lodgehv/lodge/internal/seatctl"
)

// How long commands may take.
const (
	startLimit = time.Minute      // until a machine answers; one that is restored may have much to read
	endLimit   = 10 * time.Second // until one that is to end has
	quitLimit  = 3 * time.Second  // until one takes the command to end, before it is killed
	askEvery   = 30 * time.Millisecond
)

// maxLog is how large the log of a machine gets before it is begun anew when the guest is started, in bytes. One older file is
// kept.
const maxLog = 4 << 20

// Switch implements textui.System.
func (g *Guests) Switch(ctx context.Context, name string) error {
	if g.cfg.Seat == "" {
		return textui.ErrNoSeat
	}
	return seatctl.Focus(ctx, g.cfg.Seat, name)
}

// Do implements textui.System.
func (g *Guests) Do(ctx context.Context, name string, c textui.Command, progress func(textui.Progress)) error {
	def, err := g.definition(name)
	if err != nil {
		return err
	}
	file := g.each[name].Definition
	defer g.tell()
	switch c {
	case textui.Start:
		return g.start(ctx, name, file, def)
	case textui.PowerButton:
		return call(ctx, def, "power-button", nil, nil)
	case textui.ForceOff:
		return force(ctx, def)
	case textui.Pause:
		return call(ctx, def, "pause", nil, nil)
	case textui.Resume:
		return call(ctx, def, "resume", nil, nil)
	case textui.Save:
		p := struct {
			Dir  string `json:"dir"`
			Stop bool   `json:"stop"`
		}{savedDir(file), true}
		if err := call(ctx, def, "save", p, func(c control.Progress) { progress(textui.Progress(c)) }); err != nil {
			return err
		}
		return gone(ctx, def)
	case textui.Discard:
		if _, _, err := ask(ctx, def.Control); !errors.Is(err, errNotRunning) {
			return errors.New("it is running: stop it first")
		}
		return discard(file)
	}
	return fmt.Errorf("no command %d", c)
}

// call calls a method of a machine.
func call(ctx context.Context, def *definition.Definition, method string, params any, progress func(control.Progress)) error {
	c, err := dial(ctx, def.Control)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, method, params, nil, progress)
}

// gone waits until a machine has ended.
func gone(ctx context.Context, def *definition.Definition) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	for {
		c, err := dial(ctx, def.Control)
		if errors.Is(err, errNotRunning) {
			return nil
		}
		if err == nil {
			c.Close()
		}
		select {
		case <-ctx.Done():
			return errors.New("its machine has not ended yet: stop it by force")
		case <-time.After(askEvery):
		}
	}
}

// force ends a machine, whether it listens or not.
func force(ctx context.Context, def *definition.Definition) error {
	asked, cancel := context.WithTimeout(ctx, quitLimit)
	err := call(asked, def, "quit", nil, nil)
	cancel()
	if errors.Is(err, errNotRunning) {
		return nil
	}
	if err != nil {
		if err := kill(ctx, def.Control); err != nil && !errors.Is(err, errNotRunning) {
			return err
		}
	}
	return gone(ctx, def)
}

// kill kills the process that serves a control socket. That is still the same once we have a handle of it (pidfd_open(2)): a
// number may be given to another process meanwhile.
func kill(ctx context.Context, path string) error {
	peer := func() (int, error) {
		c, err := dial(ctx, path)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return c.Peer()
	}
	pid, err := peer()
	if err != nil {
		return err
	}
	if pid <= 0 {
		return errors.New("its process is not to be seen from here: end it where it runs")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if again, err := peer(); err != nil || again != pid {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	return nil
}

// start runs a guest's machine, from its saved state if there is one, and returns when it answers. The machine outlives us. A
// saved state is used once: afterwards the disks have moved on.
func (g *Guests) start(ctx context.Context, name, file string, def *definition.Definition) error {
	if _, _, err := ask(ctx, def.Control); !errors.Is(err, errNotRunning) {
		return errors.New("it is running already")
	}
	if err := def.CheckHost(file); err != nil {
		return err
	}
	vmm, err := g.vmm()
	if err != nil {
		return err
	}
	restore := saved(file)
	args := []string{"run"}
	if restore {
		args = append(args, "--restore", savedDir(file))
	}
	log, err := openLog(logFile(file))
	if err != nil {
		return err
	}
	defer log.Close()
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd := exec.Command(vmm, append(args, file)...)
	cmd.Dir = filepath.Dir(file)
	cmd.Stderr = log // standard input and output are /dev/null: a serial port there goes nowhere
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	k := g.each[name]
	g.mu.Lock()
	k.ended = ""
	g.mu.Unlock()
	ended := make(chan error, 1)
	go func() { // ends with the machine, or with us
		err := cmd.Wait()
		if err != nil {
			err = fmt.Errorf("its machine ended (%w): %s", err, lastLine(logFile(file), begin))
		}
		ended <- err
		g.mu.Lock()
		if k.ended = ""; err != nil {
			k.ended = err.Error()
		}
		g.mu.Unlock()
		g.tell()
	}()
	if err := answers(ctx, def, ended); err != nil {
		return err
	}
	if restore {
		return discard(file)
	}
	return nil
}

// answers waits until a machine that was started answers, or has ended.
func answers(ctx context.Context, def *definition.Definition, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		asked, cancel := context.WithTimeout(ctx, answerLimit)
		st, _, err := ask(asked, def.Control)
		cancel()
		if err == nil && st.State != "starting" {
			return nil
		}
		select {
		case err := <-ended:
			return err // nil: a guest that has switched itself off at once
		case <-ctx.Done():
			return errors.New("its machine does not answer: see its log, or stop it by force")
		case <-time.After(askEvery):
		}
	}
}

// vmm returns the program that runs guests.
func (g *Guests) vmm() (string, error) {
	if g.cfg.VMM != "" {
		return g.cfg.VMM, nil
	}
	return program.Find("lodge-vmm")
}

// openLog opens a log to append to.
func openLog(path string) (*os.File, error) {
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// lastLine returns the last line that was written to a log from begin on.
func lastLine(path string, begin int64) string {
	b, err := tail(path, begin, 4096)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return "its log says nothing"
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// tail returns the end of a file from begin on, up to limit bytes of it.
func tail(path string, begin int64, limit int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO would wait for who writes
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", path)
	}
	begin = max(begin, st.Size()-int64(limit), 0)
	return io.ReadAll(io.NewSectionReader(f, begin, int64(limit)))
}
