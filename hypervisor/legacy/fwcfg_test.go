package legacy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/mem"
)

func testFWCfg(m *mem.Memory, onWrite func([]byte)) *FWCfg {
	f := NewFWCfg(m)
	if f.AddFile("etc/small", []byte("hello")) != nil ||
		f.AddFile("bootorder", bytes.Repeat([]byte("0123456789abcdef"), 64)) != nil ||
		f.AddWritableFile("etc/vmgenid_addr", 8, onWrite) != nil ||
		f.AddKey(FWCfgCPUs, []byte{2, 0}) != nil {
		panic("the items are distinct")
	}
	return f
}

func fwRead(f *FWCfg, key uint16, n int) []byte {
	out(f, FWCfgBase, fwSelector, 2, uint64(key))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(in(f, FWCfgBase, fwData, 1))
	}
	return b
}

func TestFWCfgPorts(t *testing.T) {
	f := testFWCfg(mem.NewHeap(64<<10), nil)
	for _, tc := range []struct {
		key  uint16
		want string
	}{
		{FWCfgSignature, "QEMU\x00"}, // and zeros after the end
		{FWCfgID, "\x03\x00\x00\x00"},
		{FWCfgCPUs, "\x02\x00\x00"},
		{FWCfgFirstFile, "hello"},
		{0x1234, "\x00\x00"},
	} {
		if got := string(fwRead(f, tc.key, len(tc.want))); got != tc.want {
			t.Errorf("key %#x: %q, want %q", tc.key, got, tc.want)
		}
	}
	if got := in(f, FWCfgBase, fwDMA, 8); got != binary.LittleEndian.Uint64([]byte("QEMU CFG")) {
		t.Errorf("DMA register reads %#x", got)
	}
}

func TestFWCfgDirectory(t *testing.T) {
	f := testFWCfg(mem.NewHeap(64<<10), nil)
	dir := fwRead(f, FWCfgFileDir, 4+3*fwEntrySize)
	var got []string
	for i := range binary.BigEndian.Uint32(dir) {
		e := dir[4+i*fwEntrySize:][:fwEntrySize]
		got = append(got, fmt.Sprintf("%d %#x %s", binary.BigEndian.Uint32(e), binary.BigEndian.Uint16(e[4:]), bytes.TrimRight(e[8:], "\x00")))
	}
	if diff := cmp.Diff([]string{"1024 0x21 bootorder", "5 0x20 etc/small", "8 0x22 etc/vmgenid_addr"}, got); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
}

func TestFWCfgAddErrors(t *testing.T) {
	f := testFWCfg(mem.NewHeap(64<<10), nil)
	for _, tc := range []struct {
		err  error
		want string
	}{
		{f.AddFile("", nil), "1 to 55 bytes"},
		{f.AddFile(strings.Repeat("x", 56), nil), "1 to 55 bytes"},
		{f.AddFile("a\x00b", nil), "1 to 55 bytes"},
		{f.AddFile("bootorder", nil), "exists"},
		{f.AddKey(FWCfgCPUs, nil), "exists"},
		{f.AddKey(FWCfgFirstFile+7, nil), "is a file's"},
		{f.AddWritableFile("big", fwMaxWritable+1, nil), "at most"},
		{f.AddWritableFile("negative", -1, nil), "at most"},
	} {
		if tc.err == nil || !strings.Contains(tc.err.Error(), tc.want) {
			t.Errorf("error %v, want one with %q", tc.err, tc.want)
		}
	}
	if err := f.AddFile(strings.Repeat("x", 55), nil); err != nil {
		t.Error(err)
	}
}

// fwDo carries out a DMA request that lies at 0x100, and returns its control word afterwards.
func fwDo(f *FWCfg, m *mem.Memory, control, length uint32, addr uint64) uint32 {
	req := binary.BigEndian.AppendUint32(nil, control)
	req = binary.BigEndian.AppendUint32(req, length)
	req = binary.BigEndian.AppendUint64(req, addr)
	if err := m.WriteAt(req, 0x100); err != nil {
		panic(err)
	}
	out(f, FWCfgBase, fwDMA, 4, 0)
	out(f, FWCfgBase, fwDMA+4, 4, 0x10000) // 0x100, big-endian
	if err := m.ReadAt(req, 0x100); err != nil {
		panic(err)
	}
	return binary.BigEndian.Uint32(req)
}

