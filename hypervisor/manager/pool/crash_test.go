package pool

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
)

// childEnv has this test binary be one that works in a pool until it is killed: see crash.
const childEnv = "LODGE_TEST_POOL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		fmt.Fprintln(os.Stderr, crash(dir, os.Args[1], os.Args[2]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// crash makes and deletes images over and over, and prints what is done after it is.
func crash(dir, qcow2, ova string) error {
	p, err := Open(dir, Options{Low: 2, Critical: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ctx := context.Background()
	load := func(name, file string) error {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		src, err := FromFile(f)
		if err != nil {
			return err
		}
		_, err = p.Import(ctx, name, src, ImportOptions{}, nothing)
		return err
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("image%d-%dx", os.Getpid(), i) // the second disk of two has "-2" behind
		for _, step := range []struct {
			do   func() error
			says string
		}{
			{func() error { return load(name, qcow2) }, "+" + name},
			{func() error { _, err := p.Snapshot(ctx, name, "s", CopyOptions{}, nothing); return err }, "+" + name + "@s"},
			{func() error { return load("two"+name, ova) }, "+two" + name},
			{func() error { _, err := p.Clone(ctx, name, "clone"+name, CopyOptions{}, nothing); return err }, "+clone" + name},
			{func() error { return p.Revert(ctx, name, "s", nothing) }, "+" + name},
			{func() error { d, err := p.Disposable(ctx, name, CopyOptions{}, nothing); d.Close(); return err }, "+" + name},
			{func() error { fmt.Println("?" + name); return p.Delete(name) }, "-" + name},
		} {
			if err := step.do(); err != nil {
				return err
			}
			fmt.Println(step.says)
		}
	}
}

// A process that is killed at any moment leaves what it said that it has made, whole, and nothing by halves.
func TestKilled(t *testing.T) {
	raw := rawDisk(t, 3<<20, 11)
	dir := filepath.Join(t.TempDir(), "pool")
	qcow2 := packed(t, raw.Name(), "qcow2 compressed")
	ova := filepath.Join(t.TempDir(), "two.ova")
	func() {
		p := open(t, filepath.Join(t.TempDir(), "other"), nil)
		write(t, p, "a", raw)
		write(t, p, "b", raw)
		f, err := os.Create(ova)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := p.Export(t.Context(), []string{"a", "b"}, f, ExportOptions{Format: format.OVA}, nothing); err != nil {
			t.Fatal(err)
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	unfinished := 0
	for i := range 25 {
		cmd := exec.Command(os.Args[0], qcow2, ova)
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := make(chan []string)
		began := make(chan struct{})
		go func() {
			var all []string
			for s := bufio.NewScanner(out); s.Scan(); {
				if all = append(all, s.Text()); len(all) == 1 {
					close(began)
				}
			}
			lines <- all
		}()
		if i%5 != 0 { // some die in their first import
			<-began
		}
		time.Sleep(time.Duration(rand.Int64N(int64(150 * time.Millisecond))))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		said := <-lines
		if err := cmd.Wait(); stderr.Len() > 0 {
			t.Fatalf("%v: %s", err, &stderr)
		}
		for _, name := range files(t, &Pool{path: dir}) {
			if strings.HasPrefix(name, ".") {
				unfinished++
				break
			}
		}
		checkAfterKill(t, dir, raw.Name(), said)
	}
	if unfinished == 0 {
		t.Error("nobody was ever killed in the middle of something")
	}
}

func checkAfterKill(t *testing.T, dir, raw string, said []string) {
	t.Helper()
	p, err := Open(dir, Options{Low: 2, Critical: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	list, err := p.List()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, i := range list {
		have[i.Name] = true
		same(t, raw, fileName(t, p, i.Name))
		if i.Created.IsZero() {
			t.Errorf("nothing is known of %s", i.Name)
		}
	}
	state := map[string]byte{}
	for _, s := range said {
		state[s[1:]] = s[0]
	}
	for name, sign := range state {
		if sign != '?' && have[name] != (sign == '+') {
			t.Errorf("%c%s was said, and it is there: %t", sign, name, have[name])
		}
	}
	for name := range have {
		if two, ok := strings.CutSuffix(name, "-2"); ok && strings.HasPrefix(name, "two") && !have[two] ||
			strings.HasPrefix(name, "two") && !ok && !have[name+"-2"] {
			t.Errorf("there is one of the two disks: %s", name)
		}
	}
	for _, f := range files(t, p) {
		if _, _, ok := splitFile(strings.TrimSuffix(f, metaSuffix)); !ok {
			t.Errorf("%s is left", f)
		}
	}
	for name := range have { // room for the next
		if err := p.Delete(name); err != nil {
			t.Fatal(err)
		}
	}
	if left := files(t, p); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

// A full disk is an error that says so, and leaves nothing; what is there already stays.
func TestFull(t *testing.T) {
	for _, kind := range []string{"tmpfs", "ext4", "btrfs"} {
		for _, reserve := range []int64{1, 8 << 20} {
			t.Run(fmt.Sprintf("%s with %d to stay free", kind, reserve), func(t *testing.T) {
				size := map[string]int64{"tmpfs": 32 << 20, "ext4": 32 << 20, "btrfs": 128 << 20}[kind]
				p := open(t, filepath.Join(mounted(t, kind, size), "pool"), func(o *Options) { o.Critical = reserve })
				small := rawDisk(t, 1<<20, 12)
				write(t, p, "small", small)
				before := files(t, p)
				large := noise(t, 120<<20)
				for _, from := range []string{"file", "reader"} {
					src, err := FromFile(large)
					if err != nil {
						t.Fatal(err)
					}
					if from == "reader" {
						src = FromReader(struct{ io.Reader }{large}, "a reader")
					}
					if _, err := p.Import(t.Context(), "large", src, ImportOptions{}, nothing); !errors.Is(err, ErrNoSpace) {
						t.Errorf("%s: %v", from, err)
					}
					u, err := p.space()
					if err != nil {
						t.Fatal(err)
					}
					if kind != "btrfs" && u.Free < size/3 { // which gives space back later
						t.Errorf("%s: %d bytes are free afterwards", from, u.Free)
					}
				}
				if now := files(t, p); !slices.Equal(now, before) {
					t.Errorf("%q, before it was %q", now, before)
				}
				same(t, small.Name(), fileName(t, p, "small"))
			})
		}
	}
}

// noise makes a file of size bytes without any zeros to speak of.
func noise(t testing.TB, size int) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "noise"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	b := make([]byte, 1<<20)
	rnd := rand.NewChaCha8([32]byte{1})
	for off := 0; off < size; off += len(b) {
		_, _ = rnd.Read(b)
		if _, err := f.WriteAt(b, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return f
}
