package bus

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// recorder is a device that answers with its own number and remembers what reached it.
type recorder struct {
	id  byte
	mu  sync.Mutex
	got []string
}

func (d *recorder) Read(a Access, p []byte) {
	for i := range p {
		p[i] = d.id
	}
}

func (d *recorder) Write(a Access, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got = append(d.got, fmt.Sprintf("cpu %d %#x+%#x %x", a.VCPU, a.Addr-a.Off, a.Off, p))
}

func TestMap(t *testing.T) {
	mapped := []Range{{0x10, 0x10}, {0x30, 0x10}, {^uint64(0) - 0xf, 0xf}}
	for _, tc := range []struct {
		name string
		r    Range
		want string // of the error
	}{
		{"between, exactly", Range{0x20, 0x10}, ""},
		{"before", Range{0, 0x10}, ""},
		{"after", Range{0x40, 1}, ""},
		{"the same", Range{0x10, 0x10}, "overlaps [0x10, 0x20)"},
		{"inside", Range{0x34, 1}, "overlaps [0x30, 0x40)"},
		{"around", Range{0x2f, 0x20}, "overlaps [0x30, 0x40)"},
		{"around all", Range{0, 0x1000}, "overlaps [0x10, 0x20)"},
		{"from the left", Range{0x0f, 2}, "overlaps [0x10, 0x20)"},
		{"from the right", Range{0x3f, 2}, "overlaps [0x30, 0x40)"},
		{"at the end", Range{^uint64(0) - 1, 1}, "overlaps"},
		{"empty", Range{0x100, 0}, "empty or wrapping"},
		{"wraps", Range{^uint64(0) - 1, 3}, "empty or wrapping"},
		{"wraps to zero", Range{1 << 63, 1 << 63}, "empty or wrapping"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b Bus
			for _, r := range mapped {
				if err := b.Map(r, new(recorder)); err != nil {
					t.Fatal(err)
				}
			}
			before := b.Ranges()
			err := b.Map(tc.r, new(recorder))
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if err != nil {
				if diff := cmp.Diff(before, b.Ranges()); diff != "" {
					t.Errorf("a refused Map changed the bus (-before +after)\n%s", diff)
				}
			}
		})
	}
}

func TestAccess(t *testing.T) {
	var b Bus
	d, e := &recorder{id: 1}, &recorder{id: 2}
	for r, dev := range map[Range]*recorder{{0x100, 0x10}: d, {0x110, 4}: e} {
		if err := b.Map(r, dev); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		addr uint64
		n    int
		want byte
	}{
		{0xff, 1, 0xff}, {0xff, 2, 0xff}, {0x100, 1, 1}, {0x108, 8, 1}, {0x10f, 1, 1}, {0x10f, 2, 0xff}, {0x110, 4, 2},
		{0x110, 8, 0xff}, {0x114, 1, 0xff}, {^uint64(0), 1, 0xff}, {^uint64(0) - 3, 8, 0xff}, {0, 8, 0xff},
	} {
		p := make([]byte, tc.n)
		b.Read(0, tc.addr, p)
		if !bytes.Equal(p, bytes.Repeat([]byte{tc.want}, tc.n)) {
			t.Errorf("%d bytes at %#x: %x, want %x", tc.n, tc.addr, p, tc.want)
		}
		b.Write(3, tc.addr, p)
	}
	want := []string{"cpu 3 0x100+0x0 01", "cpu 3 0x100+0x8 0101010101010101", "cpu 3 0x100+0xf 01"}
	if diff := cmp.Diff(want, d.got); diff != "" {
		t.Errorf("writes (-want +got)\n%s", diff)
	}
	b.Unmap(0x101) // inside, not at the base: nothing
	if len(b.Ranges()) != 2 {
		t.Errorf("mapped: %v", b.Ranges())
	}
	b.Unmap(0x100)
	if diff := cmp.Diff([]Range{{0x110, 4}}, b.Ranges()); diff != "" {
		t.Errorf("after Unmap (-want +got)\n%s", diff)
	}
}

