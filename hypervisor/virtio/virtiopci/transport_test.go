package virtiopci

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

const allSet = statusAcknowledge | statusDriver | statusFeaturesOK | statusDriverOK

// A driver initialises the device as virtio 1.2 §3.1 says and uses it, in every way in which one can reach it.
func TestDriver(t *testing.T) {
	for _, window := range []bool{false, true} {
		for _, withBells := range []bool{false, true} {
			for _, vectors := range []bool{false, true} {
				t.Run(fmt.Sprintf("window=%v,doorbells=%v,msix=%v", window, withBells, vectors), func(t *testing.T) {
					d := probe(newBoard(t, new(echo), withBells))
					d.window = window
					d.start(vectors)
					if v := d.status(); v != allSet {
						t.Fatalf("status %#x", v)
					}
					for i, q := range d.queues {
						for n := range 40 { // around both rings
							q.do(fmt.Sprintf("queue %d, request %d", i, n))
							if !vectors {
								eventually(t, "the pin", d.line.Level)
								if v := d.get(capISR, 0, 1); v != isrQueue {
									t.Fatalf("ISR status %#x", v)
								}
								if d.line.Level() || d.get(capISR, 0, 1) != 0 {
									t.Fatal("reading the ISR status does not clear it and the pin")
								}
							}
						}
						if vectors {
							eventually(t, "40 interrupts", func() bool { return d.interrupts(i+1) == 40 })
						}
					}
					if vectors && (d.line.Raised() != 0 || d.interrupts(0) != 0) {
						t.Errorf("the pin was raised %d times, the configuration's vector %d", d.line.Raised(), d.interrupts(0))
					}
				})
			}
		}
	}
}

func TestEventIndex(t *testing.T) {
	d := probe(newBoard(t, new(echo), false))
	d.negotiate(^uint64(0))
	d.setUp(false)
	d.setStatus(allSet)
	d.queues[0].do("used_event is 0")
	eventually(t, "the pin", d.line.Level)
	d.get(capISR, 0, 1)
	d.queues[0].do("used_event is still 0")
	d.queues[1].do("used_event is 0")
	eventually(t, "the pin", d.line.Level)
	if n := d.line.Raised(); n != 2 {
		t.Errorf("%d interrupts, want one for each queue", n)
	}
}

func TestFeatures(t *testing.T) {
	const own = 1<<3 | 1<<40
	d := probe(newBoard(t, &echo{features: own}, false))
	if got := d.offered(); got != own|virtio.CoreFeatures {
		t.Errorf("offered %#x", got)
	}
	d.put(capCommon, regDeviceFeatureSelect, 4, 2)
	if v := d.get(capCommon, regDeviceFeature, 4); v != 0 {
		t.Errorf("features 64 to 95 are %#x", v)
	}
	for _, tc := range []struct {
		accept uint64
		ok     bool
	}{
		{virtio.FeatureVersion1, true},
		{virtio.FeatureVersion1 | own, true},
		{virtio.CoreFeatures, true},
		{own, false},                              // a legacy driver
		{0, false},                                // the same
		{virtio.FeatureVersion1 | 1<<4, false},    // not offered
		{virtio.FeatureVersion1 | 1<<41, false},   // not offered
		{virtio.FeatureVersion1<<1 | 1<<3, false}, // not offered
	} {
		d.setStatus(0)
		d.setStatus(statusAcknowledge | statusDriver)
		d.accept(tc.accept)
		d.setStatus(statusAcknowledge | statusDriver | statusFeaturesOK)
		if got := d.status()&statusFeaturesOK != 0; got != tc.ok {
			t.Errorf("accepting %#x: FEATURES_OK is %v, want %v", tc.accept, got, tc.ok)
		}
		if tc.ok {
			d.accept(0) // too late
			if got := d.tr.driverFeatures; got != tc.accept {
				t.Errorf("features are %#x after FEATURES_OK, want %#x", got, tc.accept)
			}
		} else if d.setStatus(allSet); d.status()&(statusDriverOK|statusFeaturesOK) != 0 {
			t.Errorf("accepting %#x: status %#x", tc.accept, d.status())
		}
	}
}

