package logfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a guest prints takes no more than two files, and the last of it is there.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serial.log")
	if err := os.WriteFile(path, []byte("of an earlier run\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for range 2 { // opened twice, as by two runs
		l, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		l.limit = 100
		for i := range 100 {
			line := fmt.Sprintf("line %d\n", i)
			all.WriteString(line)
			if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
				t.Fatalf("write: %d, %v", n, err)
			}
			for _, p := range []string{path, path + ".1"} {
				if st, err := os.Stat(p); err == nil && st.Size() > l.limit {
					t.Fatalf("%s has %d bytes", p, st.Size())
				}
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	var got []byte
	for _, p := range []string{path + ".1", path} {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b...)
	}
	if len(got) <= 100 || !strings.HasSuffix(all.String(), string(got)) {
		t.Errorf("the files hold %q", got)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 2 {
		t.Errorf("%d files, %v", len(files), err)
	}
}

// A device is not renamed, nor does a file grow that cannot be.
func TestFixed(t *testing.T) {
	l, err := Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.limit = 10
	for range 3 {
		if n, err := l.Write(make([]byte, 8)); n != 8 || err != nil {
			t.Errorf("write: %d, %v", n, err)
		}
	}
	path := filepath.Join(t.TempDir(), "serial.log")
	if err := os.MkdirAll(filepath.Join(path+".1", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	full, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	full.limit = 10
	if _, err := full.Write(make([]byte, 8)); err != nil {
		t.Error(err)
	}
	if n, err := full.Write(make([]byte, 8)); n != 0 || err == nil {
		t.Errorf("write to a full file: %d, %v", n, err)
	}
}

// A file that was handed over, such as the log of lodge-vmm itself, is emptied when it is full: there is no path to another.
func TestHanded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmm.log")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := Handed(f)
	if err != nil {
		t.Fatal(err)
	}
	l.limit = 100
	for i := range 100 {
		if _, err := fmt.Fprintf(l, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(path); err != nil || st.Size() > l.limit {
			t.Fatalf("after %d lines it has %d bytes, %v", i+1, st.Size(), err)
		}
	}
	if b, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(b), "line ") || !strings.HasSuffix(string(b), "line 99\n") {
		t.Errorf("%q, %v", b, err)
	}
}
