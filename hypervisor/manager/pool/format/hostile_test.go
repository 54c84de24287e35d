package format

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var errLimit = errors.New("over the target's limit")

// bounded fails the test at what a target does not have to expect.
type bounded struct {
	t     testing.TB
	limit int64
	size  int64
}

func (b *bounded) Resize(n int64) error {
	if n < 0 {
		b.t.Errorf("a size of %d", n)
	}
	if n > b.limit {
		return errLimit
	}
	b.size = n
	return nil
}

func (b *bounded) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > b.size {
		b.t.Errorf("%d bytes at %d of a disk of %d", len(p), off, b.size)
	}
	return len(p), nil
}

// image returns what qemu-img makes of a small disk.
func image(t testing.TB, args ...string) []byte {
	t.Helper()
	raw := create(t, "disk.raw")
	write(t, raw, bytes.Repeat([]byte("data"), 100<<10), 0)
	if err := raw.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image")
	qemuImg(t, append(append([]string{"convert", "-f", "raw"}, args...), raw.Name(), path)...)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHostileQCOW2(t *testing.T) {
	be := binary.BigEndian
	l1 := func(b []byte) []byte { return b[be.Uint64(b[40:]):] }
	l2 := func(b []byte) []byte { return b[be.Uint64(l1(b))&qcow2OffsetMask:] }
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   error
		says   string
	}{
		{"a backing file", func(b []byte) []byte { be.PutUint64(b[8:], 600); return b }, ErrUnsupported, "qemu-img convert"},
		{"encrypted", func(b []byte) []byte { be.PutUint32(b[32:], 1); return b }, ErrUnsupported, "encrypted"},
		{"an external data file", func(b []byte) []byte { be.PutUint64(b[72:], qcow2DataFile); return b }, ErrUnsupported, "another file"},
		{"marked as corrupt", func(b []byte) []byte { be.PutUint64(b[72:], qcow2Corrupt); return b }, ErrDamaged, "qemu-img check"},
		{"subclusters", func(b []byte) []byte { be.PutUint64(b[72:], qcow2ExtendedL2); return b }, ErrUnsupported, "subclusters"},
		{"an unknown feature", func(b []byte) []byte { be.PutUint64(b[72:], 1<<40); return b }, ErrUnsupported, "features"},
		{"an unknown compression", func(b []byte) []byte { be.PutUint64(b[72:], qcow2Compression); b[104] = 9; return b }, ErrUnsupported, "compression 9"},
		{"version 1", func(b []byte) []byte { be.PutUint32(b[4:], 1); return b }, ErrUnsupported, "version 1"},
		{"version 9", func(b []byte) []byte { be.PutUint32(b[4:], 9); return b }, ErrUnsupported, "version 9"},
		{"tiny clusters", func(b []byte) []byte { be.PutUint32(b[20:], 8); return b }, ErrDamaged, "2^8"},
		{"huge clusters", func(b []byte) []byte { be.PutUint32(b[20:], 63); return b }, ErrDamaged, "2^63"},
		{"an absurd size", func(b []byte) []byte { be.PutUint64(b[24:], 1<<63); return b }, ErrDamaged, "disk of"},
		{"a size beyond the tables", func(b []byte) []byte { be.PutUint64(b[24:], 1<<40); return b }, ErrDamaged, "tables"},
		{"tables beyond the file", func(b []byte) []byte { be.PutUint64(b[24:], 1<<50); be.PutUint32(b[36:], 1<<21); return b }, ErrDamaged, "incomplete"},
		{"tables at the end of 64 bits", func(b []byte) []byte { be.PutUint64(b[40:], 1<<64-512); return b }, ErrDamaged, "incomplete"},
		{"a size beyond the limit", func(b []byte) []byte { be.PutUint64(b[24:], 100<<20); return b }, errLimit, ""},
		{"a table that is not aligned", func(b []byte) []byte { be.PutUint64(l1(b), 1<<16+512); return b }, ErrDamaged, "list of tables"},
		{"a table beyond the file", func(b []byte) []byte { be.PutUint64(l1(b), 1<<40); return b }, ErrDamaged, "incomplete"},
		{"a table with reserved bits", func(b []byte) []byte { l1(b)[0] |= 0x40; return b }, ErrDamaged, "list of tables"},
		{"a cluster beyond the file", func(b []byte) []byte { be.PutUint64(l2(b), 1<<40); return b }, ErrDamaged, "incomplete"},
		{"a cluster that is not aligned", func(b []byte) []byte { be.PutUint64(l2(b), 1<<16+512); return b }, ErrDamaged, "table's entry"},
		{"a compressed cluster that is none", func(b []byte) []byte { be.PutUint64(l2(b), qcow2IsCompressed|512); return b }, ErrDamaged, "compressed cluster"},
		{"a compressed cluster beyond the file", func(b []byte) []byte { be.PutUint64(l2(b), qcow2IsCompressed|1<<40); return b }, ErrDamaged, "incomplete"},
		{"cut off", func(b []byte) []byte { return b[:len(b)/2] }, ErrDamaged, "incomplete"},
		{"cut off in its header", func(b []byte) []byte { return b[:50] }, ErrDamaged, "too early"},
		{"tables that are themselves", func(b []byte) []byte { be.PutUint64(l1(b), 0); be.PutUint64(l1(b), be.Uint64(b[40:])); return b }, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.change(image(t, "-O", "qcow2"))
			err := copyImage(t.Context(), bytes.NewReader(b), int64(len(b)), &bounded{t: t, limit: 64 << 20})
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %v with %q", err, c.want, c.says)
			}
		})
	}
}

