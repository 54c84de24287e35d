package bootimage

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The image has all files with the rights that they need, everything root's; built once more it is the same.
func TestBuildSystem(t *testing.T) {
	dir := writeFiles(t, kernelFiles)
	tree := testInitramfs(t, dir).Tree
	image, id, parts, err := tree.BuildSystem(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond) // images have times in seconds
	again, other, _, err := testInitramfs(t, dir).BuildSystem(t.Context())
	if err != nil || other != id || !bytes.Equal(again, image) {
		t.Errorf("built once more it is %v, not %v: %v", other, id, err)
	}
	if int64(len(image)) != id.Size() {
		t.Errorf("%d bytes, and the ID says %d", len(image), id.Size())
	}
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("unsquashfs", "-lln", file).CombinedOutput()
	if err != nil {
		t.Fatalf("unsquashfs: %v\n%s", err, out)
	}
	got := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^(\S+) 0/0 .* squashfs-root/(\S+)$`).FindAllStringSubmatch(string(out), -1) {
		got[m[2]] = m[1]
	}
	for name, mode := range map[string]string{
		"bin": "drwxr-xr-x", "bin/tool": "-rwxr-xr-x", "etc/name": "-rw-r--r--", "lib/firmware/vendor/card.bin": "-rw-r--r--",
		"lib/modules/6.1.0-test/kernel/kvm.ko": "-rw-r--r--", "lib/modules/6.1.0-test/modules.dep": "-rw-r--r--",
	} {
		if got[name] != mode {
			t.Errorf("%s is %q, want %s", name, got[name], mode)
		}
	}
	if len(parts) < 6 || t.Failed() {
		t.Errorf("parts %v\n%s", parts, out)
	}
	tree.Files["../x"] = "/bin/true"
	if _, _, _, err := tree.BuildSystem(t.Context()); err == nil || !strings.Contains(err.Error(), `system: "../x" is not a path`) {
		t.Errorf("a path outside: %v", err)
	}
}
