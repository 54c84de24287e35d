package virtiogpu

import (
	"image"
	"testing"

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
