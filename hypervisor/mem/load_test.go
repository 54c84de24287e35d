package mem

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoad(t *testing.T) {
	path, want := saved(t)
	f := open(t, path)
	m, err := Load(f, testID, testRanges)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !bytes.Equal(content(t, m), want) {
		t.Error("loaded other than saved")
	}
	for _, r := range m.Regions() { // as another process sees it
		b, err := unix.Mmap(int(r.File.Fd()), r.Off, len(r.Bytes), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, r.Bytes) {
			t.Errorf("the memfd of the region at %#x has something else", r.Base)
		}
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	}
	if _, err := f.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the file is not closed: %v", err)
	}
	if _, err := Load(open(t, path), [16]byte{}, testRanges); !errors.Is(err, ErrForeign) {
		t.Errorf("of another snapshot: %v", err)
	}
}
