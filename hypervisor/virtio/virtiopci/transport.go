package virtiopci

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// Config is what a transport needs beside its device.
type Config struct {
	Name      string // of the device, such as "blk.root"
	Mem       *mem.Memory
	Doorbells bus.Doorbells // nil: notifications are handled on the vCPU that makes them
	Pin       uint8         // INTx pin, 1 to 4, for guests without MSI-X
	Log       *slog.Logger
}

// Transport is a virtio device as a PCI function. It implements pci.ConfigSpace and snap.Component.
//
// Locks, in the order in which they are taken: mu (the registers; held while the device starts and stops), the
// function's own, bells. Workers of the device interrupt and break it without mu, since whoever holds mu may wait for them.
type Transport struct {
	cfg    Config
	dev    virtio.Device
	remote virtio.Remote // dev, if it is one
	fn     *pci.Function
	msix   *pci.MSIX
	pciCap int // offset of the configuration access capability

	status       atomic.Uint32
	generation   atomic.Uint32
	configVector atomic.Uint32
	complained   atomic.Bool // the log has said why the device is broken

	intx sync.Mutex // makes a change of isr and of the pin one step
	isr  uint8

	mu             sync.Mutex
	deviceSelect   uint32
	driverSelect   uint32
	driverFeatures uint64
	queueSelect    uint16
	queues         []queueRegs
	env            *virtio.Env // set from DRIVER_OK to reset
	running        bool        // Start has succeeded, and Stop was not called since
	paused         bool

	bells  sync.Mutex
	base   uint64 // of the BAR; 0 while it is not mapped
	bound  uint64 // base that the doorbells are bound to; 0 if they are not
	active bool   // the driver may kick
}

// queueRegs are the registers of one queue.
type queueRegs struct {
	max     uint16
	vector  atomic.Uint32
	enabled bool
	cfg     virtio.Config
	kick    *os.File
	relay   *relay // of a Remote device, once it is needed
}

