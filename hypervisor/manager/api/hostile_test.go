package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// connect is a caller who does as it likes.
func (r *rig) connect() *dbus.Conn {
	r.t.Helper()
	conn, err := dbus.Connect(r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// errorOf returns the name of the error that a call gets.
func errorOf(conn *dbus.Conn, path dbus.ObjectPath, method string, args ...any) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := conn.Object(client.BusName, path).CallWithContext(ctx, method, 0, args...).Err
	var e dbus.Error
	if errors.As(err, &e) {
		return strings.TrimPrefix(strings.TrimPrefix(e.Name, client.ErrorPrefix), "org.freedesktop.DBus.Error.")
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// alive fails the test unless the API still works.
func (r *rig) alive() {
	r.t.Helper()
	if _, err := r.c.Guests(r.t.Context()); err != nil {
		r.t.Fatal("afterwards:", err)
	}
	if strings.Contains(r.log.String(), "bus is gone") {
		r.t.Fatal("the connection was lost")
	}
}

func TestWrongTypes(t *testing.T) {
	r := newRig(t, nil)
	r.define("one")
	conn := r.connect()
	paths := map[string]dbus.ObjectPath{client.ManagerInterface: client.ManagerPath, client.GuestInterface: client.GuestPath("one"),
		client.SnapshotInterface: client.SnapshotPath("one", "s"), client.PoolInterface: client.PoolPath("default"),
		client.ImageInterface: client.ImagePath("default", "i"), client.JobInterface: client.JobPath(1),
		client.NetworkInterface: client.NetworkPath("default")}
	for _, i := range interfaces() {
		for _, m := range i.methods {
			for _, args := range [][]any{{int64(1)}, {"a", "b", "c"}, {[]string{"a"}}, {dbus.MakeVariant("a")}, {map[string]dbus.Variant{}}} {
				if got := errorOf(conn, paths[i.name], i.name+"."+m.name, args...); got != "InvalidArgs" {
					t.Errorf("%s.%s%v: %q", i.name, m.name, args, got)
				}
			}
			if len(m.in) > 0 {
				if got := errorOf(conn, paths[i.name], i.name+"."+m.name); got != "InvalidArgs" {
					t.Errorf("%s.%s without arguments: %q", i.name, m.name, got)
				}
			}
		}
	}
	for _, tt := range []struct {
		path         dbus.ObjectPath
		method, want string
		args         []any
	}{
		{client.ManagerPath, client.ManagerInterface + ".Fly", "UnknownMethod", nil},
		{client.ManagerPath, client.GuestInterface + ".Start", "UnknownInterface", nil},
		{client.ManagerPath, "a.b.C", "UnknownMethod", nil},
		{client.ManagerPath + "/guests", client.GuestInterface + ".Start", "UnknownObject", nil},
		{client.GuestPath("absent"), client.GuestInterface + ".Start", "NotFound", nil},
		{client.GuestPath("one"), propertiesInterface + ".Get", "UnknownProperty", []any{client.GuestInterface, "Height"}},
		{client.GuestPath("one"), propertiesInterface + ".Get", "UnknownInterface", []any{client.JobInterface, "State"}},
		{client.GuestPath("one"), propertiesInterface + ".Set", "PropertyReadOnly", []any{client.GuestInterface, "State", dbus.MakeVariant("running")}},
		{client.JobPath(77), propertiesInterface + ".GetAll", "NotFound", []any{client.JobInterface}},
		{client.JobPath(77), client.JobInterface + ".Cancel", "NotFound", nil},
	} {
		if got := errorOf(conn, tt.path, tt.method, tt.args...); got != tt.want {
			t.Errorf("%s %s%v: %q, want %q", tt.path, tt.method, tt.args, got, tt.want)
		}
	}
	r.alive()
}

func TestHuge(t *testing.T) {
	r := newRig(t, nil)
	conn := r.connect()
	for _, size := range []int{maxText + 1, maxMessage, 8 << 20} {
		if got := errorOf(conn, client.ManagerPath, client.ManagerInterface+".DefineGuest", strings.Repeat("#", size)); got != "InvalidArgs" {
			t.Errorf("a definition of %d bytes: %q", size, got)
		}
	}
	for _, size := range []int{maxString, maxString + 1} {
		if got := errorOf(conn, client.ManagerPath, client.ManagerInterface+".GetGuest", strings.Repeat("a", size)); got != "InvalidName" && got != "InvalidArgs" {
			t.Errorf("a name of %d bytes: %q", size, got)
		}
	}
	// What the bus lets pass, and our library would not decode.
	v := dbus.MakeVariant("x")
	for range 64 {
		v = dbus.MakeVariant(v)
		if got := errorOf(conn, client.GuestPath("one"), propertiesInterface+".Set", client.GuestInterface, "State", v); got == "" {
			t.Fatal("taken")
		}
		if !conn.Connected() {
			conn = r.connect()
		}
	}
	r.alive()
}

func TestPaths(t *testing.T) {
	r := newRig(t, nil)
	r.define("one")
	conn := r.connect()
	names := []string{"../one", "..", ".", "", "one/../two", "/etc/passwd", "one\n", strings.Repeat("a", 65), "ёлка", "-rf", ".one", "one.toml/x"}
	for _, name := range names {
		if got := errorOf(conn, client.ManagerPath, client.ManagerInterface+".GetGuest", name); got != "InvalidName" {
			t.Errorf("guest %q: %q", name, got)
		}
		if got := errorOf(conn, client.ManagerPath, client.ManagerInterface+".DefineGuest", definitionOf(name)); got != "InvalidDefinition" && got != "InvalidName" {
			t.Errorf("definition of %q: %q", name, got)
		}
		if got := errorOf(conn, client.GuestPath("one"), client.GuestInterface+".Snapshot", name); got != "InvalidName" {
			t.Errorf("snapshot %q: %q", name, got)
		}
		if name == "" {
			continue
		}
		if got := errorOf(conn, client.GuestPath(name), client.GuestInterface+".Delete"); got != "UnknownObject" {
			t.Errorf("object of %q: %q", name, got)
		}
		if got := errorOf(conn, client.SnapshotPath("one", name), client.SnapshotInterface+".Delete"); got != "NotFound" {
			t.Errorf("snapshot object of %q: %q", name, got)
		}
	}
	for _, path := range []dbus.ObjectPath{"/", "/org/lodgehv/Lodge1/guests/_6fne", "/org/lodgehv/Lodge1/guests/one_", "/org/lodgehv/Lodge1/guests/_2",
		"/org/lodgehv/Lodge1/guests/_2D", "/org/lodgehv/Lodge1/jobs/0", "/org/lodgehv/Lodge1/networks/a/b", "/org/lodgehv/Lodge1/jobs/01", "/org/lodgehv/Lodge1/jobs/99999999999999999999",
		"/org/lodgehv/Lodge1/guests/one/snapshots", "/org/lodgehv/Lodge1/guests/one/snapshots/a/b", "/org/lodgehv/Lodge1x"} {
		if got := errorOf(conn, path, client.GuestInterface+".Start"); got != "UnknownObject" {
			t.Errorf("%s: %q", path, got)
		}
	}
	if list := r.m.List(); len(list) != 1 || list[0].Name != "one" {
		t.Errorf("guests are %v", list)
	}
}

func TestLabels(t *testing.T) {
	for _, name := range []string{"a", "A.b-c_d", "0", "ё", "a/b"} {
		o, ok := client.ParsePath(client.SnapshotPath(name, name))
		if !ok || o != (client.Object{Guest: name, Snapshot: name}) || !client.SnapshotPath(name, name).IsValid() {
			t.Errorf("%q: %+v %v", name, o, ok)
		}
	}
}

// Of thousands of calls at a time a few are carried out, the others refused, and nothing is left of them.
func TestFlood(t *testing.T) {
	slow := &slowAuth{gate: make(chan struct{})}
	r := newRig(t, func(c *Config) { c.Auth = slow })
	r.define("one")
	slow.on.Store(true)
	const calls = 3000
	conn := r.connect()
	done := make(chan *dbus.Call, calls)
	for range calls {
		conn.Object(client.BusName, client.GuestPath("one")).Go(client.GuestInterface+".Start", 0, done)
	}
	refused, ok := 0, 0
	count := func(n int) {
		for range n {
			var e dbus.Error
			switch c := <-done; {
			case c.Err == nil:
				ok++
			case errors.As(c.Err, &e) && e.Name == client.ErrorPrefix+"TooMany":
				refused++
			case errors.As(c.Err, &e) && e.Name == client.ErrorPrefix+"NotNow":
				ok++
			default:
				t.Fatal(c.Err)
			}
		}
	}
	count(calls - maxUserCalls)
	slow.on.Store(false)
	close(slow.gate)
	count(maxUserCalls)
	if ok != maxUserCalls || refused != calls-maxUserCalls {
		t.Errorf("%d were carried out, %d refused", ok, refused)
	}
	r.alive()
	jobs, err := r.c.Jobs(t.Context())
	if err != nil || len(jobs) != 1 {
		t.Errorf("%d jobs of one start: %v", len(jobs), err)
	}
	if n := strings.Count(r.log.String(), "call refused"); n == 0 || n > 2*logBurst {
		t.Errorf("%d refusals are logged", n)
	}
}

// Of hundreds of jobs, one after the other, the newest are kept.
func TestJobs(t *testing.T) {
	r := newRig(t, nil)
	r.define("one", "two")
	conn := r.connect()
	for range 50 {
		for _, name := range []string{"one", "two"} {
			if got := errorOf(conn, client.GuestPath(name), client.GuestInterface+".Snapshot", "s"); got != "" && got != "Exists" && got != "Busy" {
				t.Fatal(got)
			}
			if got := errorOf(conn, client.SnapshotPath(name, "s"), client.SnapshotInterface+".Delete"); got != "" && got != "NotFound" && got != "Busy" {
				t.Fatal(got)
			}
		}
	}
	jobs, err := r.c.Jobs(t.Context())
	if err != nil || len(jobs) == 0 || len(jobs) > 100 {
		t.Errorf("%d jobs are kept: %v", len(jobs), err)
	}
}

// Descriptors that a caller sends along do not pile up in the manager.
func TestDescriptors(t *testing.T) {
	r := newRig(t, nil)
	conn := r.connect()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	count := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	before := count()
	for range 200 {
		fd := dbus.UnixFD(null.Fd())
		_ = errorOf(conn, client.ManagerPath, "org.freedesktop.DBus.Peer.Ping", fd)
		_ = errorOf(conn, "/nothing", "x.y.Z", fd, fd, fd, fd, fd)
		if got := errorOf(conn, client.PoolPath("default"), client.PoolInterface+".ImportImage", "x", fd, "", ""); got != "InvalidArgs" {
			t.Fatalf("a device is imported: %q", got)
		}
		if got := errorOf(conn, client.ManagerPath, client.ManagerInterface+".GetGuest", fd); got == "" {
			t.Fatal("a descriptor is taken")
		}
		_ = errorOf(conn, client.ManagerPath, propertiesInterface+".Set", "a", "b", dbus.MakeVariant(fd))
	}
	if after := count(); after > before+10 {
		t.Errorf("%d descriptors more", after-before)
	}
	r.alive()
}

// Subscriptions are bounded, and end with whoever has them; nobody can end those of another.
func TestSubscriptions(t *testing.T) {
	r := newRig(t, nil)
	r.define("one")
	subscribe := func(c *dbus.Conn) string { return errorOf(c, client.ManagerPath, client.ManagerInterface+".Subscribe") }
	var conns []*dbus.Conn
	for range maxUserSubscribers {
		conns = append(conns, r.connect())
		if got := subscribe(conns[len(conns)-1]); got != "" {
			t.Fatal(got)
		}
	}
	extra := r.connect()
	if got := subscribe(extra); got != "TooMany" {
		t.Errorf("one more: %q", got)
	}
	signals := make(chan *dbus.Signal, 1000)
	conns[1].Signal(signals)
	// A forged message that the other has left.
	forged := &dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(client.BusName), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/DBus")),
		dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.DBus"), dbus.FieldMember: dbus.MakeVariant("NameOwnerChanged"),
		dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf("", "", "")),
	}, Body: []any{conns[1].Names()[0], conns[1].Names()[0], ""}}
	extra.Send(forged, nil)
	conns[0].Close()
	within(t, 5*time.Second, "a place is free", func() bool { return subscribe(extra) == "" })
	if _, err := r.m.Start("one"); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "a signal", func() bool { return len(signals) > 0 })
	for n := range maxFollows + 1 {
		got := errorOf(extra, client.GuestPath("one"), client.GuestInterface+".FollowLog", "vmm")
		if (got == "") != (n < maxFollows) {
			t.Errorf("log %d: %q", n, got)
		}
	}
}

