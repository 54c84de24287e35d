package qdisplay

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/vgpu/display"
)

// qemu starts QEMU with a VGA and no operating system, and returns the client's end of its display socket. It needs
// qemu-system-x86, qemu-system-common and seabios.
func qemu(t *testing.T) *net.UnixConn {
	t.Helper()
	monitor, theirs := socketpair(t)
	end, err := theirs.File()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-name", "seabios", "-uuid", "6f1c2ae6-0d0f-4f4c-9f5b-2f3ab3f3a2d1",
		"-machine", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-no-user-config",
		"-display", "dbus,p2p=yes", "-device", "VGA",
		"-drive", "driver=null-co,size=1M,if=ide",
		"-boot", "menu=on,splash-time=65000",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles = []*os.File{end}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
	})
	end.Close()
	theirs.Close()

	in := json.NewDecoder(monitor)
	do := func(line string, fds ...int) {
		t.Helper()
		if _, _, err := monitor.WriteMsgUnix([]byte(line+"\n"), unix.UnixRights(fds...), nil); err != nil {
			t.Fatal(err)
		}
		for {
			var r struct {
				Return json.RawMessage
				Error  json.RawMessage
			}
			if err := in.Decode(&r); err != nil {
				t.Fatal(err)
			}
			if r.Error != nil {
				t.Fatalf("%s: %s", line, r.Error)
			}
			if r.Return != nil { // else it is the greeting or an event
				return
			}
		}
	}
	ours, gift := socketpair(t)
	f, err := gift.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer gift.Close()
	do(`{"execute": "qmp_capabilities"}`)
	do(`{"execute": "getfd", "arguments": {"fdname": "display"}}`, int(f.Fd()))
	do(`{"execute": "add_client", "arguments": {"protocol": "@dbus-display", "fdname": "display"}}`)
	return ours
}

// Our client shows and drives a guest of QEMU's.
func TestQEMU(t *testing.T) {
	leds := make(chan hid.LEDs, 10)
	c, err := NewClient(qemu(t), ClientConfig{OnLEDs: func(_ uint32, l hid.LEDs) { leds <- l }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	vm, err := c.VM(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if vm.Name != "seabios" || vm.UUID != "6f1c2ae6-0d0f-4f4c-9f5b-2f3ab3f3a2d1" || !slices.Equal(vm.ConsoleIDs, []uint32{0}) {
		t.Errorf("the VM is %+v", vm)
	}
	info, err := c.Console(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if info.Type != "Graphic" || info.IsAbsolute || info.Width == 0 {
		t.Errorf("the console is %+v", info)
	}

	s := &shown{}
	r, err := c.Listen(t.Context(), 0, s, ReceiverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	// text says whether there is some in a row of VGA's text mode, of 16 scan lines.
	text := func(row int) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.surface == nil || s.surface.Height < 16*(row+1) {
			return false
		}
		for i := 16 * row * 4 * s.surface.Width; i < 16*(row+1)*4*s.surface.Width; i += 4 {
			if s.pixels[i]|s.pixels[i+1]|s.pixels[i+2] != 0 {
				return true
			}
		}
		return false
	}
	eventually(t, "SeaBIOS' name and its prompt, and nothing else", func() bool {
		return text(0) && text(1) && text(3) && !text(2) && !text(5) && !text(14)
	})

	in := c.Sender(0)
	press := func(code uint16) {
		in.Send([]hid.Event{{Type: hid.EVKey, Code: code, Value: 1}})
		in.Send([]hid.Event{{Type: hid.EVKey, Code: code, Value: 0}})
	}
	press(1) // Esc
	eventually(t, "the boot menu", func() bool { return text(5) && text(7) })
	press(58) // Caps Lock
	if l := receive(t, leds); l != hid.LEDCaps {
		t.Errorf("after caps lock the lights are %b", l)
	}

	err = c.SetMonitor(t.Context(), 0, display.Monitor{Connected: true, Width: 1024, Height: 768})
	var refused *peer.CallError
	if !errors.As(err, &refused) || refused.Name != errUnsupported { // a VGA in text mode cannot be resized
		t.Errorf("a monitor for a VGA: %v", err)
	}
	in.Send([]hid.Event{{Type: hid.EVRel, Code: hid.RelX, Value: 3}, {Type: hid.EVKey, Code: hid.BtnLeft, Value: 1}})
	if _, err := c.Console(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := errors.Join(r.Err(), c.Err()); err != nil {
		t.Error(err)
	}
	if !s.off() {
		t.Error("the screen is on after the end")
	}
}
