package vhostuser

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

const (
	queueSize = 256
	maxQueues = 64
)

// Options says how a guest sees the disk.
type Options struct {
	Queues   int  // at most; 0 is 1. The back end may serve less
	ReadOnly bool // the guest must not be able to write: refused unless the back end sees to it
}

// Device is a virtio block device of a Backend.
type Device struct {
	b        *Backend
	features uint64
	queues   int

	// What follows is guarded by b.mu.
	env     *virtio.Env // while started
	calls   []int       // eventfds of the queues' interrupts, or -1
	ran     bool        // the driver was served before: what it and the back end told each other meanwhile may be lost
	pending *buffer     // where the back end keeps its requests in flight, if it does; from the first Start to Reset
	failed  error       // why the back end could not be stopped in order
	cancel  context.CancelFunc
	watched chan struct{} // closed when watch has returned
}

// buffer is a piece of memory of the back end's, which we keep for its successor and never look at.
type buffer struct {
	inflight
	fd int
}

// New returns a disk of b. There may be one at a time that is started.
func New(b *Backend, opt Options) (*Device, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if opt.ReadOnly && b.features&featureRO == 0 {
		return nil, fmt.Errorf("disk %s: the back end would let the guest write: have it export the image read-only", b.cfg.Name)
	}
	d := &Device{b: b, features: b.features & passed, queues: min(max(opt.Queues, 1), b.queues)}
	d.calls = make([]int, d.queues)
	if d.queues == 1 {
		d.features &^= featureMQ
	}
	return d, nil
}

// ID returns virtio.IDBlock.
func (*Device) ID() virtio.DeviceID { return virtio.IDBlock }

// Features returns what the back end offers.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes has an entry for every request queue.
func (d *Device) QueueSizes() []uint16 {
	sizes := make([]uint16, d.queues)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sizes
}

// ReadConfig reads struct virtio_blk_config, virtio 1.2 §5.2.4, as the back end told it.
func (d *Device) ReadConfig(off uint32, p []byte) {
	c := *d.b.config.Load()
	binary.LittleEndian.PutUint16(c[configNumQueues:], uint16(d.queues))
	virtio.ConfigAt(c[:], off, p)
}

// WriteConfig does nothing: writeback, the only writable field, is not offered.
func (*Device) WriteConfig(uint32, []byte) {}

// limit is how long the steps of a start or a stop may take together.
func (d *Device) limit() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 2*d.b.cfg.Timeout)
}

// Start has the back end serve the queues. If it is away and was there before, it is waited for, should it come back.
func (d *Device) Start(env *virtio.Env) error {
	// Memory that is being restored would look empty to another process.
	if err := env.Mem.WaitFilled(context.Background()); err != nil {
		return err
	}
	b := d.b
	b.mu.Lock()
	defer b.mu.Unlock()
	ctx, cancel := d.limit()
	defer cancel()
	d.env, b.dev = env, d
	copy(d.calls, env.Calls)
	if d.ran && !b.conn.alive() {
		if err := d.mayReconnect(); err != nil {
			d.env, b.dev = nil, nil
			return err
		}
	}
	if err := d.begin(ctx); err != nil {
		wait := d.ran && !b.conn.alive() // what a back end that is there does not do, it will not do later
		b.conn.fail(err)                 // it may have begun half of it
		if !wait {
			d.env, b.dev = nil, nil
			return fmt.Errorf("disk %s: %w", b.cfg.Name, err)
		}
		b.cfg.Log.Warn("disk waits for its back end", "disk", b.cfg.Name, "err", err)
	}
	d.ran, d.failed = true, nil
	watch, stop := context.WithCancel(context.Background())
	d.cancel, d.watched = stop, make(chan struct{})
	go d.watch(watch, env)
	return nil
}

// begin connects if need be and starts all queues at their positions, with b locked.
func (d *Device) begin(ctx context.Context) error {
	b, env := d.b, d.env
	if err := b.connect(ctx); err != nil {
		return err
	}
	c := b.conn
	if err := c.set(ctx, setFeatures, u64(env.Features|featureProtocol)); err != nil {
		return err
	}
	if b.features&featureConfigWCE != 0 {
		// A driver that cannot flush is to find every write on the disk when it is done (virtio 1.2 §5.2.6.2).
		writeback := byte(0)
		if env.Has(featureFlush) {
			writeback = 1
		}
		if err := c.set(ctx, setConfig, configRange(configWriteback, []byte{writeback})); err != nil {
			return err
		}
	}
	if err := b.share(ctx, env.Mem); err != nil {
		return err
	}
	if err := d.trackRequests(ctx); err != nil {
		return err
	}
	for i, q := range env.Queues {
		if q != nil {
			if err := d.beginQueue(ctx, i, q); err != nil {
				return err
			}
		}
	}
	if !c.ack {
		if _, err := c.getU64(ctx, getFeatures); err != nil { // an answer means that what was sent before is done
			return err
		}
	}
	for i, q := range env.Queues {
		if q != nil && d.ran {
			// One too many does no harm, and one that got lost stops the disk.
			q.Kick()
			signal(d.calls[i])
		}
	}
	return nil
}

