package boot

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// fuzzLoad loads what the fuzzer made into the smallest of guests by each protocol. An error is fine; what must not
// happen is a panic, a hang, or an entry point that no memory holds.
func fuzzLoad(t *testing.T, m *mem.Memory, b []byte) {
	size := m.Size()
	for _, p := range []Protocol{Auto, Linux64, Linux32, Multiboot} {
		e, err := Load(m, Config{
			Kernel: BytesImage("kernel", b), Cmdline: "quiet", Modules: []Module{{Image: BytesImage("initrd", []byte("cpio"))}},
			MemMap: smallMap(size), RSDP: 0xe0000, Protocol: p,
		})
		if err == nil && e.RIP >= size {
			t.Errorf("entry point %#x in a guest of %#x bytes", e.RIP, size)
		}
		if err != nil && e != (Entry{}) {
			t.Errorf("entry %+v beside error %v", e, err)
		}
	}
}

// seedAll adds each image whole and cut.
func seedAll(f *testing.F, images ...[]byte) {
	for _, b := range images {
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
}

func FuzzELF(f *testing.F) {
	m := mem.NewHeap(2 << 20)
	seedAll(f, pvhKernel(),
		buildELF(false, 0x100000, testSegment{typ: elfPTLoad, paddr: 0x100000, data: make([]byte, 64)}, pvhNotes(0x100000)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if isELF(b) {
			fuzzLoad(t, m, b)
		}
	})
}

func FuzzBzImage(f *testing.F) {
	m := mem.NewHeap(2 << 20)
	k32, packed := defaultBz(), defaultBz()
	k32.xload = 0
	packed.payload = gzipped(f, pvhKernel())
	seedAll(f, defaultBz().build(), k32.build(), packed.build())
	f.Fuzz(func(t *testing.T, b []byte) {
		if isBzImage(b) {
			fuzzLoad(t, m, b)
		}
	})
}

func FuzzMultiboot(f *testing.F) {
	m := mem.NewHeap(2 << 20)
	seedAll(f,
		buildELF(false, 0x100010, testSegment{typ: elfPTLoad, vaddr: 0xc0100000, paddr: 0x100000, data: append(multibootHeader(3), make([]byte, 64)...)}),
		append(make([]byte, 16), multibootHeader(mbAddresses, 0x180010, 0x180000, 0, 0x180800, 0x180020)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		// The fuzzer cannot be expected to keep the checksum right.
		b = bytes.Clone(b)
		if i := bytes.Index(b, multibootHeader(0)[:4]); i >= 0 && i+12 <= len(b) {
			flags := binary.LittleEndian.Uint32(b[i+4:])
			binary.LittleEndian.PutUint32(b[i+8:], -(mbHeaderMagic + flags))
		}
		fuzzLoad(t, m, b)
	})
}

// FuzzExtract unpacks the fuzzer's bytes in every format, whatever they begin with.
func FuzzExtract(f *testing.F) {
	small := buildELF(true, 0, testSegment{typ: elfPTLoad, paddr: 0x100000, data: noise(512)})
	for _, p := range payloads(f, small) {
		f.Add(p)
	}
	for _, name := range []string{"noise.bz2", "noise-x86.xz", "noise.lzma", "noise.lz4"} {
		p, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if b, err := ExtractVMLinux(BytesImage("k", withPayload(p))); err == nil && !isELF(b) {
			t.Error("the result is no ELF image")
		}
		const limit = 128 << 10
		for _, c := range compressions {
			if len(p) < len(c.magic) {
				continue
			}
			if b, err := c.unpack(append([]byte(c.magic), p[len(c.magic):]...), limit); err == nil && len(b) > limit {
				t.Errorf("%s: %d bytes, at most %d were asked for", c.name, len(b), limit)
			}
		}
	})
}
