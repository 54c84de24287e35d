package virtiogpu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
	"github.com/lodgehv/lodge/vgpu/display"
)

// An empty rectangle in the lower right corner of a resource is one, and has no pixel behind it.
func TestEmptyRectangles(t *testing.T) {
	c := newCard(t, 1)
	c.create2D(1, formatB8G8R8X8, 8, 4, 2)
	c.must(cmdSetScanout, rect{0, 0, 8, 4}, 0, 1)
	for _, r := range []rect{{8, 4, 0, 0}, {1, 4, 0, 0}, {0, 4, 8, 0}, {8, 0, 0, 4}, {8, 3, 0, 1}} {
		for _, offset := range []uint64{0, 1 << 40} {
			c.must(cmdTransferToHost2D, r, offset, 1, 0)
		}
		c.flush(1, r)
	}
	if d := cmp.Diff([]string{"show 8×4 XR24"}, c.sinks[0].take()); d != "" {
		t.Error(d)
	}
}

// What a guest draws is seen where it says that it has changed, whatever pieces its memory is in.
func TestShow(t *testing.T) {
	const w, h = 96, 40
	for _, pieces := range []int{1, 2, 7, 40, 97, 3000} {
		t.Run(fmt.Sprint(pieces), func(t *testing.T) {
			c := newCard(t, 1)
			k := c.sinks[0]
			b := c.create2D(5, formatB8G8R8X8, w, h, pieces)
			all := image.Rect(0, 0, w, h)
			b.fill(all, 1)
			c.transfer(5, rect{0, 0, w, h}, 4*w)
			c.must(cmdSetScanout, rect{0, 0, w, h}, 0, 5)
			c.flush(5, rect{0, 0, w, h})
			picture := blank(w, h).draw(all, image.Point{}, 1)
			k.sees(picture)

			// All is drawn anew, but only a part is transferred, and of that only a part is flushed.
			b.fill(all, 2)
			c.transfer(5, rect{10, 5, 33, 20}, 4*w)
			c.flush(5, rect{20, 0, 10, 10})
			k.sees(picture.draw(image.Rect(20, 5, 30, 10), image.Point{}, 2))
			c.flush(5, rect{0, 0, w, h})
			k.sees(picture.draw(image.Rect(10, 5, 43, 25), image.Point{}, 2))
			c.transfer(5, rect{w - 1, h - 1, 1, 1}, 4*w)
			c.flush(5, rect{w - 1, h - 1, 1, 1})
			k.sees(picture.draw(image.Rect(w-1, h-1, w, h), image.Point{}, 2))
			if d := cmp.Diff([]string{"show 96×40 XR24", "update 0,0 96×40", "update 20,0 10×10", "update 0,0 96×40", "update 95,39 1×1"}, k.take()); d != "" {
				t.Error(d)
			}
		})
	}
}

// Two screens show parts of one picture.
func TestScanouts(t *testing.T) {
	c := newCard(t, 3)
	b := c.create2D(1, formatR8G8B8A8, 100, 50, 2)
	all := image.Rect(0, 0, 100, 50)
	c.must(cmdSetScanout, rect{0, 0, 60, 50}, 0, 1)
	c.must(cmdSetScanout, rect{40, 10, 60, 40}, 2, 1)
	c.must(cmdSetScanout, rect{40, 10, 60, 40}, 2, 1) // nothing new
	b.fill(all, 3)
	c.transfer(1, rect{0, 0, 100, 50}, 400)
	c.flush(1, rect{50, 0, 20, 20})
	c.flush(1, rect{0, 0, 30, 5})
	c.flush(1, rect{70, 0, 30, 10}) // nobody shows that
	c.flush(1, rect{7, 7, 0, 7})
	wants := [][]string{
		{"show 60×50 AB24", "update 50,0 10×20", "update 0,0 30×5"},
		nil,
		{"show 60×40 AB24", "update 10,0 20×10"},
	}
	for i, k := range c.sinks {
		if d := cmp.Diff(wants[i], k.take()); d != "" {
			t.Errorf("screen %d: %s", i, d)
		}
	}
	c.sinks[2].sees(blank(60, 40).draw(image.Rect(50, 10, 70, 20), image.Pt(40, 10), 3))

	// Another resource, none, and one that is destroyed.
	c.create2D(2, formatB8G8R8A8, 60, 50, 1)
	c.must(cmdSetScanout, rect{0, 0, 60, 50}, 0, 2)
	c.must(cmdSetScanout, rect{}, 0, 0)
	c.must(cmdSetScanout, rect{}, 0, 0)
	c.must(cmdSetScanout, rect{0, 0, 1, 1}, 1, 1)
	c.must(cmdResourceUnref, 1, 0)
	for i, want := range [][]string{{"show 60×50 AR24", "off"}, {"show 1×1 AB24", "off"}, {"off"}} {
		if d := cmp.Diff(want, c.sinks[i].take()); d != "" {
			t.Errorf("screen %d: %s", i, d)
		}
	}
	check(t, c.d)
}

