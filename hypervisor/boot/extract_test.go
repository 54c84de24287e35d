package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// packed returns what w makes of b.
func packed(t testing.TB, b []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := open(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// payloads returns b packed in each of the formats, as a bzImage holds it.
func payloads(t testing.TB, b []byte) map[string][]byte {
	return map[string][]byte{
		"gzip": gzipped(t, b),
		"xz": sized(packed(t, b, func(w io.Writer) (io.WriteCloser, error) {
			return xz.WriterConfig{CheckSum: xz.CRC32}.NewWriter(w)
		}), len(b)),
		"xz crc64": sized(packed(t, b, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }), len(b)),
		"xz, blocks": sized(packed(t, b, func(w io.Writer) (io.WriteCloser, error) {
			return xz.WriterConfig{BlockSize: int64(len(b)/3 + 1)}.NewWriter(w)
		}), len(b)),
		"zstd": sized(packed(t, b, func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithWindowSize(128<<20))
		}), len(b)),
		"lz4": sized(packed(t, b, func(w io.Writer) (io.WriteCloser, error) {
			z := lz4.NewWriter(w)
			return z, z.Apply(lz4.LegacyOption(true))
		}), len(b)),
		"lzma": sized(packed(t, b, func(w io.Writer) (io.WriteCloser, error) { return lzma.NewWriter(w) }), len(b)),
	}
}

// noise returns n bytes that resemble dense machine code to the x86 filter: opcodes, near targets and others, mixed.
func noise(n int) []byte {
	const alphabet = "\xe8\xe9\x00\xff\xe8\x00\xff\x01\xfe\x80\x42"
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	return b
}

// testELF is large enough for several LZ4 blocks to be interesting, and compresses as kernels do.
func testELF() []byte {
	b := noise(60 << 10)
	return buildELF(true, 0, testSegment{typ: elfPTLoad, paddr: 0x100000, data: bytes.Repeat(b, 4)})
}

func TestExtract(t *testing.T) {
	want := testELF()
	for name, payload := range payloads(t, want) {
		t.Run(name, func(t *testing.T) {
			k := defaultBz()
			k.payload = payload
			got, err := ExtractVMLinux(BytesImage("bzImage", k.build()))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("differs")
			}

			// A stream that unpacks to more than it says.
			k.payload = sized(payload[:len(payload)-4], len(want)-1)
			if _, err := ExtractVMLinux(BytesImage("bzImage", k.build())); err == nil {
				t.Error("no error for a size too small")
			}
			// A size that is absurd.
			k.payload = sized(payload[:len(payload)-4], 1<<32-1)
			if _, err := ExtractVMLinux(BytesImage("bzImage", k.build())); err == nil || !strings.Contains(err.Error(), "credible") {
				t.Errorf("error %v for an absurd size", err)
			}
			// A stream that is cut.
			k.payload = sized(payload[:len(payload)/2:len(payload)/2], len(want))
			if _, err := ExtractVMLinux(BytesImage("bzImage", k.build())); err == nil {
				t.Error("no error for half a stream")
			}
		})
	}
}

// The bzip2 and x86-filtered xz files were made by the programs of these names, xz by --check=crc32 --x86 --lzma2.
func TestExtractGolden(t *testing.T) {
	for name, c := range map[string]struct {
		file   string
		unpack func([]byte, int) ([]byte, error)
	}{
		"bzip2":  {"testdata/noise.bz2", unpackBzip2},
		"xz x86": {"testdata/noise-x86.xz", unpackXZ},
		"lzma":   {"testdata/noise.lzma", unpackLZMA},
		"lz4":    {"testdata/noise.lz4", unpackLZ4},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := os.ReadFile(c.file)
			if err != nil {
				t.Fatal(err)
			}
			want := noise(64 << 10)
			got, err := c.unpack(p, len(want))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("differs")
			}
			if _, err := c.unpack(p, len(want)-1); err == nil {
				t.Error("no error for a bound too small")
			}
		})
	}
}

func TestExtractErrors(t *testing.T) {
	xzFile, err := os.ReadFile("testdata/noise-x86.xz")
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(xzFile)
	damaged[len(damaged)/2] ^= 1
	check := bytes.Clone(xzFile)
	check[7] = 10
	filter := bytes.Clone(xzFile)
	filter[xzStreamHeaderSize+2] = 7 // ARM
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"no bzImage":     {pvhKernel(), "not a bzImage"},
		"no payload":     {defaultBz().build(), "no payload"},
		"unknown format": {withPayload([]byte("hello, world")), "unknown compression"},
		"no ELF":         {withPayload(gzipped(t, []byte("hello"))), "no ELF image"},
		"xz damaged":     {withPayload(sized(damaged, 64<<10)), "unpack xz"},
		"xz check":       {withPayload(sized(check, 64<<10)), "check type 10"},
		"xz filter":      {withPayload(sized(filter, 64<<10)), "xz filter 0x7"},
		"lz4 block":      {withPayload([]byte(lz4LegacyMagic + "\xff\xff\xff\xff\x00\x10\x00\x00")), "unexpected EOF"},
	} {
		if _, err := ExtractVMLinux(BytesImage("k", c.image)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
	_, err = ExtractVMLinux(BytesImage("k", withPayload([]byte("hello, world"))))
	if !errors.Is(err, errNotSupported) {
		t.Errorf("%v is not errNotSupported", err)
	}
}

func withPayload(p []byte) []byte {
	k := defaultBz()
	k.payload = p
	return k.build()
}

// The filter touches nothing but operands, and only of opcodes whose operand looks near.
func TestUnfilterX86(t *testing.T) {
	call := func(target uint32) []byte { return binary.LittleEndian.AppendUint32([]byte{0x90, 0xe8}, target) }
	for name, c := range map[string]struct{ in, want []byte }{
		"short":    {[]byte{0xe8, 0, 0, 0}, []byte{0xe8, 0, 0, 0}},
		"forward":  {call(0x106), call(0x100)},
		"backward": {call(0), call(1<<32 - 6)},
		"far":      {call(0x12345678), call(0x12345678)},
	} {
		got := bytes.Clone(c.in)
		unfilterX86(got)
		if !bytes.Equal(got, c.want) {
			t.Errorf("%s: % x, want % x", name, got, c.want)
		}
	}
}
