// Package virtioinput is the virtio input device (virtio 1.2 §5.8): a keyboard, a mouse, a tablet or a touch screen, whose
// events are Linux's. It is the sink of what a person does, and tells which lights the guest's keyboard driver wants.
//
// A report reaches the driver whole, with one EV_SYN at its end, or not at all. While the driver has no buffers, reports
// wait, and motion that no longer finds room is dropped, the oldest first. What a driver has seen pressed is always seen
// released: the device remembers what is down as far as the driver knows, through pauses and in saved states.
package virtioinput

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// The queues, virtio 1.2 §5.8.2.
const (
	eventQueue  = 0
	statusQueue = 1
)

// eventSize is the size of struct virtio_input_event, virtio 1.2 §5.8.6.
const eventSize = 8

// Config is what a device needs beside its kind.
type Config struct {
	Serial string // tells two devices of a kind apart, up to 63 bytes; may be empty
	// Changed is called after Active has changed, LEDs when the driver has changed the lights. Both may be nil. They are
	// called without a lock of the device's, but they hold up its driver: they do not wait for anything.
	Changed func()
	LEDs    func(hid.LEDs)
}

// Device is an input device. It is a hid.Sink, whose methods may be called at any time from any goroutine.
type Device struct {
	kind    Kind
	cfg     Config
	arrived chan struct{} // capacity 1: there may be a report in the FIFO

	mu     sync.Mutex
	config config
	active bool          // between Start and Stop, if the driver has an eventq
	queue  *virtio.Queue // the eventq, while active
	held   int           // buffers that deliver waits with: for more, or for a report
	parked bool          // it waits for a report: the eventq and its chains belong to who has mu
	stop   chan struct{} // closed by Stop; nil while stopped
	slot   int32         // that the last AbsMTSlot of the sender named
	taken  pressed       // after all reports of the FIFO
	seen   pressed       // after those that were delivered
	report report        // being made of a batch
	fifo   fifo
	leds   hid.LEDs
	told   hid.LEDs // what Config.LEDs was called with

	// Of the eventq's goroutine, unless it is parked.
	chains [maxReport]virtio.Chain
	free   [maxReport]*virtio.Chain // the chains; the first of them hold buffers of the driver's

	status virtio.Chain // of the statusq's goroutine
}

// New returns a device of the given kind.
func New(kind Kind, cfg Config) (*Device, error) {
	if kind < 0 || int(kind) >= len(kinds) {
		return nil, fmt.Errorf("input device: there is no kind %d", kind)
	}
	if len(cfg.Serial) > 63 {
		return nil, fmt.Errorf("input device: serial %q is longer than 63 bytes", cfg.Serial)
	}
	d := &Device{kind: kind, cfg: cfg, arrived: make(chan struct{}, 1)}
	for i := range d.chains {
		d.free[i] = &d.chains[i]
	}
	return d, nil
}

// Send implements hid.Sink. It takes what the device has of the batch, and nothing while the driver is not active.
func (d *Device) Send(batch []hid.Event) {
	d.mu.Lock()
	if d.active {
		d.take(batch)
	}
	d.unlockAndWake()
}

// ReleaseAll releases every key, button and contact that is down. When the person lets go of one later, the driver does
// not hear of it.
func (d *Device) ReleaseAll() {
	d.mu.Lock()
	if d.active {
		d.release()
	}
	d.unlockAndWake()
}

// unlockAndWake delivers what is in the FIFO, which has changed, or has deliver do it. If that waits for the driver's next kick
// although the first report, which is another one now, needs no more buffers than there are, it gets one.
func (d *Device) unlockAndWake() {
	if d.active && d.parked && d.deliverNow() {
		d.mu.Unlock()
		return
	}
	var q *virtio.Queue
	if d.active && !d.parked && d.held > 0 && d.need() <= d.held {
		q = d.queue
	}
	d.mu.Unlock()
	signal(d.arrived)
	if q != nil {
		q.Kick()
	}
}

