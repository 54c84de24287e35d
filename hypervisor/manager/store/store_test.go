package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/internal/deffile"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_EDIT"); dir != "" {
		editForever(dir)
	}
	os.Exit(m.Run())
}

func config(dir string) Config {
	return Config{
		Dir: filepath.Join(dir, "guests"), Versions: filepath.Join(dir, "versions"),
		Sockets: func(name string) Sockets {
			return Sockets{Run: filepath.Join("/run/lodge", name), Logs: filepath.Join("/log", name)}
		},
		Network: func(name string) bool { return name == "default" },
	}
}

func open(t *testing.T) (*Store, Config) {
	t.Helper()
	cfg := config(t.TempDir())
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, cfg
}

// guest returns a definition with more lines.
func guest(name string, more ...string) []byte {
	return []byte(fmt.Sprintf("name = %q\nmemory = \"64M\"\nboot.kernel = \"/vmlinux\"\n", name) + strings.Join(more, "\n") + "\n")
}

func define(t *testing.T, s *Store, name string, more ...string) {
	t.Helper()
	if _, err := s.Define(guest(name, more...)); err != nil {
		t.Fatal(err)
	}
}

const full = `name = "work"
memory = "1G"
label = "the company's"
color = "blue"
icon = "briefcase"
slot = 2
autostart = true
autostart_on_ac = true
priority = 10
stop_priority = -5
depends = ["net"]
restart = "on-crash"
restart_delay = "2s"
stop_timeout = "90s"
disposable = true

[boot]
firmware = "/bios.bin"
[[disk]]
name = "root"
path = "root.img"
[display]
card = "vga"
[vsock]
cid = 7
[ready]
serial = "login:"
timeout = "3m"
[input]
pointer = "none"
[shares]
cpu = 200
memory = "2G"
`

