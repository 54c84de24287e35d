package virtiogpu

import (
	"errors"
	"slices"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
	"github.com/lodgehv/lodge/vgpu/display"
	"github.com/lodgehv/lodge/vgpu/dmabuf"
	"github.com/lodgehv/lodge/vgpu/dmabuf/dmabuftest"
)

// sharer stands for /dev/udmabuf: what it makes is mapped as a dmabuf is, but its file is none.
type sharer struct {
	t    testing.TB
	fail error
	made int
}

func (k *sharer) make(ranges []dmabuf.Range) (*dmabuf.Buffer, error) {
	k.t.Helper()
	if k.fail != nil {
		return nil, k.fail
	}
	buf, err := dmabuftest.Make(ranges)
	if err != nil {
		k.t.Fatal(err)
	}
	k.made++
	return buf, nil
}

// shareCard is a card in a guest whose memory has a file, and that can share it.
type shareCard struct {
	*card
	sharer *sharer
	m      *mem.Memory
}

func newShareCard(t testing.TB) *shareCard {
	t.Helper()
	c := &shareCard{card: &card{sinks: []*recorder{{t: t}}}, sharer: &sharer{t: t}}
	var err error
	if c.m, err = mem.Alloc([]mem.Range{{Base: 0, Size: 1 << 20}, {Base: 1 << 32, Size: 1 << 20}}, mem.AllocOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.m.Close() })
	c.d = newDevice(t, c.sinks...)
	c.d.newArena = newArena
	c.d.cfg.Share = c.sharer.make
	c.Rig = virtiotest.New(t, c.d, 0)
	c.d.mem = c.m
	return c
}

// pages makes a blob of rows of 512 bytes, whose pages are those of the guest's memory.
func (c *shareCard) pages(id int, gpas ...mem.GPA) {
	c.T.Helper()
	var spans []span
	for _, g := range gpas {
		spans = append(spans, span{g, mem.PageSize})
	}
	c.must(cmdResourceCreateBlob, id, blobMemGuest, 2, len(spans), uint64(0), uint64(len(spans)*mem.PageSize), spans)
}

// show has scanout 0 show all of a blob that pages has made.
func (c *shareCard) show(id, pages int) {
	c.T.Helper()
	if resp := c.showBlob(0, id, rect{0, 0, 128, uint32(8 * pages)}, 128, 8*pages, 512, 0); resp != respOKNoData {
		c.T.Fatalf("response %#x", resp)
	}
}

func (c *shareCard) surface() (s *display.Surface) {
	c.d.cfg.Screens[0].Snapshot(func(f *display.Surface) { s = f })
	return s
}

// A blob in scattered pages is shown where it is: what the guest draws is there at once, and no memory of the host is used.
func TestShare(t *testing.T) {
	c := newShareCard(t)
	gpas := []mem.GPA{0x5000, 1<<32 + 0x3000, 0x4000}
	c.pages(1, gpas...)
	c.show(1, 3)
	s := c.surface()
	if s.DMABuf == nil || s.File != nil || s.Stride != 512 {
		t.Fatalf("dmabuf %v, file %v, stride %d", s.DMABuf, s.File, s.Stride)
	}
	for i, g := range gpas {
		if err := c.m.WriteAt(le(1000+i), g+4); err != nil {
			t.Fatal(err)
		}
		if got := fields(s.Pixels[i*mem.PageSize:]).u32(4); got != uint32(1000+i) {
			t.Errorf("page %d has %d", i, got)
		}
	}
	c.flush(1, rect{1, 2, 3, 4})
	if got := c.sinks[0].take(); !slices.Equal(got, []string{"show 128×24 XR24", "update 1,2 3×4"}) {
		t.Errorf("%q", got)
	}
	if c.d.arena != nil {
		t.Error("memory of the host was used")
	}

	c.pages(2, 0x8000, 0x9000, 0xa000) // the guest draws into two in turn
	for range 3 {
		c.show(2, 3)
		c.show(1, 3)
	}
	if c.sharer.made != 2 {
		t.Errorf("%d dmabufs were made", c.sharer.made)
	}
	c.must(cmdResourceUnref, 1, 0)
	if len(c.d.shared) != 1 || c.surface() != nil {
		t.Errorf("%d dmabufs are kept, something is shown: %t", len(c.d.shared), c.surface() != nil)
	}
	c.must(cmdResourceDetachBacking, 2, 0)
	if len(c.d.shared) != 0 {
		t.Errorf("%d dmabufs are kept", len(c.d.shared))
	}
}

// What cannot be shared is copied; the guest's memory itself is given to nobody.
func TestNotShared(t *testing.T) {
	for name, show := range map[string]func(c *shareCard){
		"refused": func(c *shareCard) {
			c.sharer.fail = errors.New("too many ranges")
			c.pages(1, 0x5000, 0x7000)
			c.show(1, 2)
		},
		"in one piece": func(c *shareCard) {
			c.d.cfg.Share = nil
			c.pages(1, 0x5000, 0x6000)
			c.show(1, 2)
		},
		"not from its start": func(c *shareCard) {
			c.pages(1, 0x5000, 0x7000)
			if resp := c.showBlob(0, 1, rect{0, 0, 128, 8}, 128, 8, 512, 4096); resp != respOKNoData {
				c.T.Fatalf("response %#x", resp)
			}
		},
		"no whole pages": func(c *shareCard) {
			c.must(cmdResourceCreateBlob, 1, blobMemGuest, 2, 1, uint64(0), uint64(4096), []span{{0x5010, 4096}})
			c.show(1, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newShareCard(t)
			show(c)
			s := c.surface()
			if s.DMABuf != nil || s.File == nil || s.File == c.m.Regions()[0].File {
				t.Errorf("dmabuf %v, file %v", s.DMABuf, s.File)
			}
		})
	}
}

// A guest cannot have the host keep more than a few dmabufs, and not more of its memory than pictures may have.
func TestSharedBounds(t *testing.T) {
	c := newShareCard(t)
	for id := 1; id <= 20; id++ {
		c.pages(id, mem.GPA(0x5000+0x1000*id))
		c.show(id, 1)
		if n := len(c.d.shared); n > maxShared+1 {
			t.Fatalf("%d dmabufs are kept", n)
		}
	}
	if s := c.surface(); s.DMABuf == nil {
		t.Error("the last one is copied")
	}
	c.show(1, 1) // which was given up
	if c.sharer.made != 21 {
		t.Errorf("%d were made", c.sharer.made)
	}
	c.d.cfg.MaxBytes = 4 * mem.PageSize
	c.pages(30, 0x40000, 0x42000)
	c.show(30, 2)
	if n := len(c.d.shared); n > 3 || c.surface().DMABuf == nil {
		t.Errorf("%d dmabufs are kept", n)
	}
	c.pages(31, 0x50000, 0x52000, 0x54000, 0x56000)
	if resp := c.showBlob(0, 31, rect{0, 0, 128, 32}, 128, 32, 512, 0); resp != respOKNoData || c.surface().DMABuf != nil {
		t.Errorf("one that is too large: response %#x, shared: %t", resp, c.surface().DMABuf != nil)
	}
	c.Stop()
	c.d.Reset()
	if len(c.d.shared) != 0 {
		t.Errorf("%d dmabufs after a reset", len(c.d.shared))
	}
}