// trackRequests gives the back end the buffer for requests in flight, and gets it first if there is none.
func (d *Device) trackRequests(ctx context.Context) error {
	b, c := d.b, d.b.conn
	if b.protocol&protocolInflight == 0 {
		return nil
	}
	if d.pending == nil {
		m, err := c.ask(ctx, getInflightFD, 0, inflight{queues: uint16(d.queues), queueLen: queueSize}.payload())
		if err != nil {
			return err
		}
		f, err := parseInflight(m.payload)
		if err == nil && len(m.fds) != 1 {
			err = fmt.Errorf("%d descriptors instead of one", len(m.fds))
		}
		if err != nil {
			m.close()
			return c.checked(getInflightFD, err)
		}
		f.queues, f.queueLen = uint16(d.queues), queueSize
		d.pending = &buffer{f, m.fds[0]}
	}
	return c.set(ctx, setInflightFD, d.pending.payload(), d.pending.fd)
}

func (d *Device) beginQueue(ctx context.Context, i int, q *virtio.Queue) error {
	cfg := q.Config()
	for _, m := range []struct {
		request request
		payload []byte
		fds     []int
	}{
		{setVringNum, vringState(i, uint32(cfg.Size)), nil},
		{setVringBase, vringState(i, uint32(q.Position())), nil},
		{setVringAddr, vringAddr(i, uint64(cfg.Desc)+userBase, uint64(cfg.Used)+userBase, uint64(cfg.Avail)+userBase), nil},
		{setVringCall, vringFD(i), []int{d.calls[i]}},
		{setVringKick, vringFD(i), []int{q.KickFD()}},
		{setVringEnable, vringState(i, 1), nil},
	} {
		if err := d.b.conn.set(ctx, m.request, m.payload, m.fds...); err != nil {
			return err
		}
	}
	return nil
}

// SetCall has queue interrupt by another eventfd from now on.
func (d *Device) SetCall(queue, call int) {
	b := d.b
	b.mu.Lock()
	defer b.mu.Unlock()
	d.calls[queue] = call
	if d.env == nil || d.env.Queues[queue] == nil || !b.conn.alive() {
		return // begin will see to it
	}
	ctx, cancel := d.limit()
	defer cancel()
	_ = b.conn.set(ctx, setVringCall, vringFD(queue), call) // if it fails the connection is over, as watch will see
}

// signal signals an eventfd. It fails only while 2⁶⁴−2 signals are pending.
func signal(fd int) {
	if fd >= 0 {
		_, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// Times between attempts to reach a back end that went away.
const (
	minDelay = 50 * time.Millisecond
	maxDelay = 2 * time.Second
)

// watch waits for the back end to go away, and then for it to come back if no request gets lost by that.
func (d *Device) watch(ctx context.Context, env *virtio.Env) {
	b := d.b
	defer close(d.watched)
	for {
		b.mu.Lock()
		c := b.conn
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-c.gone:
		}
		b.mu.Lock()
		err := d.lost()
		b.mu.Unlock()
		if err != nil {
			env.Broken(err)
			return
		}
		b.cfg.Log.Warn("disk waits for its back end", "disk", b.cfg.Name, "err", c.err)
		for delay := minDelay; ; delay = min(2*delay, maxDelay) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(delay):
			}
			again, err := d.resume(ctx)
			if err != nil {
				env.Broken(err)
				return
			}
			if again {
				break
			}
		}
		b.cfg.Log.Info("disk has its back end again", "disk", b.cfg.Name)
	}
}

// resume begins where the driver has seen the back end stop, and returns whether it could. The error is lost's.
func (d *Device) resume(ctx context.Context) (bool, error) {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*d.b.cfg.Timeout)
	defer cancel()
	err := d.begin(ctx)
	if err == nil {
		return true, nil
	}
	d.b.conn.fail(err)
	return false, d.lost()
}

