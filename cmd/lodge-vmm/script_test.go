package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/legacy"
)

// waitFor adds a loop that ends when one of the bits is set in what port reads.
func waitFor(a *kvmtest.Asm, port uint64, bits byte) {
	start := a.Here()
	a.Mov(kvmtest.RDX, port).In8().Bytes(0xa8, bits) // test al, bits
	a.Bytes(0x74, byte(start-a.Here()-2))            // jz start
}

// guests are kernels that do one thing each, by name.
var guests = map[string]func(a *kvmtest.Asm){
	// echo sends back what it receives.
	"echo": func(a *kvmtest.Asm) {
		loop := a.Here()
		waitFor(a, legacy.COM1Base+5, 1<<0) // data ready
		a.Mov(kvmtest.RDX, legacy.COM1Base).In8().Out8().Jmp(loop)
	},
	// count sends the bytes from 0 to 255 over and over.
	"count": func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RCX, 0)
		loop := a.Here()
		waitFor(a, legacy.COM1Base+5, 1<<5)                          // transmitter empty
		a.Mov(kvmtest.RDX, legacy.COM1Base).Bytes(0x88, 0xc8).Out8() // mov al, cl
		a.Inc(kvmtest.RCX).Jmp(loop)
	},
	// button powers off when its power button is pressed.
	"button": func(a *kvmtest.Asm) {
		waitFor(a, legacy.PMBase+legacy.PM1EventOff+1, 1<<0) // PWRBTN_STS
		powerOff(a)
	},
	// reset resets the machine at once.
	"reset": func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RDX, legacy.ResetPort).Mov(kvmtest.RAX, 2).Out8().Mov(kvmtest.RAX, 6).Out8().Spin()
	},
	// sleep asks for S3, which it was not offered, over and over.
	"sleep": func(a *kvmtest.Asm) {
		loop := a.Here()
		a.Mov(kvmtest.RDX, legacy.PMBase+legacy.PM1ControlOff)
		a.Mov(kvmtest.RAX, uint64(legacy.S3.SleepType())<<10|1<<13).Out16().Jmp(loop)
	},
}

func powerOff(a *kvmtest.Asm) {
	a.Mov(kvmtest.RDX, legacy.PMBase+legacy.PM1ControlOff)
	a.Mov(kvmtest.RAX, uint64(legacy.S5.SleepType())<<10|1<<13).Out16().Spin()
}

// writeGuest writes the kernel of that name.
func writeGuest(path, name string) error {
	main, ok := guests[name]
	if !ok {
		return errors.New("no guest " + name)
	}
	img := kvmtest.Image(kvmtest.Program{Ring: kvmtest.Ring0, Main: main})
	b, err := io.ReadAll(io.NewSectionReader(img.R, 0, img.Size))
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func synopsis(ts *testscript.TestScript, neg, ok bool, text string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", text)
	}
}

// connsKey is where a script's environment keeps its connections by name.
type connsKey struct{}

func conns(ts *testscript.TestScript) map[string]net.Conn {
	return ts.Value(connsKey{}).(map[string]net.Conn)
}

// unread returns how many bytes c has received.
func unread(ts *testscript.TestScript, c net.Conn) int {
	raw, err := c.(*net.UnixConn).SyscallConn()
	ts.Check(err)
	var n int
	ts.Check(raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }))
	ts.Check(err)
	return n
}