// Who has not subscribed hears nothing, whatever it listens to.
func TestNoBroadcast(t *testing.T) {
	r := newRig(t, nil)
	r.define("one")
	spy, friend := r.connect(), r.connect()
	heard := make(chan *dbus.Signal, 1000)
	spy.Signal(heard)
	if err := spy.AddMatchSignal(dbus.WithMatchSender(client.BusName)); err != nil {
		t.Fatal(err)
	}
	signals := make(chan *dbus.Signal, 1000)
	friend.Signal(signals)
	if got := errorOf(friend, client.ManagerPath, client.ManagerInterface+".Subscribe"); got != "" {
		t.Fatal(got)
	}
	if _, err := r.m.Start("one"); err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "runs", func() bool { g, err := r.m.Get("one"); return err == nil && g.State == "running" })
	within(t, 5*time.Second, "signals", func() bool { return len(signals) > 3 })
	_ = errorOf(spy, client.ManagerPath, "org.freedesktop.DBus.Peer.Ping") // what was sent before has arrived
	for len(heard) > 0 {
		if s := <-heard; s.Sender != "org.freedesktop.DBus" {
			t.Errorf("hears %s of %s", s.Name, s.Path)
		}
	}
}

// slowAuth allows everything, but lets callers wait.
type slowAuth struct {
	Owner
	on   atomic.Bool
	gate chan struct{}
}