// mayReconnect says whether the back end, which has gone away, has taken with it what the guest believes is written.
func (d *Device) mayReconnect() error {
	if b := d.b; !b.cfg.Reconnect && b.features&featureRO == 0 {
		return fmt.Errorf("disk %s: what the guest had not flushed may be lost: %w: restart the guest", b.cfg.Name, b.conn.err)
	}
	return nil
}

// lost sets the queues' positions after the connection has ended, with b locked. The error says that requests are lost: of
// those that the driver waits for the back end has done some, in whatever order, and nobody knows which. As long as it has
// done none, all can be done again.
func (d *Device) lost() error {
	if err := d.mayReconnect(); err != nil {
		return err
	}
	for i, q := range d.env.Queues {
		if q == nil {
			continue
		}
		used := q.UsedIndex()
		if d.pending == nil && used != q.AvailIndex() && used != q.Position() {
			return fmt.Errorf("disk %s: requests of queue %d are lost: %w", d.b.cfg.Name, i, d.b.conn.err)
		}
		q.SetPosition(used)
	}
	return nil
}

// Stop has the back end finish what the driver has asked for, and stop.
func (d *Device) Stop() {
	b := d.b
	b.mu.Lock()
	cancel, watched := d.cancel, d.watched
	b.mu.Unlock()
	if cancel == nil {
		return
	}
	cancel()
	<-watched
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn.alive() {
		ctx, cancel := d.limit()
		defer cancel()
		if err := d.end(ctx); err != nil {
			b.conn.fail(err)
			if !errors.Is(b.conn.err, errHungUp) { // it is there, and may write to the guest's memory still
				d.failed = err
			}
		}
	}
	if !b.conn.alive() {
		if err := d.lost(); err != nil {
			d.env.Broken(err)
		}
	}
	if d.failed == nil {
		d.failed = d.unfinished()
	}
	d.env, d.cancel, b.dev = nil, nil, nil
}

// unfinished says whether requests in flight wait for the back end's successor.
func (d *Device) unfinished() error {
	for _, q := range d.env.Queues {
		if q != nil && !d.b.conn.alive() && d.pending != nil && q.UsedIndex() != q.AvailIndex() {
			return fmt.Errorf("its back end is away with requests begun: start it again: %w", d.b.conn.err)
		}
	}
	return nil
}

// end stops all queues, with b locked. Back ends are known that answer GET_VRING_BASE while requests are in flight, and then
// fail at interrupting for them: so first the driver's requests run out, if they do.
func (d *Device) end(ctx context.Context) error {
	drain, cancel := context.WithTimeout(ctx, d.b.cfg.Timeout)
	defer cancel()
	for _, q := range d.env.Queues {
		if q != nil {
			q.Kick() // for those that the driver has not told of yet
			_ = d.until(drain, func() bool { return q.UsedIndex() == q.AvailIndex() })
		}
	}
	for i, q := range d.env.Queues {
		if q == nil {
			continue
		}
		var base uint16
		err := d.b.conn.get(ctx, getVringBase, vringState(i, 0), func(p []byte) (err error) {
			base, err = parseBase(p, i)
			return err
		})
		if err != nil {
			return err
		}
		if !d.until(ctx, func() bool { return q.UsedIndex() == base }) {
			return fmt.Errorf("the back end has stopped queue %d with %d requests in flight", i, base-q.UsedIndex())
		}
		q.SetPosition(base)
	}
	return nil
}

// until waits until done, and returns whether it was before ctx or the connection ended.
func (d *Device) until(ctx context.Context, done func() bool) bool {
	for wait := 10 * time.Microsecond; !done(); wait = min(2*wait, 5*time.Millisecond) {
		select {
		case <-ctx.Done():
			return false
		case <-d.b.conn.gone:
			return false
		case <-time.After(wait):
		}
	}
	return true
}

// Reset forgets the driver's requests.
func (d *Device) Reset() {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	d.ran, d.failed = false, nil
	if d.pending != nil {
		_ = unix.Close(d.pending.fd)
		d.pending = nil
	}
}

// StateVersion returns 1.
func (*Device) StateVersion() uint16 { return 1 }

// State checks that the disk has the size that the guest knows. All requests are done when the device has stopped, or saving
// fails. Whether the image was written to since then is the business of whoever keeps it: we do not see it.
func (d *Device) State(c *snap.Codec) {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	if !c.Loading() && d.failed != nil {
		c.Fail("disk %s: %w", d.b.cfg.Name, d.failed)
	}
	c.Match("disk "+d.b.cfg.Name+": capacity in sectors", binary.LittleEndian.Uint64(d.b.config.Load()[:]))
	c.Match("disk "+d.b.cfg.Name+": queues", uint64(d.queues))
	c.Bool(&d.ran)
}