func TestHostileVMDK(t *testing.T) {
	le := binary.LittleEndian
	directory := func(b []byte) []byte { return b[le.Uint64(b[56:])*sector:] }
	table := func(b []byte) []byte { return b[uint64(le.Uint32(directory(b)))*sector:] }
	replace := func(from, to string) func(b []byte) []byte {
		return func(b []byte) []byte {
			if !bytes.Contains(b[:64<<10], []byte(from)) || len(from) != len(to) {
				panic(from)
			}
			return bytes.Replace(b, []byte(from), []byte(to), 1)
		}
	}
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   error
		says   string
	}{
		{"a parent", replace("parentCID=ffffffff", "parentCID=12345678"), ErrUnsupported, "snapshot"},
		{"another type", replace(`"monolithicSparse"`, `"twoGbMaxExtentSpa`), ErrUnsupported, "twoGb"},
		{"version 7", func(b []byte) []byte { le.PutUint32(b[4:], 7); return b }, ErrUnsupported, "version 7"},
		{"sent as text", func(b []byte) []byte { b[75] = '\n'; return b }, ErrDamaged, "binary"},
		{"no grains", func(b []byte) []byte { le.PutUint64(b[20:], 0); return b }, ErrDamaged, "grains of 0"},
		{"huge grains", func(b []byte) []byte { le.PutUint64(b[20:], 1<<40); return b }, ErrDamaged, "grains"},
		{"an absurd size", func(b []byte) []byte { le.PutUint64(b[12:], 1<<60); return b }, ErrDamaged, "sectors"},
		{"a size beyond the tables", func(b []byte) []byte { le.PutUint64(b[12:], 1<<40); return b }, ErrDamaged, "tables"},
		{"a size beyond the limit", func(b []byte) []byte { le.PutUint64(b[12:], 100<<11); return b }, errLimit, ""},
		{"a large description", func(b []byte) []byte { le.PutUint64(b[36:], 1<<40); return b }, ErrDamaged, "description"},
		{"a description beyond the file", func(b []byte) []byte { le.PutUint64(b[28:], 1<<63); return b }, ErrDamaged, "incomplete"},
		{"tables of another size", func(b []byte) []byte { le.PutUint32(b[44:], 1<<30); return b }, ErrDamaged, "tables"},
		{"a directory beyond the file", func(b []byte) []byte { le.PutUint64(b[56:], 1<<55); return b }, ErrDamaged, "incomplete"},
		{"a table beyond the file", func(b []byte) []byte { le.PutUint32(directory(b), 1<<31); return b }, ErrDamaged, "incomplete"},
		{"a grain beyond the file", func(b []byte) []byte { le.PutUint32(table(b), 1<<31); return b }, ErrDamaged, "incomplete"},
		{"compressed without markers", func(b []byte) []byte { le.PutUint32(b[8:], vmdkCompressed|1); return b }, ErrUnsupported, "flags"},
		{"cut off", func(b []byte) []byte { return b[:len(b)/4] }, ErrDamaged, "incomplete"},
		{"cut off in its header", func(b []byte) []byte { return b[:50] }, ErrDamaged, "too early"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.change(image(t, "-O", "vmdk"))
			err := copyImage(t.Context(), bytes.NewReader(b), int64(len(b)), &bounded{t: t, limit: 64 << 20})
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %v with %q", err, c.want, c.says)
			}
		})
	}
}

