package appliance

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/lodgehv/lodge/hypervisor/bootimage/fat"
	"github.com/lodgehv/lodge/hypervisor/bootimage/system"
)

// espWith makes an EFI system partition that has a system's file with some content.
func espWith(t *testing.T, id system.ID, content []byte) string {
	t.Helper()
	const size = 64 << 20
	f, err := os.Create(filepath.Join(t.TempDir(), "esp"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	var fs *fat32.FileSystem
	for n := int64(0); ; n++ { // of some sizes, the library's tables lack entries
		if fs, err = fat32.Create(file.New(f, false), size-n*fat.Sector, 0, fat.Sector, "LODGE", true); err != nil {
			t.Fatal(err)
		}
		if _, err := fat.Read(f, 0, size); err == nil {
			break
		}
	}
	if content == nil {
		return f.Name()
	}
	if err := fs.Mkdir(system.Dir); err != nil {
		t.Fatal(err)
	}
	w, err := fs.OpenFile(id.Path(), os.O_CREATE|os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// The system is found on the partition that has it whole, wherever its pieces are there.
func TestFindSystem(t *testing.T) {
	image, id := system.Seal(bytes.Repeat([]byte("Lodge's programs"), 100_000))
	noFAT := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(noFAT, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	empty, short, whole := espWith(t, id, nil), espWith(t, id, image[:len(image)-1]), espWith(t, id, image)
	device, pieces, err := findSystem(id, []string{"/nonexistent", noFAT, empty, short, whole})
	if err != nil || device != whole {
		t.Fatalf("it is on %q: %v", device, err)
	}
	disk, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for _, e := range pieces {
		got = append(got, disk[e.Offset:e.Offset+e.Size]...)
	}
	if !bytes.Equal(got, image) {
		t.Errorf("%d pieces are not the image", len(pieces))
	}
	device, _, err = findSystem(id, []string{noFAT, empty, short})
	if device != "" || err == nil || !strings.Contains(err.Error(), "bytes instead of") {
		t.Errorf("half of it is on %q: %v", device, err)
	}
	if device, _, err := findSystem(id, []string{noFAT, empty}); device != "" || err != nil {
		t.Errorf("none of it is on %q: %v", device, err)
	}
}

func TestESPPartitions(t *testing.T) {
	const size = 66 << 20
	ours := gptDisk(t, size, size, esp()).Name()
	data := gptDisk(t, size, size, &gpt.Partition{Index: 1, Start: 2048, End: 4095, Type: gpt.LinuxFilesystem, Name: "data"}).Name()
	if got := espPartitions([]string{"/nonexistent", data, ours}); !slices.Equal(got, []string{partitionPath(ours, 1)}) {
		t.Errorf("%v", got)
	}
}

// Directories of the system become the machine's; what was there is removed, and others stay.
func TestLinkSystem(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "system")
	for _, name := range []string{"lib/modules/early", "dev/x", "system/lib/modules/all", "system/bin/lodged"} {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := linkSystem(root, dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lib/modules/all", "bin/lodged", "dev/x"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "usr")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that the system has not: %v", err)
	}
}
