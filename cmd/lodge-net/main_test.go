package main

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/hypervisor/manager/network/networktest"
	"github.com/lodgehv/lodge/internal/framing"
)

const timeout = 20 * time.Second

var alice = network.Guest{Name: "alice", MAC: network.MAC{0x52, 0x54, 0, 0, 0, 1}, Address: netip.MustParseAddr("10.77.0.10")}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// build builds the program.
func build(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lodge-net")
	cmd := exec.Command("go", "build", "-o", file, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return file
}

// start starts the program with descriptors, and returns its standard error.
func start(t *testing.T, program string, names []string, files []*os.File) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, program)
	cmd.Env = []string{"LISTEN_FDS=" + strconv.Itoa(len(files)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
	cmd.ExtraFiles = files
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	check(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, stderr
}

// configFile returns a file with c.
func configFile(t *testing.T, c netctl.Config) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "config"))
	check(t, err)
	t.Cleanup(func() { f.Close() })
	check(t, netctl.WriteConfig(f, c))
	_, err = f.Seek(0, 0)
	check(t, err)
	return f
}

func config() netctl.Config {
	return netctl.Config{
		Network: network.Network{Name: "test", Kind: network.User, Subnet: netip.MustParsePrefix("10.77.0.0/24"), Host: true,
			Forwards: []network.Forward{{Protocol: network.UDP, Listen: netip.MustParseAddrPort("127.0.0.1:8080"), Guest: "alice", Port: 80}}},
		Guests: []network.Guest{alice},
	}
}