// scriptCommands are commands of test scripts for guests and their sockets.
var scriptCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	// await FILE [TEXT] waits until the file exists and, if a text is given, holds it.
	"await": func(ts *testscript.TestScript, neg bool, args []string) {
		synopsis(ts, neg, len(args) == 1 || len(args) == 2, "await FILE [TEXT]")
		path := ts.MkAbs(args[0])
		deadline := time.Now().Add(time.Minute)
		for {
			_, err := os.Stat(path)
			var b []byte
			if err == nil && len(args) == 2 {
				b, err = os.ReadFile(path)
			}
			if err == nil && (len(args) == 1 || bytes.Contains(b, []byte(args[1]))) {
				return
			}
			if time.Now().After(deadline) {
				ts.Fatalf("%s: not as awaited (%v): %s", args, err, b)
			}
			time.Sleep(10 * time.Millisecond)
		}
	},
	// damage FILE changes a byte in the middle of the file.
	"damage": func(ts *testscript.TestScript, neg bool, args []string) {
		path := ts.MkAbs(args[0])
		b, err := os.ReadFile(path)
		ts.Check(err)
		b[len(b)/2] ^= 0xff
		ts.Check(os.WriteFile(path, b, 0o600))
	},
	// guest NAME FILE writes a kernel of guests.
	"guest": func(ts *testscript.TestScript, neg bool, args []string) {
		synopsis(ts, neg, len(args) == 2, "guest NAME FILE")
		ts.Check(writeGuest(ts.MkAbs(args[1]), args[0]))
	},
	// connect NAME SOCKET connects to a Unix socket and calls the connection NAME.
	"connect": func(ts *testscript.TestScript, neg bool, args []string) {
		synopsis(ts, neg, len(args) == 2, "connect NAME SOCKET")
		c, err := net.Dial("unix", ts.MkAbs(args[1]))
		// A socket is there some moments before it is listened at.
		for deadline := time.Now().Add(time.Minute); errors.Is(err, unix.ECONNREFUSED) && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
			c, err = net.Dial("unix", ts.MkAbs(args[1]))
		}
		ts.Check(err)
		ts.Defer(func() { c.Close() })
		conns(ts)[args[0]] = c
	},
	// send NAME TEXT writes to a connection; expect NAME TEXT reads that text from it, and nothing else.
	"send": func(ts *testscript.TestScript, neg bool, args []string) {
		synopsis(ts, neg, len(args) == 2, "send NAME TEXT")
		_, err := io.WriteString(conns(ts)[args[0]], args[1])
		ts.Check(err)
	},
	"expect": func(ts *testscript.TestScript, neg bool, args []string) {
		synopsis(ts, neg, len(args) == 2, "expect NAME TEXT")
		c := conns(ts)[args[0]]
		ts.Check(c.SetReadDeadline(time.Now().Add(time.Minute)))
		b := make([]byte, len(args[1]))
		n, err := io.ReadFull(c, b)
		if err != nil || string(b) != args[1] {
			ts.Fatalf("%s: %q, %v; want %q", args[0], b[:n], err, args[1])
		}
	},
	// stuck NAME waits until the other side of a connection that nobody reads sends no more.
	"stuck": func(ts *testscript.TestScript, neg bool, args []string) {
		synopsis(ts, neg, len(args) == 1, "stuck NAME")
		c := conns(ts)[args[0]]
		for last, since := 0, time.Now(); last == 0 || time.Since(since) < time.Second/2; time.Sleep(10 * time.Millisecond) {
			if n := unread(ts, c); n != last {
				last, since = n, time.Now()
			}
		}
	},
	// counts NAME reads what is there from a connection and what comes then, more than a serial port holds: bytes that go
	// up by one.
	"counts": func(ts *testscript.TestScript, neg bool, args []string) {
		synopsis(ts, neg, len(args) == 1, "counts NAME")
		c := conns(ts)[args[0]]
		ts.Check(c.SetReadDeadline(time.Now().Add(time.Minute)))
		b := make([]byte, unread(ts, c)+20<<10)
		_, err := io.ReadFull(c, b)
		ts.Check(err)
		for i := range len(b) - 1 {
			if b[i+1] != b[i]+1 {
				ts.Fatalf("byte %d is %d, and the next is %d", i, b[i], b[i+1])
			}
		}
	},
	// closed NAME waits until the other side has closed a connection.
	"closed": func(ts *testscript.TestScript, neg bool, args []string) {
		synopsis(ts, neg, len(args) == 1, "closed NAME")
		c := conns(ts)[args[0]]
		ts.Check(c.SetReadDeadline(time.Now().Add(time.Minute)))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			ts.Fatalf("%s: still open", args[0])
		}
	},
}
