package appliance

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// sparse returns a file of some size.
func sparse(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, size)); err != nil {
		t.Fatal(err)
	}
	return name
}

// formatted returns a file with a file system that its own program has made.
func formatted(t *testing.T, size int64, args ...string) string {
	t.Helper()
	name := sparse(t, size)
	if out, err := exec.Command(args[0], append(args[1:], name)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return name
}

func TestFindLabelled(t *testing.T) {
	ext4 := formatted(t, 16<<20, "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", StateLabel)
	other := formatted(t, 16<<20, "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", "lodge-state-old")
	xfs := formatted(t, 320<<20, "/usr/sbin/mkfs.xfs", "-q", "-L", StateLabel)
	luks := formatted(t, 32<<20, "/usr/sbin/cryptsetup", "luksFormat", "--batch-mode", "--type=luks2", "--label="+StateLabel, "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--key-file=/proc/version")
	empty, small := sparse(t, 16<<20), sparse(t, 512)
	for _, c := range []struct {
		name         string
		devices      []string
		device, kind string
		err          string
	}{
		{"ext4", []string{"/nonexistent", empty, small, other, ext4}, ext4, "ext4", ""},
		{"XFS", []string{other, xfs}, xfs, "xfs", ""},
		{"LUKS", []string{other, luks}, luks, kindLUKS, ""},
		{"none", []string{empty, small, other}, "", "", ""},
		{"two", []string{ext4, xfs}, "", "", "several disks have a file system labelled lodge-state"},
	} {
		device, kind, err := findLabelled(StateLabel, c.devices)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		} else if err == nil && (device != c.device || kind != c.kind) {
			t.Errorf("%s: %s, %s, want %s, %s", c.name, device, kind, c.device, c.kind)
		}
	}
}

func FuzzFileSystem(f *testing.F) {
	f.Add(make([]byte, 2048))
	f.Add([]byte("XFSB"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := fileSystem(bytes.NewReader(b)); err != nil {
			t.Error(err)
		}
	})
}

// gptDisk returns a disk whose table was written for tableSize bytes, and is size bytes large.
func gptDisk(t *testing.T, tableSize, size int64, parts ...*gpt.Partition) *os.File {
	t.Helper()
	f, err := os.OpenFile(sparse(t, tableSize), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	table := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, Partitions: parts}
	w, err := file.New(f, false).Writable()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(table.Write(w, tableSize), f.Truncate(size)); err != nil {
		t.Fatal(err)
	}
	return f
}

func esp() *gpt.Partition {
	return &gpt.Partition{Index: 1, Start: 2048, End: 2048*65 - 1, Type: gpt.EFISystemPartition, Name: BootPartition, GUID: "C12A7328-F81F-11D2-BA4B-00A0C93EC93C"}
}

// Of an image that was copied to a larger disk, the rest becomes the state; the ESP stays. A cut before it has its name is made good,
// and a partition that has it is never given to mke2fs.
func TestPartition(t *testing.T) {
	const size = 512 << 20
	f := gptDisk(t, 66<<20, size, esp())
	b := file.New(f, false)
	for range 2 { // the second as after a power cut
		if p, err := addPartition(b, size, 512); err != nil || p.Index != 2 {
			t.Fatalf("partition %+v, %v", p, err)
		}
	}
	if err := finishPartition(b, size, 512); err != nil {
		t.Fatal(err)
	}
	table, err := gpt.Read(b, 512, 512)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Verify(b, size); err != nil {
		t.Errorf("both copies of the table: %v", err)
	}
	type part struct {
		Index      int
		Start, End uint64
		Name       string
	}
	var got []part
	for _, p := range table.Partitions {
		if p.Type != gpt.Unused {
			got = append(got, part{p.Index, p.Start, p.End, p.Name})
		}
	}
	want := []part{{1, 2048, 2048*65 - 1, BootPartition}, {2, 2048 * 65, 2048*511 - 1, statePartition}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("partitions (-want +got):\n%s", d)
	}
	if _, err := addPartition(b, size, 512); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a state that has lost its label: %v", err)
	}
}

func TestPartitionRefused(t *testing.T) {
	const size = 66 << 20
	full := gptDisk(t, size, size, esp())
	before, err := os.ReadFile(full.Name())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := addPartition(file.New(full, false), size, 512); err == nil || !strings.Contains(err.Error(), "32 MiB") {
		t.Errorf("a full disk: %v", err)
	}
	after, err := os.ReadFile(full.Name())
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("a full disk was written to (%v)", err)
	}
	foreign := gptDisk(t, size, size, &gpt.Partition{Index: 1, Start: 2048, End: 4095, Type: gpt.EFISystemPartition, Name: "Debian"})
	if _, err := bootDisk([]string{foreign.Name()}); !errors.Is(err, errNoBootDisk) {
		t.Errorf("a disk that Lodge was not installed to: %v", err)
	}
	if d, err := bootDisk([]string{foreign.Name(), full.Name()}); d != full.Name() || err != nil {
		t.Errorf("boot disk %q, %v", d, err)
	}
	const guid = "6C6F6467-652D-8775-8573-74732E657874"
	other := esp()
	other.GUID = guid
	its := gptDisk(t, size, size, other).Name()
	if d, err := partitionOn([]string{"/nonexistent", foreign.Name(), its}, strings.ToLower(guid)); d != partitionPath(its, 1) || err != nil {
		t.Errorf("partition %q, %v", d, err)
	}
	if d, err := partitionOn([]string{foreign.Name()}, guid); err == nil {
		t.Errorf("a partition that is nowhere is %q", d)
	}
	if _, err := makeState(full.Name(), func(string) error { t.Error("mke2fs was run"); return nil }); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a named disk with a table on it: %v", err)
	}
}

func TestMountAll(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	var done []string
	err := mountAll([]mount{
		{"a", at("a"), "a", 0, "", false}, {"b", at("a/b"), "b", 0, "", true}, {"c", at("c"), "c", 0, "", false}, {"d", at("d"), "d", 0, "", false},
	}, func(source, target, _ string, _ uintptr, _ string) error {
		if _, err := os.Stat(target); err != nil {
			t.Error(err)
		}
		done = append(done, source)
		return map[string]error{"a": unix.EBUSY, "b": unix.ENODEV, "c": unix.EPERM}[source]
	})
	if d := cmp.Diff([]string{"a", "b", "c", "d"}, done); d != "" {
		t.Errorf("mounted (-want +got):\n%s", d)
	}
	if err == nil || strings.Contains(err.Error(), "/a") || !strings.Contains(err.Error(), "c on "+at("c")) {
		t.Errorf("error %v: want that of c alone", err)
	}
}

func TestPartitionPath(t *testing.T) {
	for disk, want := range map[string]string{"/dev/sda": "/dev/sda2", "/dev/nvme0n1": "/dev/nvme0n1p2", "/dev/mmcblk0": "/dev/mmcblk0p2"} {
		if got := partitionPath(disk, 2); got != want {
			t.Errorf("%s: %s, want %s", disk, got, want)
		}
	}
	if got := parameter("quiet lodge.state=/dev/sda lodge.state=/dev/sdb x", "lodge.state"); got != "/dev/sdb" {
		t.Errorf("lodge.state is %q", got)
	}
}
