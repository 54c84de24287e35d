package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// killGrace is how long Do waits for the end of a command that it has killed.
const killGrace = 5 * time.Second

// Result is a finished command.
type Result struct {
	ExitStatus
	Stdout, Stderr string
}

// Check returns an error that shows what was run and what it said when the
// command failed.
func (r Result) Check(args ...string) error {
	if r.Code == 0 {
		return nil
	}
	return fmt.Errorf("%s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
}

// Run runs a command to its end. When ctx ends first, the command is killed and
// what it had written is returned beside the error. As with [Process.Wait], a
// command that fails is no error: see [Result.Check].
func (c *Client) Run(ctx context.Context, args ...string) (Result, error) {
	return c.Do(ctx, Cmd{Args: args})
}

// Shell runs a script with /bin/sh and makes its failure an error. It returns
// the script's standard output without the last newline.
func (c *Client) Shell(ctx context.Context, script string) (string, error) {
	r, err := c.Run(ctx, "/bin/sh", "-c", script)
	if err == nil {
		err = r.Check(script)
	}
	return strings.TrimSuffix(r.Stdout, "\n"), err
}

// Do is Run for a whole Cmd; output that cmd sends elsewhere is not in the result.
func (c *Client) Do(ctx context.Context, cmd Cmd) (Result, error) {
	var out, errOut bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &errOut
	}
	p, err := c.Start(cmd)
	if err != nil {
		return Result{}, err
	}
	st, err := p.Wait(ctx)
	if ctx.Err() != nil {
		// Its end makes the buffers ours again. A machine that no longer
		// answers keeps them.
		_ = p.Kill()
		select {
		case <-p.Done():
		case <-time.After(killGrace):
			return Result{ExitStatus: st}, err
		}
	}
	return Result{ExitStatus: st, Stdout: out.String(), Stderr: errOut.String()}, err
}

// PutFile copies a local file into the agent's machine, under a temporary name
// until it is whole.
func (c *Client) PutFile(ctx context.Context, local, remote string) error {
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return c.Put(ctx, f, remote, st.Mode().Perm())
}

// Put writes a file in the agent's machine.
func (c *Client) Put(ctx context.Context, r io.Reader, remote string, mode os.FileMode) error {
	args := []string{Self, "put", remote, fmt.Sprintf("%o", mode.Perm())}
	res, err := c.Do(ctx, Cmd{Args: args, Stdin: r})
	if err == nil {
		err = res.Check(args...)
	}
	return err
}

// GetFile copies a file out of the agent's machine.
func (c *Client) GetFile(ctx context.Context, remote, local string) error {
	f, err := os.Create(local)
	if err != nil {
		return err
	}
	args := []string{Self, "get", remote}
	res, err := c.Do(ctx, Cmd{Args: args, Stdout: f})
	if err == nil {
		err = res.Check(args...)
	}
	return errors.Join(err, f.Close())
}

// Dial connects to a socket inside the agent's machine: network is "unix",
// "tcp" or "vsock" (address "CID:PORT").
func (c *Client) Dial(ctx context.Context, network, addr string) (io.ReadWriteCloser, error) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	var errOut bytes.Buffer
	p, err := c.Start(Cmd{Args: []string{Self, "connect", network, addr}, Stdin: inR, Stdout: outW, Stderr: &errOut})
	if err != nil {
		return nil, err
	}
	t := &tunnel{Reader: outR, Writer: inW, p: p, in: inW, out: outR}
	go func() {
		<-p.Done()
		err := p.err // nil is end of file to the reader
		if err == nil && p.status.Code != 0 {
			err = fmt.Errorf("connect to %s %s: %s", network, addr, strings.TrimSpace(errOut.String()))
		}
		outW.CloseWithError(err)
		inR.CloseWithError(io.ErrClosedPipe)
	}()
	// The first byte says that the connection stands.
	var one [1]byte
	stop := context.AfterFunc(ctx, func() { outR.CloseWithError(context.Cause(ctx)); _ = p.Kill() })
	defer stop()
	if _, err := io.ReadFull(outR, one[:]); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

type tunnel struct {
	io.Reader
	io.Writer
	p   *Process
	in  *io.PipeWriter
	out *io.PipeReader
}

// Close ends the connection in both directions.
func (t *tunnel) Close() error {
	err := t.p.Kill()
	t.in.Close()
	t.out.Close()
	return err
}