func (a *slowAuth) Allow(ctx context.Context, c Caller, action Action, details map[string]string) error {
	if a.on.Load() {
		<-a.gate
	}
	return a.Owner.Allow(ctx, c, action, details)
}

// FuzzGuard: whatever comes from a bus, what the guard delivers is decoded or the connection has ended, and nothing panics.
func FuzzGuard(f *testing.F) {
	seed := func(body ...any) {
		msg := &dbus.Message{Type: dbus.TypeMethodCall, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath: dbus.MakeVariant(client.ManagerPath), dbus.FieldMember: dbus.MakeVariant("M"),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)), dbus.FieldSender: dbus.MakeVariant(":1.1"),
		}, Body: body}
		var b bytes.Buffer
		if err := msg.EncodeTo(&b, binary.LittleEndian); err == nil {
			f.Add(b.Bytes())
		}
	}
	seed("a", "b")
	seed(dbus.MakeVariant(dbus.MakeVariant(uint32(1))))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, c := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = a.Write(b)
			a.Close()
		})
		g := &guard{Conn: c}
		g.framed.Store(true)
		out, err := io.ReadAll(g)
		c.Close()
		wg.Wait()
		_ = err // the end of b, mostly
		for r := bytes.NewReader(out); r.Len() > 0; {
			if _, err := dbus.DecodeMessage(r); err != nil {
				return
			}
		}
	})
}
