package pool

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
)

// packed returns the path of raw as another program packs it.
func packed(t testing.TB, raw string, kind string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "image")
	convert := func(args ...string) {
		run(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, args...), raw, to)...)
	}
	compress := func(args ...string) {
		out, err := os.Create(to)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		cmd := exec.Command(args[0], append(args[1:], "-c", raw)...)
		cmd.Stdout = out
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	}
	switch kind {
	case "raw":
		return raw
	case "qcow2":
		convert("-O", "qcow2")
	case "qcow2 compressed":
		convert("-O", "qcow2", "-c")
	case "vmdk":
		convert("-O", "vmdk")
	case "vmdk compressed":
		convert("-O", "vmdk", "-o", "subformat=streamOptimized")
	case "qcow2 in xz":
		convert("-O", "qcow2")
		raw = to
		to = filepath.Join(t.TempDir(), "image.xz")
		compress("xz", "-0")
	case "ova":
		vmdk := filepath.Join(t.TempDir(), "d.vmdk")
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, vmdk)
		ova(t, to, vmdk, nil)
	case "bzip2":
		compress("bzip2", "-1")
	case "xz":
		compress("xz", "-0")
	default:
		compress(kind)
	}
	return to
}

// ova makes an archive at to of one disk, as tar makes it. change may change the manifest.
func ova(t testing.TB, to, vmdk string, change func(string) string) {
	t.Helper()
	disk, err := os.ReadFile(vmdk)
	if err != nil {
		t.Fatal(err)
	}
	m := format.Machine{Name: "m", CPUs: 2, Memory: 1 << 30, Disks: []format.OVFDisk{{ID: "d", File: "d.vmdk", FileSize: int64(len(disk)), Capacity: 1 << 30}}}
	text, err := m.OVF()
	if err != nil {
		t.Fatal(err)
	}
	manifest := fmt.Sprintf("SHA256(m.ovf)= %x\nSHA256(d.vmdk)= %x\n", sha256.Sum256(text), sha256.Sum256(disk))
	if change != nil {
		manifest = change(manifest)
	}
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, e := range []struct {
		name string
		body []byte
	}{{"m.ovf", text}, {"m.mf", []byte(manifest)}, {"d.vmdk", disk}} {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Size: int64(len(e.body)), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func opened(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func sumOf(t testing.TB, path string) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, opened(t, path)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// What other programs make, from a file, from a pipe and from a server: the same disk, with holes, and nothing beside it.
func TestImport(t *testing.T) {
	raw := rawDisk(t, 3<<20, 3)
	for _, c := range []struct {
		kind string
		want format.Format
	}{
		{"raw", format.Raw}, {"gzip", format.Raw}, {"xz", format.Raw}, {"zstd", format.Raw}, {"bzip2", format.Raw},
		{"qcow2", format.QCOW2}, {"qcow2 compressed", format.QCOW2}, {"qcow2 in xz", format.QCOW2},
		{"vmdk", format.VMDKSparse}, {"vmdk compressed", format.VMDKSparse}, {"ova", format.OVA},
	} {
		t.Run(c.kind, func(t *testing.T) {
			file := packed(t, raw.Name(), c.kind)
			sum := sumOf(t, file)
			server := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(file))))
			defer server.Close()
			p := open(t, t.TempDir(), nil)
			for _, from := range []string{"file", "reader", "url"} {
				var src *Source
				var err error
				switch from {
				case "file":
					src, err = FromFile(opened(t, file))
				case "reader":
					src = FromReader(struct{ io.Reader }{opened(t, file)}, "a reader")
				case "url":
					var c io.Closer
					src, c, err = FromURL(t.Context(), server.URL+"/"+filepath.Base(file)+"?token=secret")
					if err == nil {
						defer c.Close()
					}
				}
				if err != nil {
					t.Fatal(err)
				}
				var done, total int64
				got, err := p.Import(t.Context(), from, src, ImportOptions{SHA256: sum}, func(d, n int64) { done, total = d, n })
				if err != nil {
					t.Fatal(err)
				}
				if got.Format != c.want || got.SHA256 != sum || len(got.Images) != 1 || strings.Contains(got.Images[0].Origin, "secret") {
					t.Errorf("%s: %+v", from, got)
				}
				if done == 0 || total != 0 && done != total || total == 0 && from != "reader" {
					t.Errorf("%s: progress %d of %d at the end", from, done, total)
				}
				if c.kind == "ova" && (got.Machine == nil || got.Machine.CPUs != 2 || got.Machine.Memory != 1<<30) {
					t.Errorf("%s: machine %+v", from, got.Machine)
				}
				same(t, raw.Name(), fileName(t, p, from))
				if a, size := got.Images[0].Allocated, got.Images[0].Size; a > size*3/4 {
					t.Errorf("%s: %d bytes are allocated of %d: the zeros are no holes", from, a, size)
				}
			}
			want := []string{"file.raw", "file.raw.json", "reader.raw", "reader.raw.json", "url.raw", "url.raw.json"}
			if diff := cmp.Diff(want, files(t, p)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A CD is read-only.
func TestImportISO(t *testing.T) {
	b := make([]byte, 200<<10)
	copy(b[32769:], "CD001")
	copy(b[100<<10:], "data")
	p := open(t, t.TempDir(), nil)
	got, err := p.Import(t.Context(), "debian", FromReader(bytes.NewReader(b), "x"), ImportOptions{}, nothing)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Images[0].ReadOnly || got.Format != format.ISO {
		t.Errorf("%+v", got)
	}
	if diff := cmp.Diff([]string{"debian.iso", "debian.iso.json"}, files(t, p)); diff != "" {
		t.Error(diff)
	}
	if _, err := p.OpenDisk("debian", false); !errors.Is(err, ErrReadOnly) {
		t.Error(err)
	}
	if _, err := p.Create("debian", 512); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
}

// What is refused leaves nothing, and says why.
func TestImportRefuses(t *testing.T) {
	dir := t.TempDir()
	raw := rawDisk(t, 1<<20, 4)
	backing := filepath.Join(dir, "backed.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", raw.Name(), "-F", "raw", backing)
	large := filepath.Join(dir, "large.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", large, "1T")
	vmdk := packed(t, raw.Name(), "vmdk compressed")
	wrong := filepath.Join(dir, "wrong.ova")
	ova(t, wrong, vmdk, func(s string) string { return strings.Replace(s, "d.vmdk)= ", "d.vmdk)= 00", 1) })
	gzipped := packed(t, raw.Name(), "gzip")
	gz, err := os.ReadFile(gzipped)
	if err != nil {
		t.Fatal(err)
	}
	writeFile := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	short := writeFile("short.gz", gz[:len(gz)-100])
	damaged := bytes.Clone(gz)
	damaged[len(damaged)-6] ^= 1 // in its checksum
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range 70 {
		if _, err := z.Write(bytes.Repeat([]byte{1}, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	z.Close()
	var twice bytes.Buffer
	z = gzip.NewWriter(&twice)
	if _, err := z.Write(gz); err != nil {
		t.Fatal(err)
	}
	z.Close()
	for _, c := range []struct {
		name string
		file string
		opt  ImportOptions
		want error
		says string
	}{
		{"another checksum", raw.Name(), ImportOptions{SHA256: strings.Repeat("0", 64)}, format.ErrChecksum, "SHA-256 is"},
		{"another checksum of a stream", gzipped, ImportOptions{SHA256: strings.Repeat("0", 64)}, format.ErrChecksum, "SHA-256 is"},
		{"a checksum that is none", raw.Name(), ImportOptions{SHA256: "abc"}, nil, "64 hexadecimal digits"},
		{"a backing file", backing, ImportOptions{}, format.ErrUnsupported, "qemu-img convert"},
		{"a large disk", large, ImportOptions{}, ErrSize, "are the most"},
		{"a manifest that does not fit", wrong, ImportOptions{}, format.ErrChecksum, "d.vmdk is not what"},
		{"a file that is cut off", short, ImportOptions{}, nil, "gzip"},
		{"a damaged file", writeFile("damaged.gz", damaged), ImportOptions{}, nil, "gzip"},
		{"a bomb", writeFile("bomb.gz", bomb.Bytes()), ImportOptions{}, ErrSize, "more than"},
		{"compressed twice", writeFile("twice.gz", twice.Bytes()), ImportOptions{}, format.ErrUnsupported, "twice"},
		{"a text", writeFile("page.html", []byte("<html>404 not found")), ImportOptions{}, format.ErrUnsupported, "not to be a disk image"},
		{"nothing", writeFile("empty", nil), ImportOptions{}, ErrSize, "empty"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := open(t, t.TempDir(), func(o *Options) { o.MaxSize = 64 << 20 })
			for _, inPlace := range []bool{true, false} {
				src, err := FromFile(opened(t, c.file))
				if err != nil {
					t.Fatal(err)
				}
				if !inPlace {
					src = FromReader(struct{ io.Reader }{opened(t, c.file)}, "a reader")
				}
				_, err = p.Import(t.Context(), "x", src, c.opt, nothing)
				if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("in place %t: %v; want %v with %q", inPlace, err, c.want, c.says)
				}
				if left := files(t, p); len(left) > 0 {
					t.Errorf("in place %t: %q are left", inPlace, left)
				}
			}
		})
	}
}

// Who says that a file is raw gets it as it is.
func TestImportAsRaw(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	text := "QFI\xfb but not really"
	got, err := p.Import(t.Context(), "x", FromReader(strings.NewReader(text), "x"), ImportOptions{Format: format.Raw}, nothing)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fileName(t, p, "x"))
	if err != nil || got.Images[0].Size != SizeUnit || string(bytes.TrimRight(b, "\x00")) != text {
		t.Errorf("%q: %v", b, err)
	}
}

// An import that is cancelled at any moment ends soon and leaves nothing.
func TestImportCancelled(t *testing.T) {
	raw := rawDisk(t, 4<<20, 5)
	for _, kind := range []string{"raw", "gzip", "qcow2 compressed", "ova"} {
		t.Run(kind, func(t *testing.T) {
			file := packed(t, raw.Name(), kind)
			p := open(t, t.TempDir(), nil)
			cancelled := 0
			for i := range 16 {
				ctx, cancel := context.WithCancel(t.Context())
				at := int64(i / 2) // from the first on, and more than some have
				steps := int64(0)
				src, err := FromFile(opened(t, file))
				if err != nil {
					t.Fatal(err)
				}
				if i%2 == 0 {
					src = FromReader(struct{ io.Reader }{opened(t, file)}, "a reader")
				}
				_, err = p.Import(ctx, "x", src, ImportOptions{}, func(int64, int64) {
					if steps++; steps > at {
						cancel()
					}
				})
				cancel()
				switch {
				case errors.Is(err, context.Canceled):
					cancelled++
					if left := files(t, p); len(left) > 0 {
						t.Fatalf("cancelled after %d steps: %q are left", at, left)
					}
				case err != nil:
					t.Fatal(err)
				default:
					if err := p.Delete("x"); err != nil {
						t.Fatal(err)
					}
				}
			}
			if cancelled == 0 {
				t.Error("nothing was ever cancelled")
			}
		})
	}
}

// A source that sends nothing does not hold up a cancel.
func TestImportCancelledWhileWaiting(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	src, err := FromFile(r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p := open(t, t.TempDir(), nil)
	if _, err := p.Import(ctx, "x", src, ImportOptions{}, nothing); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if left := files(t, p); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

// Two imports to one name: one of them is refused at once.
func TestImportTwice(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	r, w := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := p.Import(t.Context(), "x", FromReader(r, "x"), ImportOptions{}, nothing)
		first <- err
	}()
	if _, err := w.Write(make([]byte, 1024)); err != nil { // the import reads, so it has the name
		t.Fatal(err)
	}
	if _, err := p.Import(t.Context(), "x", FromReader(strings.NewReader("x"), "x"), ImportOptions{}, nothing); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if err := p.Delete("x"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	w.Close()
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// An archive of two disks: both appear, in the machine's order.
func TestImportTwoDisks(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	a, b := rawDisk(t, 3<<20, 6), rawDisk(t, 5<<20, 7)
	write(t, p, "a", a)
	write(t, p, "b", b)
	out, err := os.Create(filepath.Join(t.TempDir(), "m.ova"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	opt := ExportOptions{Format: format.OVA, Machine: format.Machine{Name: "m", CPUs: 3, Memory: 1 << 30}}
	if err := p.Export(t.Context(), []string{"a", "b"}, out, opt, nothing); err != nil {
		t.Fatal(err)
	}
	src, err := FromFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Create("c-2", 512); err != nil {
		t.Fatal(err)
	}
	before := files(t, p)
	if _, err := p.Import(t.Context(), "c", src, ImportOptions{}, nothing); !errors.Is(err, ErrExists) {
		t.Errorf("over the second disk: %v", err)
	}
	if diff := cmp.Diff(before, files(t, p)); diff != "" {
		t.Error(diff)
	}
	if src, err = FromFile(out); err != nil {
		t.Fatal(err)
	}
	got, err := p.Import(t.Context(), "d", src, ImportOptions{}, nothing)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Images) != 2 || got.Images[0].Name != "d" || got.Images[1].Name != "d-2" || got.Machine.CPUs != 3 {
		t.Errorf("%+v", got)
	}
	same(t, a.Name(), fileName(t, p, "d"))
	same(t, b.Name(), fileName(t, p, "d-2"))
}

// A server that breaks off is asked for the rest; one that has another file by then, or none, is not believed.
func TestURL(t *testing.T) {
	content := make([]byte, 1<<20)
	for i := range content {
		content[i] = byte(i >> 8)
	}
	// serve sends at most 300 KiB at a time.
	serve := func(w http.ResponseWriter, r *http.Request, tag string) {
		from := 0
		if rg := r.Header.Get("Range"); rg != "" && r.Header.Get("If-Range") == tag {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(rg, "bytes="), "-"))
			if err != nil {
				t.Error(err)
			}
			from = n
		}
		w.Header().Set("Accept-Ranges", "bytes")
		w.Header().Set("ETag", tag)
		w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
		if from > 0 {
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(content[from:min(from+300<<10, len(content))])
	}
	tag := `"1"`
	mux := http.NewServeMux()
	mux.HandleFunc("/breaks", func(w http.ResponseWriter, r *http.Request) { serve(w, r, `"x"`) })
	mux.HandleFunc("/changes", func(w http.ResponseWriter, r *http.Request) { serve(w, r, tag); tag += "1" })
	mux.HandleFunc("/cuts", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content[:1000])
	})
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	server := httptest.NewServer(mux)
	defer server.Close()
	for _, c := range []struct {
		path, says string
	}{
		{"/breaks", ""}, {"/changes", "changed on the server"}, {"/cuts", "after 1000 bytes"}, {"/none", "404"}, {"/round", "ten times"},
	} {
		t.Run(c.path, func(t *testing.T) {
			p := open(t, t.TempDir(), nil)
			src, closer, err := FromURL(t.Context(), strings.Replace(server.URL, "http://", "http://user:secret@", 1)+c.path)
			if err == nil {
				defer closer.Close()
				src.Reader.(*download).pause = time.Millisecond
				_, err = p.Import(t.Context(), "x", src, ImportOptions{}, nothing)
			}
			if c.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				if b, err := os.ReadFile(fileName(t, p, "x")); err != nil || !bytes.Equal(b, content) {
					t.Errorf("the file differs: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v, want %q", err, c.says)
			}
			if left := files(t, p); len(left) > 0 {
				t.Errorf("%q are left", left)
			}
		})
	}
	for _, address := range []string{"file:///etc/passwd", "ftp://host/x", "x", "http://", "http://[::1", "http://h/%zz"} {
		if _, _, err := FromURL(t.Context(), address); err == nil {
			t.Errorf("%q is taken", address)
		}
	}
}

func TestNameFor(t *testing.T) {
	for origin, want := range map[string]string{
		"debian-12-genericcloud-amd64.qcow2": "debian-12-genericcloud-amd64", "https://h/a/b/Fedora.raw.xz": "Fedora", "x y.ISO": "x-y",
		"": "image", ".raw": "image", "/": "image", "ü.ova": "image", strings.Repeat("a", 100): strings.Repeat("a", 64), "v1.2.img": "v1.2",
	} {
		if got := NameFor(origin); got != want || checkName(got) != nil {
			t.Errorf("%q: %q, want %q", origin, got, want)
		}
	}
}
