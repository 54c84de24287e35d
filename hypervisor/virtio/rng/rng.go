// Package rng is the virtio entropy device (virtio 1.2 §5.4): the guest hands it buffers, and it fills them with random
// bytes from the host's kernel. It is the smallest device, and the example of docs/adding-a-device.md.
package rng

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// maxRequest is how many bytes a request gets at most. The device may use less of a buffer than there is (§5.4.6.2): no
// guest keeps a host CPU busy with a buffer of gigabytes.
const maxRequest = 64 << 10

// Device is an entropy device. Its zero value is ready to use.
type Device struct {
	chain virtio.Chain
}

// ID returns virtio.IDEntropy.
func (*Device) ID() virtio.DeviceID { return virtio.IDEntropy }

// Features returns none: the device type has none.
func (*Device) Features() uint64 { return 0 }

// QueueSizes returns the size of requestq.
func (*Device) QueueSizes() []uint16 { return []uint16{64} }

// ReadConfig reads zeros: the device type has no configuration.
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

func (d *Device) handle(q *virtio.Queue) error {
	for {
		ok, err := q.Next(&d.chain)
		if !ok || err != nil {
			return err
		}
		for left := min(d.chain.Writable(), maxRequest); left > 0; {
			b := d.chain.NextWritable(left)
			if err := fill(b); err != nil {
				return err
			}
			left -= len(b)
		}
		q.Done(&d.chain)
	}
}

// fill fills b from the kernel's generator, which never blocks once the host has booted.
func fill(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Getrandom(b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("entropy from the host: %w", err)
		}
		b = b[n:]
	}
	return nil
}
