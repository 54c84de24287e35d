package api

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// sceneVariable says that this process is in the namespace of TestPolkit.
const sceneVariable = "API_TEST_POLKIT"

// Users of the scene.
const (
	seatUser  = 2001 // sits at the machine
	stranger  = 2002 // a service, or somebody by ssh
	memberUID = 2003 // the same, but a member of the group lodge
)

// With the real polkitd, and the policy, rules and D-Bus policy that we ship: who sits at the machine may see, switch and start; a
// stranger may not even list.
func TestPolkit(t *testing.T) {
	if os.Getenv(sceneVariable) != "" {
		polkitScene(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPolkit$", "-test.v")
	cmd.Env = append(os.Environ(), sceneVariable+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

// polkitScene is the test, in a mount namespace of its own in which it makes the files that polkitd looks at.
func polkitScene(t *testing.T) {
	dir := "/run/api"
	cover := func(target string) {
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatal(target, err)
		}
	}
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	data := "../../../data/"
	policy, rules := read(data+"polkit-1/org.lodgehv.Lodge1.policy"), read(data+"polkit-1/50-org.lodgehv.Lodge1.rules")
	bus := read(data + "dbus-1/org.lodgehv.Lodge1.conf")
	passwd, group := read("/etc/passwd"), read("/etc/group")
	for _, target := range []string{"/run", "/usr/share/polkit-1", "/etc/polkit-1"} {
		cover(target)
	}
	write("/usr/share/polkit-1/actions/org.lodgehv.Lodge1.policy", policy)
	write("/usr/share/polkit-1/rules.d/50-org.lodgehv.Lodge1.rules", rules)
	if err := os.MkdirAll("/etc/polkit-1/rules.d", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, uid := range map[string]int{"seated": seatUser, "strange": stranger, "member": memberUID} {
		n := strconv.Itoa(uid)
		passwd += name + ":x:" + n + ":" + n + "::/:/bin/sh\n"
		group += name + ":x:" + n + ":\n"
	}
	write(dir+"/passwd", passwd)
	write(dir+"/group", group+"lodge:x:2100:member\n")
	for _, f := range []string{"passwd", "group"} {
		if err := unix.Mount(filepath.Join(dir, f), "/etc/"+f, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	session := func(active string) { // what logind says, sd-login(3)
		write("/run/systemd/seats/seat0", "IS_VTCONSOLE=1\nACTIVE=c1\nACTIVE_UID=2001\nSESSIONS=c1\n")
		write("/run/systemd/users/2001", "NAME=seated\nSTATE=active\nDISPLAY=c1\nSESSIONS=c1\nACTIVE_SESSIONS=c1\nSEATS=seat0\n")
		write("/run/systemd/sessions/c1", "UID=2001\nUSER=seated\nACTIVE="+active+"\nSTATE=active\nREMOTE=0\nSEAT=seat0\nTYPE=wayland\nCLASS=user\n")
	}
	session("1")
	// The rules of a system bus, as in its system.conf, and ours.
	inner := bus[strings.Index(bus, "<busconfig>")+len("<busconfig>") : strings.Index(bus, "</busconfig>")]
	system := `<policy context="default"><allow user="*"/><deny own="*"/><deny send_type="method_call"/><allow send_type="signal"/>
 <allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
 <allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
 <allow send_destination="org.freedesktop.DBus"/><allow send_destination="org.freedesktop.PolicyKit1"/></policy>
 <policy user="root"><allow own="org.freedesktop.PolicyKit1"/></policy>
 <policy user="polkitd"><allow own="org.freedesktop.PolicyKit1"/></policy>`
	r := &rig{t: t, dir: dir, log: &buffer{}}
	r.address = startBus(t, dir, "system", system+inner)
	startPolkitd(t, r.address)
	r.serve(func(c *Config) {
		c.Auth = Polkit{}
		c.Switch = func(context.Context, string) error { return nil }
	})
	r.define("one")

	const denied, question = "NotAuthorized", "InteractiveAuthorizationRequired"
	one := client.GuestPath("one")
	calls := []struct {
		what                 string
		path                 dbus.ObjectPath
		method               string
		args                 []any
		seat, member, others string // the error that each of them gets
	}{
		{"list", client.ManagerPath, client.ManagerInterface + ".ListGuests", nil, "", "", denied},
		{"look", one, propertiesInterface + ".GetAll", []any{client.GuestInterface}, "", "", denied},
		{"look for what is not there", client.GuestPath("absent"), propertiesInterface + ".GetAll", []any{client.GuestInterface}, "NotFound", "NotFound", denied},
		{"subscribe", client.ManagerPath, client.ManagerInterface + ".Subscribe", nil, "", "", denied},
		{"switch", one, client.GuestInterface + ".Switch", nil, "", "", denied},
		{"start", one, client.GuestInterface + ".Start", nil, "", "NotNow", denied},
		{"read what it prints", one, client.GuestInterface + ".ReadLog", []any{"vmm", uint32(10)}, "", "", denied},
		{"define", client.ManagerPath, client.ManagerInterface + ".DefineGuest", []any{definitionOf("two")}, question, denied, denied},
		{"delete", one, client.GuestInterface + ".Delete", nil, question, denied, denied},
		{"stop all", client.ManagerPath, client.ManagerInterface + ".StopAll", nil, question, denied, denied},
	}
	seat, member, other := as(t, r.address, seatUser), as(t, r.address, memberUID), as(t, r.address, stranger)
	for _, c := range calls {
		for _, who := range []struct {
			name string
			conn *dbus.Conn
			want string
		}{{"who sits there", seat, c.seat}, {"a member", member, c.member}, {"a stranger", other, c.others}} {
			if got := errorOf(who.conn, c.path, c.method, c.args...); got != who.want {
				t.Errorf("%s, %s: %q, want %q", who.name, c.what, got, who.want)
			}
		}
		within(t, 5*time.Second, "its start", func() bool { g, err := r.m.Get("one"); return err == nil && g.State != "starting" })
	}
	var xml string
	if err := other.Object(client.BusName, client.GuestsPath).Call(introspectInterface+".Introspect", 0).Store(&xml); err != nil || strings.Contains(xml, "one") {
		t.Errorf("a stranger is told of guests: %v\n%s", err, xml)
	}
	if err := seat.Object(client.BusName, client.GuestsPath).Call(introspectInterface+".Introspect", 0).Store(&xml); err != nil || !strings.Contains(xml, "one") {
		t.Errorf("who sits there is not told of guests: %v\n%s", err, xml)
	}
	if got := errorOf(as(t, r.address, 0), client.ManagerPath, client.ManagerInterface+".DefineGuest", definitionOf("two")); got != "" {
		t.Errorf("root, define: %q", got)
	}
	if reply, err := other.RequestName(client.BusName, dbus.NameFlagReplaceExisting); err == nil {
		t.Errorf("a stranger asks for the manager's name: %v", reply)
	}

	// Another user's session comes to the front: polkit says so, and no signals follow.
	signals := make(chan *dbus.Signal, 1000)
	seat.Signal(signals)
	session("0")
	within(t, 20*time.Second, "the end of a subscription", func() bool {
		for len(signals) > 0 {
			if s := <-signals; s.Name == client.ManagerInterface+".Unsubscribed" {
				return true
			}
		}
		return false
	})
	if got := errorOf(seat, client.ManagerPath, client.ManagerInterface+".ListGuests"); got != denied {
		t.Errorf("who sat there, list: %q", got)
	}
}

// as connects as another user: the bus asks the kernel who did.
func as(t *testing.T, address string, uid int) *dbus.Conn {
	t.Helper()
	type result struct {
		conn *dbus.Conn
		err  error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- result{nil, errno}
			return
		}
		conn, err := dbus.Dial(address)
		if err == nil {
			err = errors.Join(conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(uid))}), conn.Hello())
		}
		done <- result{conn, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatalf("bus, as user %d: %v", uid, r.err)
	}
	t.Cleanup(func() { r.conn.Close() })
	return r.conn
}

// startPolkitd starts the real one and waits until it is on the bus.
func startPolkitd(t *testing.T, address string) {
	t.Helper()
	file := ""
	for _, f := range []string{"/usr/lib/polkit-1/polkitd", "/usr/libexec/polkitd"} {
		if _, err := os.Stat(f); err == nil {
			file = f
		}
	}
	cmd := exec.Command(file, "--no-debug")
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS="+address)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal("polkitd:", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	conn := as(t, address, 0)
	within(t, 20*time.Second, "polkitd", func() bool {
		var there bool
		err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, polkitName).Store(&there)
		return err == nil && there
	})
}
