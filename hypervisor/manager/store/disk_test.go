package store

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/definition"
)

func imagesHere(pool, name string) (string, error) {
	if pool != DefaultPool {
		return "", fmt.Errorf("there is no pool %q here", pool)
	}
	return "/pool/" + name + ".raw", nil
}

// What the VMM gets of a disk, and what the manager keeps of it.
func TestDisks(t *testing.T) {
	parse := func(lines ...string) (*Guest, error) {
		return Parse("x.toml", "/dir", Sockets{"/run", "/log"}, imagesHere, guest("x", lines...))
	}
	for name, tc := range map[string]struct {
		lines []string
		vmm   definition.Disk
		path  string // of the file
		want  string // of an error
	}{
		"path":         {lines: []string{`path = "a.img"`}, vmm: definition.Disk{Name: "d", Path: "/dir/a.img", Serial: "d"}, path: "/dir/a.img"},
		"image":        {lines: []string{`image = "a"`}, vmm: definition.Disk{Name: "d", Path: "/pool/a.raw", Serial: "d"}, path: "/pool/a.raw"},
		"in a pool":    {lines: []string{`image = "default/a"`}, vmm: definition.Disk{Name: "d", Path: "/pool/a.raw", Serial: "d"}, path: "/pool/a.raw"},
		"qcow2":        {lines: []string{`path = "a.q"`, `format = "qcow2"`}, vmm: definition.Disk{Name: "d", Socket: "/run/disk.d.sock"}, path: "/dir/a.q"},
		"luks":         {lines: []string{`image = "a"`, `format = "luks"`}, vmm: definition.Disk{Name: "d", Socket: "/run/disk.d.sock"}, path: "/pool/a.raw"},
		"nbd":          {lines: []string{`url = "nbd://h/x"`, `readonly = true`}, vmm: definition.Disk{Name: "d", Socket: "/run/disk.d.sock", ReadOnly: true}},
		"raw":          {lines: []string{`path = "/a"`, `format = "raw"`}, vmm: definition.Disk{Name: "d", Path: "/a", Serial: "d"}, path: "/a"},
		"create":       {lines: []string{`image = "a"`, `create = "8G"`}, vmm: definition.Disk{Name: "d", Path: "/pool/a.raw", Serial: "d"}, path: "/pool/a.raw"},
		"create file":  {lines: []string{`path = "/a"`, `create = "8G"`}, want: `:7: disk "d": create is for an image of a pool`},
		"nothing":      {want: `:4: disk "d": set exactly one of path, image, url and socket`},
		"two":          {lines: []string{`image = "a"`, `path = "/b"`}, want: `:4: disk "d": set exactly one`},
		"no pool":      {lines: []string{`image = "fast/a"`}, want: `:6: disk "d": there is no pool "fast" here`},
		"format":       {lines: []string{`path = "/a"`, `format = "vdi"`}, want: `:7: disk "d": format "vdi": one of raw, qcow2, luks`},
		"socket":       {lines: []string{`socket = "/a"`, `format = "raw"`}, want: `:7: disk "d": format belongs to`},
		"qcow2 image":  {lines: []string{`image = "a"`, `format = "qcow2"`}, want: `:7: disk "d": images of pools are raw`},
		"direct qcow2": {lines: []string{`path = "/a"`, `format = "qcow2"`, `direct = true`}, want: `:8: disk "d": direct belongs to a path`},
		"unknown key":  {lines: []string{`images = "a"`}, want: `:6: unknown key "disk.images": see lodge-guest(5)`},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := parse(append([]string{"[[disk]]", `name = "d"`}, tc.lines...)...)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v, want %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]definition.Disk{tc.vmm}, g.Definition.Disks); diff != "" {
				t.Error(diff)
			}
			if g.Disks[0].Path != tc.path {
				t.Errorf("path %q, want %q", g.Disks[0].Path, tc.path)
			}
		})
	}
	if _, err := parse("disposable = true", "[[disk]]", `name = "d"`, `path = "/a"`, `format = "qcow2"`); err == nil || !strings.Contains(err.Error(), "disposable") {
		t.Errorf("a disposable guest with a disk that has no copy: %v", err)
	}
}

// An image and its file are one disk.
func TestImageTaken(t *testing.T) {
	cfg := config(t.TempDir())
	cfg.Images = imagesHere
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	define(t, s, "a", "[[disk]]", `name = "d"`, `image = "x"`)
	if _, err := s.Define(guest("b", "[[disk]]", `name = "d"`, `path = "/pool/x.raw"`)); err == nil || !strings.Contains(err.Error(), "disk /pool/x.raw is also guest a's") {
		t.Error(err)
	}
}
