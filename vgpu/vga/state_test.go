package vga

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// A restored card shows the saved picture, and is saved as the same again.
func TestRestore(t *testing.T) {
	for name, setUp := range map[string]func(r *rig){
		"nothing": func(*rig) {},
		"text":    func(r *rig) { textScreen(r, mode03) },
		"planar":  func(r *rig) { r.set(mode12); r.poke(windowBase+1000, 0xaa, 0x55) },
		"8": func(r *rig) {
			r.set(mode13)
			r.vbeMode(320, 200, 8)
			gradient(r, 320, 200, 8, 320, false)
		},
		"32": func(r *rig) {
			r.vbeMode(320, 200, 32)
			gradient(r, 320, 200, 32, 1280, false)
		},
		"in the middle of everything": func(r *rig) {
			r.set(mode12)
			r.peek(windowBase)
			r.in8(portStatus1)
			r.out8(portAttrIndex, 0x33)
			r.out8(portDACWrite, 7)
			r.out8(portDACData, 1)
			r.out16(vbePortIndex, vbeYRes)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newRig(t)
			setUp(a)
			state := a.save()
			b := a.restored(state)
			if !bytes.Equal(b.save(), state) {
				t.Error("saved again it is another state")
			}
			if pa, pb := a.picture(), b.picture(); (pa == nil) != (pb == nil) || pa != nil && (pa.Rect != pb.Rect || !bytes.Equal(pa.Pix, pb.Pix)) {
				t.Error("another picture")
			}
			if limit := pci.ConfigSize + 2000 + len(a.card.video.memory); len(state) > limit {
				t.Errorf("%d bytes, more than %d", len(state), limit)
			}
		})
	}
	if n := len(newRig(t).save()); n > 4096 {
		t.Errorf("a card that nobody has used saves %d bytes", n)
	}
}

// A state that overwrites another leaves nothing of it.
func TestRestoreOver(t *testing.T) {
	a, b := newRig(t), newRig(t)
	a.poke(lfbBase+0x5000, 1)
	b.poke(lfbBase+0x4000, 2)
	b.poke(lfbBase+0x7000, 2)
	c := snap.NewDecoder(a.save(), 1)
	if b.card.State(c); c.Err() != nil {
		t.Fatal(c.Err())
	}
	if !bytes.Equal(a.card.video.memory, b.card.video.memory) {
		t.Error("another memory")
	}
}

func TestStateRefuses(t *testing.T) {
	r := newRig(t)
	r.set(mode12)
	r.vbeMode(640, 480, 32)
	r.poke(lfbBase+0x1000, 1)
	r.poke(lfbBase+0x3000, 1)
	good := r.save()
	// Where things are, from the end: pages of 4+4096 bytes, their number, the byte order, and the VBE registers.
	pages := len(good) - 2*(4+pageSize)
	vbeRegs := pages - 4 - 1 - 2*(numVBE-1)
	regs := pci.ConfigSize + 1 // after the function's
	for name, c := range map[string]struct {
		spoil func(b []byte) []byte
		want  string
	}{
		"good":                {func(b []byte) []byte { return b }, ""},
		"cut":                 {func(b []byte) []byte { return b[:len(b)-1] }, "ends 1 bytes too early"},
		"too many pages":      {func(b []byte) []byte { binary.LittleEndian.PutUint32(b[pages-4:], 1025); return b }, "1025 elements"},
		"page twice":          {func(b []byte) []byte { b[pages+4+pageSize] = 1; return b }, "page 1 of video memory after page 1"},
		"page of zeros":       {func(b []byte) []byte { clear(b[pages+4:][:pageSize]); return b }, "all zero"},
		"page beyond":         {func(b []byte) []byte { b[pages+4+pageSize+1] = 4; return b }, "page 1027"},
		"byte order":          {func(b []byte) []byte { b[pages-5] = 2; return b }, "truth value 2"},
		"VBE id":              {func(b []byte) []byte { b[vbeRegs] = 0; return b }, "VBE registers"},
		"VBE width":           {func(b []byte) []byte { b[vbeRegs+3] = 0xff; return b }, "VBE mode"},
		"VBE bank":            {func(b []byte) []byte { b[vbeRegs+2*vbeBank] = 64; return b }, "VBE registers"},
		"memory":              {func(b []byte) []byte { b[vbeRegs-2-8]++; return b }, "size of video memory"},
		"misc":                {func(b []byte) []byte { b[regs] = 0x10; return b }, "miscellaneous output register is 0x10"},
		"sequencer index":     {func(b []byte) []byte { b[regs+3] = 8; return b }, "sequencer index register"},
		"DAC part":            {func(b []byte) []byte { b[regs+10] = 3; return b }, "DAC part is 3"},
		"flip-flop":           {func(b []byte) []byte { b[regs+11] = 3; return b }, "truth value 3"},
		"sequencer":           {func(b []byte) []byte { b[regs+17] = 0xff; return b }, "sequencer register 0 is 0xff"},
		"another PCI device":  {func(b []byte) []byte { b[0]++; return b }, "configuration byte 0x0"},
		"nothing":             {func([]byte) []byte { return nil }, "ends"},
		"without its display": {func(b []byte) []byte { return b[:vbeRegs] }, "ends"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newRig(t)
			dec := snap.NewDecoder(c.spoil(bytes.Clone(good)), 1)
			n.card.State(dec)
			dec.Done()
			if err := dec.Err(); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			n.card.draw()
		})
	}
}

