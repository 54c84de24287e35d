package definition

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden file anew")

// same leaves out where keys were.
var same = cmpopts.IgnoreUnexported(Definition{})

const full = `name = "web"
uuid = "0F1E2D3C-4b5a-6978-8796-a5b4c3d2e1f0"
cpus = 2
memory = "1536M"
control = "run/web.sock"
rng = false
balloon = true

[boot]
kernel = "vmlinux"
initrd = "/boot/initrd"
cmdline = "console=ttyS0 root=/dev/vda"
protocol = "pvh"

[[disk]]
name = "root"
path = "../images/root.img"

[[disk]]
name = "data-of-a-very-long-name"
path = "/dev/vg/data"
readonly = true
direct = true

[[disk]]
name = "swap"
path = "swap.img"
serial = "S 1"

[[disk]]
name = "far"
socket = "far.sock"
reconnect = true

[[nic]]
name = "lan"
tap = "tap0"
mac = "52-54-00-AB-cd-EF"

[[nic]]
name = "wan"
socket = "passt.sock"

[serial]
mode = "socket"
path = "serial.sock"

[console]
path = "console.sock"

[vsock]
cid = 3
path = "vsock.sock"

[display]
path = "display.sock"
card = "vga"
width = 1280
height = 800
rom = "vga.bin"
`