// Formats keep their bytes, and are named right.
func TestFormats(t *testing.T) {
	c := newCard(t, 1)
	for n, want := range map[int]display.Format{
		formatB8G8R8A8: display.ARGB8888, formatB8G8R8X8: display.XRGB8888, formatA8R8G8B8: display.BGRA8888, formatX8R8G8B8: display.BGRX8888,
		formatR8G8B8A8: display.ABGR8888, formatX8B8G8R8: display.RGBX8888, formatA8B8G8R8: display.RGBA8888, formatR8G8B8X8: display.XBGR8888,
	} {
		b := c.create2D(n, n, 1, 1, 1)
		b.write(0, []byte{1, 2, 3, 4})
		c.transfer(n, rect{0, 0, 1, 1}, 4)
		c.must(cmdSetScanout, rect{0, 0, 1, 1}, 0, n)
		k := c.sinks[0]
		if k.surface.Format != want || !bytes.Equal(k.pixels, []byte{1, 2, 3, 4}) {
			t.Errorf("format %d: shows %v of %v, want %v", n, k.pixels, k.surface.Format, want)
		}
		c.must(cmdResourceUnref, n, 0)
	}
}

// An offset other than that of the rectangle is right too: rows follow each other as in the resource.
func TestTransferOffset(t *testing.T) {
	c := newCard(t, 1)
	b := c.create2D(1, formatB8G8R8X8, 16, 16, 5)
	b.fill(image.Rect(0, 0, 16, 16), 1)
	c.must(cmdTransferToHost2D, rect{3, 4, 8, 12}, uint64(4*(16*2+1)), 1, 0) // from pixel 1,2
	c.must(cmdSetScanout, rect{0, 0, 16, 16}, 0, 1)
	got := c.sinks[0]
	for y := range 16 {
		for x := range 16 {
			want := uint32(0)
			if image.Pt(x, y).In(image.Rect(3, 4, 11, 16)) {
				want = pixel(x-2, y-2, 1)
			}
			if v := fields(got.pixels).u32(4 * (16*y + x)); v != want {
				t.Fatalf("pixel %d,%d is %#x, want %#x", x, y, v, want)
			}
		}
	}
}

// A blob is shown by a copy, where its memory cannot be shared (see TestShare): what the guest draws is there when it says so.
func TestBlob(t *testing.T) {
	c := newCard(t, 2)
	b := c.createBlob(1, 512, 100, 1)
	b.fill(image.Rect(0, 0, 128, 100), 1)
	// A framebuffer of 120 × 90 pixels that begins at pixel 2,1 of the buffer, of which 100 × 80 from 10,5 are shown.
	if resp := c.showBlob(0, 1, rect{10, 5, 100, 80}, 120, 90, 512, 512+8); resp != respOKNoData {
		t.Fatalf("response %#x", resp)
	}
	k := c.sinks[0]
	k.sees(blank(100, 80).draw(image.Rect(0, 0, 128, 100), image.Pt(12, 6), 1))
	b.fill(image.Rect(0, 0, 128, 100), 2)
	c.must(cmdTransferToHost2D, rect{0, 0, 120, 90}, uint64(0), 1, 0) // as Linux does
	c.flush(1, rect{0, 0, 20, 20})
	k.sees(blank(100, 80).draw(image.Rect(0, 0, 128, 100), image.Pt(12, 6), 1).draw(image.Rect(12, 6, 22, 21), image.Pt(12, 6), 2))
	c.flush(1, rect{0, 0, 1 << 31, 1<<32 - 1}) // more than there is
	k.sees(blank(100, 80).draw(image.Rect(0, 0, 128, 100), image.Pt(12, 6), 2))
	if d := cmp.Diff([]string{"show 100×80 XR24", "update 0,0 10×15", "update 0,0 100×80"}, k.take()); d != "" {
		t.Error(d)
	}

	// Without its memory it cannot be shown; it may get other memory.
	c.must(cmdResourceDetachBacking, 1, 0)
	if resp := c.showBlob(0, 1, rect{0, 0, 1, 1}, 1, 1, 4, 0); resp != respErrInvalidParameter {
		t.Errorf("shown without memory: %#x", resp)
	}
	c.must(cmdResourceAttachBacking, 1, len(b.spans), b.spans)
	if resp := c.showBlob(0, 1, rect{0, 0, 1, 1}, 1, 1, 4, 0); resp != respOKNoData {
		t.Errorf("shown with memory again: %#x", resp)
	}
	c.must(cmdResourceUnref, 1, 0)
	if d := cmp.Diff([]string{"off", "show 1×1 XR24", "off"}, k.take()); d != "" {
		t.Error(d)
	}
	check(t, c.d)
}

