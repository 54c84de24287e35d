package appliance

import (
	"bytes"
	"errors"
	"image"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/laptop"
)

// safe is a notebook whose state is encrypted, with a TPM.
type safe struct {
	*laptop.Laptop
	t *testing.T
}

// passphrase has keys only that are the same on all keyboards.
const passphrase = "correct horse 5"

func newSafe(t *testing.T) *safe {
	t.Helper()
	b, err := lodgeimage.NewBuilder(t.Output())
	check(t, err)
	dir := t.TempDir()
	for _, key := range []string{"ours.key", "theirs.key"} {
		out, err := exec.Command("openssl", "genrsa", "-out", filepath.Join(dir, key), "2048").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	s := &safe{t: t}
	s.Laptop, err = laptop.New(t.Context(), b, dir, laptop.Config{NoGuests: true, OnScreen: true, Build: []string{"--encrypt", "--pcr-key=" + filepath.Join(dir, "ours.key")}})
	check(t, err)
	s.newTPM()
	return s
}

// newTPM gives the notebook a TPM that knows nothing, as one that was cleared.
func (s *safe) newTPM() {
	s.t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // short: a socket is in it
	check(s.t, err)
	s.t.Cleanup(func() { os.RemoveAll(dir) })
	s.TPM = dir
}

// update updates the disk with another release, which is signed with a key, and changed after that.
func (s *safe) update(release, key string, change func(uki []byte) []byte) {
	s.t.Helper()
	out := filepath.Join(s.Dir, release)
	_, err := s.Build(s.t.Context(), out, release, "--media=uki", "--encrypt", "--pcr-key="+filepath.Join(s.Dir, key+".key"))
	check(s.t, err)
	name := filepath.Join(out, "lodge.efi")
	uki, err := os.ReadFile(name)
	check(s.t, errors.Join(err, os.WriteFile(name, change(uki), 0o600)))
	_, err = s.Run(s.t.Context(), "update", s.Disk, name)
	check(s.t, err)
}

func (s *safe) switchOn() *machine {
	s.t.Helper()
	m, err := s.FromDisk(s.t.Context())
	return started(s.t, m, err)
}

// types types lines.
func (m *machine) types(lines ...string) {
	m.t.Helper()
	for _, l := range lines {
		check(m.t, m.Type(m.t.Context(), l+"\n"))
	}
}

// page waits for a page of Lodge's on the screen: its first line is light.
func (m *machine) page(name string) {
	m.t.Helper()
	_, err := m.Sees(m.t.Context(), filepath.Join("../../out/encrypted", name+".png"), "a page", func(img image.Image) bool {
		light := 0
		for x := range img.Bounds().Dx() {
			if r, _, _, _ := img.At(x, 1).RGBA(); r > 0x8000 {
				light++
			}
		}
		return light > img.Bounds().Dx()*9/10
	})
	check(m.t, err)
}

const (
	asked = "a passphrase is asked for on the console"
	open  = "msg=state device=/dev/dm-"
)

// The first start asks for a passphrase, and the TPM opens the state after that: also for an update that is signed with the same key. For an image that was
// changed, or signed by somebody else, and when the TPM was cleared, the passphrase opens it, and the page says why it is needed.
func TestEncrypted(t *testing.T) {
	s := newSafe(t)
	t.Run("first", func(t *testing.T) {
		s.t = t
		m := s.switchOn()
		m.await(asked)
		m.page("new")
		m.types("short", "short", passphrase, passphrase)
		m.await("the TPM opens the state from the next start on", open, "writable=true")
		m.button()
		s.headerIsLUKS(t)
	})
	t.Run("update", func(t *testing.T) {
		s.t = t
		s.update("2", "ours", func(uki []byte) []byte { return uki })
		m := s.switchOn()
		m.await(open, "writable=true", "lodge-seat")
		if strings.Contains(m.Said(), asked) {
			t.Error("the passphrase was asked for")
		}
		m.button()
		if said, err := s.Run(t.Context(), "status", s.Disk); err != nil || !strings.Contains(said, "slot 2: to be tried, 2 times at most") {
			t.Errorf("the update was not started: %v: %s", err, said)
		}
	})
	for _, c := range []struct {
		name, key string
		change    func(uki []byte) []byte
		why       string
	}{
		{"changed", "ours", func(uki []byte) []byte { return bytes.Replace(uki, []byte("panic=-1"), []byte("panic=99"), 1) }, "the image was changed"},
		{"another", "theirs", func(uki []byte) []byte { return uki }, "signed with another key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.t = t
			s.update(c.name, c.key, c.change)
			m := s.switchOn()
			m.await("the TPM does not open it", c.why, asked)
			m.page(c.name)
			m.types("wrong horse", passphrase)
			m.await("passphrase is right", open)
			m.button()
		})
	}
	t.Run("cleared", func(t *testing.T) { // of an image that is signed as the last one, which the passphrase has made the one to trust
		s.t = t
		s.update("3", "theirs", func(uki []byte) []byte { return uki })
		s.newTPM()
		m := s.switchOn()
		m.await("the TPM was cleared, or is another one", asked)
		m.page("cleared")
		check(t, m.Press(t.Context(), "esc"))
		m.await("no passphrase was given") // the emergency console has it
		m.page("without")
		check(t, m.Press(t.Context(), "t")) // try again
		for strings.Count(m.Said(), asked) < 2 && t.Context().Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(2 * time.Second) // until the page is there, which looks like the one before
		m.types(passphrase)
		m.await("the TPM opens the state from the next start on", open)
		m.button()
	})
}

// headerIsLUKS wants the passphrase to open the state on any Linux, and nothing of the file system to be readable without.
func (s *safe) headerIsLUKS(t *testing.T) {
	t.Helper()
	at, err := s.StateAt()
	check(t, err)
	f, err := os.Open(s.Disk)
	check(t, err)
	defer f.Close()
	header := make([]byte, 17<<20)
	_, err = f.ReadAt(header, at)
	check(t, err)
	name := filepath.Join(t.TempDir(), "header")
	check(t, os.WriteFile(name, header, 0o600))
	cmd := exec.Command("/usr/sbin/cryptsetup", "open", "--test-passphrase", "--key-file=-", name)
	cmd.Stdin = strings.NewReader(passphrase)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the passphrase does not open it: %v: %s", err, out)
	}
	if n := bytes.Count(header, []byte("lodge-state")); n != 2 { // the labels of the header and its copy
		t.Errorf("the label is %d times at the beginning of the partition, want 2 times", n)
	}
}
