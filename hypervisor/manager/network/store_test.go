package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func text(name, subnet string, more ...string) []byte {
	return fmt.Appendf(nil, "name = %q\nkind = \"user\"\nsubnet = %q\n%s\n", name, subnet, strings.Join(more, "\n"))
}

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func define(t *testing.T, s *Store, text []byte) {
	t.Helper()
	if _, err := s.Define(text); err != nil {
		t.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	if n, err := s.Get(Default); err != nil || n.Kind != User {
		t.Fatalf("%+v, %v", n, err)
	}
	if err := s.Delete(Default); !errors.Is(err, ErrBuiltIn) {
		t.Error(err)
	}
	define(t, s, text("a", "10.0.0.0/24", "[[forward]]", `listen = "127.0.0.1:80"`, `guest = "g"`, "port = 80"))
	for _, tt := range []struct{ text, want string }{
		{string(text("b", "10.0.0.0/16")), `b.toml:3: subnet 10.0.0.0/16 overlaps 10.0.0.0/24 of network "a"`},
		{string(text("b", "10.76.0.0/16")), `b.toml:3: subnet 10.76.0.0/16 overlaps`},
		{string(text("b", "10.0.1.0/24", "[[forward]]", `listen = "0.0.0.0:80"`, `guest = "g"`, "port = 1")),
			`b.toml:5: forward: tcp 0.0.0.0:80 is also used by network "a"`},
		{string(text("a", "10.0.1.0/24")), "there is a network of that name: a"},
		{string(text("B", "10.0.1.0/24")), `definition:1: name "B"`},
	} {
		if _, err := s.Define([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n%v, want %q", tt.text, err, tt.want)
		}
	}
	define(t, s, text("b", "10.0.1.0/24", "[[forward]]", `listen = "127.0.0.2:80"`, `guest = "g"`, "port = 80"))

	_, tag, err := s.Text("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Edit("a", text("a", "10.0.2.0/24"), tag); err != nil {
		t.Error(err)
	}
	if _, err := s.Edit("a", text("a", "10.0.3.0/24"), tag); !errors.Is(err, ErrChanged) {
		t.Errorf("with an old tag: %v", err)
	}
	if _, err := s.Edit("a", text("c", "10.0.3.0/24"), ""); !errors.Is(err, ErrName) {
		t.Errorf("with another name: %v", err)
	}
	_, tag, _ = s.Text(Default)
	if _, err := s.Edit(Default, text(Default, "10.0.9.0/24"), tag); err != nil {
		t.Error(err)
	}

	s = openStore(t, dir)
	for name, subnet := range map[string]string{"a": "10.0.2.0/24", "b": "10.0.1.0/24", Default: "10.0.9.0/24"} {
		if n, err := s.Get(name); err != nil || n.Subnet.String() != subnet {
			t.Errorf("%s: %+v, %v", name, n, err)
		}
	}
	if err := s.Delete(Default); err != nil {
		t.Error(err)
	}
	if n, err := s.Get(Default); err != nil || n.Subnet.String() != "10.76.0.0/24" {
		t.Errorf("%+v, %v", n, err)
	}
	if err := s.Delete("a"); err != nil {
		t.Error(err)
	}
	if _, err := s.Get("a"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.Get("../a"); !errors.Is(err, ErrName) {
		t.Error(err)
	}
	if got := s.Names(); !slices.Equal(got, []string{"b", Default}) {
		t.Error(got)
	}
}

// What somebody breaks by hand takes its own network away, and of two that do not go together the newer one.
func TestByHand(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("z.toml", text("z", "10.0.0.0/24"))
	s := openStore(t, dir)
	write("a.toml", text("a", "10.0.0.0/16"))
	write("b.toml", text("c", "10.1.0.0/24"))
	write("d.toml", []byte("name ="))
	write("e.toml", text("e", "10.76.0.0/16"))
	write("README", nil)
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"z": "", "a": "a.toml:3: subnet", "b": `b.toml:1: name "c": the file is called b.toml`, "d": "d.toml:1: ",
		"e": "", Default: `subnet 10.76.0.0/24 overlaps 10.76.0.0/16 of network "e"`,
	} {
		if _, err := s.Get(name); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestLeases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	n, err := Parse("n", text("n", "10.0.0.0/29"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[MAC]bool{}
	get := func(n *Network, i byte) (netip.Addr, error) {
		l, err := OpenLeases(path) // each time anew
		if err != nil {
			t.Fatal(err)
		}
		return l.Get(n, MAC{0x52, 0x54, 0, 0, 0, i}, func(m MAC) bool { return known[m] })
	}
	all := map[byte]netip.Addr{}
	for i := range byte(5) { // as many as there are
		a, err := get(n, i)
		if err != nil || !n.isGuest(a) {
			t.Fatal(a, err)
		}
		for _, b := range all {
			if a == b {
				t.Errorf("%v was given twice", a)
			}
		}
		all[i], known[MAC{0x52, 0x54, 0, 0, 0, i}] = a, true
	}
	for i, want := range all {
		if a, err := get(n, i); a != want || err != nil {
			t.Errorf("card %d has %v, %v, had %v", i, a, err, want)
		}
	}
	if _, err := get(n, 9); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	delete(known, MAC{0x52, 0x54, 0, 0, 0, 3}) // its guest is gone
	if a, err := get(n, 9); a != all[3] || err != nil {
		t.Errorf("%v, %v, want %v", a, err, all[3])
	}
	moved := *n
	moved.Subnet = netip.MustParsePrefix("10.0.1.0/24")
	if a, err := get(&moved, 0); err != nil || !moved.isGuest(a) {
		t.Errorf("another subnet: %v, %v", a, err)
	}
}