func TestStatus(t *testing.T) {
	d := probe(newBoard(t, new(echo), false))
	for _, tc := range []struct{ write, want uint8 }{
		{statusAcknowledge, statusAcknowledge},
		{statusDriver, statusAcknowledge | statusDriver},                    // nothing is cleared but by a reset
		{statusDriverOK, statusAcknowledge | statusDriver},                  // not before FEATURES_OK
		{statusNeedsReset | 16 | 32, statusAcknowledge | statusDriver},      // not the driver's to set
		{statusFailed, statusAcknowledge | statusDriver | statusFailed},     // it gave up
		{statusFeaturesOK, statusAcknowledge | statusDriver | statusFailed}, // without VERSION_1
		{0, 0}, // reset
		{statusFeaturesOK | statusDriverOK | statusFailed | 0x30, statusFailed}, // all at once
	} {
		if d.setStatus(tc.write); d.status() != tc.want {
			t.Errorf("status %#x after writing %#x, want %#x", d.status(), tc.write, tc.want)
		}
	}
}

func TestQueueRegisters(t *testing.T) {
	d := probe(newBoard(t, new(echo), false))
	sel := func(i uint64) { d.put(capCommon, regQueueSelect, 2, i) }
	size := func() uint64 { return d.get(capCommon, regQueueSize, 2) }
	if n := d.get(capCommon, regNumQueues, 2); n != 2 {
		t.Errorf("%d queues", n)
	}
	sel(1)
	if n, v, off := size(), d.get(capCommon, regQueueVector, 2), d.get(capCommon, regQueueNotifyOff, 2); n != 16 || v != noVector || off != 1 {
		t.Errorf("queue 1: size %d, vector %#x, notify offset %d", n, v, off)
	}
	for _, n := range []uint64{0, 3, 32, 0xffff} {
		if d.put(capCommon, regQueueSize, 2, n); size() != 16 {
			t.Errorf("size %d after writing %d", size(), n)
		}
	}
	if d.put(capCommon, regQueueSize, 2, 8); size() != 8 {
		t.Errorf("size %d after writing 8", size())
	}
	for _, tc := range []struct{ write, want uint64 }{{2, 2}, {3, noVector}, {0, 0}, {0xfffe, noVector}, {1, 1}, {noVector, noVector}} {
		for _, reg := range []uint32{regQueueVector, regConfigVector} {
			if d.put(capCommon, reg, 2, tc.write); d.get(capCommon, reg, 2) != tc.want {
				t.Errorf("vector register %d reads %#x after %#x, want %#x", reg, d.get(capCommon, reg, 2), tc.write, tc.want)
			}
		}
	}
	for i, reg := range []uint32{regQueueDesc, regQueueDriver, regQueueDevice} {
		want := 0x1122334455667700 + uint64(i)
		d.put(capCommon, reg+4, 4, want>>32)
		d.put(capCommon, reg, 4, want&0xffffffff)
		d.put(capCommon, reg+2, 4, 0) // misaligned: ignored
		d.put(capCommon, reg, 2, 0)   // half a half: ignored
		if v := d.get(capCommon, reg, 8); v != want {
			t.Errorf("address register %d reads %#x, want %#x", reg, v, want)
		}
		d.put(capCommon, reg, 8, want+0x10)
		if lo, hi := d.get(capCommon, reg, 4), d.get(capCommon, reg+4, 4); hi<<32|lo != want+0x10 {
			t.Errorf("address register %d reads %#x and %#x", reg, lo, hi)
		}
	}
	d.put(capCommon, regQueueEnable, 2, 2)
	if d.get(capCommon, regQueueEnable, 2) != 0 {
		t.Error("enabled by something else than 1")
	}
	d.put(capCommon, regQueueEnable, 2, 1)
	d.put(capCommon, regQueueEnable, 2, 0)
	d.put(capCommon, regQueueSize, 2, 4)
	d.put(capCommon, regQueueDesc, 4, 0)
	if on, n, desc := d.get(capCommon, regQueueEnable, 2), size(), d.get(capCommon, regQueueDesc, 8); on != 1 || n != 8 || desc != 0x1122334455667710 {
		t.Errorf("an enabled queue changed: enabled %d, size %d, descriptors %#x", on, n, desc)
	}
	sel(2)
	for reg := uint32(regQueueSize); reg < commonSize; reg += 2 {
		d.put(capCommon, reg, 2, 1)
		if v := d.get(capCommon, reg, 2); v != 0 {
			t.Errorf("register %d of a queue that is not there reads %#x", reg, v)
		}
	}
	d.setStatus(0)
	sel(1)
	if on, n, v, desc := d.get(capCommon, regQueueEnable, 2), size(), d.get(capCommon, regQueueVector, 2), d.get(capCommon, regQueueDesc, 8); on != 0 || n != 16 || v != noVector || desc != 0 {
		t.Errorf("after a reset: enabled %d, size %d, vector %#x, descriptors %#x", on, n, v, desc)
	}
	// The rest of the BAR: nothing answers, nothing happens.
	for _, off := range []uint64{commonSize, commonOff + commonSize - 1, 0x7f8, isrOff + 1, notifyOff, pbaOff + 8} {
		d.write(d.bar+off, 4, 0xffffffff)
		if v := d.read(d.bar+off, 4); v != 0 {
			t.Errorf("offset %#x reads %#x", off, v)
		}
	}
}

