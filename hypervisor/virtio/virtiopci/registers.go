package virtiopci

import (
	"encoding/binary"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/pci"
)

// registers is the BAR.
type registers struct{ t *Transport }

func (r registers) Read(a bus.Access, p []byte) {
	t := r.t
	clear(p)
	switch off := a.Off; off &^ (pageSize - 1) {
	case commonOff:
		t.readCommon(off-commonOff, p)
	case isrOff:
		if off == isrOff {
			p[0] = t.takeISR()
		}
	case deviceOff, deviceOff + pageSize:
		t.dev.ReadConfig(uint32(off-deviceOff), p)
	case tableOff:
		a.Off -= tableOff
		t.msix.Table().Read(a, p)
	case pbaOff:
		a.Off -= pbaOff
		t.msix.PBA().Read(a, p)
	}
}

func (r registers) Write(a bus.Access, p []byte) {
	t := r.t
	switch off := a.Off; off &^ (pageSize - 1) {
	case commonOff:
		t.writeCommon(off-commonOff, p)
	case deviceOff, deviceOff + pageSize:
		t.dev.WriteConfig(uint32(off-deviceOff), p)
	case notifyOff, notifyOff + pageSize:
		// Reached only without doorbells, or by an access that they do not match.
		t.notify(int(off-notifyOff) / notifyStep)
	case tableOff:
		a.Off -= tableOff
		t.msix.Table().Write(a, p)
	}
}

func (t *Transport) notify(queue int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.env != nil && queue < len(t.env.Queues) && t.env.Queues[queue] != nil {
		t.env.Queues[queue].Kick()
	}
}

