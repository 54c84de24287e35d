package uevent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const hotplug = "change@/devices/pci0000:00/0000:00:02.0/drm/card0\x00ACTION=change\x00" +
	"DEVPATH=/devices/pci0000:00/0000:00:02.0/drm/card0\x00SUBSYSTEM=drm\x00HOTPLUG=1\x00DEVNAME=dri/card0\x00MAJOR=226\x00" +
	"MINOR=0\x00SEQNUM=4711\x00"

func TestParse(t *testing.T) {
	e, err := Parse([]byte(hotplug))
	if err != nil {
		t.Fatal(err)
	}
	got := []string{e.Action, e.DevPath, e.Subsystem, e.Get("HOTPLUG"), e.Get("DEVNAME"), e.Get("MINOR"), e.Get("NONE"), e.Get("HOT")}
	want := []string{"change", "/devices/pci0000:00/0000:00:02.0/drm/card0", "drm", "1", "dri/card0", "0", "", ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

func TestParseErrors(t *testing.T) {
	for name, msg := range map[string]string{
		"empty":        "",
		"not ended":    "add@/x\x00ACTION=add",
		"no path":      "add\x00ACTION=add\x00",
		"no action":    "@/x\x00ACTION=\x00",
		"relative":     "add@x\x00ACTION=add\x00",
		"udev's":       "libudev\x00\xfe\xed\xca\xfe\x00",
		"no variable":  "add@/x\x00ACTION=add\x00nothing\x00",
		"no name":      "add@/x\x00ACTION=add\x00=x\x00",
		"contradicted": "add@/x\x00ACTION=remove\x00",
	} {
		t.Run(name, func(t *testing.T) {
			if e, err := Parse([]byte(msg)); err == nil {
				t.Errorf("taken as %+v", e)
			}
		})
	}
}

// TestConn has the kernel say something: a device's uevent file sends what is written to it.
func TestConn(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	c, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// What does not come from the kernel is not heard.
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	forged := strings.ReplaceAll(strings.ReplaceAll(hotplug, "drm", "mem"), "change", "bind")
	if err := unix.Sendto(fd, []byte(forged), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("/sys/class/mem/null", "uevent"), []byte("change"), 0); err != nil {
		t.Fatal(err)
	}
	var got *Event
	if err := c.Follow(ctx, "mem", func(e *Event) {
		if got == nil {
			got = e
			cancel()
		}
	}); err != nil {
		t.Fatal(err)
	}
	if got == nil || got.Action != "change" || got.Get("DEVNAME") != "null" {
		t.Errorf("event %+v", got)
	}
}

// A Read that waits, and one after it, say that the connection was closed.
func TestClose(t *testing.T) {
	c, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { _ = c.Close() })
	for err == nil || errors.Is(err, ErrLost) { // a device may come meanwhile
		_, err = c.Read()
	}
	if !errors.Is(err, os.ErrClosed) {
		t.Errorf("the one that waits: %v", err)
	}
	if _, err := c.Read(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the one after it: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(hotplug))
	f.Add([]byte("libudev\x00"))
	f.Add([]byte("add@/x\x00ACTION=add\x00A=b=c\x00"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		e, err := Parse(msg)
		if err != nil {
			return
		}
		if e.Action == "" || e.DevPath[0] != '/' || e.Get("ACTION") != e.Action || e.Get("SUBSYSTEM") != e.Subsystem ||
			strings.Contains(e.DevPath, "\x00") {
			t.Errorf("%q is taken as %+v", msg, e)
		}
	})
}