func TestDeviceConfiguration(t *testing.T) {
	e := &echo{cfg: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}
	d := probe(newBoard(t, e, false))
	if a, b, c := d.get(capDevice, 1, 1), d.get(capDevice, 4, 4), d.get(capDevice, 8, 4); a != 2 || b != 0x08070605 || c != 0 {
		t.Errorf("read %#x, %#x, %#x", a, b, c)
	}
	d.put(capDevice, 4, 2, 0xbbaa)
	if v := d.get(capDevice, 0, 8); v != 0x0807bbaa04030201 {
		t.Errorf("after a write: %#x", v)
	}
	d.put(capDevice, deviceSize-4, 4, 1)
	if v := d.get(capDevice, deviceSize-4, 4); v != 0 {
		t.Errorf("the end reads %#x", v)
	}
}

func TestConfigurationChanges(t *testing.T) {
	for _, vectors := range []bool{false, true} {
		t.Run(fmt.Sprintf("msix=%v", vectors), func(t *testing.T) {
			e := new(echo)
			d := probe(newBoard(t, e, false))
			d.start(vectors)
			generation := d.get(capCommon, regGeneration, 1)
			e.setConfig([8]byte{9})
			e.current().ConfigChanged()
			if v := d.get(capCommon, regGeneration, 1); v == generation {
				t.Error("the generation did not change")
			}
			if vectors {
				if d.interrupts(0) != 1 || d.line.Raised() != 0 {
					t.Errorf("%d messages, the pin was raised %d times", d.interrupts(0), d.line.Raised())
				}
				return
			}
			d.queues[0].do("both causes at once")
			eventually(t, "both causes", func() bool { d.tr.intx.Lock(); defer d.tr.intx.Unlock(); return d.tr.isr == isrQueue|isrConfig })
			if v := d.get(capISR, 0, 1); v != isrQueue|isrConfig {
				t.Errorf("ISR status %#x", v)
			}
		})
	}
}

// A driver resets the device while requests are under way: when the write returns, nothing touches its memory any more.
func TestResetWhileBusy(t *testing.T) {
	e := &echo{gate: make(chan struct{})}
	d := probe(newBoard(t, e, true))
	before := runtime.NumGoroutine()
	for range 20 {
		d.start(true)
		for _, q := range d.queues {
			q.offer("never answered")
			q.kick()
		}
		eventually(t, "both requests wait", func() bool { return e.waiting.Load() == 2 })
		d.setStatus(0)
		if n := e.waiting.Load(); n != 0 {
			t.Fatalf("%d requests are under way after the reset", n)
		}
		for _, q := range d.queues {
			if q.done() != 0 {
				t.Fatal("a request was answered after the reset")
			}
		}
		if a := d.bells.addresses(); len(a) != 0 {
			t.Fatalf("doorbells are bound after the reset: %#x", a)
		}
	}
	eventually(t, "all workers ended", func() bool { return runtime.NumGoroutine() <= before })
	close(e.gate)
	d.start(true)
	d.queues[0].do("and it works again")
}