// vmdkStream returns a small VMDK as it is specified: QEMU writes no such.
func vmdkStream(t testing.TB) []byte {
	t.Helper()
	raw := create(t, "disk.raw")
	write(t, raw, bytes.Repeat([]byte("data"), 100<<10), 0)
	if err := raw.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteVMDK(context.Background(), &b, fileSource{raw}, 1<<20, "x.vmdk", nothing); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What QEMU compresses has its tables at the begin.
func TestHostileVMDKOfQEMU(t *testing.T) {
	le := binary.LittleEndian
	table := func(b []byte) []byte { return b[uint64(le.Uint32(b[le.Uint64(b[56:])*sector:]))*sector:] }
	first := func(b []byte) []byte { return b[uint64(le.Uint32(table(b)))*sector:] } // marker
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   error
		says   string
	}{
		{"as it is", func(b []byte) []byte { return b }, nil, ""},
		{"another grain", func(b []byte) []byte { le.PutUint64(first(b), 128); return b }, ErrDamaged, "the one for"},
		{"a huge grain", func(b []byte) []byte { le.PutUint32(first(b)[8:], 1<<31); return b }, ErrDamaged, "grain of"},
		{"an empty grain", func(b []byte) []byte { le.PutUint32(first(b)[8:], 0); return b }, ErrDamaged, "grain of 0"},
		{"a grain beyond the file", func(b []byte) []byte { le.PutUint32(table(b), 1<<31); return b }, ErrDamaged, "incomplete"},
		{"a grain that is not compressed", func(b []byte) []byte { clear(first(b)[12:80]); return b }, ErrDamaged, "the grain at 0"},
		{"an unknown compression", func(b []byte) []byte { b[77] = 9; return b }, ErrUnsupported, "compression 9"},
		{"cut off", func(b []byte) []byte { return b[:len(b)-70000] }, ErrDamaged, "incomplete"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.change(image(t, "-O", "vmdk", "-o", "subformat=streamOptimized"))
			err := copyImage(t.Context(), bytes.NewReader(b), int64(len(b)), &bounded{t: t, limit: 64 << 20})
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %v with %q", err, c.want, c.says)
			}
		})
	}
}

func TestHostileVMDKStream(t *testing.T) {
	le := binary.LittleEndian
	first := func(b []byte) []byte { return b[le.Uint64(b[64:])*sector:] } // marker
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   error
		says   string
	}{
		{"as it is", func(b []byte) []byte { return b }, nil, ""},
		{"a grain behind the end", func(b []byte) []byte { le.PutUint64(first(b), 1<<40); return b }, ErrDamaged, "grain"},
		{"a grain between two places", func(b []byte) []byte { le.PutUint64(first(b), 3); return b }, ErrDamaged, "grain"},
		{"a huge grain", func(b []byte) []byte { le.PutUint32(first(b)[8:], 1<<31); return b }, ErrDamaged, "grain of"},
		{"a grain that is not compressed", func(b []byte) []byte { clear(first(b)[12:100]); return b }, ErrDamaged, "the grain at 0"},
		{"a grain that is too short", func(b []byte) []byte { le.PutUint32(first(b)[8:], 20); return b }, ErrDamaged, "the grain at 0"},
		{"an unknown marker", func(b []byte) []byte { clear(first(b)[:512]); first(b)[12] = 9; return b }, ErrDamaged, "marker"},
		{"much metadata", func(b []byte) []byte {
			clear(first(b)[:512])
			first(b)[12] = vmdkMarkerTable
			le.PutUint64(first(b), 1<<60)
			return b
		}, ErrDamaged, "metadata"},
		{"a description behind the header", func(b []byte) []byte { le.PutUint64(b[28:], 1<<50); return b }, ErrDamaged, "description"},
		{"an absurd header", func(b []byte) []byte { le.PutUint64(b[64:], 1<<63); return b }, ErrDamaged, "metadata"},
		{"cut off", func(b []byte) []byte { return b[:len(b)-3*512] }, ErrDamaged, "too early"},
		{"cut off in a grain", func(b []byte) []byte { return b[:le.Uint64(b[64:])*sector+600] }, ErrDamaged, "too early"},
		{"a size beyond the limit", func(b []byte) []byte { le.PutUint64(b[12:], 100<<11); return b }, errLimit, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.change(vmdkStream(t))
			_, err := CopyVMDKStream(t.Context(), bytes.NewReader(b), &bounded{t: t, limit: 64 << 20})
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; want %v with %q", err, c.want, c.says)
			}
		})
	}
}

// file is one of a tar archive.
type file struct {
	name string
	body string
}

