package virtionet

import (
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// transmitter takes packets from the driver to the backend.
type transmitter struct {
	d       *Device
	allowed offloads
	chain   virtio.Chain
	hdr     header
	vector  []unix.Iovec
}

func (t *transmitter) init(d *Device) {
	t.d = d
	t.vector = make([]unix.Iovec, 0, maxVector+1)
}

func (t *transmitter) start(env *virtio.Env) { t.allowed = hostOffloads(env) }

// handle sends what is in the transmit queue.
func (t *transmitter) handle(q *virtio.Queue) error {
	for {
		ok, err := q.Next(&t.chain)
		if err != nil {
			return err
		}
		if !ok {
			// What is left when the device is stopped goes out at the next start.
			_ = t.d.backend.Flush()
			return nil
		}
		// The header is copied once: what was checked is what is used.
		if _, err := t.chain.Read(t.hdr[:]); err != nil {
			return virtio.Protocolf("packet without a whole header")
		}
		if packet := t.packet(); packet != nil && t.d.linkUp() {
			if err := t.d.backend.Send(packet); err != nil {
				q.Undo(1)
				return nil
			}
		}
		q.Done(&t.chain)
	}
}

// packet returns the vector of the packet in t.chain, or nil if it has to be dropped.
func (t *transmitter) packet() []unix.Iovec {
	n := t.chain.Readable()
	if n < minFrame || n > MaxFrame || !t.hdr.clean(n, t.allowed) {
		return nil
	}
	t.vector = append(append(t.vector[:0], vectorOf(t.hdr[:])), t.chain.IOVReadable(n)...)
	if len(t.vector) > maxVector {
		return nil
	}
	return t.vector
}