// unixFile returns the file of a socket that listens at path.
func unixFile(t *testing.T, kind, path string) *os.File {
	t.Helper()
	l, err := net.ListenUnix(kind, &net.UnixAddr{Name: path, Net: kind})
	check(t, err)
	t.Cleanup(func() { l.Close() })
	f, err := l.File()
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// The program as the manager starts it, in a network namespace whose only outside is the host's second address.
func TestProgram(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	program := build(t)
	runtime.LockOSThread() // for good: the thread ends with the test, the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs root: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	check(t, err)
	check(t, netlink.LinkSetUp(lo))
	addr, err := netlink.ParseAddr("198.51.100.1/32")
	check(t, err)
	check(t, netlink.AddrAdd(lo, addr))
	server, err := net.ListenPacket("udp4", "0.0.0.0:9000")
	check(t, err)
	defer server.Close()
	forward, err := net.ListenPacket("udp4", "127.0.0.1:8080")
	check(t, err)
	defer forward.Close()
	forwardFile, err := forward.(*net.UDPConn).File()
	check(t, err)
	defer forwardFile.Close()

	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	names := []string{"config", "control", "manage", "guest.alice", "forward.0"}
	files := []*os.File{configFile(t, config()), unixFile(t, "unix", at("control")), unixFile(t, "unixpacket", at("manage")),
		unixFile(t, "unix", at("alice")), forwardFile}
	cmd, stderr := start(t, program, names, files)

	guest, err := net.Dial("unix", at("alice"))
	check(t, err)
	defer guest.Close()
	guest.SetDeadline(time.Now().Add(timeout))
	in := framing.Deframer{Buf: make([]byte, framing.BufferSize)}
	send := func(frame []byte) {
		t.Helper()
		_, err := guest.Write(append(framing.AppendPrefix(nil, len(frame)), frame...))
		check(t, err)
	}
	await := func(text string) []byte {
		t.Helper()
		for {
			frame, err := in.Next()
			check(t, err)
			if frame != nil && strings.Contains(string(frame), text) {
				return frame
			}
			if frame == nil {
				k, err := guest.Read(in.Free())
				if err != nil {
					t.Fatalf("%v\n%s", err, stderr)
				}
				in.Filled(k)
			}
		}
	}
	ask, err := dhcpv4.NewDiscovery(net.HardwareAddr(alice.MAC[:]))
	check(t, err)
	ask.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
	ask.UpdateOption(dhcpv4.OptRequestedIPAddress(alice.Address.AsSlice()))
	send(networktest.UDP(network.MAC{255, 255, 255, 255, 255, 255}, alice.MAC, netip.MustParseAddrPort("0.0.0.0:68"),
		netip.MustParseAddrPort("255.255.255.255:67"), string(ask.ToBytes())))
	await("test.internal")

	own := netip.AddrPortFrom(alice.Address, 5000)
	send(networktest.UDP(network.GatewayMAC, alice.MAC, own, netip.MustParseAddrPort("127.0.0.1:9000"), "to the loopback"))
	send(networktest.UDP(network.GatewayMAC, alice.MAC, own, netip.MustParseAddrPort("198.51.100.1:9000"), "to the outside"))
	buf := make([]byte, 100)
	server.SetDeadline(time.Now().Add(timeout))
	k, from, err := server.ReadFrom(buf)
	check(t, err)
	if string(buf[:k]) != "to the outside" {
		t.Errorf("outside: %q", buf[:k])
	}
	_, err = server.WriteTo([]byte("an answer"), from)
	check(t, err)
	await("an answer")
	_, err = server.WriteTo([]byte("forwarded"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080})
	check(t, err)
	await("forwarded")

	c, err := control.Dial(t.Context(), at("control"))
	check(t, err)
	defer c.Close()
	var s netctl.Status
	check(t, c.Call(t.Context(), "status", nil, &s, nil))
	if len(s.Guests) != 1 || !s.Guests[0].Connected || s.Guests[0].Refused != 1 || s.Guests[0].UDP != 1 {
		t.Errorf("status: %+v", s)
	}
	var leases struct{ Leases []netctl.Lease }
	check(t, c.Call(t.Context(), "leases", nil, &leases, nil))
	if l := leases.Leases; len(l) != 1 || l[0].Address != alice.Address || l[0].Given == nil {
		t.Errorf("leases: %+v", leases)
	}
	m, err := netctl.DialManager(at("manage"))
	check(t, err)
	defer m.Close()
	// Forwards come and go.
	fwd := config().Network.Forwards[0]
	check(t, m.Do(t.Context(), netctl.Change{Unforward: &fwd}, nil))
	if err := m.Do(t.Context(), netctl.Change{Unforward: &fwd}, nil); err == nil || !strings.Contains(err.Error(), "there is none") {
		t.Errorf("a forward that is gone: %v", err)
	}
	if err := m.Do(t.Context(), netctl.Change{Forward: &fwd}, nil); err == nil {
		t.Error("a forward without a socket")
	}
	check(t, m.Do(t.Context(), netctl.Change{Forward: &fwd}, forwardFile))
	_, err = server.WriteTo([]byte("once more"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080})
	check(t, err)
	await("once more")
	check(t, m.Do(context.Background(), netctl.Change{Remove: "alice"}, nil))

	check(t, cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, stderr)
	}
}

// What it was not started rightly with, it says.
func TestRefuses(t *testing.T) {
	program := build(t)
	bad := config()
	bad.Network.Subnet = netip.Prefix{}
	nat := config()
	nat.Network.Kind, nat.Network.Forwards = network.NAT, nil
	control := unixFile(t, "unix", filepath.Join(t.TempDir(), "control"))
	tests := []struct {
		names []string
		files []*os.File
		want  string
	}{
		{nil, nil, `no descriptor "config"`},
		{[]string{"config"}, []*os.File{configFile(t, bad)}, "no subnet"},
		{[]string{"config"}, []*os.File{configFile(t, nat)}, `no descriptor "dhcp"`},
		{[]string{"config"}, []*os.File{configFile(t, config())}, `no descriptor "forward.0"`},
		{[]string{"config", "config"}, []*os.File{control, control}, "two descriptors"},
		{[]string{"config", "forward.0"}, []*os.File{configFile(t, config()), control}, "not a UDP socket"},
	}
	for _, tt := range tests {
		cmd, stderr := start(t, program, tt.names, tt.files)
		if err := cmd.Wait(); err == nil || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%v: %v, %s: want %q", tt.names, err, stderr, tt.want)
		}
	}
}
