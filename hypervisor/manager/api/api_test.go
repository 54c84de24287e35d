package api

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

var update = flag.Bool("update", false, "write docs/api anew")

// docs/api says what the code does.
func TestDocuments(t *testing.T) {
	dir := "../../../docs/api"
	docs := Documents()
	for name, want := range docs {
		path := filepath.Join(dir, name)
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(got), string(want)); diff != "" {
			t.Errorf("%s is not what the code says (go test ./hypervisor/manager/api -run Documents -update):\n%s", path, diff)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.xml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(docs) {
		t.Errorf("%s has %v, of which the code knows %v", dir, files, slices.Sorted(maps.Keys(docs)))
	}
}

// What is said of types is what is sent, and every property has a value.
func TestTypes(t *testing.T) {
	r := newRig(t, nil)
	r.define("one")
	ctx := t.Context()
	job, err := r.c.Snapshot(ctx, "one", "s")
	if err != nil {
		t.Fatal(err)
	}
	within(t, 5*time.Second, "snapshot", func() bool { j, err := r.c.Job(ctx, job); return err == nil && j.State == "done" })
	if err := r.m.CreateImage("default", "i", 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.DefineNetwork(ctx, office+"[[forward]]\nlisten = \"127.0.0.1:1\"\nguest = \"one\"\nport = 1\n[[rule]]\ndirection = \"in\"\naction = \"deny\"\n"); err != nil {
		t.Fatal(err)
	}
	objects := map[string]dbus.ObjectPath{
		client.ManagerInterface: client.ManagerPath, client.GuestInterface: client.GuestPath("one"),
		client.SnapshotInterface: client.SnapshotPath("one", "s"), client.JobInterface: client.JobPath(job),
		client.PoolInterface: client.PoolPath("default"), client.ImageInterface: client.ImagePath("default", "i"),
		client.NetworkInterface: client.NetworkPath("office"),
	}
	var reply atomic.Value // the types of the last one
	conn, err := dbus.Connect(r.address, dbus.WithIncomingInterceptor(func(msg *dbus.Message) {
		if msg.Type == dbus.TypeMethodReply {
			sig, _ := msg.Headers[dbus.FieldSignature].Value().(dbus.Signature)
			reply.Store(sig.String())
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	structs := regexp.MustCompile(`\(\w+\)`) // in properties, the library reads them as lists
	for _, i := range interfaces() {
		var got map[string]dbus.Variant
		if err := conn.Object(client.BusName, objects[i.name]).Call(propertiesInterface+".GetAll", 0, i.name).Store(&got); err != nil {
			t.Errorf("%s: %v", i.name, err)
			continue
		}
		for _, p := range i.properties {
			if v, ok := got[p.name]; !ok || v.Signature().String() != structs.ReplaceAllString(p.sig, "av") {
				t.Errorf("%s.%s = %v, want a %s", i.name, p.name, v, p.sig)
			}
		}
		if len(got) != len(i.properties) {
			t.Errorf("%s: %d properties, of which %d are described", i.name, len(got), len(i.properties))
		}
		for _, m := range i.methods {
			if len(m.in) > 0 || m.name == "Delete" || m.name == "Subscribe" {
				continue
			}
			call := conn.Object(client.BusName, objects[i.name]).Call(i.name+"."+m.name, 0)
			if call.Err != nil {
				t.Logf("%s.%s: %v", i.name, m.name, call.Err)
				continue
			}
			if sig := reply.Load().(string); sig != signature(m.out) {
				t.Errorf("%s.%s returns %q, is said to return %q", i.name, m.name, sig, signature(m.out))
			}
		}
	}
}

// A guest is defined, changed, started, paused, stopped and deleted by a client, who hears of it.
func TestLife(t *testing.T) {
	r := newRig(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	watcher, err := client.Dial(ctx, r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	var mu sync.Mutex
	var heard []string
	watching, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- watcher.Watch(ctx, func(e client.Event) error {
			mu.Lock()
			defer mu.Unlock()
			switch e.Name {
			case "":
				close(watching)
			case "StateChanged", "Ended":
				heard = append(heard, strings.TrimSuffix(e.Name+" "+e.State+" "+e.Text, " "))
			case "GuestAdded", "GuestRemoved":
				heard = append(heard, e.Name+" "+e.Object.Guest)
				if e.Name == "GuestRemoved" {
					return errStop
				}
			}
			return nil
		})
	}()
	<-watching

	name, err := r.c.Define(ctx, definitionOf("work.vm"))
	if err != nil || name != "work.vm" {
		t.Fatal(name, err)
	}
	if _, err := r.c.Define(ctx, definitionOf("work.vm")); !errors.Is(err, client.ErrExists) {
		t.Errorf("a second one of that name: %v", err)
	}
	text, tag, err := r.c.Definition(ctx, name)
	if err != nil || text != definitionOf(name) {
		t.Fatalf("%v\n%s", err, text)
	}
	if err := r.c.SetDefinition(ctx, name, strings.Replace(text, "a guest", "wörk", 1), tag); err != nil {
		t.Fatal(err)
	}
	if err := r.c.SetDefinition(ctx, name, text, tag); !errors.Is(err, client.ErrChanged) {
		t.Errorf("a change of what was changed meanwhile: %v", err)
	}
	if err := r.c.SetDefinition(ctx, name, text+"colour = 1\n", ""); !errors.Is(err, client.ErrDefinition) || !strings.Contains(err.Error(), "colour") {
		t.Errorf("an unknown key: %v", err)
	}
	g, err := r.c.Guest(ctx, name)
	if err != nil || g.Label != "wörk" || g.State != "defined" || g.Memory != 64<<20 || g.Slot != 0 {
		t.Fatalf("%v %+v", err, g)
	}
	if _, err := r.c.Guest(ctx, "absent"); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("a guest that is not there: %v", err)
	}
	if err := r.c.Pause(ctx, name); !errors.Is(err, client.ErrNotNow) {
		t.Errorf("pause of a guest that is off: %v", err)
	}
	var steps []string
	j, err := r.c.Do(ctx, func(ctx context.Context) (uint64, error) { return r.c.Start(ctx, name) }, nil, func(s string) { steps = append(steps, s) })
	if err != nil || j.State != "done" || j.Kind != "start" || j.Object != name {
		t.Fatalf("start: %v %+v", err, j)
	}
	if err := r.c.Pause(ctx, name); err != nil {
		t.Fatal(err)
	}
	if err := r.c.Resume(ctx, name); err != nil {
		t.Fatal(err)
	}
	if png, err := r.c.Picture(ctx, name, 32); err != nil || !bytes.HasPrefix(png, []byte("\x89PNG")) {
		t.Errorf("picture: %v, %d bytes", err, len(png))
	}
	if s, err := r.c.Statistics(ctx, name); err != nil || len(s) == 0 || s[0].Memory == 0 {
		t.Errorf("statistics: %v %v", err, s)
	}
	if _, err := r.c.Do(ctx, func(ctx context.Context) (uint64, error) { return r.c.Stop(ctx, name) }, nil, func(s string) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(steps, "\n"); !strings.Contains(all, "power button pressed") {
		t.Errorf("steps are %q", steps)
	}
	if err := r.c.Switch(ctx, name); err == nil || !strings.Contains(err.Error(), "no seat") {
		t.Errorf("switch without a seat: %v", err)
	}
	if err := r.c.Delete(ctx, name); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	want := []string{"GuestAdded work.vm", "StateChanged starting", "StateChanged running", "Ended done", "StateChanged paused",
		"StateChanged running", "StateChanged stopping", "StateChanged defined", "Ended done", "GuestRemoved work.vm"}
	// The manager drops a state that was overtaken before it was told, and a job's end may come before the state or after it.
	rest := slices.Clone(heard)
	for _, w := range []string{want[0], want[2], want[3], want[4], want[7], want[8], want[9]} {
		n := slices.Index(rest, w)
		if n < 0 {
			t.Fatalf("heard %q, where %q is missing", heard, w)
		}
		rest = slices.Delete(rest, n, n+1)
	}
	if heard[0] != want[0] || heard[len(heard)-1] != want[len(want)-1] {
		t.Errorf("heard %q", heard)
	}
}

// A job that is given up is cancelled: the guest runs on.
func TestCancel(t *testing.T) {
	r := newRig(t, nil)
	if _, err := r.m.Define([]byte(strings.Replace(definitionOf("deaf"), "[display]", "cmdline = \"deaf\"", 1))); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := r.c.Do(ctx, func(ctx context.Context) (uint64, error) { return r.c.Start(ctx, "deaf") }, nil, nil); err != nil {
		t.Fatal(err)
	}
	stop, cancel := context.WithCancel(ctx)
	_, err := r.c.Do(stop, func(ctx context.Context) (uint64, error) { return r.c.Stop(ctx, "deaf") }, nil, func(s string) {
		if strings.Contains(s, "pressed") {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a stop that is given up: %v", err)
	}
	within(t, 5*time.Second, "runs on", func() bool { g, err := r.c.Guest(ctx, "deaf"); return err == nil && g.State == "running" })
}

// What is written to a log reaches who follows it.
func TestLogs(t *testing.T) {
	r := newRig(t, nil)
	r.define("one")
	ctx := t.Context()
	names, err := r.c.Logs(ctx, "one")
	if err != nil || !slices.Contains(names, "serial") {
		t.Fatal(names, err)
	}
	logs, err := r.m.Logs("one")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(logs["serial"]), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(logs["serial"])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("before\n"); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	big := strings.Repeat("0123456789abcde\n", 8<<10)
	follows := make(chan struct{})
	go func() { // nobody tells from when on the log is followed
		for ctx.Err() == nil {
			_, _ = f.WriteString("~")
			select {
			case <-follows:
				_, _ = f.WriteString(big)
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	err = r.c.FollowLog(ctx, "one", "serial", func(b []byte) error {
		if got.Len() == 0 && len(b) > 0 {
			close(follows)
		}
		got.Write(b)
		if bytes.Count(got.Bytes(), []byte("\n")) >= 8<<10 {
			return errStop
		}
		return nil
	})
	if !errors.Is(err, errStop) || strings.TrimLeft(got.String(), "~") != big {
		t.Errorf("%v, %d bytes", err, got.Len())
	}
	b, err := r.c.ReadLog(ctx, "one", "serial", 16)
	if err != nil || string(b) != "0123456789abcde\n" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := r.c.ReadLog(ctx, "one", "../../../etc/passwd", 16); err == nil {
		t.Error("a log called ../../../etc/passwd is read")
	}
}

func TestIntrospect(t *testing.T) {
	r := newRig(t, nil)
	r.define("one", "t-w.o")
	conn, err := dbus.Connect(r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for path, want := range map[dbus.ObjectPath][]string{
		"/": {`<node name="org"/>`}, "/org": {`<node name="lodgehv"/>`},
		client.ManagerPath:      {`<interface name="` + client.ManagerInterface, `<node name="guests"/>`, `<node name="jobs"/>`},
		client.GuestsPath:       {`<node name="one"/>`, `<node name="t_2dw_2eo"/>`},
		client.GuestPath("one"): {`<method name="Start">`, `<property name="State" type="s"`},
	} {
		var xml string
		if err := conn.Object(client.BusName, path).Call(introspectInterface+".Introspect", 0).Store(&xml); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		for _, w := range want {
			if !strings.Contains(xml, w) {
				t.Errorf("%s has no %s:\n%s", path, w, xml)
			}
		}
	}
}

// There is one manager on a bus.
func TestSecondManager(t *testing.T) {
	r := newRig(t, nil)
	err := Serve(t.Context(), Config{Bus: r.address, Manager: r.m, Auth: Owner{}}, func() { t.Error("is ready") })
	if err == nil || !strings.Contains(err.Error(), "another program has the name") {
		t.Errorf("a second one: %v", err)
	}
}

// The API comes back when the bus does, and who watches is told that it was gone.
func TestBusRestarts(t *testing.T) {
	r := newRig(t, nil)
	r.define("one")
	watching, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- r.c.Watch(t.Context(), func(e client.Event) error {
			if e.Name == "" {
				close(watching)
			}
			return nil
		})
	}()
	<-watching
	r.stopBus()
	if err := <-done; !errors.Is(err, client.ErrNoManager) {
		t.Errorf("watches a bus that is gone: %v", err)
	}
	if err := os.Remove(strings.TrimPrefix(r.address, "unix:path=")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	startBus(t, r.dir, "session", openPolicy)
	within(t, 10*time.Second, "the API on the new bus", func() bool {
		c, err := client.Dial(t.Context(), r.address)
		if err != nil {
			return false
		}
		defer c.Close()
		guests, err := c.Guests(t.Context())
		return err == nil && len(guests) == 1
	})
}

func BenchmarkList100(b *testing.B) {
	r := newRig(b, nil)
	var names []string
	for n := range 100 {
		names = append(names, "guest-"+string(rune('a'+n/10))+string(rune('0'+n%10)))
	}
	r.define(names...)
	for b.Loop() {
		guests, err := r.c.Guests(b.Context())
		if err != nil || len(guests) != 100 {
			b.Fatal(len(guests), err)
		}
	}
}
