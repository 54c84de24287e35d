package bootimage

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// unpack returns the files of an initramfs, with their permissions.
func unpack(t *testing.T, archive []byte) (content map[string]string, modes map[string]uint64) {
	t.Helper()
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	raw, err := z.DecodeAll(archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	content, modes = make(map[string]string), make(map[string]uint64)
	err = cpio.ForEachRecord(cpio.Newc.Reader(bytes.NewReader(raw)), func(r cpio.Record) error {
		for d := filepath.Dir(r.Name); d != "."; d = filepath.Dir(d) {
			if modes[d]&cpio.S_IFMT != cpio.S_IFDIR {
				t.Errorf("%s is before its directory %s: the kernel skips it", r.Name, d)
			}
		}
		modes[r.Name] = r.Mode
		if r.MTime != 0 || r.UID != 0 {
			t.Errorf("%s: time %d, user %d: not the same in each build", r.Name, r.MTime, r.UID)
		}
		if r.Mode&cpio.S_IFMT == cpio.S_IFREG {
			b, err := io.ReadAll(io.NewSectionReader(r.ReaderAt, 0, int64(r.FileSize)))
			content[r.Name] = string(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return content, modes
}

func testInitramfs(t *testing.T, dir string) *Initramfs {
	t.Helper()
	m, err := ReadModules(filepath.Join(dir, "6.1.0-test"))
	if err != nil {
		t.Fatal(err)
	}
	return &Initramfs{
		Init: filepath.Join(dir, "6.1.0-test/kernel/loop.ko"),
		Tree: Tree{
			Files:   map[string]string{"bin/tool": "/bin/true", "etc/name": filepath.Join(dir, "6.1.0-test/kernel/ccp.ko")},
			Modules: m, Load: []string{"kvm"}, FirmwareDir: filepath.Join(dir, "firmware"), Firmware: []string{"vendor/card.bin"},
		},
	}
}

func TestInitramfs(t *testing.T) {
	dir := writeFiles(t, kernelFiles)
	archive, parts, err := testInitramfs(t, dir).Build()
	if err != nil {
		t.Fatal(err)
	}
	tool, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	content, modes := unpack(t, archive)
	want := map[string]string{
		"init": "loop", "bin/tool": string(tool), "etc/name": "ccp", "lib/firmware/vendor/card.bin": "blob",
		"lib/modules/6.1.0-test/kernel/kvm.ko": "kvm", "lib/modules/6.1.0-test/kernel/irqbypass.ko": "bypass",
		"lib/modules/6.1.0-test/modules.alias":   "alias devname:kvm kvm\n",
		"lib/modules/6.1.0-test/modules.builtin": kernelFiles["6.1.0-test/modules.builtin"],
		"lib/modules/6.1.0-test/modules.dep":     "kernel/irqbypass.ko:\nkernel/kvm.ko: kernel/irqbypass.ko\n",
	}
	if diff := cmp.Diff(want, content); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for name, mode := range map[string]uint64{
		"init": cpio.S_IFREG | 0o755, "bin/tool": cpio.S_IFREG | 0o755, "etc/name": cpio.S_IFREG | 0o644,
		"dev/console": cpio.S_IFCHR | 0o600, "proc": cpio.S_IFDIR | 0o755,
	} {
		if modes[name] != mode {
			t.Errorf("%s has mode %o, want %o", name, modes[name], mode)
		}
	}
	if len(parts) != len(want) || parts[0].Name != "bin/tool" || parts[0].Size != len(tool) {
		t.Errorf("parts %v", parts)
	}

	// Times and the place of the inputs leave no trace.
	other := writeFiles(t, kernelFiles)
	if err := os.Chtimes(filepath.Join(other, "6.1.0-test/kernel/kvm.ko"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	again, _, err := testInitramfs(t, other).Build()
	if err != nil || !bytes.Equal(archive, again) {
		t.Errorf("another build of the same differs (%v)", err)
	}
}

func TestInitramfsErrors(t *testing.T) {
	dir := writeFiles(t, kernelFiles)
	for _, tt := range []struct {
		name, want string
		spoil      func(i *Initramfs)
	}{
		{"no init", "no init program", func(i *Initramfs) { i.Init = "" }},
		{"init absent", "no such file", func(i *Initramfs) { i.Init = "/absent" }},
		{"path outside", `"../x" is not a path in the image`, func(i *Initramfs) { i.Files["../x"] = i.Init }},
		{"absolute path", `"/x" is not a path`, func(i *Initramfs) { i.Files["/x"] = i.Init }},
		{"file as directory", "both a file and the directory", func(i *Initramfs) { i.Files["bin/tool/x"] = i.Init }},
		{"twice", "/init is both", func(i *Initramfs) { i.Files["init"] = "/bin/true" }},
		{"index given", "is made here", func(i *Initramfs) { i.Files["lib/modules/6.1.0-test/modules.dep"] = i.Init }},
		{"no module", "has no module fly", func(i *Initramfs) { i.Load = []string{"fly"} }},
		{"no modules", "no directory that has them", func(i *Initramfs) { i.Modules = nil }},
		{"no firmware", "install the package that has it", func(i *Initramfs) { i.Firmware = []string{"vendor/other.bin"} }},
	} {
		i := testInitramfs(t, dir)
		tt.spoil(i)
		if _, _, err := i.Build(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}
