package powercut

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const blocks = 64

// newDisk returns a disk whose block n is full of the byte 'a'.
func newDisk(t *testing.T) *Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{'a'}, blocks*BlockSize), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *Disk) fill(t *testing.T, c byte, n ...int) {
	t.Helper()
	for _, n := range n {
		if _, err := d.WriteAt(bytes.Repeat([]byte{c}, BlockSize), int64(n)*BlockSize); err != nil {
			t.Fatal(err)
		}
	}
}

// content returns a letter for each block, all bytes of which are to be the same.
func (d *Disk) content(t *testing.T) string {
	t.Helper()
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	var s []byte
	for n := range blocks {
		part := b[n*BlockSize:][:BlockSize]
		if !bytes.Equal(part, bytes.Repeat(part[:1], BlockSize)) {
			t.Errorf("block %d is torn", n)
		}
		s = append(s, part[0])
	}
	return string(s)
}

func numbers(from, to int) (list []int) {
	for n := from; n < to; n++ {
		list = append(list, n)
	}
	return list
}

// What was flushed is there; of the rest each block is one that was written, and over many cuts anything may become of it.
func TestCut(t *testing.T) {
	possible := []string{"b", "bcd", "ac", "ac", "a", "a", "a", "a"} // of each eight blocks
	seen := make(map[string]bool)
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		d := newDisk(t)
		d.fill(t, 'b', numbers(0, 16)...)
		d.Flush()
		d.fill(t, 'c', numbers(8, 32)...)
		d.fill(t, 'd', numbers(8, 16)...)
		before := d.content(t)
		if want := strings.Repeat("b", 8) + strings.Repeat("d", 8) + strings.Repeat("c", 16) + strings.Repeat("a", 32); before != want {
			t.Fatalf("read %s, want %s", before, want)
		}
		written, lost := d.Cut(rnd)
		after := d.content(t)
		differ := 0
		for n := range blocks {
			if after[n] != before[n] {
				differ++
			}
			if !strings.Contains(possible[n/8], after[n:n+1]) {
				t.Errorf("seed %d: block %d has %c, one of %s is possible", seed, n, after[n], possible[n/8])
			}
			seen[string(rune('0'+n/8))+after[n:n+1]] = true
		}
		if written != 24 || lost != differ {
			t.Errorf("seed %d: told of %d written and %d lost, want 24 and %d", seed, written, lost, differ)
		}
		if again, _ := d.Cut(rnd); again != 0 {
			t.Errorf("seed %d: nothing was written, and the next cut tells of %d blocks", seed, again)
		}
		switch lost {
		case 0:
			seen["nothing lost"] = true
		case written:
			seen["all lost"] = true
		}
	}
	for _, want := range []string{"1b", "1c", "1d", "2a", "2c", "nothing lost", "all lost"} {
		if !seen[want] {
			t.Errorf("never seen: %s", want)
		}
	}
}

// A part of a block is written without its rest being lost; what lies beyond the disk is refused.
func TestParts(t *testing.T) {
	d := newDisk(t)
	if _, err := d.WriteAt([]byte("xyz"), BlockSize-1); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := d.ReadAt(b, BlockSize-2); err != nil || string(b) != "axyza" {
		t.Errorf("%q, %v", b, err)
	}
	for _, off := range []int64{-1, d.Size() - 2, 1 << 62} {
		if _, err := d.WriteAt([]byte("xyz"), off); err == nil {
			t.Errorf("three bytes at %d of %d were written", off, d.Size())
		}
	}
	odd := filepath.Join(t.TempDir(), "odd")
	if err := os.WriteFile(odd, make([]byte, BlockSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(odd); err == nil {
		t.Error("a file of any size is a disk")
	}
}

// QEMU's client flushes, writes through the cache, and is killed before it has done either.
func TestNBD(t *testing.T) {
	qemuIO, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("needs QEMU's tools (package qemu-utils)")
	}
	d := newDisk(t)
	socket := filepath.Join(t.TempDir(), "nbd")
	s, err := Serve(d, socket)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-f", "raw", "-t", "writeback", "nbd+unix:///?socket=" + socket}
	for _, c := range []string{
		"write -P 0x62 0 32k", "flush", "read -P 0x62 0 32k", "read -P 0x61 32k 4k",
		"write -f -P 0x63 32k 4k", "write -P 0x64 0 8k", "read -P 0x64 4k 4k", "read -P 0x62 8k 4k", "sigraise 9",
	} {
		args = append(args, "-c", c)
	}
	out, err := exec.Command(qemuIO, args...).CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "killed") || strings.Contains(string(out), "failed") {
		t.Errorf("%v: %s", err, out)
	}
	s.Disconnect()
	if got, want := d.content(t), "ddbbbbbbc"+strings.Repeat("a", blocks-9); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if d.Cut(rand.New(zeroes{})); d.content(t) != strings.Repeat("b", 8)+"c"+strings.Repeat("a", blocks-9) {
		t.Errorf("after the cut: %s", d.content(t))
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// zeroes has Cut lose all.
type zeroes struct{}

func (zeroes) Uint64() uint64 { return 0 }