// readCommon copies from an image of the common configuration: it is read a few dozen times while a driver starts.
func (t *Transport) readCommon(off uint64, p []byte) {
	if off+uint64(len(p)) > commonSize {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var b [commonSize]byte
	le := binary.LittleEndian
	le.PutUint32(b[regDeviceFeatureSelect:], t.deviceSelect)
	le.PutUint32(b[regDeviceFeature:], half(t.offered(), t.deviceSelect))
	le.PutUint32(b[regDriverFeatureSelect:], t.driverSelect)
	le.PutUint32(b[regDriverFeature:], half(t.driverFeatures, t.driverSelect))
	le.PutUint16(b[regConfigVector:], uint16(t.configVector.Load()))
	le.PutUint16(b[regNumQueues:], uint16(len(t.queues)))
	b[regStatus], b[regGeneration] = byte(t.status.Load()), byte(t.generation.Load())
	le.PutUint16(b[regQueueSelect:], t.queueSelect)
	if q := t.selected(); q != nil {
		le.PutUint16(b[regQueueSize:], q.cfg.Size)
		le.PutUint16(b[regQueueVector:], uint16(q.vector.Load()))
		if q.enabled {
			b[regQueueEnable] = 1
		}
		le.PutUint16(b[regQueueNotifyOff:], t.queueSelect)
		le.PutUint64(b[regQueueDesc:], uint64(q.cfg.Desc))
		le.PutUint64(b[regQueueDriver:], uint64(q.cfg.Avail))
		le.PutUint64(b[regQueueDevice:], uint64(q.cfg.Used))
	}
	copy(p, b[off:])
}

func (t *Transport) selected() *queueRegs {
	if int(t.queueSelect) < len(t.queues) {
		return &t.queues[t.queueSelect]
	}
	return nil
}

func half(v uint64, sel uint32) uint32 {
	if sel > 1 {
		return 0
	}
	return uint32(v >> (32 * sel))
}

// writeCommon takes writes of a field's own width, and of halves of the 64-bit fields (§4.1.3.1); others are ignored.
func (t *Transport) writeCommon(off uint64, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b [8]byte
	copy(b[:], p)
	v := binary.LittleEndian.Uint64(b[:])
	q := t.selected()
	frozen := q == nil || q.enabled // §4.1.4.3.2: what a queue is made of is set before it is enabled
	switch off<<8 | uint64(len(p)) {
	case regDeviceFeatureSelect<<8 | 4:
		t.deviceSelect = uint32(v)
	case regDriverFeatureSelect<<8 | 4:
		t.driverSelect = uint32(v)
	case regDriverFeature<<8 | 4:
		if t.driverSelect < 2 && t.status.Load()&statusFeaturesOK == 0 {
			shift := 32 * t.driverSelect
			t.driverFeatures = t.driverFeatures&^(0xffffffff<<shift) | uint64(uint32(v))<<shift
		}
	case regConfigVector<<8 | 2:
		t.configVector.Store(t.vector(v))
	case regStatus<<8 | 1:
		t.setStatus(uint8(v))
	case regQueueSelect<<8 | 2:
		t.queueSelect = uint16(v)
	case regQueueSize<<8 | 2:
		if size := uint16(v); !frozen && size != 0 && size <= q.max && size&(size-1) == 0 {
			q.cfg.Size = size
		}
	case regQueueVector<<8 | 2:
		if q != nil {
			q.vector.Store(t.vector(v))
			t.moveCalls()
		}
	case regQueueEnable<<8 | 2:
		if !frozen && v == 1 && t.status.Load()&statusDriverOK == 0 {
			q.enabled = true
		}
	default:
		if frozen || off < regQueueDesc || off >= commonSize {
			return
		}
		field := [...]*mem.GPA{&q.cfg.Desc, &q.cfg.Avail, &q.cfg.Used}[(off-regQueueDesc)/8]
		switch {
		case len(p) == 8 && off%8 == 0:
			*field = mem.GPA(v)
		case len(p) == 4 && off%8 == 0:
			*field = *field&^0xffffffff | mem.GPA(v)
		case len(p) == 4 && off%8 == 4:
			*field = *field&0xffffffff | mem.GPA(v)<<32
		}
	}
}

// vector returns v if the table has it, and noVector otherwise: the driver reads back what it got (§4.1.5.1.2.1).
func (t *Transport) vector(v uint64) uint32 {
	if v <= uint64(len(t.queues)) {
		return uint32(v)
	}
	return noVector
}

// ReadConfig implements pci.ConfigSpace. Reading the data of the configuration access capability reads the BAR
// (§4.1.4.9): firmware uses it before it has mapped anything.
func (t *Transport) ReadConfig(off int, p []byte) {
	if dst, ok := t.window(off, len(p)); ok {
		registers{t}.Read(bus.Access{Off: dst}, p)
		return
	}
	t.fn.ReadConfig(off, p)
}

// WriteConfig implements pci.ConfigSpace.
func (t *Transport) WriteConfig(off int, p []byte) {
	if dst, ok := t.window(off, len(p)); ok {
		registers{t}.Write(bus.Access{Off: dst}, p)
		return
	}
	t.fn.WriteConfig(off, p)
	command := off <= pci.Command && off+len(p) > pci.Command
	if !command && t.remote == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if command { // bus mastering may have changed
		if err := t.adjust(); err != nil {
			t.broken(err)
		}
	}
	t.moveCalls() // MSI-X may have been switched
}

// window returns the offset in the BAR that an access to the capability's data means, if it means one: from the start of
// the data, with the length that the guest has set, and aligned to it.
func (t *Transport) window(off, n int) (uint64, bool) {
	if off != t.pciCap+16 || n > 4 {
		return 0, false
	}
	var c [16]byte
	t.fn.ReadConfig(t.pciCap, c[:])
	dst, length := binary.LittleEndian.Uint32(c[8:]), binary.LittleEndian.Uint32(c[12:])
	if c[4] != barIndex || int(length) != n || uint64(dst)+uint64(n) > barSize || dst%uint32(n) != 0 {
		return 0, false
	}
	return uint64(dst), true
}

var _ pci.ConfigSpace = (*Transport)(nil)