// deliverNow does what deliver would be woken for, which takes longer than this, and reports whether that was all. What is wrong
// with the ring deliver will find as well.
func (d *Device) deliverNow() bool {
	defer d.queue.Flush()
	for need := d.need(); need > 0; need = d.need() {
		for ; d.held < need; d.held++ {
			if c := d.free[d.held]; !next(d.queue, c) {
				return false
			}
		}
		d.fill(need)
	}
	return true
}

// next takes a buffer that has room for an event, if there is one.
func next(q *virtio.Queue, c *virtio.Chain) bool {
	ok, err := q.Next(c)
	if ok && c.Writable() < eventSize {
		q.Undo(1)
		ok = false
	}
	return ok && err == nil
}

// Active reports whether a driver takes events.
func (d *Device) Active() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.active
}

// ID returns virtio.IDInput.
func (*Device) ID() virtio.DeviceID { return virtio.IDInput }

// Features returns none: the device type has none (§5.8.3).
func (*Device) Features() uint64 { return 0 }

// QueueSizes returns the sizes of eventq and statusq.
func (*Device) QueueSizes() []uint16 { return []uint16{maxReport, 64} }

// ReadConfig reads what select and subsel ask for.
func (d *Device) ReadConfig(off uint32, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	virtio.ConfigAt(d.config[:], off, p)
}

// WriteConfig writes select and subsel; the rest is the device's.
func (d *Device) WriteConfig(off uint32, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, b := range p {
		if at := uint64(off) + uint64(i); at <= cfgSubsel {
			d.config[at] = b
		}
	}
	d.config.fill(d.kind, d.cfg.Serial)
}

// Start begins to serve both queues. What the driver knows as down from before is released: a person may have let go
// of it while nobody listened.
func (d *Device) Start(env *virtio.Env) error {
	d.mu.Lock()
	stop := make(chan struct{})
	d.stop = stop
	d.queue = env.Queues[eventQueue]
	d.active = d.queue != nil
	d.held, d.parked = 0, false
	d.fifo.clear()
	d.taken = d.seen
	d.release()
	d.mu.Unlock()
	env.Serve(eventQueue, func(q *virtio.Queue) error {
		err := d.deliver(q, stop)
		if err != nil { // broken until its driver resets it
			d.deactivate()
		}
		return err
	})
	env.Serve(statusQueue, d.listen)
	d.tell()
	d.changed()
	return nil
}

// Stop makes the handlers return. What has not been delivered is lost.
func (d *Device) Stop() {
	d.mu.Lock()
	if d.stop == nil {
		d.mu.Unlock()
		return
	}
	close(d.stop)
	d.stop, d.active = nil, false
	d.fifo.clear()
	d.mu.Unlock()
	d.changed()
}

// Reset forgets what the driver knows as down, and which lights it wants.
func (d *Device) Reset() {
	d.mu.Lock()
	d.config = config{}
	d.taken, d.seen, d.leds = pressed{}, pressed{}, 0
	d.mu.Unlock()
	d.tell()
}

// StateVersion returns 1.
func (*Device) StateVersion() uint16 { return 1 }

// State carries what the driver selected, what it knows as down, and its lights.
func (d *Device) State(c *snap.Codec) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.Match("kind of input device", uint64(d.kind))
	c.U8(&d.config[cfgSelect])
	c.U8(&d.config[cfgSubsel])
	d.config.fill(d.kind, d.cfg.Serial)
	leds, slot := uint8(d.leds), uint32(d.seen.slot)
	c.U8(&leds)
	for i := range d.seen.keys {
		c.U64(&d.seen.keys[i])
	}
	c.U16(&d.seen.contacts)
	c.U32(&slot)
	if leds > uint8(hid.LEDNum|hid.LEDCaps|hid.LEDScroll) {
		c.Fail("lights %#x, which no keyboard has", leds)
	}
	for code := range d.seen.keys.All() {
		if !kinds[d.kind].hasKey(code) {
			c.Fail("%s is down, which the device does not have", hid.KeyName(code))
		}
	}
	if slot >= Slots || d.seen.contacts >= 1<<Slots {
		c.Fail("slot %d, contacts %#x: there are %d slots", slot, d.seen.contacts, Slots)
		slot = 0
	}
	d.leds, d.seen.slot = hid.LEDs(leds), int32(slot)
}

