package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
)

// NetHost is the host's address on a Network, as its guests see it.
const NetHost = "192.168.127.254"

// Network is a network of guests, served by the program netstack: DHCP, and the host at NetHost, which has a web server
// (see "agent http").
type Network struct {
	URL    string // of the web server, for guests
	socket string
	procs  []*rpc.Process
}

// StartNetwork starts a network. It ends with Close, or with the connection to the host.
func (h *Host) StartNetwork(ctx context.Context) (*Network, error) {
	n := &Network{socket: h.Path("lan", ".sock")}
	_, err := n.start(ctx, h, h.Netstack, n.socket)
	if err != nil {
		return nil, errors.Join(err, n.Close(ctx))
	}
	ready, err := n.start(ctx, h, h.Agent, "http", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, n.Close(ctx))
	}
	n.URL = "http://" + NetHost + ":" + ready[strings.LastIndexByte(ready, ':')+1:]
	return n, nil
}

// NIC returns the definition of a network card on the network.
func (n *Network) NIC() string {
	return fmt.Sprintf("[[nic]]\nname = \"lan\"\nsocket = %q\n", n.socket)
}

// Close ends the network.
func (n *Network) Close(ctx context.Context) error {
	var errs []error
	for _, p := range n.procs {
		errs = append(errs, p.Kill())
	}
	for _, p := range n.procs {
		_, err := p.Wait(ctx)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (n *Network) start(ctx context.Context, h *Host, args ...string) (string, error) {
	p, line, err := StartServer(ctx, h.Client, args...)
	if p != nil {
		n.procs = append(n.procs, p)
	}
	return line, err
}

// StartServer starts a program where c's agent is and waits until it has printed a line, which it returns.
func StartServer(ctx context.Context, c *rpc.Client, args ...string) (*rpc.Process, string, error) {
	out := firstLine{done: make(chan struct{})}
	p, err := c.Start(rpc.Cmd{Args: args, Stdout: &out, Stderr: &out})
	if err != nil {
		return nil, "", err
	}
	select {
	case <-out.done:
	case <-p.Done():
		return p, "", fmt.Errorf("%s: ended: %s", strings.Join(args, " "), out.String())
	case <-ctx.Done():
		return p, "", fmt.Errorf("%s: not ready: %w: %s", strings.Join(args, " "), context.Cause(ctx), out.String())
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	return p, line, nil
}

// firstLine waits for the first line of an output.
type firstLine struct {
	mu   sync.Mutex
	text bytes.Buffer
	once sync.Once
	done chan struct{} // closed when there is one
}

func (f *firstLine) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.text.Write(p)
	if bytes.IndexByte(p, '\n') >= 0 {
		f.once.Do(func() { close(f.done) })
	}
	return len(p), nil
}

func (f *firstLine) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.String()
}
