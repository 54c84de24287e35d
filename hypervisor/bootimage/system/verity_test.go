package system

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// veritysetup, which made the format, takes the tree for the data, with each number of levels; and does not once a bit is another.
func TestHashTree(t *testing.T) {
	const tool = "/usr/sbin/veritysetup"
	if _, err := os.Stat(tool); err != nil {
		t.Fatalf("%v: run make deps (package cryptsetup-bin)", err)
	}
	for _, size := range []int{0, 1, BlockSize, BlockSize + 1, 128 * BlockSize, 128*BlockSize + 1, 128 * 129 * BlockSize} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			data := make([]byte, size)
			rand.NewChaCha8([32]byte{1}).Read(data) //nolint:errcheck // it has no error
			image, v := Seal(data)
			if int64(len(image)) != v.Size() || !bytes.HasPrefix(image, data) {
				t.Fatalf("%d bytes of image, want %d", len(image), v.Size())
			}
			back, err := Parse(v.String())
			if err != nil || back != v {
				t.Errorf("%s is read as %v: %v", v, back, err)
			}
			verify := func() error {
				file := filepath.Join(t.TempDir(), "image")
				if err := os.WriteFile(file, image, 0o600); err != nil {
					t.Fatal(err)
				}
				root, _, _ := strings.Cut(v.String(), ":")
				cmd := exec.Command(tool, "verify", "--no-superblock", "--format=1", "--hash=sha256", "--salt=-", "--data-block-size=4096", "--hash-block-size=4096",
					"--data-blocks="+strconv.FormatUint(v.Blocks, 10), "--hash-offset="+strconv.FormatUint(v.Blocks*BlockSize, 10), file, file, root)
				out, err := cmd.CombinedOutput()
				t.Logf("%s", out)
				return err
			}
			if err := verify(); err != nil {
				t.Error(err)
			}
			image[len(image)/2] ^= 4
			if verify() == nil {
				t.Error("a bit is another, and nobody notices")
			}
		})
	}
}

func TestParse(t *testing.T) {
	zeros := strings.Repeat("0", 64)
	for _, s := range []string{"", ":", zeros, zeros + ":", zeros + ":0", zeros + ":-1", zeros[1:] + ":1", zeros + "00:1", strings.Repeat("g", 64) + ":1", zeros + ":1:1",
		zeros + ":99999999999999999999"} {
		if v, err := Parse(s); err == nil {
			t.Errorf("%q is read as %v", s, v)
		}
	}
	id := ID{Blocks: 7}
	if got, err := Of("quiet " + Parameter + "=" + id.String() + " console=ttyS0"); err != nil || got == nil || *got != id {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := Of("quiet"); err != nil || got != nil {
		t.Errorf("%v, %v", got, err)
	}
}