// A bus is what a list that is searched from one end to the other is.
func TestModel(t *testing.T) {
	type mapping struct {
		Range
		dev *recorder
	}
	rapid.Check(t, func(t *rapid.T) {
		var b Bus
		var model []mapping
		addr := rapid.Uint64Range(0, 64)
		find := func(a uint64, n int) *mapping {
			for i, m := range model {
				if a >= m.Base && a+uint64(n) <= m.Base+m.Size {
					return &model[i]
				}
			}
			return nil
		}
		t.Repeat(map[string]func(*rapid.T){
			"map": func(t *rapid.T) {
				r := Range{addr.Draw(t, "base"), rapid.Uint64Range(0, 12).Draw(t, "size")}
				free := r.Size > 0
				for _, m := range model {
					free = free && (r.Base >= m.End() || m.Base >= r.End())
				}
				dev := &recorder{id: byte(len(model) + 1)}
				if err := b.Map(r, dev); (err == nil) != free {
					t.Fatalf("map %v: %v, though it is free: %v", r, err, free)
				}
				if free {
					model = append(model, mapping{r, dev})
				}
			},
			"unmap": func(t *rapid.T) {
				base := addr.Draw(t, "base")
				b.Unmap(base)
				for i, m := range model {
					if m.Base == base {
						model = append(model[:i:i], model[i+1:]...)
						break
					}
				}
			},
			"access": func(t *rapid.T) {
				a, p := addr.Draw(t, "address"), make([]byte, rapid.SampledFrom([]int{1, 2, 4, 8}).Draw(t, "length"))
				m, want := find(a, len(p)), byte(0xff)
				if m != nil {
					want = m.dev.id
				}
				b.Read(0, a, p)
				if !bytes.Equal(p, bytes.Repeat([]byte{want}, len(p))) {
					t.Fatalf("%d bytes at %#x: %x, want %x", len(p), a, p, want)
				}
				b.Write(1, a, p)
				if m == nil {
					return
				}
				line := fmt.Sprintf("cpu 1 %#x+%#x %x", m.Base, a-m.Base, p)
				if n := len(m.dev.got); n == 0 || m.dev.got[n-1] != line {
					t.Fatalf("writes %v, want %q last", m.dev.got, line)
				}
			},
			"": func(t *rapid.T) {
				rs := b.Ranges()
				if len(rs) != len(model) {
					t.Fatalf("mapped %v, want %v", rs, model)
				}
				for i := 1; i < len(rs); i++ {
					if rs[i-1].End() > rs[i].Base {
						t.Fatalf("not in order: %v", rs)
					}
				}
			},
		})
	})
}

// constant reads as its number everywhere.
type constant byte

func (c constant) Read(_ Access, p []byte) { p[0] = byte(c) }
func (constant) Write(Access, []byte)      {}

// While ranges come and go, others are found at all times.
func TestConcurrent(t *testing.T) {
	var b Bus
	for i := range 16 {
		if err := b.Map(Range{uint64(i) * 0x100, 0x80}, constant(i)); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	for cpu := range 3 {
		readers.Go(func() {
			var p [1]byte
			for n := cpu; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				i := n % 16
				if b.Read(cpu, uint64(i)*0x100+1, p[:]); p[0] != byte(i) {
					t.Errorf("device %d reads %d", i, p[0])
					return
				}
				if b.Read(cpu, uint64(i)*0x100+0x80, p[:]); p[0] != 0xff && p[0] != byte(100+i) {
					t.Errorf("the device after %d reads %d", i, p[0])
					return
				}
			}
		})
	}
	for w := range 2 {
		writers.Go(func() {
			for n := range 2000 {
				i := (n*2 + w) % 16
				if err := b.Map(Range{uint64(i)*0x100 + 0x80, 0x80}, constant(100+i)); err != nil {
					t.Error(err)
				}
				b.Unmap(uint64(i)*0x100 + 0x80)
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	if n := len(b.Ranges()); n != 16 {
		t.Errorf("%d ranges are left", n)
	}
}

func TestAllocations(t *testing.T) {
	var b Bus
	for i := range 20 {
		if err := b.Map(Range{uint64(i) * 16, 8}, constant(i)); err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, 1)
	if n := testing.AllocsPerRun(100, func() { b.Read(0, 16*7, p); b.Write(0, 16*11, p); b.Read(0, 9, p) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkRead(b *testing.B) {
	var bus Bus
	for i := range 32 {
		if err := bus.Map(Range{uint64(i) * 16, 8}, constant(i)); err != nil {
			b.Fatal(err)
		}
	}
	p := make([]byte, 1)
	for i := 0; b.Loop(); i++ {
		bus.Read(0, uint64(i&31)*16, p)
	}
}
