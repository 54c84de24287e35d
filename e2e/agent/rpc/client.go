package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// ErrClosed is what commands end with when their stream does.
var ErrClosed = errors.New("agent: connection closed")

// helloRetry is how often a hello without an answer is sent again: a machine
// that has just been restored may still drop what reaches its port.
const helloRetry = 500 * time.Millisecond

// Client starts commands over one stream. Its methods may be called from many
// goroutines.
type Client struct {
	conn io.ReadWriteCloser
	w    *frameWriter
	mu   sync.Mutex
	next uint32
	proc map[uint32]*Process
	err  error         // why the stream ended
	done chan struct{} // closed when it has
}

// Cmd describes a command to start in the agent's machine.
type Cmd struct {
	Args []string // the program, looked up in the agent's PATH, and its arguments
	Env  []string // "key=value", added to the agent's environment
	Dir  string   // working directory; the agent's when empty
	// Log, when set, detaches the command: it outlives the session, its output
	// is appended to this file there, and Start's process ends at once with
	// the process id as its output.
	Log            string
	Stdin          io.Reader // none when nil
	Stdout, Stderr io.Writer // dropped when nil
}

// ExitStatus is how a command ended.
type ExitStatus struct {
	Code   int    `json:"code"`             // exit code; 128+Signal when a signal ended it; -1 when it never ran
	Signal int    `json:"signal,omitempty"` // the signal's number
	Err    string `json:"err,omitempty"`    // why it never ran
}