// A blob in scattered pages is gathered: all of it when it is first shown, then what is flushed.
func TestScatteredBlob(t *testing.T) {
	c := newCard(t, 1)
	k, all := c.sinks[0], image.Rect(0, 0, 128, 100)
	var b [2]buffer
	for i := range b {
		b[i] = c.createBlob(1+i, 512, 100, 13)
		b[i].fill(all, 1+i)
	}
	show := func(i int) {
		t.Helper()
		if resp := c.showBlob(0, 1+i, rect{10, 5, 100, 80}, 120, 90, 512, 512+8); resp != respOKNoData {
			t.Fatalf("response %#x", resp)
		}
	}
	at := image.Pt(12, 6)
	show(0)
	picture := blank(100, 80).draw(all, at, 1)
	k.sees(picture)
	b[0].fill(all, 3)
	c.flush(1, rect{20, 10, 10, 10})
	k.sees(picture.draw(image.Rect(22, 11, 32, 21), at, 3))

	// The guest turns to the other one: the screen keeps its surface, and gets all of the other at the first flush.
	show(1)
	k.sees(picture)
	c.flush(1, rect{0, 0, 120, 90}) // no more shown
	c.flush(2, rect{20, 10, 1, 1})
	k.sees(blank(100, 80).draw(all, at, 2))
	b[1].fill(all, 4)
	c.flush(2, rect{20, 10, 1, 1})
	k.sees(blank(100, 80).draw(all, at, 2).draw(image.Rect(22, 11, 23, 12), at, 4))
	if d := cmp.Diff([]string{"show 100×80 XR24", "update 10,5 10×10", "update 0,0 100×80", "update 10,5 1×1"}, k.take()); d != "" {
		t.Error(d)
	}
	check(t, c.d)

	// Other forms.
	for _, r := range []rect{{0, 0, 64, 2}, {0, 0, 120, 50}, {0, 0, 120, 51}} {
		if resp := c.showBlob(0, 2, r, 120, 90, 512, 0); resp != respOKNoData {
			t.Fatalf("response %#x", resp)
		}
		k.sees(blank(int(r.w), int(r.h)).draw(all, image.Point{}, 4))
		check(t, c.d)
	}
	c.must(cmdSetScanout, rect{}, 0, 0)
	check(t, c.d)
	if c.d.arena.total != 0 {
		t.Error("memory stays in use")
	}
}

