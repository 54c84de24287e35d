package snap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func sample() *File {
	return &File{
		Snapshot: ID{1, 15: 2}, Machine: ID{3, 15: 4}, Created: time.Unix(0, 1763769600123456789), Writer: "lodge 0.1",
		Sections: []Section{{"vcpu.0", 1, []byte("registers")}, {"blk.root", 3, []byte{}}, {"rtc", 2, []byte{0, 1, 2}}},
	}
}

func encode(t testing.TB, f *File) []byte {
	t.Helper()
	b, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWriteRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	for _, want := range []*File{sample(), {Created: time.Unix(0, 0), Sections: []Section{}}} {
		if err := want.Write(path); err != nil {
			t.Fatal(err)
		}
		got, err := Read(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) != 0 {
		t.Error("temporary files left:", left)
	}
	if s, ok := sample().Section("rtc"); !ok || s.Version != 2 {
		t.Errorf("Section(rtc) = %v, %v", s, ok)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*File){
		"writer too long": func(f *File) { f.Writer = strings.Repeat("x", 61) },
		"zero in writer":  func(f *File) { f.Writer = "a\x00" },
		"same id twice":   func(f *File) { f.Sections[1].ID = "rtc" },
		"no id":           func(f *File) { f.Sections[1].ID = "" },
		"id too long":     func(f *File) { f.Sections[1].ID = strings.Repeat("x", 256) },
		"too large":       func(f *File) { f.Sections[1].Data = make([]byte, maxFile) },
	} {
		f := sample()
		if change(f); f.Write(filepath.Join(t.TempDir(), "state")) == nil {
			t.Errorf("%s: written", name)
		}
	}
}

// TestReadDamaged flips every bit and cuts at every length: never a panic, never a File.
func TestReadDamaged(t *testing.T) {
	good := encode(t, sample())
	for n := range good {
		if _, err := Decode(good[:n]); !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut to %d bytes: %v, want ErrTruncated", n, err)
		}
		for bit := range 8 {
			b := bytes.Clone(good)
			b[n] ^= 1 << bit
			want := ErrDamaged
			switch {
			case n < 8:
				want = ErrForeign
			case n < 12: // the version is looked at before the checksum, whose place may change with it
				want = ErrNewer
				if b[n] == 0 {
					want = ErrDamaged
				}
			}
			if _, err := Decode(b); !errors.Is(err, want) {
				t.Fatalf("bit %d of byte %d: %v, want %v", bit, n, err, want)
			}
		}
	}
	if _, err := Decode(append(bytes.Clone(good), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a byte too long: %v, want ErrDamaged", err)
	}
}

func TestReadNamesFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	good := encode(t, sample())
	newer := bytes.Clone(good)
	binary.LittleEndian.PutUint32(newer[8:], 2)
	damaged := bytes.Clone(good)
	damaged[headerSize+10] ^= 1
	for _, tt := range []struct {
		content []byte
		err     error
		says    string
	}{
		{[]byte("#!/bin/sh\n"), ErrForeign, "directory of a saved machine"},
		{newer, ErrNewer, "update lodge"},
		{damaged, ErrDamaged, `"vcpu.0"`},
		{good[:len(good)-1], ErrTruncated, "another snapshot"},
		{nil, ErrTruncated, "another snapshot"},
	} {
		if err := os.WriteFile(path, tt.content, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Read(path)
		if f != nil || !errors.Is(err, tt.err) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("Read = %v, want %v, the name and %q", err, tt.err, tt.says)
		}
	}
	if _, err := Read(dir); !errors.Is(err, ErrForeign) {
		t.Errorf("directory: %v", err)
	}
	if _, err := Read(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(pipe); !errors.Is(err, ErrForeign) {
		t.Errorf("pipe: %v", err)
	}
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); !errors.Is(err, ErrForeign) {
		t.Errorf("huge: %v", err)
	}
}

// FuzzReadFile also repairs the checksums, or the fuzzer would never get past them.
func FuzzReadFile(f *testing.F) {
	f.Add(encode(f, sample()), true)
	f.Add(encode(f, sample()), false)
	f.Add([]byte(magic), false)
	f.Fuzz(func(t *testing.T, b []byte, repair bool) {
		if b = bytes.Clone(b); repair {
			fix(b)
		}
		got, err := Decode(b)
		if err != nil {
			for _, known := range []error{ErrForeign, ErrNewer, ErrTruncated, ErrDamaged} {
				if errors.Is(err, known) {
					return
				}
			}
			t.Fatalf("unnamed error: %v", err)
		}
		if again := encode(t, got); !bytes.Equal(again, b) {
			t.Fatalf("written again it is another file:\n%x\n%x", b, again)
		}
	})
}

// fix corrects the size and every checksum that it can find.
func fix(b []byte) {
	le := binary.LittleEndian
	if len(b) < headerSize+endSize {
		return
	}
	le.PutUint64(b[16:], uint64(len(b)))
	le.PutUint32(b[headerSum:], checksum(b[:headerSum]))
	for at := headerSize; at < len(b)-endSize && b[at] != 0; {
		n := at + 1 + int(b[at]) + 6
		if n > len(b) {
			break
		}
		m := uint64(n) + uint64(le.Uint32(b[n-4:]))
		if m+4 > uint64(len(b)-endSize) {
			break
		}
		le.PutUint32(b[m:], checksum(b[at:m]))
		at = int(m) + 4
	}
	le.PutUint32(b[len(b)-4:], checksum(b[:len(b)-4]))
}

// large returns the state of a machine of 40 components and 60 KB.
func large() *File {
	f := sample()
	f.Sections = nil
	for i := range 40 {
		f.Sections = append(f.Sections, Section{fmt.Sprint("device.", i), 1, make([]byte, 1500)})
	}
	return f
}

func BenchmarkReadState(b *testing.B) {
	path := filepath.Join(b.TempDir(), "state")
	if err := large().Write(path); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Read(path); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecode is BenchmarkReadState without the file.
func BenchmarkDecode(b *testing.B) {
	data := encode(b, large())
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Decode(data); err != nil {
			b.Fatal(err)
		}
	}
}
