package virtiogpu

import (
	"encoding/binary"
	"fmt"
	"image"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/vgpu/display"
)

// nobody is a viewer that does not look.
type nobody struct{ updates int }

func (*nobody) Scanout(*display.Surface) {}
func (k *nobody) Update(image.Rectangle) { k.updates++ }
func (*nobody) Cursor(*display.Cursor)   {}
func (*nobody) MoveCursor(p image.Point) {}

func TestFlushAllocatesNothing(t *testing.T) {
	c := newCard(t, 2)
	detach := c.d.cfg.Screens[0].Attach(&nobody{})
	defer detach()
	for _, k := range c.sinks {
		k.calls = make([]string, 0, 10)
	}
	c.create2D(1, formatB8G8R8X8, 64, 64, 30)
	c.createBlob(2, 256, 64, 30)
	c.must(cmdSetScanout, rect{0, 0, 64, 64}, 0, 1)
	c.showBlob(1, 2, rect{0, 0, 64, 64}, 64, 64, 256, 0)
	q := c.Queues[controlQueue]
	in := c.In(headerSize)
	transfer := c.Out(append(head(cmdTransferToHost2D), le(rect{5, 5, 20, 20}, uint64(5*256+20), 1, 0)...))
	flush := c.Out(append(head(cmdResourceFlush), le(rect{5, 5, 20, 20}, 1, 0)...))
	flushBlob := c.Out(append(head(cmdResourceFlush), le(rect{5, 5, 20, 20}, 2, 0)...))
	move := c.Out(append(head(cmdMoveCursor), le(0, 1, 2, 0, 0, 0, 0, 0)...))
	quiet(c.d)
	if n := testing.AllocsPerRun(500, func() {
		q.Do(transfer, in)
		q.Do(flush, in)
		q.Do(flushBlob, in)
		c.Queues[cursorQueue].Do(move)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// quiet replaces the viewers of d, which remember what they see, by one that does not.
func quiet(d *Device) {
	for i := range d.scanouts {
		s := display.NewScreen(testMonitor)
		s.Attach(&nobody{})
		d.scanouts[i].screen, d.cfg.Screens[i] = s, s
		s.Scanout(d.scanouts[i].surface)
	}
}

// desk is a card in a guest with 64 MiB, in a file as guests have it that share their memory.
type desk struct {
	b      testing.TB
	d      *Device
	m      *mem.Memory
	env    *virtio.Env
	viewer nobody
	ring   []byte // descriptors, then the available and the used ring
	idx    uint16
}

const ringSize = 256

func newDesk(b testing.TB) *desk {
	m, err := mem.Alloc([]mem.Range{{Base: 0, Size: 64 << 20}}, mem.AllocOptions{})
	if err != nil {
		b.Fatal(err)
	}
	k := &desk{b: b, m: m}
	screen := display.NewScreen(testMonitor)
	screen.Attach(&k.viewer)
	if k.d, err = New(Config{Blob: true, Screens: []*display.Screen{screen}}); err != nil {
		b.Fatal(err)
	}
	kick, err := virtio.NewEventFD("benchmark")
	if err != nil {
		b.Fatal(err)
	}
	cfg := virtio.Config{Size: ringSize, Desc: 0, Avail: 0x2000, Used: 0x3000}
	q, err := virtio.NewQueue(0, m, cfg, virtio.FeatureEventIdx, kick, func() {})
	if err != nil {
		b.Fatal(err)
	}
	if k.ring, err = m.Slice(0, 0x4000); err != nil {
		b.Fatal(err)
	}
	k.env = &virtio.Env{Mem: m, Features: k.d.Features(), Queues: []*virtio.Queue{q, nil}, ConfigChanged: func() {},
		Broken: func(err error) { b.Error(err) }}
	if err := k.d.Start(k.env); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		k.env.Stop(k.d)
		k.d.Reset()
		kick.Close()
		m.Close()
	})
	return k
}

func (k *desk) word(off int) *uint32 { return (*uint32)(unsafe.Pointer(&k.ring[off])) }

// do executes commands, which request returned, in one go, as drivers batch them.
func (k *desk) do(requests ...mem.GPA) {
	le := binary.LittleEndian
	for i, r := range requests {
		at := 32 * i
		le.PutUint64(k.ring[at:], uint64(r))
		le.PutUint32(k.ring[at+8:], uint32(requestSize))
		le.PutUint16(k.ring[at+12:], 1)
		le.PutUint16(k.ring[at+14:], uint16(2*i+1))
		le.PutUint64(k.ring[at+16:], 0x8000)
		le.PutUint32(k.ring[at+24:], headerSize)
		le.PutUint16(k.ring[at+28:], 2)
		le.PutUint16(k.ring[0x2000+4+2*int(k.idx%ringSize):], uint16(2*i))
		k.idx++
	}
	atomic.StoreUint32(k.word(0x2000), uint32(k.idx)<<16)
	k.env.Queues[0].Kick()
	for deadline := time.Now().Add(time.Minute); uint16(atomic.LoadUint32(k.word(0x3000))>>16) != k.idx; {
		if time.Now().After(deadline) {
			k.b.Fatal("no answer")
		}
	}
	p, err := k.m.Slice(0x8000, 4)
	if err != nil || le.Uint32(p) != respOKNoData {
		k.b.Fatalf("response %#x", le.Uint32(p))
	}
}

const requestSize = 64 << 10 // bytes of a request, most of them beyond its end

// request puts a command into the guest's memory and returns its address.
func (k *desk) request(n int, typ uint32, body ...any) mem.GPA {
	at := mem.GPA(0x10000 + n*requestSize)
	if err := k.m.WriteAt(append(head(typ), le(body...)...), at); err != nil {
		k.b.Fatal(err)
	}
	return at
}

const (
	benchWidth, benchHeight = 1920, 1080
	benchSize               = 4 * benchWidth * benchHeight
	benchBase               = 16 << 20
)

// memory returns the spans of a buffer: in one piece, or in pages of which no two adjoin.
func memory(scattered bool) (spans []span) {
	if !scattered {
		return []span{{benchBase, benchSize}}
	}
	for i := range (benchSize + mem.PageSize - 1) / mem.PageSize {
		spans = append(spans, span{mem.GPA(benchBase + (i*1237%4096)*2*mem.PageSize), mem.PageSize})
	}
	return spans
}

// BenchmarkUpdate measures TRANSFER_TO_HOST_2D with RESOURCE_FLUSH, from the kick to the answer.
func BenchmarkUpdate(b *testing.B) {
	for _, scattered := range []bool{false, true} {
		for _, r := range []rect{{0, 0, benchWidth, benchHeight}, {300, 200, 256, 256}, {10, 10, 16, 16}} {
			b.Run(fmt.Sprintf("%dx%d/scattered=%t", r.w, r.h, scattered), func(b *testing.B) {
				k := newDesk(b)
				spans := memory(scattered)
				k.do(k.request(0, cmdResourceCreate2D, 1, formatB8G8R8X8, benchWidth, benchHeight))
				k.do(k.request(0, cmdResourceAttachBacking, 1, len(spans), spans))
				k.do(k.request(0, cmdTransferToHost2D, rect{0, 0, benchWidth, benchHeight}, uint64(0), 1, 0))
				k.do(k.request(0, cmdSetScanout, rect{0, 0, benchWidth, benchHeight}, 0, 1))
				offset := uint64(r.y)*4*benchWidth + 4*uint64(r.x)
				transfer := k.request(0, cmdTransferToHost2D, r, offset, 1, 0)
				flush := k.request(1, cmdResourceFlush, r, 1, 0)
				b.SetBytes(4 * int64(r.w) * int64(r.h))
				b.ReportAllocs()
				n := k.viewer.updates
				for b.Loop() {
					k.do(transfer, flush)
				}
				if k.viewer.updates == n {
					b.Error("nobody was told")
				}
			})
		}
	}
}

// BenchmarkBlob measures RESOURCE_FLUSH of a blob in scattered pages: where they can be shared there is no copy.
func BenchmarkBlob(b *testing.B) {
	for _, shared := range []bool{false, true} {
		b.Run(fmt.Sprintf("shared=%t", shared), func(b *testing.B) {
			k := newDesk(b)
			if shared {
				k.d.cfg.Share = (&sharer{t: b}).make
			}
			spans := memory(true)
			k.do(k.request(0, cmdResourceCreateBlob, 1, blobMemGuest, 2, len(spans), uint64(0), uint64(benchSize), spans))
			all := rect{0, 0, benchWidth, benchHeight}
			k.do(k.request(0, cmdSetScanoutBlob, all, 0, 1, benchWidth, benchHeight, formatB8G8R8X8, 0, 4*benchWidth, 0, 0, 0, 0, 0, 0, 0))
			flush := k.request(0, cmdResourceFlush, all, 1, 0)
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				k.do(flush)
			}
		})
	}
}

// BenchmarkAttach measures what a new buffer in single pages costs.
func BenchmarkAttach(b *testing.B) {
	k := newDesk(b)
	spans := memory(true)
	k.do(k.request(0, cmdResourceCreate2D, 1, formatB8G8R8X8, benchWidth, benchHeight))
	attach := k.request(0, cmdResourceAttachBacking, 1, len(spans), spans)
	detach := k.request(1, cmdResourceDetachBacking, 1, 0)
	b.ReportAllocs()
	for b.Loop() {
		k.do(attach, detach)
	}
}