func TestParse(t *testing.T) {
	g, err := Parse("/etc/lodge/guests/work.toml", "/etc/lodge/guests", Sockets{"/run/lodge/work", "/log/work"}, nil, []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	if g.Control != "/run/lodge/work/control.sock" || g.Display.Path != "/run/lodge/work/display.sock" || g.Vsock.Path != "/run/lodge/work/vsock.sock" ||
		g.Serial != (definition.Serial{Mode: "socket", Path: "/run/lodge/work/serial.sock", Log: "/log/work/serial.log"}) || g.SerialLog() != "/log/work/serial.log" {
		t.Errorf("sockets: %+v", g.Definition)
	}
	if g.Disks[0].Path != "/etc/lodge/guests/root.img" || g.Definition.Disks[0] != g.Disks[0].Disk {
		t.Errorf("disks %+v, %+v", g.Disks, g.Definition.Disks)
	}
	got := *g
	got.Definition, got.Disks = definition.Definition{}, nil
	want := Guest{
		Label: "the company's", Color: "blue", Icon: "briefcase", Slot: 2, Autostart: true, AutostartOnAC: true, Priority: 10, StopPriority: -5, Depends: []string{"net"},
		Ready: Probe{Serial: "login:", Timeout: Duration(3 * time.Minute)}, Restart: OnCrash, RestartDelay: Duration(2 * time.Second),
		StopTimeout: Duration(90 * time.Second), Disposable: true, Input: Input{InputFocus, InputNone}, Shares: Shares{200, 2 << 30},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(definition.Definition{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// What is left out.
	g, err = Parse("x.toml", "/", Sockets{"/run", "/log"}, nil, guest("x"))
	if err != nil {
		t.Fatal(err)
	}
	if g.Restart != Never || time.Duration(g.StopTimeout) != time.Minute || g.Input.Keyboard != InputFocus || g.Shares.CPU != 100 || !g.Ready.IsZero() {
		t.Errorf("%+v", g)
	}
	// The machine's part is a definition of its own.
	b, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := definition.Parse("x.toml", "/", b); err != nil {
		t.Errorf("%v\n%s", err, b)
	}
}

// What is wrong is told with its line and what to do.
func TestErrors(t *testing.T) {
	s, cfg := open(t)
	define(t, s, "net", "slot = 1", `uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"`, "[[nic]]", `name = "lan"`, `tap = "tap0"`, `mac = "52:54:00:00:00:01"`,
		"[vsock]", "cid = 9", "[[disk]]", `name = "root"`, `path = "/root.img"`)
	for name, tc := range map[string]struct {
		lines []string
		want  string
	}{
		"unknown":    {[]string{"colour = 1"}, `:4: unknown key "colour": see lodge-guest(5)`},
		"type":       {[]string{`slot = "one"`}, ":4: slot: a value of type string"},
		"slot":       {[]string{"slot = 10"}, ":4: slot = 10: 1 to 9"},
		"taken slot": {[]string{"slot = 1"}, ":4: slot 1 is also guest net's: give each guest its own"},
		"taken uuid": {[]string{`uuid = "0F1E2D3C-4b5a-6978-8796-a5b4c3d2e1f0"`}, ":4: uuid 0f1e2d3c"},
		"taken mac":  {[]string{"[[nic]]", `name = "a"`, `mac = "52-54-00-00-00-01"`, `socket = "/s"`}, ":6: mac 52:54:00:00:00:01 is also guest net's"},
		"taken tap":  {[]string{"[[nic]]", `name = "a"`, `tap = "tap0"`}, ":6: tap tap0 is also guest net's"},
		"no network": {[]string{"[[nic]]", `name = "a"`, `network = "lab"`}, `:6: nic "a": there is no network "lab": define it first`},
		"two cards": {[]string{"[[nic]]", `name = "a"`, `network = "default"`, "[[nic]]", `name = "b"`, `network = "default"`},
			`:9: nic "b": another card is on network "default" too`},
		"two ways":   {[]string{"[[nic]]", `name = "a"`, `network = "default"`, `tap = "t"`}, `:4: nic "a": set exactly one of network, tap and socket`},
		"taken cid":  {[]string{"[vsock]", "cid = 9"}, ":5: vsock cid 9 is also guest net's"},
		"taken disk": {[]string{"[[disk]]", `name = "d"`, `path = "/x/../root.img"`}, ":6: disk /root.img is also guest net's: make it readonly in both"},
		"disk twice": {[]string{"[[disk]]", `name = "a"`, `path = "/d"`, "[[disk]]", `name = "b"`, `path = "/d"`}, ":9: disk /d is there twice"},
		"depends":    {[]string{`depends = ["none"]`}, `:4: depends: there is no guest "none"`},
		"itself":     {[]string{`depends = ["g"]`}, ":4: depends: the guest depends on itself"},
		"twice":      {[]string{`depends = ["net", "net"]`}, `:4: depends: "net" is there twice`},
		"on ac":      {[]string{`autostart_on_ac = true`}, ":4: autostart_on_ac: the guest is not started with the machine"},
		"trick":      {[]string{`depends = ["../net"]`}, ":4: depends: \"../net\" is no name"},
		"color":      {[]string{`color = "\u001b[31m"`}, ":4: color "},
		"label":      {[]string{`label = "a\nb"`}, ":4: label "},
		"restart":    {[]string{`restart = "sometimes"`}, ":4: restart \"sometimes\": one of never, on-crash, always"},
		"delay":      {[]string{`restart_delay = "1ms"`}, ":4: restart_delay = \"1ms\": from 1s"},
		"time":       {[]string{`stop_timeout = "soon"`}, "write it with a unit"},
		"control":    {[]string{`control = "/c.sock"`}, ":4: control: the manager chooses"},
		"stdio":      {[]string{"[serial]", `mode = "stdio"`}, ":5: serial: a guest of the manager has no terminal"},
		"two probes": {[]string{"[ready]", `serial = "x"`, `tcp = "1.2.3.4:5"`}, ":4: ready: set one of"},
		"no vsock":   {[]string{"[ready]", "vsock = 5"}, ":5: ready: vsock needs the device"},
		"no serial":  {[]string{"[serial]", `mode = "none"`, "[ready]", `serial = "x"`}, ":7: ready: serial needs a log"},
		"tcp":        {[]string{"[ready]", `tcp = "localhost"`}, ":5: ready: tcp \"localhost\""},
		"shares":     {[]string{"[shares]", "cpu = 20000"}, ":5: shares: cpu = 20000"},
		"memory":     {[]string{"[shares]", `memory = "64M"`}, ":5: shares: memory = \"64M\""},
		"input":      {[]string{"[input]", `keyboard = "all"`}, ":5: input: keyboard \"all\": one of focus, none"},
		"keep":       {[]string{"[[disk]]", `name = "d"`, `path = "/d"`, "keep = true"}, `:7: disk "d": keep is for what a disposable guest writes to`},
		"keep unwritten": {[]string{"disposable = true", "[[disk]]", `name = "d"`, `path = "/d"`, "keep = true", "readonly = true"},
			`:8: disk "d": keep is for what`},
		"taken disk kept":  {[]string{"disposable = true", "[[disk]]", `name = "d"`, `path = "/root.img"`, "keep = true"}, ":7: disk /root.img is also guest net's"},
		"template":         {[]string{"template = true"}, ":4: template: each start would begin with what the disks were before"},
		"template of what": {[]string{"disposable = true", "template = true"}, ":5: template: it is made when the guest is ready"},
		"template of url": {[]string{"disposable = true", "template = true", "[ready]", `serial = "x"`, "[[disk]]", `name = "d"`, `url = "nbd://h/d"`, "readonly = true"},
			`:10: disk "d": of what a url names`},
		"other error": {[]string{"cpus = 99"}, ":4: cpus = 99"},
	} {
		t.Run(name, func(t *testing.T) {
			text := guest("g", tc.lines...)
			_, err := s.Define(text)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), filepath.Join(cfg.Dir, "g.toml:")) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if again := s.Check(text); again == nil || again.Error() != err.Error() {
				t.Errorf("Check says %v", again)
			}
		})
	}
	if _, err := s.Get("g"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a wrong definition was saved: %v", err)
	}
	// What only reads shares.
	define(t, s, "disposable", "disposable = true", "[[disk]]", `name = "d"`, `path = "/root.img"`)
}

// Names that are none are refused wherever one is given.
func TestHostileNames(t *testing.T) {
	s, cfg := open(t)
	for _, name := range []string{"", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "-x", "a\x00b", "a\nb", strings.Repeat("x", 65), "ä"} {
		_, get := s.Get(name)
		_, _, text := s.Text(name)
		_, edit := s.Edit(name, guest("x"), "")
		_, versions := s.Versions(name)
		_, version := s.VersionText(name, 1)
		_, def := s.Define([]byte(fmt.Sprintf("name = %s\nmemory = \"64M\"\nboot.kernel = \"k\"\n", tomlString(name))))
		for what, err := range map[string]error{
			"Get": get, "Text": text, "Edit": edit, "Versions": versions, "VersionText": version, "Define": def, "Delete": s.Delete(name),
		} {
			if !errors.Is(err, ErrName) {
				t.Errorf("%s(%q): %v", what, name, err)
			}
		}
	}
	if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func tomlString(s string) string {
	return `"` + strings.NewReplacer("\n", `\n`, "\x00", `\u0000`).Replace(s) + `"`
}

func TestEdit(t *testing.T) {
	s, cfg := open(t)
	define(t, s, "a", "slot = 1")
	define(t, s, "b", "slot = 2", `depends = ["a"]`)
	text, tag, err := s.Text("a")
	if err != nil || string(text) != string(guest("a", "slot = 1")) {
		t.Fatalf("%q, %v", text, err)
	}
	if _, err := s.Edit("a", guest("a", "slot = 2"), tag); err == nil || !strings.Contains(err.Error(), "a.toml:4: slot 2 is also guest b's") {
		t.Errorf("%v", err)
	}
	if _, err := s.Edit("a", guest("a", `depends = ["b"]`), tag); err == nil || !strings.Contains(err.Error(), "a needs b needs a") {
		t.Errorf("%v", err)
	}
	if _, err := s.Edit("a", guest("c"), tag); !errors.Is(err, ErrName) {
		t.Errorf("%v", err)
	}
	for i := range 14 {
		_, tag, _ := s.Text("a")
		if _, err := s.Edit("a", guest("a", fmt.Sprintf("priority = %d", i)), tag); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Edit("a", guest("a"), tag); !errors.Is(err, ErrChanged) {
		t.Errorf("an edit of what is no more: %v", err)
	}
	list, err := s.Versions("a")
	if err != nil || len(list) != maxVersions || list[0].Number != 14 || list[9].Number != 5 {
		t.Errorf("%+v, %v", list, err)
	}
	if b, err := s.VersionText("a", 14); err != nil || string(b) != string(guest("a", "priority = 12")) {
		t.Errorf("%s, %v", b, err)
	}
	if _, err := s.VersionText("a", 4); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if err := s.Delete("a"); !errors.Is(err, ErrNeeded) {
		t.Errorf("%v", err)
	}
	if err := errors.Join(s.Delete("b"), s.Delete("a")); err != nil {
		t.Fatal(err)
	}
	if b, err := s.VersionText("a", 15); err != nil || string(b) != string(guest("a", "priority = 13")) {
		t.Errorf("what was deleted: %s, %v", b, err)
	}
	if len(s.List()) != 0 {
		t.Error("not deleted")
	}
	if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	if _, err := s.Define(guest("a")); err != nil {
		t.Error(err)
	}
	if _, err := s.Define(guest("a")); !errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
}

// What people do by hand is found, and one wrong file does not take the others away.
func TestReload(t *testing.T) {
	s, cfg := open(t)
	define(t, s, "good", "slot = 1")
	write := func(name string, text []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(cfg.Dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("another.toml", guest("another", "slot = 1")) // before it in the alphabet, but newer
	write("bad.toml", guest("bad", "slot = "))
	write("needs.toml", guest("needs", `depends = ["bad"]`))
	write("c1.toml", guest("c1", `depends = ["c2"]`))
	write("c2.toml", guest("c2", `depends = ["c3"]`))
	write("c3.toml", guest("c3", `depends = ["c1"]`))
	write("other.toml", guest("name"))
	write("fine.toml", guest("fine", `depends = ["good"]`))
	write("fine.toml~", guest("fine"))
	write(deffile.TmpPrefix+"123", nil)
	if err := os.Mkdir(filepath.Join(cfg.Versions, "gone"), 0o700); err != nil {
		t.Fatal(err)
	}
	version := filepath.Join(cfg.Versions, "gone", deffile.TmpPrefix+"123")
	if err := os.WriteFile(version, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(cfg.Dir, "dir.toml"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("mkfifo", filepath.Join(cfg.Dir, "pipe.toml")).Run(); err != nil {
		t.Fatal(err)
	}
	changed, err := s.Reload()
	if err != nil || !slices.Contains(changed, "fine") || slices.Contains(changed, "good") {
		t.Errorf("%v, %v", changed, err)
	}
	var names []string
	for _, g := range s.List() {
		names = append(names, g.Name)
	}
	if diff := cmp.Diff([]string{"fine", "good"}, names); diff != "" {
		t.Error(diff)
	}
	faults := s.Faults()
	for name, want := range map[string]string{
		"another": "slot 1 is also guest good's", "bad": "bad.toml:4:", "needs": `guest "bad" has no valid definition`, "c1": "depends", "c2": "depends",
		"c3": "depends", "other": "use one name for both", "dir": "", "pipe": "not a regular file",
	} {
		if faults[name] == nil || !strings.Contains(faults[name].Error(), want) {
			t.Errorf("%s: %v", name, faults[name])
		}
	}
	if _, err := s.Edit("fine", guest("fine"), "x"); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	// A wrong one can be put right.
	if _, err := s.Edit("bad", guest("bad"), ""); err != nil {
		t.Error(err)
	}
	if changed, err = s.Reload(); err != nil || !slices.Contains(changed, "needs") || s.Faults()["needs"] != nil {
		t.Errorf("%v, %v, %v", changed, err, s.Faults()["needs"])
	}
	// An edit by hand that was not read yet is not overwritten.
	_, tag, _ := s.Text("good")
	write("good.toml", guest("good", "slot = 7"))
	if _, err := s.Edit("good", guest("good", "slot = 8"), tag); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	again, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join(cfg.Dir, deffile.TmpPrefix+"123"), version} {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("half a file was left: %s", file)
		}
	}
	if g, err := again.Get("good"); err != nil || g.Slot != 7 {
		t.Errorf("%+v, %v", g, err)
	}
}

// editForever edits a guest until it is killed.
func editForever(dir string) {
	s, err := Open(config(dir))
	for i := 0; err == nil; i++ {
		if _, e := s.Get("a"); e != nil {
			_, err = s.Define(guest("a"))
		} else {
			_, err = s.Edit("a", guest("a", "# "+strings.Repeat(fmt.Sprint(i), 1000)), "")
		}
		if err == nil && i%10 == 9 {
			err = s.Delete("a")
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Killed at any moment, a definition is whole, and nothing else is left after the next start.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for i := range 15 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "STORE_TEST_EDIT="+dir)
		var out strings.Builder
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+7*i) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if out.String() != "" {
			t.Fatal(out.String())
		}
		s, err := Open(config(dir))
		if err != nil || len(s.Faults()) > 0 {
			t.Fatalf("%v, %v", err, s.Faults())
		}
		files, err := os.ReadDir(filepath.Join(dir, "guests"))
		if err != nil || len(files) > 1 {
			t.Fatalf("%v, %v", files, err)
		}
		if list, err := s.Versions("a"); err != nil || len(list) > maxVersions+1 {
			t.Errorf("%d versions, %v", len(list), err)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "versions", "*", deffile.TmpPrefix+"*")); left != nil {
			t.Errorf("left over: %v", left)
		}
	}
}

// FuzzParse: whatever the file, there is no panic, and what is accepted has a machine's definition that lodge-vmm accepts.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add(guest("x", "depends = [\"y\"]", "[ready]", `tcp = "[::1]:22"`))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := Parse("/g/x.toml", "/g", Sockets{"/run/x", "/log/x"}, nil, b)
		if err != nil {
			if !strings.Contains(err.Error(), "/g/x.toml") {
				t.Errorf("no file: %v", err)
			}
			return
		}
		if g.Name != "x" || g.Control != "/run/x/control.sock" {
			t.Errorf("%s, %s", g.Name, g.Control)
		}
		vmm, err := g.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := definition.Parse("x.toml", "/", vmm); err != nil {
			t.Errorf("%v\n%s", err, vmm)
		}
		_ = crossCheck("x", g, map[string]*Guest{"y": g})
	})
}
