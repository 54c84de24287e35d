package aml

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestEncode(t *testing.T) {
	tests := []struct {
		name string
		term Term
		want string
	}{
		{"zero", Int(0), "\x00"},
		{"one", Int(1), "\x01"},
		{"ones", Int(math.MaxUint64), "\xFF"},
		{"byte", Int(0xFF), "\x0A\xFF"},
		{"word", Int(0x100), "\x0B\x00\x01"},
		{"dword", Int(0x10000), "\x0C\x00\x00\x01\x00"},
		{"qword", Int(1 << 32), "\x0E\x00\x00\x00\x00\x01\x00\x00\x00"},
		{"dword of a small value", DWord(1), "\x0C\x01\x00\x00\x00"},
		{"string", String("hi"), "\x0Dhi\x00"},
		{"buffer", Buffer([]byte{7, 8}), "\x11\x05\x0A\x02\x07\x08"},
		{"empty buffer", Buffer(nil), "\x11\x02\x00"},
		{"package", Package(Int(0), String("a")), "\x12\x06\x02\x00\x0Da\x00"},
		{"EISA identifier", EISAID("PNP0A03"), "\x0C\x41\xD0\x0A\x03"},
		{"UUID", ToUUID("33db4d5b-1ff7-401c-9657-7441c03dd766"),
			"\x11\x13\x0A\x10\x5b\x4d\xdb\x33\xf7\x1f\x1c\x40\x96\x57\x74\x41\xc0\x3d\xd7\x66"},

		{"segment", Path("_SB"), "_SB_"},
		{"root", Path(`\`), "\\\x00"},
		{"two segments", Path(`\_SB.PCI0`), "\\\x2E_SB_PCI0"},
		{"three segments", Path("^^A.B.C"), "^^\x2F\x03A___B___C___"},

		{"scope", Scope(`\_SB`, Name("A", Int(1))), "\x10\x0C\\_SB_\x08A___\x01"},
		{"device", Device("D"), "\x5B\x82\x05D___"},
		{"method", Method("M", 2, Return(Arg(1))), "\x14\x08M___\x02\xA4\x69"},
		{"serialized method", MethodSerialized("M", 0), "\x14\x06M___\x08"},
		{"mutex", Mutex("M", 3), "\x5B\x01M___\x03"},
		{"region", OperationRegion("R", SystemIO, Int(0x600), Int(4)), "\x5B\x80R___\x01\x0B\x00\x06\x0A\x04"},
		{"field", Field("R", ByteAcc|Lock, FieldElement{"A", 1}, FieldElement{"", 63}, FieldElement{"B", 64}),
			"\x5B\x81\x13R___\x11A___\x01\x00\x3FB___\x40\x04"},
		{"buffer field", CreateDWordField(Arg(3), Int(8), "CDW3"), "\x8A\x6B\x0A\x08CDW3"},

		{"if", If(LEqual(Local(0), Int(1)), Return(Int(0))), "\xA0\x06\x93\x60\x01\xA4\x00"},
		{"else", Else(Notify(Path("D"), Int(0x80))), "\xA1\x08\x86D___\x0A\x80"},
		{"while", While(LLess(Local(7), Int(2)), Increment(Local(7))), "\xA2\x07\x95\x67\x0A\x02\x75\x67"},
		{"mutual exclusion", Method("M", 0, Acquire("X", 0x1234), Release("X")),
			"\x14\x14M___\x00\x5B\x23X___\x34\x12\x5B\x27X___"},
		{"call", Call("F", Int(1), Local(1)), "F___\x01\x61"},
		{"store", Store(DerefOf(Index(Arg(0), Int(1), Discard)), Local(0)), "\x70\x83\x88\x68\x01\x00\x60"},
		{"arithmetic", Add(Subtract(Int(1), Int(0), Discard), Multiply(Int(1), Int(1), Discard), Local(0)),
			"\x72\x74\x01\x00\x00\x77\x01\x01\x00\x60"},
		{"bits", Or(And(Int(1), Int(0), Discard), Xor(Not(Int(0), Discard), Int(1), Discard), Local(0)),
			"\x7D\x7B\x01\x00\x00\x7F\x80\x00\x00\x01\x00\x60"},
		{"shifts", ShiftLeft(ShiftRight(Int(1), Int(0), Discard), Int(1), Local(0)), "\x79\x7A\x01\x00\x00\x01\x60"},
		{"division", Divide(Local(0), Local(1), Local(2), Local(3)), "\x78\x60\x61\x62\x63"},
		{"logic", LAnd(LOr(Int(0), Int(1)), LNot(LGreater(SizeOf(Arg(0)), Int(1)))), "\x90\x91\x00\x01\x92\x94\x87\x68\x01"},
		{"composed comparisons", LAnd(LNotEqual(Int(0), Int(1)), LAnd(LLessEqual(Int(0), Int(1)), LGreaterEqual(Int(1), Int(0)))),
			"\x90\x92\x93\x00\x01\x90\x92\x94\x00\x01\x92\x95\x01\x00"},
		{"down and wait", While(Decrement(Local(0)), Sleep(Int(1))), "\xA2\x06\x76\x60\x5B\x22\x01"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Encode(tt.term)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([]byte(tt.want), got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestResourceTemplate(t *testing.T) {
	tests := []struct {
		name string
		r    Resource
		want string
	}{
		{"ports", FixedIO(0x3F8, 8), "\x47\x01\xF8\x03\xF8\x03\x01\x08"},
		{"interrupt", IRQ(4), "\x22\x10\x00"},
		{"extended interrupts", Interrupt{Shared: true, ActiveLow: true, GSIs: []uint32{16, 17}},
			"\x89\x0A\x00\x0D\x02\x10\x00\x00\x00\x11\x00\x00\x00"},
		{"fixed memory", Memory32Fixed{Base: 0xE0000000, Len: 0x1000}, "\x86\x09\x00\x01\x00\x00\x00\xE0\x00\x10\x00\x00"},
		{"buses", WordBusNumber(0, 255), "\x88\x0D\x00\x02\x0C\x00\x00\x00\x00\x00\xFF\x00\x00\x00\x00\x01"},
		{"port window", WordIO(0xD00, 0xFFFF), "\x88\x0D\x00\x01\x0C\x03\x00\x00\x00\x0D\xFF\xFF\x00\x00\x00\xF3"},
		{"memory window", DWordMemory(0xA0000, 0xBFFFF, Cacheable),
			"\x87\x17\x00\x00\x0C\x03\x00\x00\x00\x00\x00\x00\x0A\x00\xFF\xFF\x0B\x00\x00\x00\x00\x00\x00\x00\x02\x00"},
		{"64-bit memory window", QWordMemory(1<<32, 1<<33-1, NonCacheable),
			"\x8A\x2B\x00\x00\x0C\x01" + strings.Repeat("\x00", 8) + "\x00\x00\x00\x00\x01\x00\x00\x00" +
				"\xFF\xFF\xFF\xFF\x01\x00\x00\x00" + strings.Repeat("\x00", 8) + "\x00\x00\x00\x00\x01\x00\x00\x00"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Encode(ResourceTemplate(tt.r))
			if err != nil {
				t.Fatal(err)
			}
			body := tt.want + "\x79\x00"
			want := append([]byte{0x11, byte(len(body) + 3), 0x0A, byte(len(body))}, body...)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		name string
		term Term
		want string
	}{
		{"lower case", Path("abc"), `"abc"`},
		{"digit first", Path("A.1B"), `"1B"`},
		{"long segment", Device("ABCDE"), `"ABCDE"`},
		{"empty name", Path(""), "empty name"},
		{"empty segment", Path("A..B"), `segment ""`},
		{"many segments", Path(strings.Repeat("A.", 255) + "A"), "255 segments"},
		{"string", String("\xFF"), "not ASCII"},
		{"EISA identifier", EISAID("PNP0A0"), "PNP0A0"},
		{"EISA letters", EISAID("1NP0A03"), "1NP0A03"},
		{"EISA digits", EISAID("PNP0G03"), "PNP0G03"},
		{"UUID", ToUUID("33db4d5b"), "33db4d5b"},
		{"method", Method("M", 8), "8 arguments"},
		{"local", Local(8), "local variable 8"},
		{"argument", Arg(-1), "argument -1"},
		{"mutex", Mutex("M", 16), "sync level 16"},
		{"field", Field("R", 0, FieldElement{"A", 0}), "0 bits"},
		{"nil term", Scope("S", nil), "nil term"},
		{"nil resource", ResourceTemplate(nil), "nil resource"},
		{"interrupt", ResourceTemplate(IRQ(16)), "interrupt 16"},
		{"no interrupts", ResourceTemplate(Interrupt{}), "0 interrupts"},
		{"no ports", ResourceTemplate(FixedIO(0x60, 0)), "not a range"},
		{"ports beyond the end", ResourceTemplate(FixedIO(0xFFFF, 2)), "not a range"},
		{"memory beyond 4 GiB", ResourceTemplate(Memory32Fixed{Base: 0xFFFFF000, Len: 0x2000}), "not a range"},
		{"window reversed", ResourceTemplate(DWordMemory(2, 1, 0)), "its length"},
		{"window of all ports", ResourceTemplate(WordIO(0, 0xFFFF)), "its length"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if b, err := Encode(tt.term); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Encode = % x, %v; want an error with %q", b, err, tt.want)
			}
		})
	}
}

// pkgLength decodes a PkgLength as an interpreter does.
func pkgLength(b []byte) (n, width int) {
	more := int(b[0] >> 6)
	if more == 0 {
		return int(b[0]), 1
	}
	n = int(b[0] & 0xF)
	for i := range more {
		n |= int(b[1+i]) << (4 + 8*i)
	}
	return n, 1 + more
}

func TestPkgLengthBoundaries(t *testing.T) {
	for _, tt := range []struct{ content, width int }{
		{0, 1}, {62, 1}, {63, 2}, {4093, 2}, {4094, 3}, {1<<20 - 4, 3}, {1<<20 - 3, 4},
	} {
		b, err := Encode(op{"", true, []Term{raw(make([]byte, tt.content))}})
		if err != nil {
			t.Fatal(err)
		}
		if n, width := pkgLength(b); n != len(b) || width != tt.width || len(b) != tt.content+width {
			t.Errorf("%d bytes: PkgLength %d in %d bytes, %d in all", tt.content, n, width, len(b))
		}
	}
}

func TestPkgLengthProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.IntRange(0, maxPkgLength).Draw(t, "n")
		b := appendPkgLength(nil, want)
		got, width := pkgLength(b)
		if got != want || width != len(b) {
			t.Fatalf("% x decodes to %d in %d bytes, want %d", b, got, width, want)
		}
		if width > 1 && (want <= pkgLengthLimit(width-1) || b[0]&0x30 != 0) {
			t.Fatalf("% x for %d: not the smallest form", b, want)
		}
	})
}

func TestNestedLengths(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		content := rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(t, "content")
		depth := rapid.IntRange(1, 8).Draw(t, "depth")
		var term Term = raw(content)
		for range depth {
			term = Device("DEV", term)
		}
		b, err := Encode(term)
		if err != nil {
			t.Fatal(err)
		}
		for range depth {
			n, width := pkgLength(b[2:])
			if n != len(b)-2 {
				t.Fatalf("length %d of %d bytes", n, len(b)-2)
			}
			b = b[2+width+4:]
		}
		if !bytes.Equal(b, content) {
			t.Fatal("content changed")
		}
	})
}

func TestIntProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.Uint64().Draw(t, "v") >> rapid.IntRange(0, 63).Draw(t, "shift")
		b, err := Encode(Int(want))
		if err != nil {
			t.Fatal(err)
		}
		var v [8]byte
		copy(v[:], b[1:])
		got := binary.LittleEndian.Uint64(v[:])
		size := map[byte]int{zeroOp: 0, oneOp: 0, onesOp: 0, bytePrefix: 1, wordPrefix: 2, dwordPrefix: 4, qwordPrefix: 8}[b[0]]
		switch b[0] {
		case oneOp:
			got = 1
		case onesOp:
			got = math.MaxUint64
		}
		if got != want || len(b) != 1+size || size > 1 && want>>(4*size) == 0 {
			t.Fatalf("% x for %#x", b, want)
		}
	})
}
