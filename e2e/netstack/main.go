// Command netstack serves a guest network with DHCP, DNS and NAT, in QEMU's
// stream framing on a Unix socket, to the guests of an end-to-end test. It needs
// neither privilege nor an outside network.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/containers/gvisor-tap-vsock/pkg/virtualnetwork"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "netstack:", err)
		os.Exit(1)
	}
}

// The network that guests see. The host itself answers at netHost, so that
// guests reach servers in the notebook without an outside network.
const (
	netSubnet  = "192.168.127.0/24"
	netGateway = "192.168.127.1"
	netHost    = "192.168.127.254"
)

func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("netstack", flag.ContinueOnError)
	forward := fs.String("forward", "", "TCP ports of the notebook that lead to guests")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() != 1 {
		return errors.New("usage: netstack [-forward HOST:PORT=GUEST:PORT,...] SOCKET")
	}
	forwards := map[string]string{}
	for f := range strings.SplitSeq(*forward, ",") {
		if f == "" {
			continue
		}
		from, to, ok := strings.Cut(f, "=")
		if !ok {
			return fmt.Errorf("-forward %q: want HOST:PORT=GUEST:PORT", f)
		}
		forwards[from] = to
	}
	vn, err := virtualnetwork.New(&types.Configuration{
		MTU:               1500,
		Subnet:            netSubnet,
		GatewayIP:         netGateway,
		GatewayMacAddress: "5a:94:ef:e4:0c:dd",
		NAT:               map[string]string{netHost: "127.0.0.1"},
		GatewayVirtualIPs: []string{netHost},
		Forwards:          forwards,
		DNS: []types.Zone{{
			Name:    "lodge.test.",
			Records: []types.Record{{Name: "host", IP: net.ParseIP(netHost)}, {Name: "gateway", IP: net.ParseIP(netGateway)}},
		}},
		Protocol: types.QemuProtocol,
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", fs.Arg(0))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := vn.AcceptQemu(ctx, c); err != nil {
				fmt.Fprintln(os.Stderr, "netstack:", err)
			}
		}()
	}
}
