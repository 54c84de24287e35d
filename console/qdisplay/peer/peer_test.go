package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// pair returns two sockets that are connected to each other.
func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var socks [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		socks[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return socks[0], socks[1]
}

// serve runs Serve until the test ends.
func serve(t testing.TB, c *Conn) (ended <-chan error) {
	done := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { done <- c.Serve() })
	t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
	return done
}

// connected returns the two sides of a connection, whose handlers are set before they serve.
func connected(t testing.TB, accept, connect Config) (*Conn, *Conn) {
	t.Helper()
	a, b := pair(t)
	made := make(chan *Conn, 1)
	go func() {
		c, err := Accept(a, accept)
		if err != nil {
			t.Error(err)
		}
		made <- c
	}()
	client, err := Connect(b, connect)
	if err != nil {
		t.Fatal(err)
	}
	server := <-made
	if server == nil {
		t.FailNow()
	}
	return server, client
}

func TestCall(t *testing.T) {
	var server *Conn
	server, client := connected(t, Config{Handler: func(m *Message) {
		if m.Member != "Double" {
			server.Fail(m, ErrUnknownMethod, "what?")
			return
		}
		d, err := m.Args("us")
		n, s := d.Uint32(), d.Str()
		if err = errors.Join(err, d.End()); err != nil {
			server.Fail(m, ErrInvalidArgs, err.Error())
			return
		}
		var e Encoder
		e.Uint32(2 * n)
		e.Str(s + s)
		server.Reply(m, "us", e.Bytes())
	}}, Config{})
	serve(t, server)
	serve(t, client)

	var e Encoder
	e.Uint32(21)
	e.Str("ab")
	r := client.Call(t.Context(), &Header{Type: MethodCall, Path: "/x", Member: "Double", Signature: "us"}, e.Bytes())
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	d, err := r.Message.Args("us")
	if err != nil {
		t.Fatal(err)
	}
	if n, s := d.Uint32(), d.Str(); n != 42 || s != "abab" || d.End() != nil {
		t.Errorf("got %d, %q, %v", n, s, d.End())
	}

	for name, h := range map[string]*Header{
		ErrUnknownMethod: {Type: MethodCall, Path: "/x", Member: "Other"},
		ErrInvalidArgs:   {Type: MethodCall, Path: "/x", Member: "Double"},
	} {
		var e *CallError
		if r := client.Call(t.Context(), h, nil); !errors.As(r.Err, &e) || e.Name != name {
			t.Errorf("got %v, want %s", r.Err, name)
		}
	}
	if r := client.Call(t.Context(), &Header{Type: MethodCall, Path: "/", Interface: "org.freedesktop.DBus.Peer", Member: "Ping"}, nil); r.Err != nil {
		t.Error(r.Err)
	}

	server.Close()
	if r := client.Call(t.Context(), &Header{Type: MethodCall, Path: "/x", Member: "Double"}, nil); r.Err == nil {
		t.Error("a call over a closed connection succeeds")
	}
}

// A caller that gives up leaves nothing behind.
func TestCallCancelled(t *testing.T) {
	server, client := connected(t, Config{Handler: func(*Message) {}}, Config{})
	serve(t, server)
	serve(t, client)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := client.Call(ctx, &Header{Type: MethodCall, Path: "/x", Member: "M"}, nil); !errors.Is(r.Err, context.Canceled) {
		t.Errorf("got %v", r.Err)
	}
	client.mu.Lock()
	defer client.mu.Unlock()
	if n := len(client.pending); n != 0 {
		t.Errorf("%d calls are pending", n)
	}
}

