package virtiotest

import (
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// Func is the least of a device, for tests of what is below devices. Without Handle it does not serve its queues: then
// the test may play the device, by Queue.Device.
type Func struct {
	Sizes  []uint16
	Handle func(*virtio.Queue) error
}

func (*Func) ID() virtio.DeviceID            { return virtio.IDEntropy }
func (*Func) Features() uint64               { return 0 }
func (d *Func) QueueSizes() []uint16         { return d.Sizes }
func (*Func) ReadConfig(_ uint32, p []byte)  { clear(p) }
func (*Func) WriteConfig(_ uint32, _ []byte) {}
func (*Func) Stop()                          {}
func (*Func) Reset()                         {}
func (*Func) StateVersion() uint16           { return 1 }
func (*Func) State(*snap.Codec)              {}

// Start begins to serve all queues, if there is a Handle.
func (d *Func) Start(env *virtio.Env) error {
	for i := range d.Sizes {
		if d.Handle != nil {
			env.Serve(i, d.Handle)
		}
	}
	return nil
}
