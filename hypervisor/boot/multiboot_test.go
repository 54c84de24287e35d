package boot

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMultiboot(t *testing.T) {
	const size = 4 << 20
	header := multibootHeader(mbPageAlign | mbMemoryInfo)
	for name, c := range map[string]struct {
		kernel []byte
		entry  uint64
		module uint64 // where the first goes
	}{
		"ELF32": {
			buildELF(false, 0x100010, testSegment{typ: elfPTLoad, vaddr: 0x100000, paddr: 0x100000, data: append(header, make([]byte, 64)...), memsz: 0x2001}),
			0x100010, 0x103000,
		},
		"ELF32, virtual entry": {
			buildELF(false, 0xc0100010, testSegment{typ: elfPTLoad, vaddr: 0xc0100000, paddr: 0x100000, data: append(header, make([]byte, 64)...)}),
			0x100010, 0x101000,
		},
		"addresses": {
			append(make([]byte, 16), multibootHeader(mbAddresses, 0x180010, 0x180000, 0, 0x180800, 0x180020)...),
			0x180020, 0x181000,
		},
		"addresses with an end": {
			append(make([]byte, 16), multibootHeader(mbAddresses, 0x180010, 0x180008, 0x180030, 0, 0x180020)...),
			0x180020, 0x181000,
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := dirtyHeap(size)
			e, err := Load(m, Config{
				Kernel: BytesImage("kernel", c.kernel), Cmdline: "kernel verbose", MemMap: smallMap(size),
				Modules: []Module{{BytesImage("a", []byte("first")), "a 1"}, {BytesImage("b", []byte("2nd")), "b 2"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			want := Entry{Protocol: Multiboot, Mode: Protected32, RIP: c.entry, RAX: mbLoaderMagic, RBX: infoAddr, GDT: gdtAddr}
			if d := cmp.Diff(want, e); d != "" {
				t.Errorf("entry (-want +got):\n%s", d)
			}
			field := func(off uint64) uint64 { return uint64(peek32(t, m, e.RBX+off)) }
			if got := field(0); got != 0x24d {
				t.Errorf("flags %#x", got)
			}
			if lower, upper := field(4), field(8); lower != 639 || upper != 3072 {
				t.Errorf("memory: %d KiB below, %d KiB above", lower, upper)
			}
			if got := peekString(t, m, field(16)); got != "kernel verbose" {
				t.Errorf("command line %q", got)
			}
			if got := peekString(t, m, field(64)); got != "Lodge" {
				t.Errorf("loader %q", got)
			}
			type module struct {
				Start, End    uint32
				Data, Cmdline string
			}
			var mods []module
			for i := range field(20) {
				at := field(24) + i*mbModuleSize
				start, end := peek32(t, m, at), peek32(t, m, at+4)
				mods = append(mods, module{start, end, string(peek(t, m, uint64(start), int(end-start))), peekString(t, m, uint64(peek32(t, m, at+8)))})
			}
			first := uint32(c.module)
			if d := cmp.Diff([]module{{first, first + 5, "first", "a 1"}, {first + 4096, first + 4099, "2nd", "b 2"}}, mods); d != "" {
				t.Errorf("modules (-want +got):\n%s", d)
			}
			var got []MemRange
			for at := field(48); at < field(48)+field(44); at += uint64(peek32(t, m, at)) + 4 {
				got = append(got, MemRange{peek64(t, m, at+4), peek64(t, m, at+12), MemType(peek32(t, m, at+20))})
			}
			if d := cmp.Diff(smallMap(size), got); d != "" {
				t.Errorf("memory map (-want +got):\n%s", d)
			}
		})
	}
}