// NewClient opens a session on conn and owns conn from then on. It returns when
// the agent has answered, or with ctx's error.
func NewClient(ctx context.Context, conn io.ReadWriteCloser) (*Client, error) {
	c := &Client{conn: conn, w: newFrameWriter(conn), proc: map[uint32]*Process{}, done: make(chan struct{})}
	h := hello{Nonce: rand.Uint64()}
	ready := make(chan struct{})
	go c.read(h.Nonce, ready)
	tick := time.NewTicker(helloRetry)
	defer tick.Stop()
	for {
		h.Time = time.Now().UnixNano()
		b, err := json.Marshal(h)
		if err != nil {
			return nil, err
		}
		// The write may block while nobody reads at the other end; ctx ends
		// that by closing conn.
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_ = c.w.write(frameHello, 0, b) // no answer comes then, and it is said again
		}()
		select {
		case <-sent:
		case <-ready:
			return c, nil
		case <-ctx.Done():
			conn.Close()
			return nil, fmt.Errorf("agent: no answer: %w", context.Cause(ctx))
		}
		select {
		case <-ready:
			return c, nil
		case <-c.done:
			return nil, fmt.Errorf("agent: no answer: %w", c.err)
		case <-ctx.Done():
			conn.Close()
			return nil, fmt.Errorf("agent: no answer: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Close ends the session and, with it, its commands.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Done is closed when the stream has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Poke has the agent's machine read something that means nothing. The error is about the stream.
func (c *Client) Poke() error { return c.w.write(frameSignal, 0, nil) } // no command has stream 0

func (c *Client) read(nonce uint64, ready chan<- struct{}) {
	r := newFrameReader(c.conn)
	greeted := false
	for {
		f, err := r.read()
		if err != nil {
			c.fail(err)
			return
		}
		if f.typ == frameHello {
			var h hello
			if json.Unmarshal(f.payload, &h) == nil && h.Nonce == nonce && !greeted {
				greeted = true
				close(ready)
			}
			continue
		}
		if !greeted {
			continue // the rest of an earlier session
		}
		c.mu.Lock()
		p := c.proc[f.stream]
		if f.typ == frameExit {
			delete(c.proc, f.stream)
		}
		c.mu.Unlock()
		if p != nil {
			p.push(f)
		}
	}
}

func (c *Client) fail(err error) {
	c.mu.Lock()
	c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	procs := c.proc
	c.proc = map[uint32]*Process{}
	c.mu.Unlock()
	for _, p := range procs {
		p.push(frame{}) // no type: the stream is gone
	}
	close(c.done)
}

// Process is a command under way.
type Process struct {
	c      *Client
	stream uint32
	cmd    Cmd

	mu    sync.Mutex
	queue []frame
	more  chan struct{} // capacity 1: the queue has grown

	ack    chan struct{}
	done   chan struct{}
	status ExitStatus
	err    error
}

// Start starts a command. The error is about the stream; a program that cannot
// be run is reported by Wait.
func (c *Client) Start(cmd Cmd) (*Process, error) {
	b, err := json.Marshal(command{Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir, Log: cmd.Log})
	if err != nil {
		return nil, err
	}
	p := &Process{c: c, cmd: cmd, more: make(chan struct{}, 1), ack: make(chan struct{}, window), done: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.err
	}
	c.next++
	p.stream = c.next
	c.proc[p.stream] = p
	c.mu.Unlock()
	go p.deliver()
	if err := c.w.write(frameExec, p.stream, b); err != nil {
		return nil, fmt.Errorf("agent: start %q: %w", cmd.Args, err)
	}
	if cmd.Log == "" {
		go p.sendStdin()
	}
	return p, nil
}

func (p *Process) push(f frame) {
	p.mu.Lock()
	p.queue = append(p.queue, f)
	p.mu.Unlock()
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// deliver hands output to the caller's writers, at the caller's pace.
func (p *Process) deliver() {
	for range p.more {
		p.mu.Lock()
		batch := p.queue
		p.queue = nil
		p.mu.Unlock()
		for _, f := range batch {
			switch f.typ {
			case frameStdout:
				p.output(p.cmd.Stdout, f.payload)
			case frameStderr:
				p.output(p.cmd.Stderr, f.payload)
			case frameAck:
				select {
				case p.ack <- struct{}{}:
				default: // more than were sent: void
				}
			case frameExit:
				if err := json.Unmarshal(f.payload, &p.status); err != nil && p.err == nil {
					p.err = fmt.Errorf("agent: exit status: %w", err)
				}
				if p.status.Err != "" && p.err == nil {
					p.err = errors.New("agent: " + p.status.Err)
				}
				close(p.done)
				return
			default:
				p.c.mu.Lock()
				p.err = p.c.err
				p.c.mu.Unlock()
				p.status.Code = -1
				close(p.done)
				return
			}
		}
	}
}

func (p *Process) output(w io.Writer, b []byte) {
	if w == nil {
		return
	}
	if _, err := w.Write(b); err != nil && p.err == nil {
		p.err = fmt.Errorf("agent: output of %q: %w", p.cmd.Args, err)
	}
}

func (p *Process) sendStdin() {
	if p.cmd.Stdin != nil {
		buf := make([]byte, MaxPayload)
		flying := 0
		for {
			n, err := p.cmd.Stdin.Read(buf)
			if n > 0 {
				if flying == window {
					select {
					case <-p.ack:
						flying--
					case <-p.done:
						return
					}
				}
				if p.c.w.write(frameStdin, p.stream, buf[:n]) != nil {
					return // the reader reports why
				}
				flying++
			}
			if err != nil {
				break
			}
		}
	}
	_ = p.c.w.write(frameStdin, p.stream, nil)
}

// Done is closed when the command has ended and its output was delivered.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the command's end. The error says that it could not be run,
// that the stream was lost, or that an output could not be written; a command
// that ran and failed is in the status alone.
func (p *Process) Wait(ctx context.Context) (ExitStatus, error) {
	select {
	case <-p.done:
		return p.status, p.err
	case <-ctx.Done():
		return ExitStatus{Code: -1}, fmt.Errorf("agent: wait for %q: %w", p.cmd.Args, context.Cause(ctx))
	}
}

// Signal sends a signal to the command and its children.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.c.w.write(frameSignal, p.stream, []byte{byte(sig)})
}

// Kill ends the command at once.
func (p *Process) Kill() error { return p.Signal(syscall.SIGKILL) }
