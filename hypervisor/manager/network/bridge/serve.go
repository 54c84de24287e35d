package bridge

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// Sockets returns sockets for DHCP and DNS on a nat network that is up, for a process that serves its guests: of UDP at ports 67 and
// 53, and one that listens at TCP's 53. They are bound to the bridge: nobody else reaches them, and they reach nobody else.
func (h *Host) Sockets(ctx context.Context, n *network.Network) (dhcp, dnsPackets, dnsListener *os.File, err error) {
	name := Name(n)
	c := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		if e := conn.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) // another DHCP server may be on another interface
			if err == nil {
				err = unix.BindToDevice(int(fd), name)
			}
		}); e != nil {
			return e
		}
		return err
	}}
	var files []*os.File
	fail := func(err error) (dhcp, dnsPackets, dnsListener *os.File, _ error) {
		for _, f := range files {
			f.Close()
		}
		return nil, nil, nil, fmt.Errorf("network %q: socket for DHCP and DNS on %s: %w", n.Name, name, err)
	}
	for _, at := range []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), 67), netip.AddrPortFrom(n.Gateway(), 53)} {
		p, err := c.ListenPacket(ctx, "udp4", at.String())
		if err != nil {
			return fail(err)
		}
		f, err := p.(*net.UDPConn).File()
		p.Close()
		if err != nil {
			return fail(err)
		}
		files = append(files, f)
	}
	l, err := c.Listen(ctx, "tcp4", netip.AddrPortFrom(n.Gateway(), 53).String())
	if err != nil {
		return fail(err)
	}
	f, err := l.(*net.TCPListener).File()
	l.Close()
	if err != nil {
		return fail(err)
	}
	return files[0], files[1], f, nil
}
