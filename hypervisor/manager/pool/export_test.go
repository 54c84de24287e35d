package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
)

// What we write, qemu-img and tar read, and we ourselves.
func TestExport(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	raw := rawDisk(t, 20<<20+512, 8)
	write(t, p, "root", raw)
	for _, c := range []struct {
		name string
		opt  ExportOptions
		kind string // as qemu-img calls it
	}{
		{"raw", ExportOptions{Format: format.Raw}, "raw"},
		{"qcow2", ExportOptions{Format: format.QCOW2}, "qcow2"},
		{"qcow2 deflate", ExportOptions{Format: format.QCOW2, Compression: format.Deflate}, "qcow2"},
		{"qcow2 zstd", ExportOptions{Format: format.QCOW2, Compression: format.ZstdC}, "qcow2"},
		{"vmdk", ExportOptions{Format: format.VMDKStream}, "vmdk"},
		{"ova", ExportOptions{Format: format.OVA, Machine: format.Machine{CPUs: 1, Memory: 512 << 20, Firmware: "efi"}}, "vmdk"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			f, err := os.Create(filepath.Join(dir, "out"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var done, total int64
			if err := p.Export(t.Context(), []string{"root"}, f, c.opt, func(d, n int64) { done, total = d, n }); err != nil {
				t.Fatal(err)
			}
			if total == 0 || done != total {
				if c.name != "raw" { // which a reflink does at once
					t.Errorf("progress %d of %d at the end", done, total)
				}
			}
			image := f.Name()
			if c.opt.Format == format.OVA {
				run(t, "tar", "--extract", "--file", image, "--directory", dir)
				image = filepath.Join(dir, "root-disk1.vmdk")
				if _, err := os.Stat(filepath.Join(dir, "root.ovf")); err != nil {
					t.Error(err)
				}
				list := run(t, "tar", "--list", "--file", f.Name())
				if list != "root.ovf\nroot-disk1.vmdk\nroot.mf\n" {
					t.Errorf("the archive has %q", list)
				}
				run(t, "sh", "-c", fmt.Sprintf(`cd %s && sed -E 's/SHA256\((.*)\)= (.*)/\2  \1/' root.mf | sha256sum --check --strict`, dir))
			}
			if c.kind == "qcow2" {
				if out := run(t, "qemu-img", "check", "-f", "qcow2", image); !strings.Contains(out, "No errors were found") {
					t.Error(out)
				}
			}
			run(t, "qemu-img", "compare", "-f", c.kind, "-F", "raw", image, raw.Name())
			back := filepath.Join(dir, "back.raw")
			run(t, "qemu-img", "convert", "-f", c.kind, "-O", "raw", image, back)
			same(t, raw.Name(), back)
			src, err := FromFile(f)
			if err != nil {
				t.Fatal(err)
			}
			name := strings.ReplaceAll(c.name, " ", "-")
			got, err := p.Import(t.Context(), name, src, ImportOptions{}, nothing)
			if err != nil {
				t.Fatal(err)
			}
			same(t, raw.Name(), fileName(t, p, name))
			if m := got.Machine; c.opt.Format == format.OVA && (m.Name != "root" || m.CPUs != 1 || m.Memory != 512<<20 || m.Firmware != "efi") {
				t.Errorf("machine %+v", m)
			}
		})
	}
}

// Raw goes into a pipe too.
func TestExportPipe(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	raw := rawDisk(t, 5<<20, 9)
	write(t, p, "root", raw)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	done := make(chan error, 1)
	go func() {
		err := p.Export(t.Context(), []string{"root"}, w, ExportOptions{Format: format.Raw}, nothing)
		done <- errors.Join(err, w.Close())
	}()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, r); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	same(t, raw.Name(), out.Name())
}

func TestExportRefuses(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	for _, name := range []string{"root", "data"} {
		if _, err := p.Create(name, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	dst := func(text string) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		return f
	}
	_, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, c := range []struct {
		name  string
		names []string
		dst   *os.File
		opt   ExportOptions
		says  string
	}{
		{"two as one", []string{"root", "data"}, dst(""), ExportOptions{Format: format.QCOW2}, "only an OVA"},
		{"none", nil, dst(""), ExportOptions{Format: format.OVA}, "only an OVA"},
		{"over a file", []string{"root"}, dst("precious"), ExportOptions{Format: format.QCOW2}, "not empty"},
		{"qcow2 into a pipe", []string{"root"}, w, ExportOptions{Format: format.QCOW2}, "no file"},
		{"as what is not known", []string{"root"}, dst(""), ExportOptions{Format: "vhd"}, "vhd"},
		{"a compression that is not known", []string{"root"}, dst(""), ExportOptions{Format: format.QCOW2, Compression: "lzma"}, "lzma"},
		{"a machine with a path for a name", []string{"root"}, dst(""), ExportOptions{Format: format.OVA, Machine: format.Machine{Name: "../x"}}, "not a name"},
	} {
		err := p.Export(t.Context(), c.names, c.dst, c.opt, nothing)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}

// An export that is cancelled leaves an empty file.
func TestExportCancelled(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	write(t, p, "root", rawDisk(t, 20<<20, 10))
	for _, kind := range []format.Format{format.Raw, format.QCOW2, format.OVA} {
		for range 5 {
			f, err := os.Create(filepath.Join(t.TempDir(), "out"))
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			at, steps := rand.IntN(4), 0
			err = p.Export(ctx, []string{"root"}, f, ExportOptions{Format: kind}, func(int64, int64) {
				if steps++; steps > at {
					cancel()
				}
			})
			cancel()
			st, e := f.Stat()
			if e != nil {
				t.Fatal(e)
			}
			if err == nil != (st.Size() > 0) || err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %d bytes after %v", kind, st.Size(), err)
			}
			f.Close()
		}
	}
}
