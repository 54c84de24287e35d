package virtionet

import (
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// flushEvery is how many chains are returned to the driver before it may be interrupted although more packets wait.
const flushEvery = 16

// receiver takes packets from the backend to the driver.
//
// It offers the backend the driver's buffers, as many as the last packet took, and behind them one of its own: nobody
// knows how long a packet is before it is there, and offering 64 KiB of small buffers for each would cost more than the
// rare copy out of the spill.
type receiver struct {
	d       *Device
	merge   bool // VIRTIO_NET_F_MRG_RXBUF
	allowed offloads

	held   []*virtio.Chain // held[:n] came from the queue and are not filled yet
	n      int
	room   int // bytes in held[:n]
	expect int // length of the last packet

	hdr      header
	vector   []unix.Iovec
	spill    []byte
	unseen   int // chains returned since the last flush
	idle     func()
	queue    *virtio.Queue // what idle flushes
	doneSwap []*virtio.Chain
}

func (r *receiver) init(d *Device) {
	r.d = d
	chains := make([]virtio.Chain, queueSize)
	r.held = make([]*virtio.Chain, queueSize)
	for i := range chains {
		r.held[i] = &chains[i]
	}
	r.doneSwap = make([]*virtio.Chain, 0, queueSize)
	r.vector = make([]unix.Iovec, 0, maxVector)
	r.idle = func() { r.queue.Flush(); r.unseen = 0 }
}

func (r *receiver) start(env *virtio.Env) {
	r.merge = env.Has(FeatureMrgRxBuf)
	r.allowed = guestOffloads(env)
	if r.spill == nil {
		r.spill = make([]byte, MaxFrame)
	}
}

// handle serves the receive queue until there are no buffers or the device is to stop.
func (r *receiver) handle(q *virtio.Queue) error {
	r.queue = q
	defer func() {
		q.Undo(r.n)
		r.n, r.room = 0, 0
	}()
	for {
		want := 1
		if r.merge {
			want = r.expect
		}
		for r.n == 0 || r.room < want {
			if ok, err := r.hold(q); err != nil {
				return err
			} else if !ok {
				break
			}
		}
		if r.n == 0 {
			return nil
		}
		n, err := r.d.backend.Receive(r.offer(), r.idle)
		if err != nil {
			return nil // stopped
		}
		if !r.d.linkUp() || n < HeaderSize+minFrame || !r.hdr.clean(n-HeaderSize, r.allowed) {
			continue
		}
		r.expect = n
		if ok, err := r.makeRoom(q, n); err != nil {
			return err
		} else if ok {
			r.deliver(q, n)
		}
		if r.unseen >= flushEvery {
			r.idle()
		}
	}
}

// hold takes one more chain from the queue.
func (r *receiver) hold(q *virtio.Queue) (bool, error) {
	if r.n == len(r.held) {
		return false, nil
	}
	c := r.held[r.n]
	ok, err := q.Next(c)
	if err != nil || !ok {
		return false, err
	}
	r.n++
	if c.Writable() < HeaderSize {
		return false, virtio.Protocolf("receive buffer of %d bytes", c.Writable())
	}
	r.room += c.Writable()
	return true, nil
}

// offer returns the vector for the next packet: the header, the held chains without the place of the header, the spill.
func (r *receiver) offer() []unix.Iovec {
	v := append(r.vector[:0], vectorOf(r.hdr[:]))
	for i, c := range r.held[:r.n] {
		w := c.IOVWritable(c.Writable())
		if i == 0 {
			w = skip(w, HeaderSize)
		}
		k := min(len(w), maxVector-1-len(v))
		v = append(v, w[:k]...)
		if k < len(w) {
			break
		}
	}
	r.vector = append(v, vectorOf(r.spill))
	return r.vector
}

// makeRoom waits until chains for n bytes are held. It reports false if the packet has to be dropped: the driver's buffer
// is too short, all of its buffers together are, or the device is to stop.
func (r *receiver) makeRoom(q *virtio.Queue, n int) (bool, error) {
	for r.room < n {
		if !r.merge || r.n == q.Size() { // Next gives no more, so that Wait may be in vain
			return false, nil
		}
		ok, err := r.hold(q)
		if err != nil || !ok && !q.Wait() {
			return false, err
		}
	}
	return true, nil
}

// deliver returns to the driver the held chains that hold the packet of n bytes that Receive has put into r.vector. There
// is room for it.
func (r *receiver) deliver(q *virtio.Queue, n int) {
	used, room := 0, 0
	for room < n {
		room += r.held[used].Writable()
		used++
	}
	direct := min(length(r.vector[1:len(r.vector)-1]), n-HeaderSize) // bytes that are in place
	spill := r.spill[:n-HeaderSize-direct]

	r.hdr.set(hdrNumBuffers, uint16(used))
	_, _ = r.held[0].Write(r.hdr[:]) // it fits: hold saw to that
	for _, c := range r.held[:used] {
		k := min(direct, c.Writable())
		c.AdvanceWritable(k)
		direct -= k
		if direct == 0 && len(spill) > 0 {
			k, _ = c.Write(spill)
			spill = spill[k:]
		}
	}
	q.DoneAll(r.held[:used])
	r.unseen += used

	// The chains that are left come first now; those that are done keep their storage for later.
	if r.room -= room; used < r.n {
		r.doneSwap = append(r.doneSwap[:0], r.held[:used]...)
		copy(r.held, r.held[used:r.n])
		copy(r.held[r.n-used:], r.doneSwap)
	}
	r.n -= used
}
