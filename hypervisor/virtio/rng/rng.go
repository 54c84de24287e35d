// Package rng is the virtio entropy device (virtio 1.2 §5.4): the guest hands it buffers, and it fills them with random
// bytes of the host. It is the smallest device, and the example of docs/adding-a-device.md.
package rng

import (
	"crypto/rand"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// maxRequest is how many bytes a request gets at most: a pause must not wait for a buffer of gigabytes. The device may use
// less of a buffer than there is (§5.4.6.2); drivers ask for some tens of bytes, and again for more.
const maxRequest = 4096

// Device is an entropy device. Its zero value is ready to use.
type Device struct {
	chain virtio.Chain
	buf   [maxRequest]byte // filled, then copied to the guest: the race detector sees a copy
}

// ID returns virtio.IDEntropy.
func (*Device) ID() virtio.DeviceID { return virtio.IDEntropy }

// Features returns none: the device type has none (§5.4.3).
func (*Device) Features() uint64 { return 0 }

// QueueSizes returns the size of requestq (§5.4.2).
func (*Device) QueueSizes() []uint16 { return []uint16{64} }

// ReadConfig reads zeros: the device type has no configuration (§5.4.4).
func (*Device) ReadConfig(_ uint32, p []byte) { clear(p) }

// WriteConfig does nothing.
func (*Device) WriteConfig(uint32, []byte) {}

// Start begins to serve requestq.
func (d *Device) Start(env *virtio.Env) error {
	env.Serve(0, d.handle)
	return nil
}

// Stop does nothing: a request never waits.
func (*Device) Stop() {}

// Reset does nothing: the device keeps nothing of the driver's.
func (*Device) Reset() {}

// StateVersion returns 1.
func (*Device) StateVersion() uint16 { return 1 }

// State carries nothing: a restored guest gets other numbers than the one that was saved, as it should.
func (*Device) State(*snap.Codec) {}

// handle answers the requests of requestq.
func (d *Device) handle(q *virtio.Queue) error {
	for {
		ok, err := q.Next(&d.chain)
		if !ok || err != nil {
			return err
		}
		if err := d.fill(&d.chain); err != nil {
			return err
		}
		q.Done(&d.chain)
	}
}

// fill writes random bytes to c, at least one (§5.4.6.2). The driver may not add device-readable buffers (§5.4.6.1).
func (d *Device) fill(c *virtio.Chain) error {
	if c.Readable() > 0 {
		return virtio.Protocolf("entropy request with %d device-readable bytes", c.Readable())
	}
	if c.Writable() == 0 {
		return virtio.Protocolf("entropy request without room for a byte")
	}
	p := d.buf[:min(maxRequest, c.Writable())]
	rand.Read(p) // always fills p: the kernel's generator does not fail
	_, err := c.Write(p)
	return err
}
