// Package virtio is what all paravirtual devices share: the device interface, split virtqueues, descriptor chains, and
// the workers that serve queues (Virtual I/O Device 1.2). The transport that shows a device to the guest is in
// virtiopci; each device is a package beside it.
//
// A device is a value with a few methods. It does not know about registers, interrupts, threads or saving: the transport
// negotiates, a worker per queue calls the device's handler when the driver has kicked, and Stop joins them all.
//
//	driver: DRIVER_OK ──▶ Start(env): env.Serve(queue, handler)
//	driver: kick      ──▶ handler(queue): for queue.Next(&chain) { … queue.Done(&chain) }
//	pause, reset      ──▶ Stop(), workers joined; on reset also Reset()
package virtio

import (
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// DeviceID is a device type, virtio 1.2 §5.
type DeviceID uint16

// Device types, virtio 1.2 §5.
const (
	IDNet     DeviceID = 1
	IDBlock   DeviceID = 2
	IDConsole DeviceID = 3
	IDEntropy DeviceID = 4
	IDBalloon DeviceID = 5
	IDGPU     DeviceID = 16
	IDInput   DeviceID = 18
	IDVsock   DeviceID = 19
)

// Feature bits that belong to the transport and the queues, virtio 1.2 §6.
const (
	FeatureIndirectDesc = 1 << 28
	FeatureEventIdx     = 1 << 29
	FeatureVersion1     = 1 << 32
)

// CoreFeatures are offered for every device beside its own.
const CoreFeatures = FeatureIndirectDesc | FeatureEventIdx | FeatureVersion1

// MaxQueueSize is the largest number of descriptors in a queue of ours.
const MaxQueueSize = 1024

// Device is one paravirtual device. The transport serialises all calls except ReadConfig and WriteConfig, which may come
// at any time from any vCPU.
type Device interface {
	// ID is the device type.
	ID() DeviceID
	// Features are the feature bits of the device type that are offered to the driver, without CoreFeatures.
	Features() uint64
	// QueueSizes has an entry for every queue: the number of descriptors, a power of two up to MaxQueueSize.
	QueueSizes() []uint16
	// ReadConfig fills p from the device-specific configuration at off; what is beyond its end reads as zero.
	ReadConfig(off uint32, p []byte)
	// WriteConfig takes p; what the guest may not write is ignored.
	WriteConfig(off uint32, p []byte)
	// Start begins to serve the driver: at DRIVER_OK, and again after a Stop that was a pause. If it fails, it has begun
	// nothing, and Stop is not called: the device is broken until the driver resets it.
	Start(env *Env) error
	// Stop makes every handler return soon, whatever it waits for, and ends the goroutines that Start made itself.
	// The transport joins the workers of Serve afterwards.
	Stop()
	// Reset forgets everything that the driver negotiated or configured. The device is stopped.
	Reset()
	// StateVersion and State are as snap.Component's, for what the device itself has to keep: the transport keeps
	// queues, features and registers. The device is stopped.
	StateVersion() uint16
	State(c *snap.Codec)
}

// Remote is a Device whose queues another process serves (vhost-user): the driver's kicks and the queues' interrupts pass
// between the guest and that process by eventfds, without a worker of ours. Start finds them in Queue.KickFD and Env.Calls,
// and begins at Queue.Position; Stop leaves there where the other process has stopped.
type Remote interface {
	Device
	// SetCall says that queue interrupts by call, an eventfd, from now on: the driver has moved the queue's interrupt. It comes
	// between Start and Stop, like them serialised with all other calls.
	SetCall(queue, call int)
}

// Env is what a device works with between Start and Stop.
type Env struct {
	Mem      *mem.Memory
	Features uint64   // as negotiated, with CoreFeatures
	Queues   []*Queue // an entry for every queue; nil where the driver did not enable it
	Calls    []int    // of a Remote device: for every queue the eventfd that interrupts for it, or -1
	// ConfigChanged tells the driver that the device-specific configuration has changed.
	ConfigChanged func()
	// Broken marks the device as broken (DEVICE_NEEDS_RESET) and logs err once.
	Broken func(err error)

	workers []*worker
}

// Has reports whether all bits of feature were negotiated.
func (e *Env) Has(feature uint64) bool { return e.Features&feature == feature }

// Serve starts a goroutine that calls handle once at the start and then each time the driver has made buffers of queue
// available. handle takes chains until Next returns false: if it leaves some, it is called again at once. Its error means
// that the driver broke the rules: the device is marked broken. Nothing happens if the driver did not enable the queue.
func (e *Env) Serve(queue int, handle func(*Queue) error) {
	if q := e.Queues[queue]; q != nil {
		e.workers = append(e.workers, startWorker(e, q, handle))
	}
}

// Stop ends the device's work: it calls d.Stop and returns when all workers have returned. The transport calls it.
func (e *Env) Stop(d Device) {
	for _, w := range e.workers {
		w.q.halt()
	}
	d.Stop()
	for _, w := range e.workers {
		<-w.done
	}
	e.workers = nil
}

// ErrProtocol is the class of all errors that say that the driver broke the rules of virtio.
type ErrProtocol struct{ Reason string }

func (e *ErrProtocol) Error() string { return "driver error: " + e.Reason }

// Protocolf returns an ErrProtocol.
func Protocolf(format string, args ...any) error {
	return &ErrProtocol{fmt.Sprintf(format, args...)}
}

// ConfigAt fills p from the device-specific configuration cfg at off, and with zeros beyond its end.
func ConfigAt(cfg []byte, off uint32, p []byte) {
	n := 0
	if uint64(off) < uint64(len(cfg)) {
		n = copy(p, cfg[off:])
	}
	clear(p[n:])
}