// Surfaces can be mapped by others: those of ordinary resources, and the copies of blobs.
func TestFile(t *testing.T) {
	d := newDevice(t, &recorder{t: t})
	d.newArena = newArena
	c := &card{Rig: virtiotest.New(t, d, 0), d: d, sinks: nil}
	b := c.create2D(1, formatB8G8R8X8, 50, 50, 3)
	b.fill(image.Rect(0, 0, 50, 50), 1)
	c.transfer(1, rect{0, 0, 50, 50}, 200)
	c.create2D(2, formatB8G8R8X8, 50, 50, 3)
	m, err := mem.Alloc([]mem.Range{{Base: 0, Size: 1 << 20}, {Base: 1 << 32, Size: 1 << 20}}, mem.AllocOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	d.mem = m
	c.must(cmdResourceCreateBlob, 3, blobMemGuest, 0, 1, uint64(0), uint64(10000), []span{{1<<32 + 0x5008, 10000}})
	c.d.mem.WriteAt(le(pixel(7, 8, 9)), 1<<32+0x5008+404)

	for _, tt := range []struct {
		name string
		show func()
		want uint32
	}{
		{"2D", func() { c.must(cmdSetScanout, rect{10, 20, 30, 30}, 0, 1) }, pixel(10, 20, 1)},
		{"blob", func() { c.showBlob(0, 3, rect{1, 1, 10, 10}, 20, 20, 400, 0) }, pixel(7, 8, 9)},
	} {
		tt.show()
		d.cfg.Screens[0].Snapshot(func(s *display.Surface) {
			var p [4]byte
			if s.File == nil {
				t.Errorf("%s: no file", tt.name)
			} else if _, err := s.File.ReadAt(p[:], s.Offset); err != nil || fields(p[:]).u32(0) != tt.want {
				t.Errorf("%s: the file has %x there (%v), want %#x", tt.name, p, err, tt.want)
			} else if s.File.Truncate(0) == nil {
				t.Errorf("%s: the file can be cut short", tt.name)
			}
		})
	}
}

// A fence comes back with every response, errors too, with its ring and context.
func TestFence(t *testing.T) {
	c := newCard(t, 1)
	for _, tt := range []struct {
		typ, flags uint32
		want       []byte
	}{
		{cmdGetDisplayInfo, 0, le(respOKDisplayInfo, 0, uint64(0), 0, 0)},
		{cmdGetDisplayInfo, 1, le(respOKDisplayInfo, 1, uint64(1<<63+5), 77, 3)},
		{cmdGetDisplayInfo, 1<<32 - 1, le(respOKDisplayInfo, 3, uint64(1<<63+5), 77, 3)},
		{cmdGetDisplayInfo, 2, le(respOKDisplayInfo, 0, uint64(0), 0, 0)},
		{cmdResourceUnref, 1, le(respErrInvalidParameter, 1, uint64(1<<63+5), 77, 3)}, // too short
		{0xffff, 3, le(respErrUnspec, 3, uint64(1<<63+5), 77, 3)},
	} {
		got := c.raw(le(tt.typ, tt.flags, uint64(1<<63+5), 77, 3), 1000)
		if d := cmp.Diff(tt.want, got[:headerSize]); d != "" {
			t.Errorf("command %#x, flags %#x: %s", tt.typ, tt.flags, d)
		}
	}
}

func TestUUID(t *testing.T) {
	c := newCard(t, 1)
	c.create2D(1, formatB8G8R8X8, 1, 1, 1)
	c.createBlob(2, 4, 1, 1)
	var ids [3][]byte
	for i, id := range []int{1, 2, 1} {
		resp, b := c.do(cmdResourceAssignUUID, id, 0)
		if resp != respOKResourceUUID || len(b) != 16 || b[6]>>4 != 4 || b[8]>>6 != 2 {
			t.Errorf("resource %d: response %#x, %x", id, resp, b)
		}
		ids[i] = b
	}
	if bytes.Equal(ids[0], ids[1]) || !bytes.Equal(ids[0], ids[2]) {
		t.Errorf("%x", ids)
	}
}

// Every mistake has its answer, and changes nothing.
func TestErrors(t *testing.T) {
	c := newCard(t, 2)
	c.create2D(1, formatB8G8R8X8, 100, 50, 3)
	c.createBlob(2, 400, 50, 1)
	c.must(cmdResourceCreate2D, 3, formatB8G8R8X8, 10, 10)
	c.must(cmdResourceDetachBacking, 2, 0)
	c.must(cmdResourceAttachBacking, 2, 1, []span{{0x1000, 20000}})
	c.must(cmdSetScanout, rect{0, 0, 100, 50}, 0, 1)
	const ones = 1<<32 - 1
	entry := []span{{0x1000, 400}}
	blob := func(r rect, w, h, format, stride, off int) []any {
		return []any{r, 1, 2, w, h, format, 0, stride, 0, 0, 0, off, 0, 0, 0}
	}
	one := rect{0, 0, 1, 1}
	for _, tt := range []struct {
		name string
		typ  uint32
		body []any
		want uint32
	}{
		{"no such command", 0x10e, nil, respErrUnspec},
		{"command of a renderer", 0x200, []any{make([]byte, 72)}, respErrUnspec},
		{"cursor command", cmdMoveCursor, []any{make([]byte, 32)}, respErrUnspec},
		{"a response", respOKNoData, nil, respErrUnspec},

		{"EDID of no scanout", cmdGetEDID, []any{2, 0}, respErrInvalidScanoutID},
		{"EDID of no scanout at all", cmdGetEDID, []any{ones, 0}, respErrInvalidScanoutID},
		{"EDID cut short", cmdGetEDID, []any{0}, respErrInvalidParameter},

		{"create 0", cmdResourceCreate2D, []any{0, 1, 1, 1}, respErrInvalidResourceID},
		{"create again", cmdResourceCreate2D, []any{1, 1, 1, 1}, respErrInvalidResourceID},
		{"create what is a blob", cmdResourceCreate2D, []any{2, 1, 1, 1}, respErrInvalidResourceID},
		{"create without width", cmdResourceCreate2D, []any{9, 1, 0, 1}, respErrInvalidParameter},
		{"create without height", cmdResourceCreate2D, []any{9, 1, 1, 0}, respErrInvalidParameter},
		{"create too wide", cmdResourceCreate2D, []any{9, 1, 16385, 1}, respErrInvalidParameter},
		{"create too high", cmdResourceCreate2D, []any{9, 1, 1, ones}, respErrInvalidParameter},
		{"create what overflows", cmdResourceCreate2D, []any{9, 1, 1 << 30, 1 << 30}, respErrInvalidParameter},
		{"create in no format", cmdResourceCreate2D, []any{9, 0, 1, 1}, respErrInvalidParameter},
		{"create in another format", cmdResourceCreate2D, []any{9, 5, 1, 1}, respErrInvalidParameter},
		{"create more than there is", cmdResourceCreate2D, []any{9, 1, 512, 512}, respErrOutOfMemory},
		{"create much more", cmdResourceCreate2D, []any{9, 1, 16384, 16384}, respErrOutOfMemory},

		{"unref nothing", cmdResourceUnref, []any{9, 0}, respErrInvalidResourceID},
		{"unref 0", cmdResourceUnref, []any{0, 0}, respErrInvalidResourceID},

		{"show on no scanout", cmdSetScanout, []any{one, 2, 1}, respErrInvalidScanoutID},
		{"show nothing on no scanout", cmdSetScanout, []any{rect{}, 2, 0}, respErrInvalidScanoutID},
		{"show nobody", cmdSetScanout, []any{one, 1, 9}, respErrInvalidResourceID},
		{"show no pixel", cmdSetScanout, []any{rect{0, 0, 0, 1}, 1, 1}, respErrInvalidParameter},
		{"show no row", cmdSetScanout, []any{rect{0, 0, 1, 0}, 1, 1}, respErrInvalidParameter},
		{"show too wide", cmdSetScanout, []any{rect{1, 0, 100, 50}, 1, 1}, respErrInvalidParameter},
		{"show too high", cmdSetScanout, []any{rect{0, 1, 100, 50}, 1, 1}, respErrInvalidParameter},
		{"show what wraps around", cmdSetScanout, []any{rect{ones, ones, 2, 2}, 1, 1}, respErrInvalidParameter},
		{"show a blob as 2D", cmdSetScanout, []any{one, 1, 2}, respErrInvalidParameter},

		{"flush nothing", cmdResourceFlush, []any{one, 9, 0}, respErrInvalidResourceID},
		{"flush outside", cmdResourceFlush, []any{rect{100, 0, 1, 1}, 1, 0}, respErrInvalidParameter},
		{"flush what wraps around", cmdResourceFlush, []any{rect{ones, 0, 1, 1}, 1, 0}, respErrInvalidParameter},

		{"transfer nothing", cmdTransferToHost2D, []any{one, uint64(0), 9, 0}, respErrInvalidResourceID},
		{"transfer outside", cmdTransferToHost2D, []any{rect{0, 50, 1, 1}, uint64(0), 1, 0}, respErrInvalidParameter},
		{"transfer from nowhere", cmdTransferToHost2D, []any{one, uint64(0), 3, 0}, respErrInvalidParameter},
		{"transfer from behind", cmdTransferToHost2D, []any{one, uint64(20001), 1, 0}, respErrInvalidParameter},
		{"transfer more than there is", cmdTransferToHost2D, []any{rect{0, 0, 100, 50}, uint64(4), 1, 0}, respErrInvalidParameter},
		{"transfer from far behind", cmdTransferToHost2D, []any{one, uint64(1<<64 - 1), 1, 0}, respErrInvalidParameter},
		{"transfer what wraps around", cmdTransferToHost2D, []any{rect{0, 0, 1, 50}, uint64(1<<64 - 49*400), 1, 0}, respErrInvalidParameter},

		{"attach to nothing", cmdResourceAttachBacking, []any{9, 1, entry}, respErrInvalidResourceID},
		{"attach again", cmdResourceAttachBacking, []any{1, 1, entry}, respErrUnspec},
		{"attach no entry", cmdResourceAttachBacking, []any{3, 0}, respErrInvalidParameter},
		{"attach an empty entry", cmdResourceAttachBacking, []any{3, 1, []span{{0x1000, 0}}}, respErrInvalidParameter},
		{"attach without entries", cmdResourceAttachBacking, []any{3, 1}, respErrInvalidParameter},
		{"attach with half an entry", cmdResourceAttachBacking, []any{3, 1, entry, 0, 0}, respOKNoData},
		{"attach too many", cmdResourceAttachBacking, []any{3, maxEntries + 1}, respErrUnspec}, // it has one by now
		{"detach", cmdResourceDetachBacking, []any{3, 0}, respOKNoData},
		{"attach far too many", cmdResourceAttachBacking, []any{3, ones, entry}, respErrOutOfMemory},
		{"attach less than it says", cmdResourceAttachBacking, []any{3, 2, entry}, respErrInvalidParameter},
		{"attach no memory", cmdResourceAttachBacking, []any{3, 1, []span{{virtiotest.MemSize - 8, 16}}}, respErrInvalidParameter},
		{"attach what wraps around", cmdResourceAttachBacking, []any{3, 2, []span{{1<<64 - 8, 8}, {0, 8}}}, respErrInvalidParameter},
		{"detach from nothing", cmdResourceDetachBacking, []any{9, 0}, respErrInvalidResourceID},
		{"detach what is not attached", cmdResourceDetachBacking, []any{3, 0}, respErrUnspec},

		{"UUID of nothing", cmdResourceAssignUUID, []any{9, 0}, respErrInvalidResourceID},

		{"blob 0", cmdResourceCreateBlob, []any{0, 1, 0, 1, uint64(0), uint64(400), entry}, respErrInvalidResourceID},
		{"blob again", cmdResourceCreateBlob, []any{1, 1, 0, 1, uint64(0), uint64(400), entry}, respErrInvalidResourceID},
		{"blob of the host", cmdResourceCreateBlob, []any{9, 2, 0, 1, uint64(0), uint64(400), entry}, respErrInvalidParameter},
		{"blob with strange flags", cmdResourceCreateBlob, []any{9, 1, 8, 1, uint64(0), uint64(400), entry}, respErrInvalidParameter},
		{"blob of nothing", cmdResourceCreateBlob, []any{9, 1, 0, 1, uint64(0), uint64(0), entry}, respErrInvalidParameter},
		{"blob larger than its memory", cmdResourceCreateBlob, []any{9, 1, 0, 1, uint64(0), uint64(401), entry}, respErrInvalidParameter},
		{"blob without memory", cmdResourceCreateBlob, []any{9, 1, 0, 0, uint64(0), uint64(1)}, respErrInvalidParameter},
		{"attach less than a blob", cmdResourceAttachBacking, []any{2, 1, entry}, respErrUnspec},

		{"show a blob on no scanout", cmdSetScanoutBlob, []any{one, 2, 2, make([]byte, 48)}, respErrInvalidScanoutID},
		{"show no blob", cmdSetScanoutBlob, []any{one, 0, 9, make([]byte, 48)}, respErrInvalidResourceID},
		{"show 2D as a blob", cmdSetScanoutBlob, []any{one, 0, 1, 100, 50, 2, 0, 400, make([]byte, 28)}, respErrInvalidParameter},
		{"blob shown outside", cmdSetScanoutBlob, blob(rect{100, 0, 1, 1}, 100, 50, 2, 400, 0), respErrInvalidParameter},
		{"blob shown nowhere", cmdSetScanoutBlob, blob(rect{}, 100, 50, 2, 400, 0), respErrInvalidParameter},
		{"blob in no format", cmdSetScanoutBlob, blob(one, 100, 50, 0, 400, 0), respErrInvalidParameter},
		{"blob with short rows", cmdSetScanoutBlob, blob(one, 100, 50, 2, 396, 0), respErrInvalidParameter},
		{"blob with odd rows", cmdSetScanoutBlob, blob(one, 99, 49, 2, 399, 0), respErrInvalidParameter},
		{"blob at an odd offset", cmdSetScanoutBlob, blob(one, 10, 10, 2, 400, 2), respErrInvalidParameter},
		{"blob behind its end", cmdSetScanoutBlob, blob(one, 100, 50, 2, 400, 4), respErrInvalidParameter},
		{"blob of many rows", cmdSetScanoutBlob, blob(one, 1, 16384, 2, ones-3, 0), respErrInvalidParameter},
		{"blob without a pixel", cmdSetScanoutBlob, blob(one, 0, 0, 2, 400, 0), respErrInvalidParameter},
		{"blob far too high", cmdSetScanoutBlob, blob(one, 1, ones, 2, 4, 0), respErrInvalidParameter},
		{"blob cut short", cmdSetScanoutBlob, blob(one, 1, 1, 2, 4, 0)[:12], respErrInvalidParameter},
	} {
		if got, _ := c.do(tt.typ, tt.body...); got != tt.want {
			t.Errorf("%s: response %#x, want %#x", tt.name, got, tt.want)
		}
	}
	check(t, c.d)
	if len(c.d.resources) != 3 {
		t.Errorf("%d resources", len(c.d.resources))
	}
	for i, want := range [][]string{{"show 100×50 XR24"}, nil} {
		if d := cmp.Diff(want, c.sinks[i].take()); d != "" {
			t.Errorf("screen %d: %s", i, d)
		}
	}
}

// A response that has no room for what it has to tell is an error that has.
func TestShortResponse(t *testing.T) {
	c := newCard(t, 1)
	for n, want := range map[int]uint32{24: respErrUnspec, 407: respErrUnspec, 408: respOKDisplayInfo, 409: respOKDisplayInfo} {
		if got := c.raw(head(cmdGetDisplayInfo), n); fields(got).u32(0) != want {
			t.Errorf("room for %d bytes: response %#x", n, fields(got).u32(0))
		}
	}
}

// What has no answer breaks the device.
func TestBroken(t *testing.T) {
	for name, chain := range map[string]struct {
		queue int
		make  func(c *card) []virtiotest.Desc
	}{
		"no room for a response": {controlQueue, func(c *card) []virtiotest.Desc { return []virtiotest.Desc{c.Out(head(0x100)), c.In(23)} }},
		"no response":            {controlQueue, func(c *card) []virtiotest.Desc { return []virtiotest.Desc{c.Out(head(0x100))} }},
		"half a header":          {controlQueue, func(c *card) []virtiotest.Desc { return []virtiotest.Desc{c.Out(head(0x100)[:23]), c.In(1000)} }},
		"no request":             {controlQueue, func(c *card) []virtiotest.Desc { return []virtiotest.Desc{c.In(1000)} }},
		"half a cursor":          {cursorQueue, func(c *card) []virtiotest.Desc { return []virtiotest.Desc{c.Out(make([]byte, 55))} }},
		"no cursor":              {cursorQueue, func(c *card) []virtiotest.Desc { return []virtiotest.Desc{c.In(55)} }},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCard(t, 1)
			c.Queues[chain.queue].Send(chain.make(c)...)
			if err := <-c.Broken; !virtio.IsProtocol(err) {
				t.Errorf("broken with %v", err)
			}
		})
	}
}