// Who is given the file can look, and neither write nor cut it off. What was mapped before can be written to.
func TestSeals(t *testing.T) {
	f, b, err := newMemory("test", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer freeMemory(f, b)
	b[5] = 7
	look, err := unix.Mmap(int(f.Fd()), 0, len(b), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(look)
	if look[5] != 7 {
		t.Error("the file has not what was written")
	}
	if w, err := unix.Mmap(int(f.Fd()), 0, len(b), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		unix.Munmap(w)
		t.Error("it can be mapped to write")
	}
	if err := unix.Mprotect(look, unix.PROT_READ|unix.PROT_WRITE); err == nil {
		t.Error("a mapping to read becomes one to write")
	}
	if _, err := f.WriteAt([]byte{1}, 0); err == nil {
		t.Error("it can be written to")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("it can be cut off")
	}
}

// A memfd's pages that nobody has touched are not given memory by saving.
func TestSparse(t *testing.T) {
	f, b, err := newMemory("test", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	v := video{memory: b, file: f}
	defer freeMemory(f, b)
	b[0x10000], b[0x30000] = 1, 2
	clear(b[0x20000:0x22000]) // memory, but zeros
	v.init()
	enc := snap.NewEncoder(1)
	v.state(enc)
	if n := len(enc.Data()); n != 4+2*(4+pageSize) {
		t.Errorf("%d bytes", n)
	}
	if i := v.nextUsed(0x11); i != 0x30 {
		t.Errorf("next page %#x", i)
	}
	if start, end := v.data(0x40); start != 0x100 || end != 0x100 {
		t.Errorf("pages %#x to %#x have got memory", start, end)
	}
	v.zero(0, 0x100)
	if i := v.nextUsed(0); i != 0x100 {
		t.Errorf("page %#x is not zero", i)
	}
}

// FuzzState damages a state: it is refused, or the card works and is saved as the same.
func FuzzState(f *testing.F) {
	small := func(c *Config) { c.Memory = MinMemory }
	r := newRig(f, small)
	r.set(mode03)
	r.poke(0xb8000, 'x', 7)
	good := [][]byte{r.save()}
	r.vbeMode(64, 64, 32)
	r.poke(lfbBase, 1, 2, 3)
	good = append(good, r.save())
	f.Add(uint8(0), uint16(0), uint16(0), []byte{})
	f.Add(uint8(1), uint16(4), uint16(0), []byte{3})
	f.Add(uint8(0), uint16(pci.ConfigSize+1), uint16(0), []byte{0xff, 0xff, 0xff})
	f.Add(uint8(1), uint16(0), uint16(7), []byte{})
	f.Fuzz(func(t *testing.T, which uint8, at, cut uint16, patch []byte) {
		state := bytes.Clone(good[which%2])
		copy(state[min(int(at), len(state)):], patch)
		state = state[:len(state)-min(int(cut), len(state))]
		r := newRig(t, small)
		c := snap.NewDecoder(state, 1)
		r.card.State(c)
		c.Done()
		r.card.draw()
		if c.Err() != nil {
			return
		}
		if again := r.save(); !bytes.Equal(again, state) {
			t.Fatal("saved again it is another state")
		}
	})
}
