package virtiopci

import (
	"sync/atomic"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// SnapID implements snap.Component.
func (t *Transport) SnapID() string { return t.cfg.Name }

// SnapVersion implements snap.Component: the version of the transport's state. The device's own is inside.
func (t *Transport) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (t *Transport) Pause() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused = true
	return t.adjust()
}

// Resume implements snap.Component. A device that is broken stays stopped until its driver resets it.
func (t *Transport) Resume() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.paused = false
	return t.adjust()
}

// State implements snap.Component.
func (t *Transport) State(c *snap.Codec) {
	t.fn.State(c)
	t.mu.Lock()
	defer t.mu.Unlock()
	c.Match("device type", uint64(t.dev.ID()))
	c.Match("number of queues", uint64(len(t.queues)))
	status, generation := t.status.Load(), t.generation.Load()
	c.U32(&status)
	c.U32(&generation)
	t.vectorState(c, &t.configVector)
	c.U32(&t.deviceSelect)
	c.U32(&t.driverSelect)
	c.U64(&t.driverFeatures)
	c.U16(&t.queueSelect)
	t.intx.Lock()
	c.U8(&t.isr)
	t.intx.Unlock()
	if status&^(statusOfDriver|statusNeedsReset) != 0 || status&statusDriverOK != 0 && status&statusFeaturesOK == 0 {
		c.Fail("device status %#x, which no device has", status)
	}
	if status&statusFeaturesOK != 0 && !t.featuresFit() {
		c.Fail("the guest uses features %#x, and this device offers %#x: the host or the definition has changed",
			t.driverFeatures, t.offered())
	}
	t.status.Store(status)
	t.generation.Store(generation)
	for i := range t.queues {
		t.queues[i].state(c, t)
	}
	if status&statusDriverOK != 0 && c.Err() == nil {
		t.queueState(c)
	}
	c.Part("device", t.dev.StateVersion(), t.dev.State)
}

// vectorState carries the number of an interrupt vector.
func (t *Transport) vectorState(c *snap.Codec, vector *atomic.Uint32) {
	v := vector.Load()
	c.U32(&v)
	if t.vector(uint64(v)) != v {
		c.Fail("interrupt vector %#x, where there are %d", v, len(t.queues)+1)
	}
	vector.Store(t.vector(uint64(v)))
}

// state carries a queue's registers.
func (q *queueRegs) state(c *snap.Codec, t *Transport) {
	desc, avail, used := uint64(q.cfg.Desc), uint64(q.cfg.Avail), uint64(q.cfg.Used)
	c.Bool(&q.enabled)
	c.U16(&q.cfg.Size)
	t.vectorState(c, &q.vector)
	c.U64(&desc)
	c.U64(&avail)
	c.U64(&used)
	if n := q.cfg.Size; n == 0 || n&(n-1) != 0 || n > q.max {
		c.Fail("a queue of %d entries, where powers of two up to %d are possible", n, q.max)
	}
	q.cfg.Desc, q.cfg.Avail, q.cfg.Used = mem.GPA(desc), mem.GPA(avail), mem.GPA(used)
}

// queueState carries the positions in the rings. Decoding, it first builds the queues on the restored memory. A device
// that was broken before it ever ran has none.
func (t *Transport) queueState(c *snap.Codec) {
	alive := t.env != nil
	c.Bool(&alive)
	if !alive {
		return
	}
	if c.Loading() {
		if err := t.buildEnv(); err != nil {
			c.Fail("%v", err)
			return
		}
		t.paused = true
		t.setActive(true)
	}
	for _, q := range t.env.Queues {
		if q != nil {
			q.State(c)
		}
	}
}