// A guest cannot make the host remember without end.
func TestLimits(t *testing.T) {
	c := newCard(t, 1)
	var resp uint32
	for id := 1; resp == 0 || resp == respOKNoData; id++ {
		if resp, _ = c.do(cmdResourceCreate2D, id, 1, 1, 1); id > maxResources+1 {
			t.Fatal("no end")
		}
	}
	if resp != respErrOutOfMemory || len(c.d.resources) != 256 { // a page each
		t.Errorf("response %#x after %d pictures", resp, len(c.d.resources))
	}
	c.must(cmdResourceUnref, 77, 0)
	c.must(cmdResourceCreate2D, 1000, 1, 32, 32)
	check(t, c.d)

	c = newCard(t, 1)
	resp = 0
	for id := 1; resp == 0 || resp == respOKNoData; id++ {
		resp, _ = c.do(cmdResourceCreateBlob, id, 1, 0, 1, uint64(0), uint64(1), []span{{0x1000, 1}})
	}
	if resp != respErrOutOfMemory || len(c.d.resources) != maxResources {
		t.Errorf("response %#x after %d blobs", resp, len(c.d.resources))
	}
	check(t, c.d)

	c = newCard(t, 1)
	var spans []span
	for i := range maxEntries {
		spans = append(spans, span{mem.GPA(0x1000 + 2*(i%1000)), 1})
	}
	resp = 0
	for id := 1; resp == 0 || resp == respOKNoData; id++ {
		resp, _ = c.do(cmdResourceCreateBlob, id, 1, 0, len(spans), uint64(0), uint64(1), spans)
	}
	if resp != respErrOutOfMemory || c.d.entries != maxTotalEntries {
		t.Errorf("response %#x after %d entries", resp, c.d.entries)
	}
	check(t, c.d)
}