// New returns dev behind a transport. The caller inserts it into a slot after Attach.
func New(dev virtio.Device, cfg Config) (*Transport, error) {
	t := &Transport{cfg: cfg, dev: dev, queues: make([]queueRegs, len(dev.QueueSizes()))}
	newEventFD := virtio.NewEventFD
	if t.remote, _ = dev.(virtio.Remote); t.remote != nil {
		newEventFD = virtio.NewRemoteEventFD
	}
	for i, size := range dev.QueueSizes() {
		q := &t.queues[i]
		q.max = size
		kick, err := newEventFD(fmt.Sprintf("%s queue %d", cfg.Name, i))
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		q.kick = kick
	}
	t.clearRegisters()
	fn, err := pci.NewFunction(pci.Config{
		Name:   cfg.Name,
		Vendor: vendorID, Device: deviceIDBase + uint16(dev.ID()),
		SubsystemVendor: vendorID, Subsystem: deviceIDBase + uint16(dev.ID()),
		Class: pciClass(dev.ID()), Revision: revision, Pin: cfg.Pin,
		BARs: [6]pci.BAR{barIndex: {Kind: pci.BARMem32, Size: barSize, Device: registers{t}, Moved: t.moved}},
	})
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	t.fn = fn
	if err := t.addCapabilities(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Transport) addCapabilities() error {
	var err error
	if t.msix, err = t.fn.AddMSIX(len(t.queues)+1, barIndex, tableOff, pbaOff); err != nil {
		return err
	}
	for _, c := range []struct {
		typ          byte
		offset, size uint32
		extra        []byte // follows the structure
		writable     []byte
	}{
		{capCommon, commonOff, commonSize, nil, nil},
		{capNotify, notifyOff, notifySize, []byte{notifyStep, 0, 0, 0}, nil},
		{capISR, isrOff, 1, nil, nil},
		{capDevice, deviceOff, deviceSize, nil, nil},
		// The guest fills in bar, offset and length; the data behind them is a window, see ReadConfig.
		{capPCI, 0, 0, []byte{0, 0, 0, 0}, []byte{0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
	} {
		body := []byte{byte(16 + len(c.extra)), c.typ, barIndex, 0, 0, 0}
		for _, v := range []uint32{c.offset, c.size} {
			body = append(body, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
		}
		off, err := t.fn.AddCapability(pci.CapVendor, append(body, c.extra...), c.writable)
		if err != nil {
			return err
		}
		if c.typ == capPCI {
			t.pciCap = off
		}
	}
	return nil
}

// Function returns the PCI function, to attach and to place its register.
func (t *Transport) Function() *pci.Function { return t.fn }

// Name returns the device's name.
func (t *Transport) Name() string { return t.cfg.Name }

// Close stops the device and closes the eventfds. The function must be detached.
func (t *Transport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resetLocked()
	var errs []error
	for i := range t.queues {
		if t.queues[i].kick != nil {
			errs = append(errs, t.queues[i].kick.Close())
		}
		if t.queues[i].relay != nil {
			errs = append(errs, t.queues[i].relay.close())
		}
	}
	return errors.Join(errs...)
}

// offered are the features that the driver may accept.
func (t *Transport) offered() uint64 { return t.dev.Features() | virtio.CoreFeatures }

func (t *Transport) clearRegisters() {
	t.deviceSelect, t.driverSelect, t.driverFeatures, t.queueSelect = 0, 0, 0, 0
	t.configVector.Store(noVector)
	for i := range t.queues {
		q := &t.queues[i]
		q.enabled = false
		q.cfg = virtio.Config{Size: q.max}
		q.vector.Store(noVector)
	}
}

// resetLocked brings the device to the state after power-on. The device's workers have ended when it returns, so that the
// driver can free what it gave them.
func (t *Transport) resetLocked() {
	t.stop()
	t.setActive(false)
	t.env = nil
	t.dev.Reset()
	t.clearRegisters()
	t.status.Store(0)
	t.complained.Store(false)
	t.intx.Lock()
	t.isr = 0
	t.intx.Unlock()
	if t.fn != nil {
		t.fn.SetINTx(false)
	}
	if t.msix != nil {
		t.msix.Cancel()
	}
}

// setStatus is the driver's write to the status register.
func (t *Transport) setStatus(v uint8) {
	if v == 0 {
		t.resetLocked()
		return
	}
	old := uint8(t.status.Load())
	v = v&statusOfDriver | old // §2.1.1: the driver must not clear a bit
	if v&^old&statusFeaturesOK != 0 && !t.featuresFit() {
		v &^= statusFeaturesOK
	}
	if v&statusDriverOK != 0 && v&statusFeaturesOK == 0 {
		v &^= statusDriverOK
	}
	t.status.Or(uint32(v))
	if v&^old&statusDriverOK != 0 {
		if err := t.activate(); err != nil {
			t.broken(err)
		}
	}
}

func (t *Transport) featuresFit() bool {
	return t.driverFeatures&^t.offered() == 0 && t.driverFeatures&virtio.FeatureVersion1 != 0
}

// activate builds the queues that the driver enabled, and starts the device.
func (t *Transport) activate() error {
	if err := t.buildEnv(); err != nil {
		return err
	}
	t.setActive(true)
	return t.adjust()
}

// adjust makes the device run if it may: there is a driver, which has not broken it, the machine is not paused, and the
// guest lets the function be bus master.
func (t *Transport) adjust() error {
	switch {
	case t.paused || !t.fn.Master():
		t.stop()
	case t.env != nil && !t.running && t.status.Load()&statusNeedsReset == 0:
		return t.start()
	}
	return nil
}

func (t *Transport) buildEnv() error {
	env := &virtio.Env{
		Mem: t.cfg.Mem, Features: t.driverFeatures, Queues: make([]*virtio.Queue, len(t.queues)),
		ConfigChanged: t.configChanged, Broken: t.broken,
	}
	for i := range t.queues {
		r := &t.queues[i]
		if !r.enabled {
			continue
		}
		q, err := virtio.NewQueue(i, t.cfg.Mem, r.cfg, t.driverFeatures, r.kick, func() { t.interruptQueue(r) })
		if err != nil {
			return err
		}
		env.Queues[i] = q
	}
	t.env = env
	return nil
}

func (t *Transport) start() error {
	err := t.aside(func() error {
		if err := t.findCalls(); err != nil {
			return err
		}
		return t.dev.Start(t.env)
	})
	t.running = err == nil
	return err
}

func (t *Transport) stop() {
	if t.running {
		t.running = false
		_ = t.aside(func() error { // there is none
			t.env.Stop(t.dev)
			return nil
		})
	}
}

// broken marks the device as broken, virtio 1.2 §2.1.2. Any goroutine may call it.
func (t *Transport) broken(err error) {
	if t.complained.CompareAndSwap(false, true) && t.cfg.Log != nil {
		t.cfg.Log.Error("device needs a reset by its driver", "device", t.cfg.Name, "err", err)
	}
	if t.status.Or(statusNeedsReset)&statusDriverOK != 0 {
		t.configChanged()
	}
}

// configChanged interrupts the driver because of the configuration.
func (t *Transport) configChanged() {
	t.generation.Add(1)
	t.interrupt(t.configVector.Load(), isrConfig)
}

func (t *Transport) interruptQueue(r *queueRegs) { t.interrupt(r.vector.Load(), isrQueue) }

func (t *Transport) interrupt(vector uint32, cause uint8) {
	if t.msix.Enabled() {
		_ = t.msix.Trigger(int(vector)) // noVector is beyond the table; KVM refuses only a malformed message of the guest's
		return
	}
	t.intx.Lock()
	defer t.intx.Unlock()
	t.isr |= cause
	t.fn.SetINTx(true)
}

// takeISR is the driver's read of the ISR status, which clears it and the pin.
func (t *Transport) takeISR() uint8 {
	t.intx.Lock()
	defer t.intx.Unlock()
	v := t.isr
	t.isr = 0
	t.fn.SetINTx(false)
	return v
}

// moved is called when the guest has moved the BAR, with the function locked.
func (t *Transport) moved(base uint64, mapped bool) {
	t.bells.Lock()
	defer t.bells.Unlock()
	if t.base = base; !mapped {
		t.base = 0
	}
	t.rebind()
}

func (t *Transport) setActive(active bool) {
	t.bells.Lock()
	defer t.bells.Unlock()
	t.active = active
	t.rebind()
}

// rebind makes the doorbells agree with the BAR. They are bound only while the driver may kick: a guest moves its BARs
// several times while it boots, and each binding is a system call that waits for all vCPUs.
func (t *Transport) rebind() {
	want := t.base
	if !t.active || t.cfg.Doorbells == nil {
		want = 0
	}
	if want == t.bound {
		return
	}
	for i := range t.queues {
		fd := virtio.EventFD(t.queues[i].kick)
		addr := uint64(notifyOff + notifyStep*i)
		if t.bound != 0 {
			_ = t.cfg.Doorbells.Unbind(t.bound+addr, 0, fd)
		}
		if want != 0 {
			if err := t.cfg.Doorbells.Bind(want+addr, 0, fd); err != nil && t.cfg.Log != nil {
				// The notification then exits to us and is handled by the register, only slower.
				t.cfg.Log.Warn("doorbell", "device", t.cfg.Name, "queue", i, "err", err)
			}
		}
	}
	t.bound = want
}
