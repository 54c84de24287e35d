package notebook

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one QEMU and our ends of its sockets.
type process struct {
	cmd        *exec.Cmd
	log        string
	qmp, agent *net.UnixConn
	life       *time.Timer
	done       chan struct{} // closed when it has ended
	err        error         // how
}

// startQEMU starts QEMU so that it ends when this process does, whatever the
// way, and after life in any case.
func startQEMU(log string, life time.Duration, args []string) (*process, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{log: log, done: make(chan struct{})}
	p.cmd = exec.Command("qemu-system-x86_64", args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, c := range []**net.UnixConn{&p.qmp, &p.agent} { // in the order of fdQMP and fdAgent
		theirs, ours, err := socketPair()
		if err != nil {
			return nil, err
		}
		defer theirs.Close()
		*c = ours
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, theirs)
	}
	started := make(chan error)
	go func() {
		// The parent-death signal is sent when the thread that started the
		// child ends, so that thread stays until the child has.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, p.qmp.Close(), p.agent.Close())
	}
	p.life = time.AfterFunc(life, func() { _ = p.cmd.Process.Kill() })
	return p, nil
}

func socketPair() (theirs *os.File, ours *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "ours")
	defer f.Close() // FileConn has its own copy
	theirs = os.NewFile(uintptr(fds[1]), "theirs")
	conn, err := net.FileConn(f)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return theirs, conn.(*net.UnixConn), nil // which it is
}

// explain adds to an error what QEMU itself said.
func (p *process) explain(err error) error {
	said, rerr := os.ReadFile(p.log)
	if rerr != nil || len(said) == 0 {
		return err
	}
	return fmt.Errorf("%w\nqemu: %s", err, said[max(0, len(said)-2000):])
}

// close asks QEMU to quit, ends it if it does not, and waits.
func (p *process) close(q *QMP) {
	p.life.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), quitLimit)
	defer cancel()
	if q != nil {
		// The answer may be lost in the exit; the exit is what counts.
		_, _ = q.Do(ctx, "quit", nil)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	p.kill()
}

// kill ends QEMU at once, and waits.
func (p *process) kill() {
	p.life.Stop()
	_ = p.cmd.Process.Kill()
	<-p.done
	p.qmp.Close()
	p.agent.Close()
}