func TestParse(t *testing.T) {
	got, err := Parse("web.toml", "/guests", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	off := false
	want := &Definition{
		Name: "web", UUID: "0F1E2D3C-4b5a-6978-8796-a5b4c3d2e1f0", CPUs: 2, Memory: 1536 << 20, Control: "/guests/run/web.sock",
		RNG: &off, Balloon: true,
		Boot: Boot{Kernel: "/guests/vmlinux", Initrd: "/boot/initrd", Cmdline: "console=ttyS0 root=/dev/vda", Protocol: "pvh"},
		Disks: []Disk{
			{Name: "root", Path: "/images/root.img", Serial: "root"},
			{Name: "data-of-a-very-long-name", Path: "/dev/vg/data", ReadOnly: true, Direct: true, Serial: "data-of-a-very-long-"},
			{Name: "swap", Path: "/guests/swap.img", Serial: "S 1"},
			{Name: "far", Socket: "/guests/far.sock", Reconnect: true},
		},
		NICs: []NIC{
			{Name: "lan", MAC: "52:54:00:ab:cd:ef", Tap: "tap0"},
			{Name: "wan", MAC: nameMAC(got.UUID, "wan"), Socket: "/guests/passt.sock"},
		},
		Serial:  Serial{Mode: "socket", Path: "/guests/serial.sock"},
		Serial2: Serial{Mode: "none"},
		Console: &Socket{Path: "/guests/console.sock"},
		Vsock:   &Vsock{CID: 3, Path: "/guests/vsock.sock"},
		Display: &Display{Path: "/guests/display.sock", Card: CardVGA, Width: 1280, Height: 800, ROM: "/guests/vga.bin"},
	}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if u := got.UUIDBytes(); u != [16]byte{0x0f, 0x1e, 0x2d, 0x3c, 0x4b, 0x5a, 0x69, 0x78, 0x87, 0x96, 0xa5, 0xb4, 0xc3, 0xd2, 0xe1, 0xf0} {
		t.Errorf("UUID %x", u)
	}
}

func TestDefaults(t *testing.T) {
	parse := func(name string) *Definition {
		d, err := Parse("x.toml", "/", []byte(fmt.Sprintf("name = %q\nmemory = \"64M\"\nboot = { firmware = \"bios.bin\" }\n[[nic]]\nname = \"lan\"\ntap = \"t\"\n", name)))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, b := parse("a"), parse("b")
	if a.CPUs != 1 || a.Serial.Mode != "stdio" || a.RNG == nil || !*a.RNG {
		t.Errorf("%+v", a)
	}
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(a.UUID) {
		t.Errorf("UUID %s", a.UUID)
	}
	if u := a.UUIDBytes(); fmt.Sprintf("%x", u) != strings.ReplaceAll(a.UUID, "-", "") {
		t.Errorf("UUID %s has bytes %x", a.UUID, u)
	}
	var mac [6]byte
	if _, err := fmt.Sscanf(a.NICs[0].MAC, "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]); err != nil || mac[0]&3 != 2 {
		t.Errorf("MAC %s, %v", a.NICs[0].MAC, err)
	}
	if again := parse("a"); again.UUID != a.UUID || again.NICs[0].MAC != a.NICs[0].MAC {
		t.Error("the same definition has another identity")
	}
	if b.UUID == a.UUID || b.NICs[0].MAC == a.NICs[0].MAC {
		t.Error("another guest has the same identity")
	}
}

// Every file of testdata/errors is wrong; testdata/errors.txt has what users are told.
func TestErrors(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "errors", "*.toml"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var got strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(filepath.Base(file), "/guests", b)
		if err == nil {
			t.Errorf("%s was accepted", file)
			continue
		}
		fmt.Fprintln(&got, err)
		each(t, err, func(e *Error) {
			if e.Line == 0 && filepath.Base(file) != "missing.toml" { // there is no line for what is not there
				t.Errorf("no line: %v", e)
			}
		})
	}
	golden(t, "errors.txt", got.String())
}

// each calls f for every error that err joins.
func each(t *testing.T, err error, f func(*Error)) {
	t.Helper()
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range j.Unwrap() {
			each(t, e, f)
		}
		return
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Errorf("not an *Error: %v", err)
		return
	}
	f(e)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got)\n%s", file, diff)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	d, err := Load(write("good.toml", full))
	if err != nil || d.Boot.Kernel != filepath.Join(dir, "vmlinux") {
		t.Errorf("kernel %v, %v", d, err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none.toml"): "definition: open " + dir + "/none.toml: no such file",
		dir:                             "definition: read " + dir + ": is a directory",
		"/dev/zero":                     "/dev/zero: more than 1048576 bytes",
		write("bad.toml", "name = 1\n"): dir + "/bad.toml:1: ",
		write("large.toml", "#"+strings.Repeat("x", maxFile)):   dir + "/large.toml: more than",
		write("empty.toml", ""):                                 dir + "/empty.toml: name \"\": give the guest a name",
		write("long.toml", "#"+strings.Repeat("x", maxFile-20)): dir + "/long.toml: name \"\"",
	} {
		if _, err := Load(path); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestCheckHost(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"vmlinux": 0o600, "root.img": 0o600, "secret": 0, "cd.iso": 0o400} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	check := func(text string) string {
		t.Helper()
		d, err := Parse("g.toml", dir, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err = d.CheckHost("g.toml"); err == nil {
			return ""
		}
		return strings.ReplaceAll(err.Error(), dir, "DIR")
	}
	const head = "name = \"g\"\nmemory = \"64M\"\n"
	if got := check(head + "boot.kernel = \"vmlinux\"\n[[disk]]\nname = \"root\"\npath = \"root.img\"\n"); got != "" {
		t.Errorf("a good definition: %s", got)
	}
	want := `g.toml:3: kernel DIR/vmlinuz does not exist: correct the path
g.toml:4: initrd DIR is a directory: name a file in it
g.toml:7: disk "root": DIR/none.img does not exist: correct the path, or make one with 'truncate -s 8G DIR/none.img'
g.toml:10: disk "odd": stat DIR/vmlinux/x: not a directory`
	if diff := cmp.Diff(want, check(head+`boot.kernel = "vmlinuz"
boot.initrd = "."
[[disk]]
name = "root"
path = "none.img"
[[disk]]
name = "odd"
path = "vmlinux/x"
`)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := check(strings.Replace(head, "64M", "512G", 1) + "[boot]\nfirmware = \"bios.bin\"\n"); !regexp.MustCompile(
		`^g.toml:4: firmware DIR/bios.bin does not exist: correct the path, or install the package seabios
g.toml:2: memory = "512G": this host has [0-9]+ MiB: give the guest less$`).MatchString(got) {
		t.Errorf("got %s", got)
	}
	if os.Getuid() == 0 {
		return // root may read and write all files
	}
	want = `g.toml:3: kernel DIR/secret cannot be read: change its permissions
g.toml:6: disk "cd": DIR/cd.iso cannot be written: change its permissions, or set readonly = true`
	if diff := cmp.Diff(want, check(head+`boot.kernel = "secret"
[[disk]]
name = "cd"
path = "cd.iso"
[[disk]]
name = "ro"
path = "cd.iso"
readonly = true
`)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "4096": 4096, "1K": 1 << 10, "512M": 512 << 20, "512m": 512 << 20, "2G": 2 << 30, "1T": 1 << 40, "3MiB": 3 << 20, "3MB": 3 << 20,
		"9223372036854775807": 1<<63 - 1, "8191T": 8191 << 40,
	} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s: %d, %v, want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "M", "-1M", "+1M", "1.5G", "1 G", "5MK", "5KM", "5iB", "5B", "5MMiB", "0x10", "9223372036854775808", "8388608T", "99999999999G", "1e3"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken for %d", text, s)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := Size(rapid.Uint64Range(0, 1<<63-1).Draw(t, "size") >> rapid.IntRange(0, 62).Draw(t, "shift") << rapid.IntRange(0, 40).Draw(t, "zeros") & (1<<63 - 1))
		var again Size
		if b, err := s.MarshalText(); err != nil || again.UnmarshalText(b) != nil || again != s {
			t.Errorf("%d is written %q and read as %d", s, b, again)
		}
	})
}

// name draws a name that a definition takes.
var drawName = rapid.StringMatching(`[A-Za-z0-9][A-Za-z0-9._-]{0,20}`)

// drawn is a definition that is right.
func drawn(t *rapid.T) *Definition {
	path := rapid.StringMatching(`/?[a-zäö "'\\\]\[#=\n\t.]{1,20}`)
	flip := rapid.Bool()
	d := &Definition{
		Name: drawName.Draw(t, "name"), CPUs: rapid.IntRange(1, MaxCPUs).Draw(t, "cpus"),
		Memory: Size(rapid.Uint64Range(MinMemory>>12, MaxMemory>>12).Draw(t, "pages") << 12), Balloon: flip.Draw(t, "balloon"),
	}
	if flip.Draw(t, "kernel") {
		d.Boot = Boot{Kernel: path.Draw(t, "kernel"), Cmdline: rapid.String().Draw(t, "cmdline"), Protocol: rapid.SampledFrom([]string{"", "auto", "pvh"}).Draw(t, "protocol")}
	} else {
		d.Boot.Firmware = path.Draw(t, "firmware")
	}
	for i, name := range rapid.SliceOfNDistinct(drawName, 0, 4, rapid.ID[string]).Draw(t, "disks") {
		k := Disk{Name: name, Path: path.Draw(t, "path"), ReadOnly: flip.Draw(t, "ro"), Direct: i == 1}
		if i == 2 {
			k = Disk{Name: name, Socket: path.Draw(t, "socket"), Reconnect: flip.Draw(t, "reconnect")}
		}
		d.Disks = append(d.Disks, k)
	}
	for _, name := range rapid.SliceOfNDistinct(drawName, 0, 3, rapid.ID[string]).Draw(t, "nics") {
		n := NIC{Name: name, Tap: "tap0"}
		if flip.Draw(t, "socket") {
			n = NIC{Name: name, Socket: path.Draw(t, "socket")}
		}
		d.NICs = append(d.NICs, n)
	}
	if flip.Draw(t, "vsock") {
		d.Vsock = &Vsock{CID: rapid.Uint32Range(3, 1<<32-2).Draw(t, "cid"), Path: path.Draw(t, "vsock")}
	}
	if flip.Draw(t, "console") {
		d.Console = &Socket{Path: path.Draw(t, "console")}
	}
	if flip.Draw(t, "rng") {
		on := flip.Draw(t, "rng on")
		d.RNG = &on
	}
	if flip.Draw(t, "serial") {
		d.Serial = Serial{Mode: "file", Path: path.Draw(t, "serial")}
	}
	return d
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, err := drawn(t).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		d, err := Parse("a", "/guests", b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		roundTrip(t, d)
	})
}

// roundTrip checks that an accepted definition is written and read as itself, wherever that happens.
func roundTrip(t interface {
	Helper()
	Fatalf(string, ...any)
}, d *Definition) {
	t.Helper()
	b, err := d.Marshal()
	if err != nil {
		t.Fatalf("marshal: %v", err)
	}
	again, err := Parse("b", "/elsewhere", b)
	if err != nil {
		t.Fatalf("written definition: %v\n%s", err, b)
	}
	if diff := cmp.Diff(d, again, same); diff != "" {
		t.Fatalf("(-first +second)\n%s\n%s", diff, b)
	}
}

// FuzzParse: whatever the file, there is no panic; every error has the file's name; what is accepted is written and read
// as itself.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	files, _ := filepath.Glob(filepath.Join("testdata", "errors", "*.toml"))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse("f.toml", "/guests", b)
		if err != nil {
			each(t, err, func(e *Error) {
				if e.File != "f.toml" || e.Msg == "" || e.Line < 0 || e.Line > strings.Count(string(b), "\n")+1 {
					t.Errorf("error %+v", e)
				}
			})
			return
		}
		roundTrip(t, d)
		_ = d.CheckHost("f.toml")
	})
}
