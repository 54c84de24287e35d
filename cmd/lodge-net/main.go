// Command lodge-net carries one network of guests, in a cell: it opens nothing but the connections of its guests. It is started by
// the manager with descriptors in systemd's way, LISTEN_FDS and LISTEN_FDNAMES:
//
//	config      its configuration, as JSON (netctl.Config); read to the end
//	control     a Unix socket that listens: status and leases (docs/network.md)
//	manage      a listening SOCK_SEQPACKET socket, for changes of guests and rules
//	guest.NAME  a guest's stream socket, listening or connected
//	forward.N   the listening TCP or bound UDP socket of the configuration's forward N, counted from 0
//
// and of a nat network, whose frames and forwards are the host's kernel's, in place of the last two
//
//	dhcp, dns.udp, dns.tcp  sockets at ports 67 and 53, bound to its bridge
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/hypervisor/manager/network/usermode"
	"github.com/lodgehv/lodge/internal/ratelog"
)

// What guests cause to be logged: some lines at once, and then one every so often.
const (
	logBurst = 50
	logEvery = 30 * time.Second
)

const usage = `Usage: lodge-net [--log-syscalls]

Carries one network of guests: lodged starts it with its configuration and its
sockets as descriptors (LISTEN_FDS, LISTEN_FDNAMES).

  --log-syscalls  have the kernel log the system calls that should not be
                  needed, and allow them
`

func main() {
	logOnly := len(os.Args) == 2 && os.Args[1] == logSyscalls
	if len(os.Args) > 1 && !logOnly {
		if a := os.Args[1]; a == "--help" || a == "-h" {
			fmt.Print(usage)
			return
		}
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	limited := ratelog.New(slog.NewTextHandler(os.Stderr, nil), logBurst, logEvery)
	err := run(ctx, activation.Files(true), logOnly, slog.New(limited))
	limited.Close(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "lodge-net:", err)
		os.Exit(1)
	}
}

// run runs the network that files describe until ctx ends. logOnly is that of seal.
func run(ctx context.Context, files []*os.File, logOnly bool, log *slog.Logger) error {
	byName := make(map[string]*os.File)
	for _, f := range files {
		if byName[f.Name()] != nil {
			return fmt.Errorf("two descriptors are called %q", f.Name())
		}
		byName[f.Name()] = f
	}
	take := func(name string) (*os.File, error) {
		f := byName[name]
		if f == nil {
			return nil, fmt.Errorf("no descriptor %q was handed over: this program is started by lodged", name)
		}
		delete(byName, name)
		return f, nil
	}
	f, err := take("config")
	if err != nil {
		return err
	}
	config, err := netctl.ReadConfig(f)
	f.Close()
	if err != nil {
		return err
	}
	if err := seal(config.Network.Kind != network.Isolated, logOnly); err != nil {
		return err
	}
	log = log.With("network", config.Network.Name)
	n, err := usermode.New(config, log)
	if err != nil {
		return err
	}
	// Closed before it is waited for what serves it.
	var wg sync.WaitGroup
	defer wg.Wait()
	defer n.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	if config.Network.Kind == network.NAT {
		if err := serveHost(n, take); err != nil {
			return err
		}
	} else {
		for i, forward := range config.Network.Forwards {
			f, err := take("forward." + strconv.Itoa(i))
			if err != nil {
				return err
			}
			if err := n.AddForward(forward, f); err != nil {
				return err
			}
		}
	}
	for name, f := range byName {
		if guest, ok := strings.CutPrefix(name, "guest."); ok {
			delete(byName, name)
			if err := n.Plug(guest, f); err != nil {
				return err
			}
		}
	}
	if byName["manage"] != nil {
		l, err := unixListener(take("manage"))
		if err != nil {
			return err
		}
		wg.Go(func() { n.ServeChanges(ctx, l) })
	}
	l, err := unixListener(take("control"))
	if err != nil {
		return err
	}
	for name := range byName {
		return errors.Join(fmt.Errorf("descriptor %q: nothing here is called so", name), l.Close())
	}
	server := control.Server{Methods: n.Methods()}
	return server.Serve(ctx, l)
}

// unixListener returns the listener that f is.
func unixListener(f *os.File, err error) (*net.UnixListener, error) {
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %q: not a listening socket: %w", f.Name(), err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("descriptor %q: not a Unix socket", f.Name()), l.Close())
	}
	u.SetUnlinkOnClose(false) // it is the manager's
	return u, nil
}

// serveHost serves the guests of a nat network.
func serveHost(n *usermode.Net, take func(name string) (*os.File, error)) error {
	var files []*os.File
	for _, name := range []string{"dhcp", "dns.udp", "dns.tcp"} {
		f, err := take(name)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	return n.ServeHost(files[0], files[1], files[2])
}
