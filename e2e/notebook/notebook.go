package notebook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/image"
)

// Limits on steps whose caller has set none.
const (
	bootLimit  = 5 * time.Minute
	startLimit = time.Minute
	quitLimit  = 5 * time.Second
)

// Notebook is a running notebook. The client runs commands in it.
type Notebook struct {
	*rpc.Client
	cfg    Config
	set    *image.Set
	dir    string // of this run; removed by Close
	qemu   *process
	qmp    *QMP
	drives []drive
	unlock func()
}

// Start resumes a notebook, after having built and booted it if that was never
// done. Without a deadline of ctx the boot is given five minutes. ctx is not
// kept: the notebook lives until Close, or for Config.Life.
func Start(ctx context.Context, cfg Config) (*Notebook, error) {
	n, err := prepare(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("notebook: %w", err)
	}
	snap, err := n.booted(ctx)
	if err == nil {
		err = n.restore(ctx, snap)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("notebook: %w", err), n.Close())
	}
	return n, nil
}

// prepare makes the images and takes the machine's one place for a notebook.
func prepare(ctx context.Context, cfg Config) (*Notebook, error) {
	b := cfg.Builder
	if b == nil {
		var err error
		if b, err = image.NewBuilder(cfg.Log); err != nil {
			return nil, err
		}
	}
	set, err := b.All(ctx)
	if err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults(set)
	cfg.Builder = b
	unlock, err := image.Lock(ctx, filepath.Join(b.Dir, ".running.lock"), func() {
		if cfg.Log != nil {
			fmt.Fprintln(cfg.Log, "notebook: waiting for the end of another one on this machine")
		}
	})
	if err != nil {
		return nil, err
	}
	dir, err := newRunDir(b.Dir)
	if err != nil {
		unlock()
		return nil, err
	}
	return &Notebook{cfg: cfg, set: set, dir: dir, unlock: unlock}, nil
}

// newRunDir makes the directory of a run, and removes those of runs that were
// killed: the caller has the lock, nobody else runs.
func newRunDir(parent string) (string, error) {
	const prefix = ".run-"
	left, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return "", err
	}
	for _, d := range left {
		if err := os.RemoveAll(d); err != nil {
			return "", err
		}
	}
	return os.MkdirTemp(parent, prefix)
}

func (n *Notebook) logf(format string, args ...any) {
	if n.cfg.Log != nil {
		fmt.Fprintf(n.cfg.Log, "notebook: "+format+"\n", args...)
	}
}

// launch starts QEMU on drives and connects to its agent. state is a saved state
// to resume from, or empty to boot.
func (n *Notebook) launch(ctx context.Context, limit time.Duration, state string) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("not up after %v", limit))
		defer cancel()
	}
	args := n.cfg.args(n.set, n.path("tools.raw"), n.path("console.log"), n.drives)
	if state != "" {
		args = append(args, "-incoming", "defer")
	}
	p, err := startQEMU(n.path("qemu.log"), n.cfg.Life, args)
	if err != nil {
		return err
	}
	n.qemu = p
	if n.qmp, err = NewQMP(ctx, p.qmp); err != nil {
		return p.explain(err)
	}
	if state != "" {
		if err := n.incoming(ctx, state); err != nil {
			return p.explain(err)
		}
	}
	if n.Client, err = rpc.NewClient(ctx, p.agent); err != nil {
		return p.explain(fmt.Errorf("%w\n%s", err, n.consoleTail()))
	}
	if !n.cfg.ICount { // whose figures it would be in
		go keepAwake(n.Client)
	}
	return nil
}

// keepAwake sees to it that the notebook has an interrupt each second. With guests in it the emulator (QEMU 7.2, TCG) now and then
// loses one of the timer, for which alone a kernel at rest is waiting: it and all its guests slept until the next key or packet.
func keepAwake(c *rpc.Client) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if c.Poke() != nil {
				return
			}
		case <-c.Done():
			return
		}
	}
}

func (n *Notebook) path(name string) string { return filepath.Join(n.dir, name) }

// QMP executes a command of QEMU's machine protocol: args is what is encoded as
// its arguments, nil for none.
func (n *Notebook) QMP(ctx context.Context, command string, args any) (json.RawMessage, error) {
	return n.qmp.Do(ctx, command, args)
}

