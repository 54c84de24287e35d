package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUnpack(t *testing.T) {
	archive := func(names ...string) string {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, n := range names {
			if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o755, Size: int64(len(n)), Typeflag: tar.TypeReg}); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(w, n); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		b.Write(make([]byte, 8192)) // a device is longer than what it holds
		path := filepath.Join(t.TempDir(), "device")
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	dir := t.TempDir()
	if err := unpack(context.Background(), []string{archive("bin/a", "b"), dir}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"bin/a", "b"} {
		got, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(n, string(got)); d != "" {
			t.Error(d)
		}
	}
	if err := unpack(context.Background(), []string{archive("../outside"), dir}); err == nil {
		t.Error("a name outside the directory was accepted")
	}
}

func TestFill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := fill(context.Background(), []string{path, "100000", "7"}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(pattern(7), 100000)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(fmt.Sprintf("%x", h.Sum(nil)), fmt.Sprintf("%x", sha256.Sum256(got))); d != "" {
		t.Error(d)
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"no-such"}} {
		if err := run(context.Background(), args); err == nil {
			t.Errorf("run(%q): no error", args)
		}
	}
	err := run(context.Background(), []string{"put", "x"})
	if err == nil || !strings.Contains(err.Error(), "put: want 2 arguments") {
		t.Errorf("put without mode: %v", err)
	}
}

// Records are told from what was never written and from what is damaged.
func TestRecords(t *testing.T) {
	p := make([]byte, recordSize)
	var disk []byte
	for _, n := range []uint64{3, 4, 0, 2} {
		if clear(p); n != 0 {
			makeRecord(p, n)
		}
		disk = append(disk, p...)
	}
	disk[len(disk)-100] ^= 1
	got, err := recordsIn(bytes.NewReader(disk))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]int64{3, 4, 0, -1}, got); d != "" {
		t.Error(d)
	}
}
