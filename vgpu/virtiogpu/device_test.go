package virtiogpu

import (
	"bytes"
	"image"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
	"github.com/lodgehv/lodge/vgpu/display"
	"github.com/lodgehv/lodge/vgpu/edid"
)

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, func(t testing.TB) virtio.Device { return newDevice(t, &recorder{t: t}, &recorder{t: t}) })
}

func TestNew(t *testing.T) {
	screen := display.NewScreen(testMonitor)
	for name, cfg := range map[string]Config{
		"no screen":    {},
		"17 screens":   {Screens: make([]*display.Screen, 17)},
		"little":       {Screens: []*display.Screen{screen}, MaxBytes: 4095},
		"very much":    {Screens: []*display.Screen{screen}, MaxBytes: maxArena + 1},
		"less than no": {Screens: []*display.Screen{screen}, MaxBytes: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// config reads the configuration.
func (c *card) config() fields {
	b := make([]byte, configSize)
	c.d.ReadConfig(0, b)
	return b
}

func TestConfig(t *testing.T) {
	c := newCard(t, 3)
	if d := cmp.Diff(le(0, 0, 3, 0), []byte(c.config())); d != "" {
		t.Error(d)
	}
}

func TestDisplayInfo(t *testing.T) {
	c := newCard(t, 2)
	m := testMonitor
	m.X, m.Y, m.Connected = 640, 7, false
	c.d.cfg.Screens[1].SetMonitor(m)
	resp, got := c.do(cmdGetDisplayInfo)
	want := append(le(rect{0, 0, 640, 480}, 1, 0, rect{640, 7, 640, 480}, 0, 0), make([]byte, 14*24)...)
	if d := cmp.Diff(want, got); d != "" || resp != respOKDisplayInfo {
		t.Errorf("response %#x\n%s", resp, d)
	}
}

func (c *card) edid(scanout int) []byte {
	c.T.Helper()
	resp, b := c.do(cmdGetEDID, scanout, 0)
	if resp != respOKEDID || len(b) != edidSize {
		c.T.Fatalf("response %#x with %d bytes", resp, len(b))
	}
	return b[8 : 8+fields(b).u32(0)]
}

// A change of the monitor is an interrupt and an event, which the driver clears; the driver then reads another EDID.
func TestMonitor(t *testing.T) {
	c := newCard(t, 2)
	screen, m := c.d.cfg.Screens[1], testMonitor
	m.Serial++
	if !bytes.Equal(c.edid(1), edid.Encode(m)) || !bytes.Equal(c.edid(0), edid.Encode(testMonitor)) {
		t.Error("EDIDs are not the monitors'")
	}
	for _, change := range []struct {
		name string
		do   func()
		want []byte
	}{
		{"resized", func() { m.Width, m.Height = 5120, 2880 }, edid.Encode(display.Monitor{
			Width: 5120, Height: 2880, WidthMM: 300, HeightMM: 200, Name: "Test", Serial: 8})},
		{"unplugged", func() { m.Connected = false }, []byte{}},
		{"plugged in", func() { m = testMonitor }, edid.Encode(testMonitor)},
	} {
		change.do()
		screen.SetMonitor(m)
		select {
		case <-c.Changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: no interrupt", change.name)
		}
		if e := c.config().u32(configEventsRead); e != eventDisplay {
			t.Errorf("%s: events %#x", change.name, e)
		}
		c.d.WriteConfig(configEventsClear, le(eventDisplay))
		if e := c.config().u32(configEventsRead); e != 0 {
			t.Errorf("%s: events %#x after they were cleared", change.name, e)
		}
		if d := cmp.Diff(change.want, c.edid(1)); d != "" {
			t.Errorf("%s: EDID\n%s", change.name, d)
		}
	}
	screen.SetMonitor(m)
	if len(c.Changed) > 0 {
		t.Error("an interrupt for nothing")
	}
}

// What changes during a pause is told after it; a pause alone is no news.
func TestMonitorWhilePaused(t *testing.T) {
	c := newCard(t, 1)
	c.Stop()
	c.Start()
	if len(c.Changed) > 0 || c.config().u32(configEventsRead) != 0 {
		t.Error("a pause changes the configuration")
	}
	c.Stop()
	c.d.cfg.Screens[0].SetMonitor(display.Monitor{})
	if len(c.Changed) > 0 {
		t.Error("an interrupt from a stopped device")
	}
	c.Start()
	if len(c.Changed) != 1 || c.config().u32(configEventsRead) != eventDisplay {
		t.Error("no news after the pause")
	}
	c.Stop()
	c.d.Reset()
	c.d.cfg.Screens[0].SetMonitor(testMonitor)
	c.Start()
	if len(c.Changed) != 1 || c.config().u32(configEventsRead) != 0 {
		t.Error("a new driver, which asks by itself, is told")
	}
}

func TestReset(t *testing.T) {
	c := newCard(t, 2)
	b := c.create2D(1, formatB8G8R8X8, 64, 64, 1)
	b.fill(image.Rect(0, 0, 64, 64), 1)
	c.transfer(1, rect{0, 0, 64, 64}, 256)
	c.must(cmdSetScanout, rect{0, 0, 64, 64}, 0, 1)
	c.point(cmdUpdateCursor, 0, 1, 2, 1, 3, 4)
	c.Stop()
	c.sinks[0].take()
	c.d.Reset()
	if d := cmp.Diff([]string{"off", "hide"}, c.sinks[0].take()); d != "" {
		t.Error(d)
	}
	if calls := c.sinks[1].take(); calls != nil {
		t.Errorf("a screen that nobody used is told %q", calls) // firmware may show something there
	}
	c.Start()
	check(t, c.d)
	if resp, _ := c.do(cmdResourceUnref, 1, 0); resp != respErrInvalidResourceID {
		t.Errorf("unref of a resource from before the reset: %#x", resp)
	}
}

// Without the features, their commands are not known.
func TestFeatures(t *testing.T) {
	d := newDevice(t, &recorder{t: t})
	c := &card{Rig: virtiotest.New(t, d, d.Features()), d: d}
	for _, cmd := range []uint32{cmdGetEDID, cmdResourceAssignUUID, cmdResourceCreateBlob, cmdSetScanoutBlob} {
		if resp, _ := c.do(cmd, make([]byte, 100)); resp != respErrUnspec {
			t.Errorf("command %#x: response %#x", cmd, resp)
		}
	}
}

// Everything at once: viewers that come, look and go, monitors that change, registers that are read.
func TestConcurrent(t *testing.T) {
	c := newCard(t, 2)
	b := c.create2D(1, formatB8G8R8X8, 64, 64, 3)
	blob := c.createBlob(2, 256, 64, 3)
	c.must(cmdSetScanout, rect{0, 0, 64, 64}, 0, 1)
	if resp := c.showBlob(1, 2, rect{0, 0, 64, 64}, 64, 64, 256, 0); resp != respOKNoData {
		t.Fatalf("response %#x", resp)
	}
	var wg sync.WaitGroup
	others := func(i int) {
		for _, s := range c.d.cfg.Screens {
			wg.Go(func() {
				m := testMonitor
				m.Width += i
				s.SetMonitor(m)
			})
			wg.Go(func() {
				k := &recorder{t: t}
				detach := s.Attach(k)
				s.Snapshot(func(f *display.Surface) {
					if f != nil {
						k.Scanout(f)
					}
				})
				detach()
			})
		}
		wg.Go(func() {
			c.d.ReadConfig(0, make([]byte, 16))
			c.d.WriteConfig(configEventsClear, le(1))
		})
	}
	for i := range 100 {
		others(i)
		b.fill(image.Rect(0, 0, 64, 8), i)
		c.transfer(1, rect{0, 0, 64, 8}, 256)
		c.flush(1, rect{0, 0, 64, 8})
		c.point(cmdUpdateCursor, i%2, i, i, 1, 0, 0)
		blob.fill(image.Rect(0, 0, 64, 8), i)
		c.flush(2, rect{0, 0, 64, 8})
		c.do(cmdGetDisplayInfo)
		if i%10 == 0 {
			c.Stop()
			c.Start()
		}
	}
	wg.Wait()
	c.sinks[0].sees(blank(64, 64).draw(image.Rect(0, 0, 64, 8), image.Point{}, 99))
	c.sinks[1].sees(blank(64, 64).draw(image.Rect(0, 0, 64, 8), image.Point{}, 99))
}