// WaitEvent waits until QEMU has reported an event ("SUSPEND") more than seen
// times since the start and returns how often it has.
func (n *Notebook) WaitEvent(ctx context.Context, event string, seen int) (int, error) {
	for {
		c, change := n.qmp.count(event)
		if c > seen {
			return c, nil
		}
		select {
		case <-change:
		case <-n.qmp.done:
			return c, n.qemu.explain(fmt.Errorf("wait for %s: QEMU has ended", event))
		case <-ctx.Done():
			return c, fmt.Errorf("wait for %s: %w", event, context.Cause(ctx))
		}
	}
}

// Screendump returns what the notebook's screen shows, as PNG. device is the id
// of a display device, the first when empty; head is its output.
func (n *Notebook) Screendump(ctx context.Context, device string, head int) ([]byte, error) {
	f := n.path("screen.png")
	args := map[string]any{"filename": f, "format": "png"}
	if device != "" {
		args["device"], args["head"] = device, head
	}
	if _, err := n.QMP(ctx, "screendump", args); err != nil {
		return nil, err
	}
	return os.ReadFile(f)
}

// Display connects to what QEMU shows and what it is told of its monitors, by
// org.qemu.Display1. The notebook needs DisplayArgs in its Config.Args.
func (n *Notebook) Display(ctx context.Context) (*net.UnixConn, error) {
	theirs, ours, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	const name = "display"
	_, err = n.qmp.Do(ctx, "getfd", map[string]string{"fdname": name}, int(theirs.Fd()))
	if err == nil {
		_, err = n.QMP(ctx, "add_client", map[string]string{"protocol": "@dbus-display", "fdname": name})
	}
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	return ours, nil
}

// Console returns what the notebook's own kernel and init have written since
// this start. It is empty unless something happened, for the boot was before.
func (n *Notebook) Console() string {
	b, err := os.ReadFile(n.path("console.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Postmortem tells why the notebook ended, for who finds that its agent is gone:
// how QEMU exited, what it said, and the end of the console.
func (n *Notebook) Postmortem() string {
	how := "QEMU runs"
	select {
	case <-n.qemu.done:
		how = fmt.Sprintf("QEMU has ended: %v, reason %q", n.qemu.err, n.qmp.shutdownReason())
	case <-time.After(quitLimit):
	}
	return n.qemu.explain(errors.New(how)).Error() + "\n" + n.consoleTail()
}

func (n *Notebook) consoleTail() string {
	s := n.Console()
	return "the notebook's console:\n" + s[max(0, len(s)-2000):]
}

// GuestAgent connects to the agent of a guest through a Unix socket inside the
// notebook. When port is not 0 the socket is a VMM's vsock multiplexer and the
// port is asked for in its way: "CONNECT port", answered by "OK number".
// It tries until the guest answers or ctx ends.
func (n *Notebook) GuestAgent(ctx context.Context, socket string, port uint32) (*rpc.Client, error) {
	var last error
	for {
		c, err := n.guestAgent(ctx, socket, port)
		if err == nil {
			return c, nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("guest agent at %s: %w (last: %w)", socket, context.Cause(ctx), errors.Join(last, err))
		case <-n.Done():
			return nil, fmt.Errorf("guest agent at %s: %w", socket, rpc.ErrClosed)
		case <-time.After(guestRetry):
		}
	}
}

// guestRetry is how often a guest that does not answer yet is asked again.
const guestRetry = 200 * time.Millisecond

func (n *Notebook) guestAgent(ctx context.Context, socket string, port uint32) (*rpc.Client, error) {
	conn, err := n.Dial(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if port != 0 {
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		err := vsockConnect(conn, port)
		stop()
		if err != nil {
			conn.Close()
			return nil, err
		}
	}
	return rpc.NewClient(ctx, conn)
}

func vsockConnect(conn io.ReadWriter, port uint32) error {
	if _, err := io.WriteString(conn, "CONNECT "+strconv.FormatUint(uint64(port), 10)+"\n"); err != nil {
		return err
	}
	var line []byte
	for one := make([]byte, 1); len(line) < 64; {
		if _, err := io.ReadFull(conn, one); err != nil {
			return fmt.Errorf("vsock port %d: %w", port, err)
		}
		if one[0] == '\n' {
			break
		}
		line = append(line, one[0])
	}
	if len(line) < 3 || string(line[:3]) != "OK " {
		return fmt.Errorf("vsock port %d: answer %q, want OK", port, line)
	}
	return nil
}

// Close ends the notebook and forgets what was written to its disks.
func (n *Notebook) Close() error {
	if n.qemu != nil {
		n.qemu.close(n.qmp)
	}
	if n.Client != nil {
		n.Client.Close()
	}
	err := os.RemoveAll(n.dir)
	n.unlock()
	return err
}