// When the host has no memory, the guest is told, and what is shown stays.
func TestNoMemory(t *testing.T) {
	c := newCard(t, 1)
	c.d.newArena = func(int64) (*arena, error) { return nil, errors.New("a test") }
	for range 2 {
		if resp, _ := c.do(cmdResourceCreate2D, 1, 1, 1, 1); resp != respErrOutOfMemory {
			t.Errorf("response %#x", resp)
		}
	}
	c.d.newArena = heapArena
	b := c.createBlob(2, 4096, 300, 2) // more than all pictures may take up
	b.fill(image.Rect(0, 0, 1024, 10), 1)
	c.showBlob(0, 2, rect{0, 0, 1024, 10}, 1024, 300, 4096, 0)
	if resp := c.showBlob(0, 2, rect{0, 0, 1024, 300}, 1024, 300, 4096, 0); resp != respErrOutOfMemory {
		t.Errorf("response %#x", resp)
	}
	b.fill(image.Rect(0, 0, 1024, 10), 2)
	c.flush(2, rect{0, 0, 1024, 300})
	c.sinks[0].sees(blank(1024, 10).draw(image.Rect(0, 0, 1024, 10), image.Point{}, 2))
	check(t, c.d)
}

// Entries that adjoin are one piece.
func TestCoalesce(t *testing.T) {
	var b []byte
	for i := range 1000 {
		b = append(b, le(uint64(0x10000+i*0x1000), 0x1000, 0)...)
	}
	b = append(b, le(uint64(0x1000), 0x1000, 0, uint64(0x9000), 0, 0, uint64(0x2000), 0x800, 0, uint64(0x2808), 8, 0)...)
	c := newCard(t, 1)
	c.must(cmdResourceCreateBlob, 1, 1, 0, 1004, uint64(0), uint64(1), b)
	var got []span
	for _, p := range c.d.resources[1].backing.pieces {
		got = append(got, p.span)
	}
	want := []span{{0x10000, 1000 * 0x1000}, {0x1000, 0x1800}, {0x2808, 8}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(span{})); d != "" {
		t.Error(d)
	}
}