// deactivate takes nothing any more.
func (d *Device) deactivate() {
	d.mu.Lock()
	d.active = false
	d.fifo.clear()
	d.mu.Unlock()
	d.changed()
}

func (d *Device) changed() {
	if d.cfg.Changed != nil {
		d.cfg.Changed()
	}
}

// tell says which lights the driver wants, if that has changed. The transport and the statusq's goroutine call it, which
// never run at the same time.
func (d *Device) tell() {
	d.mu.Lock()
	leds := d.leds
	news := leds != d.told
	d.told = leds
	d.mu.Unlock()
	if news && d.cfg.LEDs != nil {
		d.cfg.LEDs(leds)
	}
}

// deliver puts reports into the driver's buffers, one event into each (§5.8.6). It returns only to stop: the buffers wait for
// reports here, not in Wait.
func (d *Device) deliver(q *virtio.Queue, stop <-chan struct{}) error {
	held := 0 // buffers that were taken and not used
	for {
		switch need := d.next(&held); {
		case need == 0:
			select {
			case <-d.arrived:
				d.unpark(&held)
			case <-stop:
				d.unpark(&held)
				q.Undo(held)
				return nil
			}
		case held < need:
			c := d.free[held]
			ok, err := q.Next(c)
			if err != nil {
				return err
			}
			if ok {
				if c.Writable() < eventSize {
					return virtio.Protocolf("buffer of %d bytes in eventq, where an event has %d", c.Writable(), eventSize)
				}
				held++
			} else if !q.Wait() {
				q.Undo(held)
				return nil
			}
		}
	}
}

// next delivers the first report with the buffers that are held, if they are enough, and returns how many the next one needs. If
// there is none, deliver is parked from now on.
func (d *Device) next(held *int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = *held
	for need := d.need(); need > 0 && need <= d.held; need = d.need() {
		d.fill(need)
		d.queue.Flush()
	}
	*held = d.held
	need := d.need()
	d.parked = need == 0
	return need
}

// unpark takes the eventq back.
func (d *Device) unpark(held *int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.parked, *held = false, d.held
}

// need returns how many buffers the first report needs: as many as it has events, but a driver with a shorter queue than
// that gets it in pieces.
func (d *Device) need() int { return min(len(d.fifo.first()), d.queue.Size()) }

// fill delivers the first n events of the FIFO with the first buffers that are held.
func (d *Device) fill(n int) {
	for i, e := range d.fifo.events[:n] {
		var b [eventSize]byte
		binary.LittleEndian.PutUint16(b[0:], e.Type)
		binary.LittleEndian.PutUint16(b[2:], e.Code)
		binary.LittleEndian.PutUint32(b[4:], uint32(e.Value))
		_, _ = d.free[i].Write(b[:]) // it has room
		d.seen.apply(e)
	}
	d.fifo.drop(n)
	d.queue.DoneAll(d.free[:n])
	// The chains that were used go behind those that are still held.
	var used [maxReport]*virtio.Chain
	copy(used[:], d.free[:n])
	copy(d.free[:], d.free[n:d.held])
	d.held -= n
	copy(d.free[d.held:], used[:n])
}

// listen takes the driver's events: which lights are on. How fast keys are repeated is the driver's own affair.
func (d *Device) listen(q *virtio.Queue) error {
	c := &d.status
	for {
		ok, err := q.Next(c)
		if !ok || err != nil {
			return err
		}
		var b [eventSize]byte
		if _, err := c.Read(b[:]); err != nil {
			return virtio.Protocolf("buffer without an event in statusq: %v", err)
		}
		q.Done(c)
		typ, code := binary.LittleEndian.Uint16(b[0:]), binary.LittleEndian.Uint16(b[2:])
		if typ == hid.EVLED && code <= hid.LEDScrollL && d.kind == Keyboard {
			d.light(hid.LEDs(1)<<code, binary.LittleEndian.Uint32(b[4:]) != 0)
			d.tell()
		}
	}
}

func (d *Device) light(led hid.LEDs, on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leds &^= led; on {
		d.leds |= led
	}
}

// signal leaves a token in a channel of capacity 1 unless there is one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
