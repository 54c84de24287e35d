package qdisplay

import (
	"bufio"
	"encoding/json"
	"fmt"
	"image"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// gdbusClient is testdata/gdbus.py: a client by GLib, which is not ours. It needs python3-gi and gir1.2-glib-2.0.
type gdbusClient struct {
	t      testing.TB
	in     io.Writer
	events chan map[string]any
	seen   []map[string]any // that were not expected yet
}

func newGDBusClient(t testing.TB, path string) *gdbusClient {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", "testdata/gdbus.py", path)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &gdbusClient{t: t, in: in, events: make(chan map[string]any, 100)}
	go func() {
		defer close(c.events)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e map[string]any
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Errorf("%s: %v", lines.Text(), err)
			}
			c.events <- e
		}
	}()
	t.Cleanup(func() {
		in.Close()
		for range c.events { // to its end
		}
		if err := cmd.Wait(); err != nil && t.Context().Err() == nil {
			t.Errorf("the client: %v", err)
		}
	})
	return c
}

func (c *gdbusClient) do(command string, args ...any) {
	fmt.Fprintf(c.in, command+"\n", args...)
}

// expect waits for the next event of the kind and compares it, as JSON. Events of other kinds may come before it.
func (c *gdbusClient) expect(kind, want string) {
	c.t.Helper()
	var w map[string]any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		c.t.Fatal(err)
	}
	e := c.next(kind)
	delete(e, "event")
	if diff := cmp.Diff(w, e); diff != "" {
		c.t.Errorf("%s: %s", kind, diff)
	}
}

func (c *gdbusClient) next(kind string) map[string]any {
	c.t.Helper()
	for i, e := range c.seen {
		if e["event"] == kind {
			c.seen = append(c.seen[:i], c.seen[i+1:]...)
			return e
		}
	}
	timeout := time.After(deadline)
	for {
		select {
		case e, ok := <-c.events:
			if !ok {
				c.t.Fatalf("the client has ended before %s", kind)
			}
			if e["event"] == kind {
				return e
			}
			c.seen = append(c.seen, e)
		case <-timeout:
			c.t.Fatalf("no %s", kind)
		}
	}
}

// A client that is not ours introspects, sees, types.
func TestGDBus(t *testing.T) {
	g := newGuest(t)
	surface := newSurface(t, 320, 200, true)
	paint(surface, surface.Bounds(), 0x112233)
	g.screen.Scanout(surface)

	path := tempSocket(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	go g.server.Serve(l)
	c := newGDBusClient(t, path)

	c.do("vm")
	c.expect("vm", `{"values": {"Name": "work", "UUID": "6f1c2ae6-0d0f-4f4c-9f5b-2f3ab3f3a2d1", "ConsoleIDs": [0], "Interfaces": []}}`)
	c.do("introspect /org/qemu/Display1")
	c.expect("introspected", `{"interfaces": ["org.freedesktop.DBus.ObjectManager", "org.freedesktop.DBus.Introspectable",
		"org.freedesktop.DBus.Peer"], "nodes": ["VM", "Console_0"]}`)
	c.do("introspect /org/qemu/Display1/Console_0")
	c.expect("introspected", `{"interfaces": ["org.qemu.Display1.Console", "org.qemu.Display1.Keyboard", "org.qemu.Display1.Mouse",
		"org.qemu.Display1.MultiTouch", "org.freedesktop.DBus.Properties", "org.freedesktop.DBus.Introspectable",
		"org.freedesktop.DBus.Peer"], "nodes": []}`)
	c.do("objects")
	c.expect("objects", `{"values": {"/org/qemu/Display1/VM": ["org.qemu.Display1.VM"], "/org/qemu/Display1/Console_0":
		["org.qemu.Display1.Console", "org.qemu.Display1.Keyboard", "org.qemu.Display1.Mouse", "org.qemu.Display1.MultiTouch"]}}`)

	c.do("listen")
	c.expect("Scanout", `{"args": [320, 200, 1280, 537004168], "size": 256000, "first": "33221100", "last": "33221100"}`)
	c.expect("MouseSet", `{"args": [0, 0, 0]}`)
	part := image.Rect(10, 20, 15, 22)
	paint(surface, part, 0x445566)
	g.screen.Update(part)
	c.expect("Update", `{"args": [10, 20, 5, 2, 20, 537004168], "size": 40, "first": "66554400", "last": "66554400"}`)
	g.screen.Cursor(&display.Cursor{Width: 1, Height: 2, Pixels: []byte("abcdefgh")})
	c.expect("CursorDefine", `{"args": [1, 2, 0, 0], "size": 8, "first": "61626364", "last": "65666768"}`)
	c.expect("MouseSet", `{"args": [0, 0, 1]}`)
	g.screen.MoveCursor(image.Pt(7, -8))
	c.expect("MouseSet", `{"args": [7, -8, 1]}`)

	c.do("listen map")
	c.expect("ScanoutMap", fmt.Sprintf(`{"args": [%d, 320, 200, %d, 537004168], "pixel": "33221100"}`, surface.Offset, surface.Stride))
	paint(surface, part, 0x778899)
	g.screen.Update(part)
	c.expect("UpdateMap", `{"args": [10, 20, 5, 2], "pixel": "99887700"}`)
	g.screen.Scanout(nil)
	c.expect("Disable", `{"args": []}`)
	c.expect("changed", `{"path": "/org/qemu/Display1/Console_0", "interface": "org.qemu.Display1.Console", "values": {"Width": 0, "Height": 0}}`)
	g.screen.Scanout(surface)
	c.expect("changed", `{"path": "/org/qemu/Display1/Console_0", "interface": "org.qemu.Display1.Console", "values": {"Width": 320, "Height": 200}}`)

	c.do("press 30")
	c.do("release 30")
	c.do("move 319 0")
	c.expect("move", `{}`)
	c.do("bad")
	c.expect("refused", `{"error": "org.freedesktop.DBus.Error.InvalidArgs"}`)
	want := [][]hid.Event{
		{{Type: hid.EVKey, Code: 30, Value: 1}}, {{Type: hid.EVKey, Code: 30, Value: 0}},
		{{Type: hid.EVAbs, Code: hid.AbsX, Value: hid.AbsMax}, {Type: hid.EVAbs, Code: hid.AbsY, Value: 0}},
	}
	if diff := cmp.Diff(want, g.input.taken()); diff != "" {
		t.Error(diff)
	}
	g.input.set(hid.LEDCaps, true)
	c.expect("changed", `{"path": "/org/qemu/Display1/Console_0", "interface": "org.qemu.Display1.Keyboard", "values": {"Modifiers": 4}}`)
}
