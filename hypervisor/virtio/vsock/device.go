// Package vsock is the virtio socket device (virtio 1.2 §5.10), all in userspace: each stream between the guest and the
// host is a Unix socket on the host's side. A program connects to a port of the guest by connecting to the device's
// socket and writing "CONNECT port\n"; "OK port\n" with the host's own port comes back once the guest has accepted, and
// the stream follows. The guest's connections to port P of the host (CID 2) go where Config.Dial leads, usually to the
// Unix socket named after the device's with _P appended.
//
// A connection outlives a pause, not a reset, and not the process: after a restore the guest is told that its connections
// are gone.
package vsock

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// The queues.
const (
	rxQueue    = 0
	txQueue    = 1
	eventQueue = 2
)

// flushEvery is how many packets are given to the guest before it may be interrupted although more wait.
const flushEvery = 8

// Config describes a socket device.
type Config struct {
	CID      uint64                                                   // the guest's context identifier, 3…2³²−2
	Listener Listener                                                 // for connections from the host, or nil
	Dial     func(ctx context.Context, port uint32) (net.Conn, error) // for connections from the guest, or nil
}

// Device is a virtio socket device.
type Device struct {
	m        *muxer
	rx, tx   virtio.Chain
	ev       virtio.Chain
	hdr      [headerSize]byte // of the packet in tx
	pkt      packet
	restored bool // the guest has still to hear that its connections are gone
}

// New returns a device described by c. It is an error if the CID is one that no guest may have.
func New(c Config) (*Device, error) {
	if c.CID <= hostCID || c.CID >= 1<<32-1 {
		return nil, fmt.Errorf("vsock: context identifier %d: a guest's is from 3 to 4294967294", c.CID)
	}
	return &Device{m: newMuxer(c)}, nil
}

// ID implements virtio.Device.
func (d *Device) ID() virtio.DeviceID { return virtio.IDVsock }

// Features implements virtio.Device: without any, sockets are streams (§5.10.3).
func (d *Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 { return []uint16{256, 256, 16} }

// ReadConfig implements virtio.Device: there is the guest's CID.
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [8]byte
	binary.LittleEndian.PutUint64(c[:], d.m.cid)
	clear(p)
	if off < uint32(len(c)) {
		copy(p, c[off:])
	}
}

// WriteConfig implements virtio.Device: nothing can be written.
func (d *Device) WriteConfig(uint32, []byte) {}

// Start implements virtio.Device.
func (d *Device) Start(env *virtio.Env) error {
	d.m.start()
	env.Serve(rxQueue, d.receive)
	env.Serve(txQueue, d.transmit)
	if d.restored {
		env.Serve(eventQueue, d.events)
	}
	return nil
}

// Stop implements virtio.Device. Connections stay.
func (d *Device) Stop() { d.m.stop() }

// Reset implements virtio.Device: it closes all connections.
func (d *Device) Reset() {
	d.m.reset()
	d.restored = false
}

// receive gives the guest packets for as long as it has buffers.
func (d *Device) receive(q *virtio.Queue) error {
	for unseen := 0; ; unseen++ {
		ok, err := q.Next(&d.rx)
		if err != nil || !ok {
			return err
		}
		if d.rx.Writable() <= headerSize {
			return virtio.Protocolf("receive buffer of %d bytes", d.rx.Writable())
		}
		if unseen == flushEvery {
			q.Flush()
			unseen = 0
		}
		if !d.m.toGuest(&d.rx, q) {
			q.Undo(1)
			return nil
		}
		q.Done(&d.rx)
	}
}

// transmit takes packets from the guest.
func (d *Device) transmit(q *virtio.Queue) error {
	for {
		ok, err := q.Next(&d.tx)
		if err != nil || !ok {
			return err
		}
		if _, err := d.tx.Read(d.hdr[:]); err != nil {
			return virtio.Protocolf("packet without a whole header")
		}
		d.pkt.decode(&d.hdr)
		if int64(d.pkt.length) > int64(d.tx.Readable()) {
			return virtio.Protocolf("packet with %d bytes of data that says %d", d.tx.Readable(), d.pkt.length)
		}
		d.m.fromGuest(&d.pkt, &d.tx)
		q.Done(&d.tx)
	}
}

// events tells the guest, once after a restore, that its connections are gone. The driver's other event buffers stay where
// they are: a handler that returns while there are some is called again, so this one waits.
func (d *Device) events(q *virtio.Queue) error {
	if !d.restored {
		<-d.m.ctx.Done()
		return nil
	}
	ok, err := q.Next(&d.ev)
	if err != nil || !ok {
		return err
	}
	var event [4]byte
	binary.LittleEndian.PutUint32(event[:], eventTransportReset)
	if _, err := d.ev.Write(event[:]); err != nil {
		return virtio.Protocolf("event buffer of %d bytes", d.ev.Written())
	}
	d.restored = false
	q.Done(&d.ev)
	return nil
}

// StateVersion implements virtio.Device.
func (d *Device) StateVersion() uint16 { return 1 }

// State implements virtio.Device. There is nothing to keep: connections end with the process, and the CID is the
// definition's, which the driver reads again when it hears of that (§5.10.6.7).
func (d *Device) State(c *snap.Codec) {
	if c.Loading() {
		d.restored = true
	}
}
