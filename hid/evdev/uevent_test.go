package evdev

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// datagram replaces line ends by the zero bytes of a uevent.
func datagram(lines string) []byte { return []byte(strings.ReplaceAll(lines, "\n", "\x00")) }

const plugged = `add@/devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/0003:046D:C31C.0001/input/input9/event5
ACTION=add
DEVPATH=/devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/0003:046D:C31C.0001/input/input9/event5
SUBSYSTEM=input
MAJOR=13
MINOR=69
DEVNAME=input/event5
SEQNUM=3021
`

func TestParseUevent(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     uevent
		node     string
	}{
		{"a keyboard", plugged, uevent{"add",
			"/devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/0003:046D:C31C.0001/input/input9/event5", "input", "input/event5"}, "event5"},
		{"it goes", "remove@/devices/a/event5\nACTION=remove\nSUBSYSTEM=input\nDEVNAME=input/event5\n",
			uevent{"remove", "/devices/a/event5", "input", "input/event5"}, "event5"},
		{"the device that nodes belong to", "add@/devices/input9\nSUBSYSTEM=input\nPRODUCT=3/46d/c31c/110\nNAME=\"A=B\"\n",
			uevent{"add", "/devices/input9", "input", ""}, ""},
		{"an older interface", "add@/x\nSUBSYSTEM=input\nDEVNAME=input/mouse0\n", uevent{"add", "/x", "input", "input/mouse0"}, ""},
		{"something else", "add@/x\nSUBSYSTEM=block\nDEVNAME=input/event5\n", uevent{"add", "/x", "block", "input/event5"}, ""},
		{"no variables", "change@/x\n", uevent{"change", "/x", "", ""}, ""},
		{"a path that leads elsewhere", "add@/x\nSUBSYSTEM=input\nDEVNAME=input/../event5\n", uevent{"add", "/x", "input", "input/../event5"}, ""},
	} {
		got, err := parseUevent(datagram(tt.in))
		if err != nil || got != tt.want || got.node() != tt.node {
			t.Errorf("%s: %+v (%q), %v; want %+v (%q)", tt.name, got, got.node(), err, tt.want, tt.node)
		}
	}
	for in, want := range map[string]string{
		"":                            "uevent: does not end with a zero byte",
		"add@/x":                      "uevent: does not end with a zero byte",
		"libudev\n\xfe\xed\xca\xfe\n": `uevent: begins with "libudev", and not with ACTION@DEVPATH`,
		"add@x\n":                     `uevent: begins with "add@x", and not with ACTION@DEVPATH`,
		"@/x\n":                       `uevent: begins with "@/x", and not with ACTION@DEVPATH`,
		"add@/x\nDEVNAME\n":           `uevent: has "DEVNAME", and not KEY=VALUE`,
		"add@/x\n\nA=B\n":             `uevent: has "", and not KEY=VALUE`,
		"add@/x\nACTION=remove\n":     `uevent: is of "add" and of "remove"`,
	} {
		if u, err := parseUevent(datagram(in)); err == nil || err.Error() != want {
			t.Errorf("%q: %+v, %v; want %s", in, u, err, want)
		}
	}
}

func TestIsNode(t *testing.T) {
	got := make(map[string]bool)
	for _, n := range []string{"event0", "event12", "event", "events", "event1a", "mouse0", "../event1", "event-1", "by-id"} {
		got[n] = isNode(n)
	}
	want := map[string]bool{"event0": true, "event12": true, "event": false, "events": false, "event1a": false, "mouse0": false,
		"../event1": false, "event-1": false, "by-id": false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzUevent(f *testing.F) {
	f.Add(datagram(plugged))
	f.Add([]byte("add@/x\x00ACTION=add\x00\x00"))
	f.Fuzz(func(t *testing.T, p []byte) {
		u, err := parseUevent(p)
		if err != nil {
			return
		}
		if u.action == "" || u.devpath == "" || strings.ContainsRune(u.action+u.devpath+u.subsystem+u.devname, 0) {
			t.Errorf("%q: %+v", p, u)
		}
		if n := u.node(); n != "" && (u.devname != "input/"+n || strings.Contains(n, "/")) {
			t.Errorf("%q: node %q", p, n)
		}
	})
}

// TestMonitor has the kernel announce a device again that every system has.
func TestMonitor(t *testing.T) {
	const file = "/sys/class/mem/null/uevent"
	w, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Skip("needs root and a writable /sys")
	}
	defer w.Close()
	m, err := newMonitor()
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	forge(t, "add@/forged\nSUBSYSTEM=input\nDEVNAME=input/event0\n")
	if _, err := w.WriteString("change"); err != nil {
		t.Fatal(err)
	}
	for {
		u, err := m.next()
		if err != nil {
			t.Fatal(err)
		}
		if u.devpath == "/forged" {
			t.Fatal("believes what the kernel has not said")
		}
		if want := (uevent{"change", "/devices/virtual/mem/null", "mem", "null"}); u == want {
			break
		}
	}
	time.AfterFunc(10*time.Millisecond, func() { m.close() })
	for {
		if _, err := m.next(); err != nil {
			return // closing ends the wait
		}
	}
}

// forge sends a datagram into the kernel's group.
func forge(t *testing.T, lines string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, datagram(lines), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		t.Fatal(err)
	}
}
