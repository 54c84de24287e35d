package dmabuf

import (
	"bytes"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memfd returns a file of n pages, each of which begins with its number, sealed as Range wants.
func memfd(t *testing.T, pages int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { f.Close() })
	for i := range pages {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(i)}, pageSize), int64(i)*pageSize); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestList has the kernel's layout: a C program that includes linux/udmabuf.h says that the items are of 24 bytes and begin at
// byte 8, and that UDMABUF_CREATE_LIST is 0x40087543.
func TestList(t *testing.T) {
	if unsafe.Sizeof(item{}) != 24 || unsafe.Sizeof(listHead{}) != 8 {
		t.Errorf("an item has %d bytes, the head %d", unsafe.Sizeof(item{}), unsafe.Sizeof(listHead{}))
	}
	l := newList(2)
	if at := uintptr(unsafe.Pointer(&l[1])) - uintptr(unsafe.Pointer(l.head())); at != 8 {
		t.Errorf("the first item is at byte %d", at)
	}
}

// TestMake makes a buffer of pages in another order, where the kernel can.
func TestMake(t *testing.T) {
	m, err := Open()
	if err != nil {
		t.Skip("needs /dev/udmabuf")
	}
	defer m.Close()
	f := memfd(t, 8)
	b, err := m.Make([]Range{{f, 5 * pageSize, 2 * pageSize}, {f, pageSize, pageSize}})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if n, err := Size(b.File); err != nil || n != 3*pageSize || len(b.Bytes) != 3*pageSize {
		t.Fatalf("%d bytes, %v; %d are mapped", n, err, len(b.Bytes))
	}
	if err := BeginRead(b.File); err != nil {
		t.Error(err)
	}
	for i, want := range []byte{5, 6, 1} {
		if got := b.Bytes[i*pageSize]; got != want {
			t.Errorf("page %d is page %d of the file, want %d", i, got, want)
		}
	}
	if err := EndRead(b.File); err != nil {
		t.Error(err)
	}
	if _, err := f.WriteAt([]byte{77}, pageSize); err != nil || b.Bytes[2*pageSize] != 77 {
		t.Errorf("what is written to the file is not there: %d, %v", b.Bytes[2*pageSize], err)
	}
}

func TestMakeErrors(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := &Maker{null}
	defer m.Close()
	f := memfd(t, 2)
	for name, r := range map[string][]Range{
		"none":          nil,
		"too many":      make([]Range, MaxRanges+1),
		"odd offset":    {{f, 1, pageSize}},
		"odd size":      {{f, 0, 100}},
		"nothing":       {{f, 0, 0}},
		"no udmabuf":    {{f, 0, pageSize}},
		"negative size": {{f, 0, -pageSize}},
	} {
		if b, err := m.Make(r); err == nil {
			t.Errorf("%s: %+v", name, b)
		}
	}
}

// TestNoDMABuf has files that are none.
func TestNoDMABuf(t *testing.T) {
	f := memfd(t, 1)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, k := range []*os.File{f, r} {
		if n, err := Size(k); err == nil {
			t.Errorf("%s is a dmabuf of %d bytes", k.Name(), n)
		}
	}
	if BeginRead(f) == nil || EndRead(f) == nil {
		t.Error("a memfd can be synchronised")
	}
}