func TestCursor(t *testing.T) {
	c := newCard(t, 2)
	k := c.sinks[1]
	want := func(what string, calls ...string) {
		t.Helper()
		if d := cmp.Diff(calls, k.take()); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	b := c.create2D(1, formatB8G8R8A8, 64, 64, 2)
	b.fill(image.Rect(0, 0, 64, 64), 1)
	c.transfer(1, rect{0, 0, 64, 64}, 256)
	c.point(cmdUpdateCursor, 1, 100, 200, 1, 3, 4)
	want("first", "cursor 64×64 (3,4)", "move 103,204")
	if v := fields(k.cursor.Pixels).u32(4 * (64*9 + 5)); v != pixel(5, 9, 1) {
		t.Errorf("pixel %#x", v)
	}
	c.point(cmdMoveCursor, 1, -10, -20, 0, 9, 9)
	want("moved", "move -7,-16")
	c.must(cmdResourceUnref, 1, 0)
	c.point(cmdMoveCursor, 1, 1, 1, 1, 0, 0)
	want("its resource is gone", "move 4,5")
	c.point(cmdUpdateCursor, 1, 2, 2, 1, 0, 0)
	want("no such resource", "move 5,6")
	c.point(cmdUpdateCursor, 1, 7, 7, 0, 9, 9)
	want("hidden", "hide", "move 7,7")
	c.point(cmdUpdateCursor, 2, 7, 7, 0, 9, 9)
	c.point(cmdGetDisplayInfo, 1, 7, 7, 0, 9, 9)
	want("no such screen, no such command")
	if calls := c.sinks[0].take(); calls != nil {
		t.Errorf("the other screen: %q", calls)
	}

	// A blob is 64 × 64 pixels; what is larger than any cursor is none.
	blob := c.createBlob(2, 256, 64, 5)
	blob.fill(image.Rect(0, 0, 64, 64), 7)
	c.point(cmdUpdateCursor, 1, 0, 0, 2, 1000, 1<<32-1)
	want("blob", "cursor 64×64 (63,63)", "move 63,63")
	if v := fields(k.cursor.Pixels).u32(4 * (64*33 + 5)); v != pixel(5, 33, 7) {
		t.Errorf("pixel %#x", v)
	}
	c.createBlob(3, 256, 63, 5)
	c.must(cmdResourceCreate2D, 4, 1, 257, 1)
	for _, id := range []int{3, 4} {
		c.point(cmdUpdateCursor, 1, 1, 1, id, 0, 0)
		want("not a cursor", "move 64,64")
	}
}

// Cursors become ARGB, whatever they are.
func TestCursorFormats(t *testing.T) {
	c := newCard(t, 1)
	const b, g, r, a = 1, 2, 3, 4
	for format, bytes := range map[int][4]byte{
		formatB8G8R8A8: {b, g, r, a}, formatA8R8G8B8: {a, r, g, b}, formatR8G8B8A8: {r, g, b, a}, formatA8B8G8R8: {a, b, g, r},
		formatB8G8R8X8: {b, g, r, 0}, formatX8R8G8B8: {0, r, g, b}, formatR8G8B8X8: {r, g, b, 0}, formatX8B8G8R8: {0, b, g, r},
	} {
		want := uint32(a<<24 | r<<16 | g<<8 | b)
		if binary.LittleEndian.Uint32(bytes[:])>>24 == 0 || bytes[0] == 0 {
			want |= 0xff000000
		}
		buf := c.create2D(format, format, 2, 1, 1)
		buf.write(4, bytes[:])
		c.transfer(format, rect{0, 0, 2, 1}, 8)
		c.point(cmdUpdateCursor, 0, 0, 0, format, 0, 0)
		if got := fields(c.sinks[0].cursor.Pixels).u32(4); got != want {
			t.Errorf("format %d: %#x, want %#x", format, got, want)
		}
	}
}