// Calls come in order, also when some of them are long.
func TestOrder(t *testing.T) {
	const n = 500
	var got []uint32
	done := make(chan struct{})
	server, client := connected(t, Config{MaxBody: 1 << 20, Handler: func(m *Message) {
		d, _ := m.Args("uay")
		got = append(got, d.Uint32())
		if len(d.Blob()) > 1<<20 || d.End() != nil {
			t.Errorf("call %d: %v", len(got), d.End())
		}
		if len(got) == n {
			close(done)
		}
	}}, Config{})
	serve(t, server)
	serve(t, client)
	var want []uint32
	var e Encoder
	for i := range uint32(n) {
		want = append(want, i)
		e.Reset()
		e.Uint32(i)
		size := 10
		if i%50 == 7 {
			size = 900_000
		}
		clear(e.Blob(size))
		if err := client.Send(&Header{Type: MethodCall, Flags: NoReplyExpected, Path: "/x", Member: "M", Signature: "uay"}, e.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	<-done
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Files reach who they are meant for; those that nobody takes are closed.
func TestFiles(t *testing.T) {
	type result struct {
		text string
		err  error
	}
	got := make(chan result, 1)
	server, client := connected(t, Config{Handler: func(m *Message) {
		d, _ := m.Args("h")
		index := d.Uint32()
		if m.Member == "Leave" {
			return
		}
		f, err := m.File(index)
		if err != nil {
			got <- result{err: err}
			return
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		got <- result{string(b), err}
	}}, Config{})
	serve(t, server)
	serve(t, client)

	send := func(member string, index uint32) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		var e Encoder
		e.Uint32(index)
		h := &Header{Type: MethodCall, Flags: NoReplyExpected, Path: "/x", Member: member, Signature: "h"}
		if err := client.Send(h, e.Bytes(), int(r.Fd())); err != nil {
			t.Fatal(err)
		}
		r.Close()
		return w
	}
	for range 3 { // nobody takes these: a write fails when they are closed
		w := send("Leave", 0)
		for {
			if _, err := w.Write([]byte("x")); errors.Is(err, unix.EPIPE) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		w.Close()
	}
	w := send("Take", 0)
	w.WriteString("hello")
	w.Close()
	if r := <-got; r.err != nil || r.text != "hello" {
		t.Errorf("got %q, %v", r.text, r.err)
	}
	send("Take", 1).Close()
	if r := <-got; r.err == nil {
		t.Error("a descriptor that was not sent is taken")
	}
}

// godbus is the other side: its handshake, its encoding, its descriptors.
func TestGodbus(t *testing.T) {
	a, b := pair(t)
	made := make(chan *Conn, 1)
	var server *Conn
	go func() {
		c, err := Accept(a, Config{Handler: func(m *Message) {
			d, err := m.Args("yqiutdsobasha{sv}")
			if err != nil {
				server.Fail(m, ErrInvalidArgs, err.Error())
				return
			}
			var e Encoder
			e.Byte(d.Byte())
			e.Uint16(d.Uint16())
			e.Int32(d.Int32())
			e.Uint32(d.Uint32())
			e.Uint64(d.Uint64())
			e.Double(d.Double())
			e.Str(d.Str())
			e.Str(d.Str())
			e.Bool(d.Bool())
			e.Strs(d.Strs())
			f, err := m.File(d.Uint32())
			if err != nil {
				t.Error(err)
			}
			f.Close()
			dict := d.Array(8)
			mark := e.Array(8)
			for dict.More() {
				dict.take(8, 0)
				e.Align(8)
				e.Str(dict.Str())
				if dict.Variant("s") {
					e.Sig("s")
					e.Str(dict.Str())
				} else {
					e.Sig("as")
					e.Strs([]string{"not", "a", "string"})
				}
			}
			e.EndArray(mark, 8)
			if err := errors.Join(dict.Err(), d.End()); err != nil {
				t.Error(err)
			}
			server.Reply(m, "yqiutdsobasa{sv}", e.Bytes())
		}})
		if err != nil {
			t.Error(err)
		}
		made <- c
	}()
	client, err := dbus.DialUnix(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Auth(nil); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if server = <-made; server == nil {
		t.FailNow()
	}
	serve(t, server)

	r, _, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	args := []any{byte(1), uint16(2), int32(-3), uint32(4), uint64(1) << 40, 1.5, "grüße", dbus.ObjectPath("/a/b"), true,
		[]string{"x", "", "yz"}, dbus.UnixFD(r.Fd()), map[string]dbus.Variant{"s": dbus.MakeVariant("t")}}
	call := client.Object("", "/x").Call("a.b.Echo", 0, args...)
	if call.Err != nil {
		t.Fatal(call.Err)
	}
	args = append(args[:10:10], args[11])
	if diff := cmp.Diff(args, call.Body, cmp.AllowUnexported(dbus.Variant{}, dbus.Signature{})); diff != "" {
		t.Error(diff)
	}
	args = []any{byte(1), uint16(2), int32(-3), uint32(4), uint64(1) << 40, 1.5, "", dbus.ObjectPath("/a/b"), false,
		[]string{}, dbus.UnixFD(r.Fd()), map[string]dbus.Variant{"s": dbus.MakeVariant([]any{[]int32{1}, map[string]int64{"x": 3}})}}
	if call = client.Object("", "/x").Call("a.b.Echo", 0, args...); call.Err != nil {
		t.Fatal(call.Err)
	}
	if diff := cmp.Diff(map[string]dbus.Variant{"s": dbus.MakeVariant([]string{"not", "a", "string"})}, call.Body[10],
		cmp.AllowUnexported(dbus.Variant{}, dbus.Signature{})); diff != "" {
		t.Error(diff)
	}
}

// message encodes one as a peer might.
func message(h Header, body string, fds int) string {
	var e Encoder
	h.encode(&e, 1, len(body), fds)
	return string(e.Bytes()) + body
}

// What ends a connection, with what error.
func TestHostile(t *testing.T) {
	const hello = "\x00AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"
	call := Header{Type: MethodCall, Path: "/x", Member: "M"}
	tests := map[string]struct {
		send string
		fds  int // sent with the last byte
		want string
	}{
		"no zero":               {send: "AUTH\r\n", want: "first byte"},
		"begin at once":         {send: "\x00BEGIN\r\n", want: "BEGIN without"},
		"endless line":          {send: "\x00" + strings.Repeat("x", 5000), want: "a line of more than"},
		"endless handshake":     {send: "\x00" + strings.Repeat("AUTH\r\n", 50), want: "no end after"},
		"other mechanism":       {send: "\x00AUTH ANONYMOUS 30\r\nBEGIN\r\n", want: "BEGIN without"},
		"not hexadecimal":       {send: "\x00AUTH EXTERNAL xx\r\nBEGIN\r\n", want: "BEGIN without"},
		"byte order":            {send: hello + strings.Repeat("x", 16), want: "byte order"},
		"version":               {send: hello + "l\x01\x00\x02" + strings.Repeat("\x00", 12), want: "version"},
		"huge body":             {send: hello + "l\x01\x00\x01\xff\xff\xff\xff\x01\x00\x00\x00\x00\x00\x00\x00", want: "are the most"},
		"huge header":           {send: hello + "l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\xff\xff\xff\xff", want: "are the most"},
		"no serial":             {send: hello + "l\x01\x00\x01" + strings.Repeat("\x00", 12), want: "serial number"},
		"no member":             {send: hello + message(Header{Type: MethodCall, Path: "/x"}, "", 0), want: "lacks a header field"},
		"no reply serial":       {send: hello + message(Header{Type: MethodReturn}, "", 0), want: "lacks a header field"},
		"short":                 {send: hello + "l\x01", want: "unexpected EOF"},
		"fields beyond the end": {send: hello + "l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00" + "\x01\x01o\x00\xff\x00\x00\x00", want: "beyond the end"},
		"wrong type of a field": {send: hello + "l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00" + "\x01\x01u\x00\xff\x00\x00\x00", want: "header field 1"},
		"descriptors missing":   {send: hello + message(call, "", 2), want: "of which 0 have come"},
		"descriptors unused":    {send: hello + message(call, "", 0), fds: 1, want: "belong to no message"},
		"many descriptors":      {send: hello + message(call, "", 1), fds: 17, want: "at once"},
		"not negotiated":        {send: "\x00AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n" + message(call, "", 1), fds: 1, want: "not agreed"},
		"good":                  {send: hello + message(call, "", 1), fds: 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			go io.Copy(io.Discard, b)
			ended := make(chan error, 1)
			go func() {
				c, err := Accept(a, Config{})
				if err == nil {
					err = c.Serve()
				}
				ended <- err
			}()
			n := len(tt.send) - 1
			b.Write([]byte(tt.send[:n])) // fails when the other side has seen enough
			var oob []byte
			if tt.fds > 0 {
				fds := make([]int, tt.fds)
				for i := range fds {
					fds[i] = int(os.Stdin.Fd())
				}
				oob = unix.UnixRights(fds...)
			}
			b.WriteMsgUnix([]byte(tt.send[n:]), oob, nil)
			b.CloseWrite()
			err := <-ended
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Descriptors of a message that is refused after they were counted to it are closed: one who connects again and again would
// else use up ours.
func TestRefusedFiles(t *testing.T) {
	server, client := pair(t)
	c := newConn(server, Config{})
	c.fds = true
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	msg := message(Header{Type: MethodCall, Path: "/x", Member: "M"}, "", 1) // of two
	if _, _, err := client.WriteMsgUnix([]byte(msg), unix.UnixRights(int(r.Fd()), int(r.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if err := c.Serve(); err == nil || !strings.Contains(err.Error(), "belong to no message") {
		t.Errorf("got %v", err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("writing to a pipe that nobody is to have open any more: %v", err)
	}
}

// A client that does not read is dropped, and a server that says nothing is given up.
func TestTimeout(t *testing.T) {
	a, b := pair(t)
	if _, err := Connect(b, Config{Timeout: 10 * time.Millisecond}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	a.Close()

	a, b = pair(t)
	go func() {
		b.Write([]byte("\x00AUTH EXTERNAL 30\r\nBEGIN\r\n"))
		ping := []byte(message(Header{Type: MethodCall, Path: "/", Interface: "org.freedesktop.DBus.Peer", Member: "Ping"}, "", 0))
		for {
			if _, err := b.Write(ping); err != nil {
				return
			}
		}
	}()
	c, err := Accept(a, Config{Timeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c.Serve() // ends
}

// What comes costs no more memory than it has bytes.
func TestMemory(t *testing.T) {
	a, b := pair(t)
	const limit = 64 << 20
	go func() {
		head := Encoder{}
		(&Header{Type: MethodCall, Path: "/x", Member: "M"}).encode(&head, 1, limit, 0)
		b.Write([]byte("\x00AUTH EXTERNAL 30\r\nBEGIN\r\n" + string(head.Bytes()) + strings.Repeat("x", 100_000)))
		b.CloseWrite()
		io.Copy(io.Discard, b)
	}()
	c, err := Accept(a, Config{MaxBody: limit})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Serve(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	if n := len(c.buf); n > 256<<10 {
		t.Errorf("%d bytes were allocated for a message of which 100,000 came", n)
	}
}

// Sending and receiving what moves all the time allocates nothing.
func TestAllocs(t *testing.T) {
	var server *Conn
	server, client := connected(t, Config{Handler: func(m *Message) {
		d, _ := m.Args("u")
		d.Uint32()
		server.Reply(m, "", nil)
	}}, Config{})
	serve(t, server)
	serve(t, client)
	var e Encoder
	h := &Header{Type: MethodCall, Path: "/org/qemu/Display1/Console_0", Interface: "org.qemu.Display1.Keyboard", Member: "Press", Signature: "u"}
	done := make(chan Reply, 1)
	allocs := testing.AllocsPerRun(1000, func() {
		e.Reset()
		e.Uint32(1)
		if err := client.Go(h, e.Bytes(), done); err != nil {
			t.Fatal(err)
		}
		<-done
	})
	if allocs != 0 {
		t.Errorf("a call and its reply allocate %.1f times", allocs)
	}
}

// TrySend sends until the other side does not keep up, and all of what it has taken arrives whole and in order.
func TestTrySend(t *testing.T) {
	release, got := make(chan struct{}), make(chan uint32, 1<<16)
	server, client := connected(t, Config{Handler: func(m *Message) {
		<-release
		d, err := m.Args("u")
		if err != nil {
			t.Error(err)
		}
		got <- d.Uint32()
	}}, Config{})
	serve(t, server)
	h := &Header{Type: MethodCall, Flags: NoReplyExpected, Path: "/x", Member: "Count", Signature: "u"}
	var e Encoder
	taken := uint32(0)
	for {
		e.Reset()
		e.Uint32(taken)
		sent, err := client.TrySend(h, e.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !sent {
			break
		}
		taken++
	}
	if taken == 0 {
		t.Fatal("it has taken nothing")
	}
	close(release)
	if err := client.Send(h, e.Bytes()); err != nil { // the one that was not taken
		t.Fatal(err)
	}
	for want := range taken + 1 {
		if n := <-got; n != want {
			t.Fatalf("message %d came where %d was next", n, want)
		}
	}
	client.mu.Lock()
	if sent, err := client.TrySend(h, e.Bytes()); sent || err != nil {
		t.Errorf("while another sends: %v, %v", sent, err)
	}
	client.mu.Unlock()
	if err := client.sock.SetWriteDeadline(time.Unix(1, 0)); err != nil { // that of a message long ago
		t.Fatal(err)
	}
	if sent, err := client.TrySend(h, e.Bytes()); !sent || err != nil {
		t.Errorf("after the deadline of the message before: %v, %v", sent, err)
	}
	client.Close()
	for _, want := range []error{net.ErrClosed, ErrClosed} {
		if sent, err := client.TrySend(h, e.Bytes()); sent || !errors.Is(err, want) {
			t.Errorf("a closed connection: %v, %v, want %v", sent, err, want)
		}
	}
}
