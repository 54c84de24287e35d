package e2e_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/lodgehv/lodge/e2e/guest"
)

// The tap device in the notebook that is guest amd64's second card.
const (
	tapName = "tap0"
	tapHost = "10.7.0.1"
)

// startTap makes the tap device and serves DHCP and a web server on it, whose URL it returns. The lease has no router:
// the guest's way out is its first card.
func startTap(ctx context.Context, h *guest.Host) (string, error) {
	const config = "interface " + tapName + "\nstart 10.7.0.10\nend 10.7.0.20\nlease_file /tmp/leases\noption subnet 255.255.255.0\n"
	script := "tunctl -t " + tapName + " && ifconfig " + tapName + " " + tapHost + " netmask 255.255.255.0 up && : >/tmp/leases"
	if _, err := h.Shell(ctx, script); err != nil {
		return "", err
	}
	if err := h.Put(ctx, strings.NewReader(config), "/tmp/udhcpd.conf", 0o644); err != nil {
		return "", err
	}
	if _, _, err := guest.StartServer(ctx, h.Client, "udhcpd", "-f", "/tmp/udhcpd.conf"); err != nil {
		return "", err
	}
	_, ready, err := guest.StartServer(ctx, h.Client, h.Agent, "http", tapHost+":0")
	return "http://" + strings.TrimPrefix(ready, "ready "), err
}

// passt in the notebook serves guest i386's second card. Its gateway is the notebook's loopback.
const (
	passtGuest   = "10.9.0.2"
	passtGateway = "10.9.0.1"
	passtSocket  = "/tmp/passt.sock" // where its user, nobody, may make it
)

// startPasst starts passt, and a web server on the notebook's loopback, whose URL for the guest it returns.
func startPasst(ctx context.Context, h *guest.Host) (string, error) {
	_, _, err := guest.StartServer(ctx, h.Client, "passt", "-f", "-e", "-4", "--runas", "65534", "-s", passtSocket,
		"-i", tapName, "-a", passtGuest, "-n", "24", "-g", passtGateway, "-D", "none")
	if err != nil {
		return "", err
	}
	// It says more than one thing before it listens.
	if _, err := h.Shell(ctx, "until [ -S "+passtSocket+" ]; do usleep 50000; done"); err != nil {
		return "", err
	}
	_, ready, err := guest.StartServer(ctx, h.Client, h.Agent, "http", "127.0.0.1:0")
	return "http://" + passtGateway + ":" + ready[strings.LastIndexByte(ready, ':')+1:], err
}

// address waits for the guest's IPv4 address on a card and returns it.
func (m *vm) address(ctx context.Context, t *testing.T, card string) string {
	t.Helper()
	out := m.shell(ctx, t, "until ip -4 -o addr show dev "+card+" | grep inet; do usleep 200000 2>/dev/null || sleep 0.2; done")
	a := regexp.MustCompile(`inet ([0-9.]+)/24`).FindStringSubmatch(out)
	if a == nil {
		t.Fatalf("guest %s: %s has no address in a network of 24 bits: %s", m.Name(), card, out)
	}
	return a[1]
}

// download fetches n bytes and compares them with the checksum that the server tells, and sends them back.
func (m *vm) download(ctx context.Context, t *testing.T, url string, n int) {
	t.Helper()
	out := m.shell(ctx, t, fmt.Sprintf("set -e; curl -sS -f -m 60 %[1]s/sum/%[2]d; curl -sS -f -m 60 -o /tmp/body %[1]s/bytes/%[2]d; sha256sum </tmp/body; curl -sS -f -m 60 --data-binary @/tmp/body %[1]s/upload; rm /tmp/body", url, n))
	sums := regexp.MustCompile(`[0-9a-f]{64}`).FindAllString(out, -1)
	if len(sums) != 3 || sums[0] != sums[1] || sums[0] != sums[2] {
		t.Errorf("guest %s: %d bytes from and to %s: sums sent, received, sent back: %v", m.Name(), n, url, sums)
	}
}

// body is what a download brings, in bytes: more than a queue holds, with an end within a segment.
const body = 1<<20 + 12345

func (l *lab) testNetstack(ctx context.Context, t *testing.T) {
	amd64, i386 := l.pair(ctx, t)
	for _, m := range []*vm{amd64, i386} {
		if a := m.address(ctx, t, "eth0"); !strings.HasPrefix(a, "192.168.127.") {
			t.Errorf("guest %s: address %s is not of netstack", m.Name(), a)
		}
		m.download(ctx, t, l.lan.URL, body)
	}
}

func (l *lab) testTap(ctx context.Context, t *testing.T) {
	m := l.guest(ctx, t, "amd64")
	if a := m.address(ctx, t, "eth1"); !strings.HasPrefix(a, "10.7.0.") {
		t.Errorf("address %s is not of the tap device's DHCP server", a)
	}
	m.download(ctx, t, l.tap, body)
	// A tap device takes whole segments and unfinished checksums; netstack's framing does not.
	for card, want := range map[string]string{"eth0": "off", "eth1": "on"} {
		out := m.shell(ctx, t, "ethtool -k "+card)
		for _, feature := range []string{"tx-checksumming", "tcp-segmentation-offload"} {
			if !strings.Contains(out, feature+": "+want) {
				t.Errorf("%s: %s is not %s:\n%s", card, feature, want, out)
			}
		}
	}
}

func (l *lab) testPasst(ctx context.Context, t *testing.T) {
	m := l.guest(ctx, t, "i386")
	if a := m.address(ctx, t, "eth1"); a != passtGuest {
		t.Errorf("address %s, want passt's %s", a, passtGuest)
	}
	m.download(ctx, t, l.passt, body)
}

func (l *lab) testPing(ctx context.Context, t *testing.T) {
	amd64, i386 := l.pair(ctx, t)
	for _, p := range [][2]*vm{{amd64, i386}, {i386, amd64}} {
		from, to := p[0], p[1]
		out := from.shell(ctx, t, "ping -c 5 -i 0.2 -s 1400 "+to.address(ctx, t, "eth0"))
		if !strings.Contains(out, " 5 received, 0% packet loss") || strings.Contains(out, "DUP") {
			t.Errorf("from %s to %s:\n%s", from.Name(), to.Name(), out)
		}
	}
}