// A device touches no memory and sends no message while the guest does not let it be bus master.
func TestBusMaster(t *testing.T) {
	d := probe(newBoard(t, new(echo), true))
	master := func(on bool) {
		cmd := uint64(pci.CommandMemory)
		if on {
			cmd |= pci.CommandMaster
		}
		d.write(config(pci.Command), 2, cmd)
	}
	master(false)
	d.start(true)
	for i, change := range []func(){
		func() {}, // it is off when the driver starts
		func() { master(false) },
		func() {
			master(false)
			if err := errors.Join(d.tr.Pause(), d.tr.Resume()); err != nil {
				t.Error(err)
			}
		},
	} {
		change()
		q := d.queues[0]
		q.offer("wait for it")
		q.kick()
		d.tr.configChanged()
		time.Sleep(5 * time.Millisecond)
		if q.done() != 0 || d.interrupts(0) != i || d.interrupts(1) != i {
			t.Errorf("%d requests done and %d and %d interrupts without the bus, want 0, %d and %d",
				q.done(), d.interrupts(0), d.interrupts(1), i, i)
		}
		master(true)
		eventually(t, "the request is done", func() bool { return q.done() == 1 })
		eventually(t, "both interrupts", func() bool { return d.interrupts(0) == i+1 && d.interrupts(1) == i+1 })
		q.seen++
	}
}

// What was pending for one driver is no interrupt of the next.
func TestResetForgetsInterrupts(t *testing.T) {
	d := probe(newBoard(t, new(echo), false))
	d.start(true)
	d.write(config(d.msixCap+2), 2, 0xc000) // the function is masked
	d.queues[0].do("unheard")
	eventually(t, "the pending bit", func() bool { return d.read(d.bar+pbaOff, 8) == 1<<1 })
	d.setStatus(0)
	d.write(config(d.msixCap+2), 2, 0x8000)
	if n := len(d.msi.Last().Sent()); n != 0 {
		t.Errorf("%d interrupts after the reset", n)
	}
}

// A driver that breaks the rules finds DEVICE_NEEDS_RESET and an interrupt, and can start over.
func TestNeedsReset(t *testing.T) {
	for name, spoil := range map[string]func(d *driver){
		"available index": func(d *driver) { d.setUp(true); d.queues[1].setAvailable(999); d.setStatus(allSet); d.queues[1].kick() },
		"descriptors outside memory": func(d *driver) {
			d.put(capCommon, regConfigVector, 2, 0)
			d.put(capCommon, regQueueSelect, 2, 0)
			d.put(capCommon, regQueueDesc, 4, memSize)
			d.put(capCommon, regQueueEnable, 2, 1)
			d.setStatus(allSet)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := probe(newBoard(t, new(echo), true))
			d.enableMSIX()
			d.negotiate(^uint64(0))
			spoil(d)
			eventually(t, "the configuration's interrupt", func() bool { return d.interrupts(0) == 1 })
			if v := d.status(); v != allSet|statusNeedsReset {
				t.Errorf("status %#x", v)
			}
			// A pause does not bring it back to life.
			if err := d.tr.Pause(); err != nil {
				t.Fatal(err)
			}
			if err := d.tr.Resume(); err != nil {
				t.Fatal(err)
			}
			if d.tr.running {
				t.Error("a broken device runs after a pause")
			}
			d.start(true)
			d.queues[0].do("alive")
			d.queues[1].do("and kicking")
		})
	}
}

// A device that cannot start is broken, is not stopped, and can start after a reset.
func TestStartFails(t *testing.T) {
	e := &echo{fails: errors.New("the host says no")}
	d := probe(newBoard(t, e, true))
	d.enableMSIX()
	d.negotiate(^uint64(0))
	d.setUp(true)
	d.setStatus(allSet)
	if v := d.status(); v != allSet|statusNeedsReset {
		t.Errorf("status %#x", v)
	}
	if err := errors.Join(d.tr.Pause(), d.tr.Resume()); err != nil {
		t.Error(err)
	}
	d.setStatus(0)
	e.fails = nil
	d.start(true)
	d.queues[0].do("alive")
}

// The doorbells follow the BAR while the driver may kick, and only then.
func TestDoorbells(t *testing.T) {
	d := probe(newBoard(t, new(echo), true))
	want := func(when string, addrs ...uint64) {
		t.Helper()
		if diff := cmp.Diff(addrs, d.bells.addresses()); diff != "" {
			t.Errorf("%s: bound (-want +got)\n%s", when, diff)
		}
	}
	want("before the driver started")
	d.start(true)
	want("running", barBase+notifyOff, barBase+notifyOff+notifyStep)
	d.queues[0].do("by doorbell")
	const elsewhere = 0xd0000000
	d.write(config(pci.BAR0), 4, elsewhere)
	d.bar = elsewhere
	want("moved", elsewhere+notifyOff, elsewhere+notifyOff+notifyStep)
	d.queues[0].do("by doorbell")
	d.write(config(pci.Command), 2, 0)
	want("decoding off")
	d.write(config(pci.Command), 2, pci.CommandMemory|pci.CommandMaster)
	want("decoding on", elsewhere+notifyOff, elsewhere+notifyOff+notifyStep)
	d.queues[1].offer("by the register, for a width that no doorbell matches")
	d.write(d.bar+uint64(d.queues[1].notify), 4, 1)
	d.queues[1].take()
	d.setStatus(0)
	want("reset")
	if len(d.bells.errs) != 0 {
		t.Error(d.bells.errs)
	}
}

