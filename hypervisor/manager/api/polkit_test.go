package api

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
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
	session := func(active, state string) { // what logind says, sd-login(3); it replaces its files, and polkitd looks for that
		for file, text := range map[string]string{
			"users/2001":  "NAME=seated\nSTATE=" + state + "\nDISPLAY=c1\nSESSIONS=c1\nSEATS=seat0\n",
			"sessions/c1": "UID=2001\nUSER=seated\nACTIVE=" + active + "\nSTATE=" + state + "\nREMOTE=0\nSEAT=seat0\nTYPE=wayland\nCLASS=user\n",
			"seats/seat0": "IS_VTCONSOLE=1\nSESSIONS=c1\n",
		} {
			write("/run/systemd/new", text)
			write("/run/systemd/"+file, "")
			if err := os.Rename("/run/systemd/new", "/run/systemd/"+file); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("/run/systemd/machines/none", "") // without such a directory nothing is watched
	session("1", "active")
	// The rules of a system bus, as in its system.conf, and ours.
	inner := bus[strings.Index(bus, "<busconfig>")+len("<busconfig>") : strings.Index(bus, "</busconfig>")]
	system := `<policy context="default"><allow user="*"/><deny own="*"/><deny send_type="method_call"/><allow send_type="signal"/>
 <allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
 <allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
 <allow send_destination="org.freedesktop.DBus"/><allow send_destination="org.freedesktop.PolicyKit1"/></policy>
 <policy user="root"><allow own="org.freedesktop.PolicyKit1"/></policy>
 <policy user="polkitd"><allow own="org.freedesktop.PolicyKit1"/></policy>`
	r := &rig{t: t, dir: dir, log: &buffer{}}
	r.address, _ = startBus(t, dir, "system", system+inner)
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
	seat, member, other := as(t, r.address, seatUser, sessionGroup(t)), as(t, r.address, memberUID, ""), as(t, r.address, stranger, "")
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
	if got := errorOf(as(t, r.address, 0, ""), client.ManagerPath, client.ManagerInterface+".DefineGuest", definitionOf("two")); got != "" {
		t.Errorf("root, define: %q", got)
	}
	if reply, err := other.RequestName(client.BusName, dbus.NameFlagReplaceExisting); err == nil {
		t.Errorf("a stranger asks for the manager's name: %v", reply)
	}

	// Another user's session comes to the front: polkit says so, and no signals follow.
	signals := make(chan *dbus.Signal, 1000)
	seat.Signal(signals)
	session("0", "online")
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

// callerVariable holds what a child of as is to be: bus socket, user, and file of a control group.
const callerVariable = "API_TEST_CALLER"

// caller is the main function of a child of as: it connects to the bus as another user, hands the connection to its parent, and
// stays, since it is this process that polkit asks about.
func caller() error {
	f := strings.Split(os.Getenv(callerVariable), " ")
	if f[2] != "" {
		if err := os.WriteFile(f[2], []byte("0"), 0); err != nil {
			return err
		}
	}
	uid, err := strconv.Atoi(f[1])
	if err != nil {
		return err
	}
	if err := syscall.Setreuid(uid, uid); err != nil {
		return err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: f[0], Net: "unix"})
	if err != nil {
		return err
	}
	file, err := conn.File()
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(file.Fd())), nil, 0); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// as connects as another user, from a process in a control group or in none.
func as(t *testing.T, address string, uid int, group string) *dbus.Conn {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "pair")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), callerVariable+"="+strings.TrimPrefix(address, "unix:path=")+" "+strconv.Itoa(uid)+" "+group)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 1), oob, 0)
	unix.Close(pair[0])
	if err != nil || n == 0 {
		t.Fatalf("no connection as user %d: %v", uid, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fds[0]), "bus")
	socket, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := dbus.NewConn(socket)
	if err == nil {
		err = errors.Join(conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(uid))}), conn.Hello())
	}
	if err != nil {
		t.Fatalf("bus, as user %d: %v", uid, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// sessionGroup makes the control group of the session c1, by which it is known who belongs to it, and returns the file that
// processes join it by.
func sessionGroup(t *testing.T) string {
	t.Helper()
	root := "/sys/fs/cgroup"
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC { // a host of the first version, or none: its hierarchy for systemd has no controllers
		if err := unix.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
			t.Fatal(err)
		}
		root += "/systemd"
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("cgroup", root, "cgroup", 0, "none,name=systemd"); err != nil {
			t.Fatal("control groups:", err)
		}
	}
	dir := root + "/user.slice/user-2001.slice/session-c1.scope"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal("control groups:", err)
	}
	t.Cleanup(func() {
		for d := dir; d != root; d = filepath.Dir(d) {
			_ = os.Remove(d) // what others use stays
		}
	})
	return dir + "/cgroup.procs"
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
	conn := as(t, address, 0, "")
	within(t, 20*time.Second, "polkitd", func() bool {
		var there bool
		err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, polkitName).Store(&there)
		return err == nil && there
	})
}
