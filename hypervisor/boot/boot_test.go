package boot

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/lodgehv/lodge/hypervisor/mem"
)

func TestPVH(t *testing.T) {
	const size = 4 << 20
	m := dirtyHeap(size)
	initrd := bytes.Repeat([]byte("cpio"), 1500)
	e, err := Load(m, Config{
		Kernel:  BytesImage("vmlinux", pvhKernel()),
		Cmdline: "console=ttyS0",
		Modules: []Module{{Image: BytesImage("initrd", initrd), Cmdline: "first"}, {Image: BytesImage("second", []byte("2"))}},
		MemMap:  smallMap(size),
		RSDP:    0xe0000,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Entry{Protocol: PVH, Mode: Protected32, RIP: 0x100040, RBX: infoAddr, GDT: gdtAddr}
	if d := cmp.Diff(want, e); d != "" {
		t.Errorf("entry (-want +got):\n%s", d)
	}
	if got := peek(t, m, 0x100000, 8192); !bytes.Equal(got, bytes.Repeat([]byte("text"), 2048)) {
		t.Error("text segment differs")
	}
	if got, want := peek(t, m, 0x104000, 0x1801), append(append([]byte("data"), make([]byte, 0x1800-4)...), 0xaa); !bytes.Equal(got, want) {
		t.Error("data segment and its bss differ, or more than they was written")
	}
	if got := peek32(t, m, e.RBX); got != startInfoMagic {
		t.Errorf("magic %#x", got)
	}
	if got := peek32(t, m, e.RBX+12); got != 2 {
		t.Errorf("%d modules", got)
	}
	modlist := peek64(t, m, e.RBX+16)
	// 6000 bytes, page-aligned, right below the end of memory; the next one below it.
	if got := []uint64{peek64(t, m, modlist), peek64(t, m, modlist+8), peek64(t, m, modlist+32), peek64(t, m, modlist+40)}; !cmp.Equal(got, []uint64{size - 8192, 6000, size - 12288, 1}) {
		t.Errorf("modules %#x", got)
	}
	if got := peek(t, m, size-8192, len(initrd)); !bytes.Equal(got, initrd) {
		t.Error("initrd differs")
	}
	if got := peekString(t, m, peek64(t, m, modlist+16)); got != "first" {
		t.Errorf("module's command line %q", got)
	}
	if got := peekString(t, m, peek64(t, m, e.RBX+24)); got != "console=ttyS0" {
		t.Errorf("command line %q", got)
	}
	if got := peek64(t, m, e.RBX+32); got != 0xe0000 {
		t.Errorf("RSDP %#x", got)
	}
	var got []MemRange
	for i := range peek32(t, m, e.RBX+48) {
		at := peek64(t, m, e.RBX+40) + uint64(i)*memmapEntrySize
		got = append(got, MemRange{peek64(t, m, at), peek64(t, m, at+8), MemType(peek32(t, m, at+16))})
	}
	if d := cmp.Diff(smallMap(size), got); d != "" {
		t.Errorf("memory map (-want +got):\n%s", d)
	}
}

// In fresh memory nothing is written that is zero already; the result is the same.
func TestZeroed(t *testing.T) {
	const size = 4 << 20
	kernel := buildELF(true, 0,
		testSegment{typ: elfPTLoad, paddr: 0x100123, data: append(append(make([]byte, 150_000), "x"...), make([]byte, 9000)...), memsz: 200_000},
		pvhNotes(0x100123))
	path := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(path, kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file, err := FileImage(f)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for _, c := range []struct {
		img    Image
		zeroed bool
	}{{file, false}, {file, true}, {BytesImage("b", kernel), false}, {BytesImage("b", kernel), true}} {
		m := mem.NewHeap(size)
		if _, err := Load(m, Config{Kernel: c.img, MemMap: smallMap(size), Zeroed: c.zeroed}); err != nil {
			t.Fatal(err)
		}
		all = append(all, m.Regions()[0].Bytes)
	}
	if all[0][0x100123+150_000] != 'x' {
		t.Error("segment is not there")
	}
	for i, b := range all[1:] {
		if !bytes.Equal(all[0], b) {
			t.Errorf("case %d: memory differs", i+1)
		}
	}
}

// A segment may cross from one region of memory into the next.
func TestRegions(t *testing.T) {
	m, err := mem.New(mem.Region{Base: 0, Bytes: make([]byte, 0x102000)}, mem.Region{Base: 0x102000, Bytes: make([]byte, 0x100000)})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1024)
	kernel := buildELF(true, 0, testSegment{typ: elfPTLoad, paddr: 0x100800, data: data}, pvhNotes(0x100800))
	if _, err := Load(m, Config{Kernel: BytesImage("k", kernel), MemMap: smallMap(0x202000)}); err != nil {
		t.Fatal(err)
	}
	if got := peek(t, m, 0x100800, len(data)); !bytes.Equal(got, data) {
		t.Error("segment differs")
	}
}

func TestLoadErrors(t *testing.T) {
	const size = 4 << 20
	le := binary.LittleEndian
	patch := func(b []byte, off int, v uint64) []byte {
		b = append(bytes.Clone(b), make([]byte, max(0, off+8-len(b)))...)
		le.PutUint64(b[off:], v)
		return b
	}
	load := func(paddr uint64, n int, memsz uint64) testSegment {
		return testSegment{typ: elfPTLoad, paddr: paddr, data: make([]byte, n), memsz: memsz}
	}
	elf := func(segs ...testSegment) []byte { return buildELF(true, 0, append(segs, pvhNotes(0x100000))...) }
	bz := func(change func(*bzKernel)) []byte {
		k := defaultBz()
		change(&k)
		return k.build()
	}
	for name, c := range map[string]struct {
		kernel   []byte
		cmdline  string
		modules  []Module
		memmap   []MemRange
		protocol Protocol
		want     string
	}{
		"empty file":       {kernel: nil, want: "k: not a kernel"},
		"text file":        {kernel: []byte("#!/bin/sh\n"), want: "k: not a kernel"},
		"ELF cut":          {kernel: pvhKernel()[:40], want: "only 40 bytes"},
		"ELF64 cut":        {kernel: pvhKernel()[:60], want: "only 60 bytes"},
		"ELF segments cut": {kernel: pvhKernel()[:4096], want: "cut short"},
		"no phdrs":         {kernel: patch(pvhKernel(), 56, 0), want: "program headers"},
		"phoff absurd":     {kernel: patch(pvhKernel(), 32, 1<<63), want: "cut short"},
		"other machine":    {kernel: func() []byte { b := pvhKernel(); b[18] = 183; return b }(), want: "machine 183"},
		"big-endian":       {kernel: func() []byte { b := pvhKernel(); b[5] = 2; return b }(), want: "little-endian"},
		"class":            {kernel: func() []byte { b := pvhKernel(); b[4] = 7; return b }(), want: "class 7"},
		"no way in":        {kernel: buildELF(true, 0, load(0x100000, 16, 0)), want: "CONFIG_PVH"},
		"entry elsewhere":  {kernel: buildELF(true, 0, load(0x100000, 16, 0), pvhNotes(0x200000)), want: "entry point 0x200000"},
		"huge note":        {kernel: buildELF(true, 0, load(0x100000, 16, 0), testSegment{typ: elfPTNote, data: make([]byte, maxNoteSize+1)}), want: "ELF notes: 65537"},
		"odd note": {kernel: buildELF(true, 0, load(0x100000, 16, 0), testSegment{typ: elfPTNote, data: note("Xen", 18, []byte{1, 2})}),
			want: "want 4 or 8"},
		"segments overlap":    {kernel: elf(load(0x100000, 4096, 0), load(0x100fff, 10, 0)), want: "kernel k [0x100fff, 0x101009) overlaps kernel k [0x100000, 0x101000)"},
		"segment wraps":       {kernel: elf(load(0x100000, 16, 0), load(1<<64-16, 32, 0)), want: "wrap"},
		"segment in hole":     {kernel: elf(load(0x100000, 16, 0), load(0xa0000, 32, 0)), want: "[0xa0000, 0xa0020) is not RAM"},
		"segment too high":    {kernel: elf(load(0x100000, 16, 63<<20)), want: "give the guest at least 64 MiB"},
		"segment absurd":      {kernel: elf(load(0x100000, 16, 1<<62)), want: "is not RAM"},
		"kernel in our place": {kernel: elf(load(0x100000, 16, 0), load(infoAddr, 16, 0)), want: "PVH start info [0x6000, 0x7000) overlaps kernel k"},
		"cmdline too long":    {kernel: pvhKernel(), cmdline: strings.Repeat("x", cmdlineSize), want: "at most 65535"},
		"cmdline with zero":   {kernel: pvhKernel(), cmdline: "a\x00b", want: "zero byte at position 1"},
		"initrd empty":        {kernel: pvhKernel(), modules: []Module{{Image: BytesImage("i", nil)}}, want: "i: module 0: the file is empty"},
		"initrd too large": {kernel: pvhKernel(), modules: []Module{{Image: BytesImage("i", make([]byte, 5<<20))}},
			want: "module 0 i: 5 MiB find no room in guest memory, which ends at 0x400000: give the guest at least 7 MiB"},
		"initrd absurd":    {kernel: pvhKernel(), modules: []Module{{Image: Image{Name: "i", R: bytes.NewReader(nil), Size: 1 << 62}}}, want: "make it smaller"},
		"initrd cut":       {kernel: pvhKernel(), modules: []Module{{Image: Image{Name: "i", R: bytes.NewReader([]byte{1}), Size: 9}}}, want: "unexpected EOF"},
		"too many modules": {kernel: pvhKernel(), modules: make([]Module, maxModules+1), want: "17 modules"},
		"memory map empty": {kernel: pvhKernel(), memmap: []MemRange{}, want: "no RAM"},
		"memory map overlaps": {kernel: pvhKernel(), memmap: []MemRange{{Base: 0, Size: 10, Type: RAM}, {Base: 5, Size: 9, Type: Reserved}},
			want: "overlaps the one that ends at 0xa"},
		"memory map wraps": {kernel: pvhKernel(), memmap: []MemRange{{Base: 5, Size: 1<<64 - 1}}, want: "wraps"},
		"memory map long":  {kernel: pvhKernel(), memmap: make([]MemRange, 129), want: "at most 128"},
		"no memory there":  {kernel: pvhKernel(), memmap: []MemRange{{Base: 0x100000, Size: 1 << 30, Type: RAM}, {Base: 0, Size: 0x80000, Type: RAM}}, modules: []Module{{Image: BytesImage("i", []byte{1})}}, want: "out of range"},
		"ELF forced":       {kernel: pvhKernel(), protocol: Linux64, want: "protocol linux64: not supported by this image"},

		"bz old":           {kernel: bz(func(k *bzKernel) { k.version = 0x209 }), want: "boot protocol 2.09"},
		"bz zImage":        {kernel: func() []byte { b := defaultBz().build(); b[hdrLoadflags] = 0; return b }(), want: "zImage"},
		"bz header end":    {kernel: func() []byte { b := defaultBz().build(); b[hdrJump+1] = 1; return b }(), want: "setup header: its end"},
		"bz cut":           {kernel: defaultBz().build()[:1500], want: "cut short"},
		"bz payload":       {kernel: func() []byte { b := defaultBz().build(); b[hdrPayloadOffset+3] = 0xff; return b }(), want: "payload of"},
		"bz pref too high": {kernel: bz(func(k *bzKernel) { k.pref = 1 << 63 }), want: "do not lie below 4 GiB"},
		"bz pref wraps":    {kernel: bz(func(k *bzKernel) { k.pref = 1<<64 - 0x800 }), want: "do not lie below 4 GiB"},
		"bz too big":       {kernel: bz(func(k *bzKernel) { k.pref = 16 << 20 }), want: "give the guest at least 17 MiB"},
		"bz 32-bit forced": {kernel: bz(func(k *bzKernel) { k.xload = 0 }), protocol: Linux64, want: "protocol linux64: not supported"},
		"bz PVH forced":    {kernel: defaultBz().build(), protocol: PVH, want: "no payload"},
		"bz no multiboot":  {kernel: defaultBz().build(), protocol: Multiboot, want: "it is a bzImage"},
		"bz cmdline":       {kernel: defaultBz().build(), cmdline: strings.Repeat("x", 256), want: "256 bytes, at most 255"},
		"bz two initrds": {kernel: defaultBz().build(), modules: []Module{{Image: BytesImage("i", []byte{1})}, {Image: BytesImage("j", []byte{1})}},
			want: "j: 2 modules"},
		"bz initrd limit": {kernel: bz(func(k *bzKernel) { k.initrdMax = 0x10ffff }), modules: []Module{{Image: BytesImage("i", []byte{1})}},
			want: "no room below 0x110000, where the kernel needs it"},

		"mb video":        {kernel: multibootHeader(4), want: "requires features 0x4"},
		"mb no addresses": {kernel: multibootHeader(0), want: "neither an ELF image nor load addresses"},
		"mb cut":          {kernel: multibootHeader(mbAddresses, 0x100000), want: "end after the file"},
		"mb header below": {kernel: multibootHeader(mbAddresses, 0x100000, 0x100001, 0, 0, 0), want: "image loads at 0x100001"},
		"mb load before":  {kernel: multibootHeader(mbAddresses, 0x100000, 0xfff00, 0, 0, 0), want: "image loads at 0xfff00"},
		"mb load end":     {kernel: multibootHeader(mbAddresses, 0x100000, 0x100000, 0x200000, 0, 0x100000), want: "cut short"},
		"mb bss":          {kernel: multibootHeader(mbAddresses, 0x100000, 0x100000, 0x100020, 0x10001f, 0x100000), want: "cut short"},
		"mb entry":        {kernel: multibootHeader(mbAddresses, 0x100000, 0x100000, 0, 0, 0x100020), want: "entry point 0x100020"},
		"mb forced":       {kernel: multibootHeader(0), protocol: PVH, want: "it is a Multiboot image"},
		"mb ELF64":        {kernel: buildELF(true, 0x100000, testSegment{typ: elfPTLoad, paddr: 0x100000, data: multibootHeader(0)}), want: "64-bit ELF"},
		"mb ELF entry":    {kernel: buildELF(false, 0x200000, testSegment{typ: elfPTLoad, paddr: 0x100000, data: multibootHeader(0)}), want: "entry point 0x200000"},
	} {
		t.Run(name, func(t *testing.T) {
			memmap := c.memmap
			if memmap == nil {
				memmap = smallMap(size)
			}
			_, err := Load(mem.NewHeap(size), Config{
				Kernel: BytesImage("k", c.kernel), Cmdline: c.cmdline, Modules: c.modules, MemMap: memmap, Protocol: c.protocol,
			})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// 128 ranges and 16 modules fit every protocol's lists.
func TestListsFull(t *testing.T) {
	const size = 4 << 20
	memmap := smallMap(size)
	for i := len(memmap); i < maxMemRanges; i++ {
		memmap = append(memmap, MemRange{Base: uint64(i) << 32, Size: 4096, Type: Reserved})
	}
	for name, c := range map[string]struct {
		kernel  []byte
		modules int
	}{
		"pvh":       {pvhKernel(), maxModules},
		"linux":     {defaultBz().build(), 1},
		"multiboot": {buildELF(false, 0x100000, testSegment{typ: elfPTLoad, paddr: 0x100000, data: multibootHeader(0)}), maxModules},
	} {
		cfg := Config{Kernel: BytesImage("k", c.kernel), MemMap: memmap}
		for range c.modules {
			cfg.Modules = append(cfg.Modules, Module{Image: BytesImage("m", []byte{1})})
		}
		if _, err := Load(mem.NewHeap(size), cfg); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