func archive(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Size: int64(len(f.body)), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var testMachine = Machine{
	Name: "web & mail", OS: "Debian", CPUs: 2, Memory: 1536 << 20, Firmware: "efi",
	Disks: []OVFDisk{
		{ID: "vmdisk1", File: "a.vmdk", FileSize: 4, Capacity: 1 << 30}, {ID: "vmdisk2", File: "b.vmdk", FileSize: 5, Capacity: 2 << 30},
	},
	NICs: []OVFNIC{{Network: "NAT", Model: "E1000", MAC: "52:54:00:12:34:56"}, {Network: "lab", Model: "E1000"}},
}

// The description that we write says what we read in it.
func TestOVF(t *testing.T) {
	b, err := testMachine.OVF()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseOVF(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&testMachine, got); diff != "" {
		t.Error(diff)
	}
}

func TestCopyOVA(t *testing.T) {
	text, err := testMachine.OVF()
	if err != nil {
		t.Fatal(err)
	}
	ovf := file{"m.ovf", string(text)}
	a, b := file{"a.vmdk", "AAAA"}, file{"b.vmdk", "BBBBB"}
	sum := func(kind string, fs ...file) file {
		var s strings.Builder
		for _, f := range fs {
			h := newHashed(strings.NewReader(f.body))
			if _, err := io.Copy(io.Discard, h); err != nil {
				t.Fatal(err)
			}
			s.WriteString(kind + "(" + f.name + ")= " + h.sums()[kind] + "\n")
		}
		return file{"m.mf", s.String()}
	}
	other := func(f file) file { f.body = strings.ReplaceAll(f.body, "B", "C"); return f }
	change := func(from, to string) file {
		if !strings.Contains(ovf.body, from) {
			t.Fatal(from)
		}
		return file{ovf.name, strings.ReplaceAll(ovf.body, from, to)}
	}
	for _, c := range []struct {
		name  string
		files []file
		want  error
		says  string
	}{
		{"no manifest", []file{ovf, a, b}, nil, ""},
		{"manifest at the begin", []file{ovf, sum("SHA256", ovf, a, b), a, b}, nil, ""},
		{"manifest at the end", []file{ovf, b, a, sum("SHA1", a, b, ovf)}, nil, ""},
		{"SHA-512 and a certificate", []file{ovf, a, b, sum("SHA512", a, b, ovf), {"m.cert", "x"}}, nil, ""},
		{"another disk than the manifest says", []file{ovf, a, other(b), sum("SHA256", a, b, ovf)}, ErrChecksum, "b.vmdk is not what"},
		{"a manifest that lacks one", []file{ovf, a, b, sum("SHA256", a, ovf)}, ErrDamaged, "lacks b.vmdk"},
		{"a manifest that names another", []file{ovf, a, b, sum("SHA256", a, b, ovf, file{"c", ""})}, ErrDamaged, "lacks c"},
		{"a manifest of something else", []file{ovf, a, b, {"m.mf", "hello\n"}}, ErrDamaged, "hello"},
		{"a long manifest", []file{ovf, a, b, {"m.mf", strings.Repeat("\n", manifestMax+1)}}, ErrDamaged, "more than"},
		{"an unknown hash", []file{ovf, a, b, {"m.mf", "MD4(a.vmdk)= 00\n"}}, ErrUnsupported, "MD4"},
		{"a disk is missing", []file{ovf, a}, ErrDamaged, "lacks the disk b.vmdk"},
		{"a disk twice", []file{ovf, a, a, b}, ErrDamaged, "twice"},
		{"no description", []file{a, b}, ErrUnsupported, "no OVA"},
		{"nothing", nil, ErrDamaged, "empty"},
		{"a path", []file{ovf, {"../a.vmdk", "x"}}, ErrDamaged, "plain file"},
		{"a disk elsewhere", []file{change(`"a.vmdk"`, `"../../etc/shadow"`), a, b}, ErrUnsupported, "not in the archive"},
		{"a disk on a server", []file{change(`"a.vmdk"`, `"http://h/a.vmdk"`), a, b}, ErrUnsupported, "not in the archive"},
		{"a disk without a file", []file{change(`fileRef="file1"`, `fileRef="file9"`), a, b}, ErrDamaged, "file9"},
		{"a disk that is not described", []file{change("/disk/vmdisk1", "/disk/vmdisk9"), a, b}, ErrDamaged, "vmdisk9"},
		{"an absurd capacity", []file{change(`capacity="1073741824"`, `capacity="99999999999999999999"`), a, b}, ErrDamaged, "capacity"},
		{"many CPUs", []file{change(">2<", ">2000000<"), a, b}, ErrDamaged, "CPUs"},
		{"much memory", []file{change("byte * 2^20", "byte * 2^63"), a, b}, ErrDamaged, "memory"},
		{"strange units", []file{change("byte * 2^20", "spoons"), a, b}, ErrUnsupported, "spoons"},
		{"no XML", []file{{"m.ovf", "hello"}}, ErrDamaged, "m.ovf"},
		{"a long description", []file{{"m.ovf", strings.Repeat(" ", ovfMax+1)}}, ErrDamaged, "more than"},
		{"several machines", []file{change("VirtualSystem>", "VirtualSystemCollection>")}, ErrDamaged, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := map[string]string{}
			m, err := CopyOVA(t.Context(), bytes.NewReader(archive(t, c.files...)), func(_ *Machine, d OVFDisk, r io.Reader) error {
				b, err := io.ReadAll(r)
				got[d.File] = string(b)
				return err
			})
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v; want %v with %q", err, c.want, c.says)
			}
			if err != nil {
				return
			}
			if diff := cmp.Diff(map[string]string{"a.vmdk": "AAAA", "b.vmdk": "BBBBB"}, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(&testMachine, m); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// ended is a context that has ended, as by a cancel.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestCancelled(t *testing.T) {
	for _, args := range [][]string{{"-O", "qcow2"}, {"-O", "vmdk"}} {
		b := image(t, args...)
		if err := copyImage(ended(), bytes.NewReader(b), int64(len(b)), &bounded{t: t, limit: 64 << 20}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := CopyRaw(ended(), strings.NewReader("x"), &bounded{t: t}); !errors.Is(err, context.Canceled) {
		t.Errorf("raw: %v", err)
	}
}

// seeds are small images for the fuzzer: with clusters as small as can be, since it changes every byte.
func seeds(f *testing.F, args ...string) {
	raw := create(f, "disk.raw")
	write(f, raw, []byte("data"), 0)
	if err := raw.Truncate(16 << 10); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(f.TempDir(), "image")
	qemuImg(f, append(append([]string{"convert", "-f", "raw"}, args...), raw.Name(), path)...)
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
}

const fuzzLimit = 4 << 20 // bytes of a disk

func FuzzQCOW2(f *testing.F) {
	seeds(f, "-O", "qcow2", "-o", "cluster_size=512")
	seeds(f, "-c", "-O", "qcow2", "-o", "cluster_size=512")
	seeds(f, "-c", "-O", "qcow2", "-o", "cluster_size=512,compression_type=zstd")
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := OpenQCOW2(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		_ = q.CopyTo(t.Context(), &bounded{t: t, limit: fuzzLimit}, nothing)
	})
}

func FuzzVMDK(f *testing.F) {
	seeds(f, "-O", "vmdk")
	seeds(f, "-O", "vmdk", "-o", "subformat=streamOptimized")
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := OpenVMDK(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		_ = v.CopyTo(t.Context(), &bounded{t: t, limit: fuzzLimit}, nothing)
	})
}

func FuzzVMDKStream(f *testing.F) {
	f.Add(vmdkStream(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = CopyVMDKStream(t.Context(), bytes.NewReader(b), &bounded{t: t, limit: fuzzLimit})
	})
}

func FuzzOVA(f *testing.F) {
	text, err := testMachine.OVF()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(archive(f, file{"m.ovf", string(text)}, file{"a.vmdk", "A"}, file{"b.vmdk", "B"}, file{"m.mf", "SHA1(a.vmdk)= 00\n"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = CopyOVA(t.Context(), bytes.NewReader(b), func(_ *Machine, _ OVFDisk, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
	})
}

func FuzzOVF(f *testing.F) {
	text, err := testMachine.OVF()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseOVF(b)
		if err != nil {
			return
		}
		if len(m.Disks) > ovfDisksMax || len(m.NICs) > ovfNICsMax || len(m.Name) > ovfTextMax || m.Memory < 0 || m.CPUs < 0 {
			t.Errorf("%+v", m)
		}
		for _, d := range m.Disks {
			if strings.ContainsAny(d.File, "/\x00") || d.File == ".." || d.Capacity < 0 {
				t.Errorf("%+v", d)
			}
		}
	})
}

func FuzzDetect(f *testing.F) {
	f.Add([]byte("QFI\xfb"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if kind, err := Detect(b); (kind == "") != (err != nil) {
			t.Errorf("%q, %v", kind, err)
		}
	})
}