func TestFWCfgDMA(t *testing.T) {
	const small, vmgenid = FWCfgFirstFile << 16, (FWCfgFirstFile + 2) << 16
	const size = 2 * fwMaxPad
	m := mem.NewHeap(size)
	var told []byte
	f := testFWCfg(m, func(b []byte) { told = b })
	at := func(gpa mem.GPA, n int) string {
		b := make([]byte, n)
		if err := m.ReadAt(b, gpa); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	do := func(control, length uint32, addr uint64, want uint32) {
		t.Helper()
		if got := fwDo(f, m, control, length, addr); got != want {
			t.Errorf("request %#x, %d bytes at %#x: control %#x, want %#x", control, length, addr, got, want)
		}
	}
	if err := m.WriteAt([]byte("XXXXXXXXXXXX"), 0x1ffa); err != nil {
		t.Fatal(err)
	}
	do(small|fwDMASelect|fwDMARead, 10, 0x1ffa, 0)
	if got := at(0x1ffa, 12); got != "hello\x00\x00\x00\x00\x00XX" {
		t.Errorf("read, with five bytes of padding across a page: %q", got)
	}
	do(small|fwDMASelect|fwDMASkip, 2, 0, 0)
	do(fwDMARead, 2, 0x3000, 0)
	do(fwDMARead, 1, 0x3002, 0)
	if got := at(0x3000, 4); got != "llo\x00" {
		t.Errorf("read after skip: %q", got)
	}
	do(small|fwDMASelect|fwDMASkip, 1<<32-1, 0, 0)
	do(small|fwDMASelect, 0, 0, 0)
	if got := in(f, FWCfgBase, fwData, 1); got != 'h' {
		t.Errorf("data port after select by DMA: %#x", got)
	}
	do(vmgenid|fwDMASelect|fwDMAWrite, 5, 0x1ffa, 0)
	if string(told) != "hello\x00\x00\x00" {
		t.Errorf("owner was told %q", told)
	}
	do(vmgenid|fwDMASelect|fwDMAWrite, 9, 0x1ffa, fwDMAError)   // too long
	do(small|fwDMASelect|fwDMAWrite, 1, 0x1ffa, fwDMAError)     // read-only
	do(0x999<<16|fwDMASelect|fwDMAWrite, 1, 0x1ffa, fwDMAError) // no such item
	do(small|fwDMASelect|fwDMARead, 10, size-4, fwDMAError)     // beyond memory
	do(small|fwDMASelect|fwDMARead, 10, size-5, fwDMAError)     // padding beyond memory
	do(small|fwDMASelect|fwDMARead, 10, 1<<64-3, fwDMAError)    // wraps
	do(small|fwDMASelect|fwDMARead, 5+fwMaxPad, 0x3000, 0)
	do(small|fwDMASelect|fwDMARead, 5+fwMaxPad+1, 0x3000, fwDMAError) // too much padding
	do(vmgenid|fwDMASelect|fwDMAWrite, 8, 1<<64-3, fwDMAError)        // wraps

	out(f, FWCfgBase, fwDMA, 4, 0xffffffff) // a request outside memory is lost
	out(f, FWCfgBase, fwDMA+4, 4, 0xffffffff)
}

func TestFWCfgDMAMatchesPort(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := mem.NewHeap(64 << 10)
		f := NewFWCfg(m)
		want := rapid.SliceOfN(rapid.Byte(), 1, 9000).Draw(rt, "file")
		if err := f.AddFile("f", want); err != nil {
			rt.Fatal(err)
		}
		out(f, FWCfgBase, fwSelector, 2, FWCfgFirstFile)
		for left := len(want); left > 0; {
			n := rapid.IntRange(1, left).Draw(rt, "n")
			switch rapid.IntRange(0, 1).Draw(rt, "by DMA") {
			case 0:
				n = min(n, 100)
				for i := range n {
					if got := byte(in(f, FWCfgBase, fwData, 1)); got != want[i] {
						rt.Fatalf("port: byte %d is %#x, want %#x", i, got, want[i])
					}
				}
			case 1:
				got := make([]byte, n)
				if fwDo(f, m, fwDMARead, uint32(n), 0x2345) != 0 || m.ReadAt(got, 0x2345) != nil || !bytes.Equal(got, want[:n]) {
					rt.Fatalf("DMA of %d bytes differs", n)
				}
			}
			want, left = want[n:], left-n
		}
	})
}

func TestFWCfgDMAAllocs(t *testing.T) {
	m := mem.NewHeap(64 << 10)
	f := testFWCfg(m, nil)
	req := binary.BigEndian.AppendUint64([]byte{0, FWCfgFirstFile, 0, fwDMASelect | fwDMARead, 0, 0, 0, 10}, 0x2000)
	start := []byte{0, 0, 1, 0}
	if n := testing.AllocsPerRun(100, func() {
		if m.WriteAt(req, 0x100) != nil {
			t.Fatal("no memory")
		}
		f.Write(bus.Access{Off: fwDMA + 4}, start)
	}); n != 0 {
		t.Errorf("%v allocations for a request, want none", n)
	}
}

// FuzzFWCfgDMA has the fuzzer write the request and what surrounds it.
func FuzzFWCfgDMA(f *testing.F) {
	f.Add([]byte{0, 0x20, 0, 10, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0x20, 0})
	f.Fuzz(func(t *testing.T, req []byte) {
		m := mem.NewHeap(16 << 10)
		d := testFWCfg(m, func([]byte) {})
		for len(req) > 0 {
			n := min(len(req), 16)
			if err := m.WriteAt(req[:n], 0x100); err != nil {
				t.Fatal(err)
			}
			out(d, FWCfgBase, fwDMA+4, 4, 0x10000)
			req = req[n:]
		}
	})
}