func TestNotifyNobody(t *testing.T) {
	d := probe(newBoard(t, new(echo), false))
	for off := uint64(0); off < notifySize; off += 2 {
		d.write(d.bar+notifyOff+off, 2, 0)
	}
	d.start(false)
	for off := uint64(0); off < notifySize; off += 2 {
		d.write(d.bar+notifyOff+off, 2, 0)
	}
	d.queues[0].do("fine")
}

func TestWindow(t *testing.T) {
	d := probe(newBoard(t, new(echo), false))
	d.start(false)
	d.queues[0].do("sets the ISR status")
	eventually(t, "the pin", d.line.Level)
	data := config(d.pciCap + 16)
	for _, tc := range []struct {
		name        string
		bar, at, n  uint64
		addr, width uint64
	}{
		{"another register", 1, isrOff, 1, data, 1},
		{"another width", 0, isrOff, 1, data, 4},
		{"a width that no access has", 0, isrOff, 3, data, 1},
		{"misaligned", 0, regNumQueues - 1, 2, data, 2},
		{"outside", 0, barSize, 1, data, 1},
		{"far outside", 0, 0xffffffff, 1, data, 1},
		{"not at the data's start", 0, isrOff, 1, data + 1, 1},
	} {
		d.write(config(d.pciCap+4), 1, tc.bar)
		d.write(config(d.pciCap+8), 4, tc.at)
		d.write(config(d.pciCap+12), 4, tc.n)
		d.write(tc.addr, int(tc.width), 0xffffffff)
		if v := d.read(tc.addr, int(tc.width)); v != 0 || !d.line.Level() {
			t.Errorf("%s: read %#x, and the pin is %v", tc.name, v, d.line.Level())
		}
	}
	d.window = true
	if v := d.get(capISR, 0, 1); v != isrQueue || d.line.Level() {
		t.Errorf("ISR status %#x, and the pin is %v", v, d.line.Level())
	}
}

// Several vCPUs use everything at once; the race detector looks on.
func TestConcurrent(t *testing.T) {
	d := probe(newBoard(t, new(echo), true))
	d.start(true)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for cpu := range 2 {
		wg.Go(func() {
			for i := uint64(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				d.read(barBase+i*4%barSize, 4)
				d.write(barBase+notifyOff+i%4*4, 2, i)
				d.read(config(int(i*4%256)), 4)
				d.write(barBase+tableOff+12+16*(i%3), 4, i&1)
				d.write(config(pci.Command), 2, pci.CommandMemory|pci.CommandMaster|i&uint64(cpu)<<10)
			}
		})
	}
	for range 30 {
		d.setStatus(0)
		d.negotiate(^uint64(0))
		d.setUp(true)
		d.setStatus(allSet)
		for _, q := range d.queues {
			q.do("hello")
		}
		if err := d.tr.Pause(); err != nil {
			t.Error(err)
		}
		if err := d.tr.Resume(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestTransportAllocations(t *testing.T) {
	d := probe(newBoard(t, &virtiotest.Func{Sizes: []uint16{64, 16}}, false))
	d.start(false)
	p := make([]byte, 4)
	for name, f := range map[string]func(){
		"status":       func() { d.mmio.Read(0, barBase+regStatus, p[:1]) },
		"notification": func() { d.mmio.Write(0, barBase+notifyOff, p[:2]) },
		"ISR status":   func() { d.mmio.Read(0, barBase+isrOff, p[:1]) },
		"interrupt":    func() { d.tr.interruptQueue(&d.tr.queues[0]) },
		"window":       func() { d.mmio.Read(0, config(d.pciCap+16), p) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(&virtiotest.Func{Sizes: make([]uint16, pci.MaxVectors)}, Config{Name: "many"}); err == nil {
		t.Error("a device with more queues than vectors was made")
	}
	if _, err := New(new(echo), Config{Name: "pin", Pin: 9}); err == nil {
		t.Error("a device with interrupt pin 9 was made")
	}
}
