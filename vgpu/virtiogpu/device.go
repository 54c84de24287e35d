// Package virtiogpu is the virtio graphics card (virtio 1.2 §5.7) without 3D: the guest draws into its memory, says what has
// changed, and the device copies that into pictures of the host, or shows the guest's memory itself (blob resources). What a
// picture looks like on which monitor is the display package's.
//
// There are no contexts, but all that they hang on is here: commands are looked up in a table that more can be added to, and
// fences are answered with their context and ring. Everything is done when its command returns, so that answers come in the
// order of the commands.
//
// # Locks
//
// Device.mu guards resources and scanouts. While it is held, the device calls screens (which lock themselves) and locks
// surfaces (Surface.Mu, in the order of the scanouts). A screen calls monitorChanged with its own lock held: that takes
// Device.link alone, with which nothing else is ever taken but what env.ConfigChanged takes. So the order is: mu, a screen's,
// then a surface's or link. The cursors belong to the goroutine of the cursor queue.
package virtiogpu

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/vgpu/display"
	"github.com/lodgehv/lodge/vgpu/dmabuf"
)

// DefaultMaxBytes is how much memory of the host a guest's pictures may take up if Config does not say: eight buffers of
// 3840×2160.
const DefaultMaxBytes = 256 << 20

// Bounds of what a guest can make the host remember.
const (
	maxResources    = 4096
	maxEntries      = 1 << 14 // of one resource's backing: 64 MiB in single pages
	maxTotalEntries = 1 << 18 // of all backings
)

// Config describes a graphics card.
type Config struct {
	// Screens are what the scanouts are shown on, from 1 to 16.
	Screens []*display.Screen
	// Blob offers resources that are the guest's own memory. With Share they are shown without a copy, else by one, as ordinary
	// resources are.
	Blob bool
	// Share makes a dmabuf of pieces of the files behind the guest's memory (mem.Alloc), as dmabuf.Maker.Make does; nil if
	// that cannot be.
	Share func([]dmabuf.Range) (*dmabuf.Buffer, error)
	// MaxBytes bounds the memory of the host for pictures, and how much of the guest's memory dmabufs keep; 0 is
	// DefaultMaxBytes.
	MaxBytes int64
	Log      *slog.Logger // nil is slog.Default
}

// Device is a virtio graphics card.
type Device struct {
	cfg      Config
	newArena func(limit int64) (*arena, error)
	commands map[uint32]command

	events atomic.Uint32 // events_read
	logged atomic.Bool

	unshared atomic.Bool // that dmabufs cannot be made was logged

	link sync.Mutex
	env  *virtio.Env // while started

	// What follows is used only while the device is stopped.
	unlisten []func()
	told     []display.Monitor // at the last Stop; nil if the driver has yet to ask
	restored bool              // by State, and not started since

	features uint64 // as negotiated; set by Start

	mu        sync.Mutex
	mem       *mem.Memory // since the first Start
	arena     *arena      // nil before the first resource
	resources map[uint32]*resource
	entries   int // pieces in all backings
	scanouts  []scanout
	shared    []shared // the dmabufs that there are; the one that was shown last is last

	control control // of the control queue's goroutine
	pointer pointer // of the cursor queue's goroutine
}

// New returns a card that shows nothing.
func New(cfg Config) (*Device, error) {
	if n := len(cfg.Screens); n < 1 || n > maxScanouts {
		return nil, fmt.Errorf("graphics card with %d screens: from 1 to %d are possible", n, maxScanouts)
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.MaxBytes < mem.PageSize || cfg.MaxBytes > maxArena {
		return nil, fmt.Errorf("graphics card with %d bytes for pictures: from %d to %d are possible", cfg.MaxBytes, mem.PageSize, int64(maxArena))
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	d := &Device{cfg: cfg, newArena: newArena, commands: commands(), resources: make(map[uint32]*resource)}
	for _, s := range cfg.Screens {
		d.scanouts = append(d.scanouts, scanout{screen: s})
	}
	d.pointer.cursors = make([]cursor, len(cfg.Screens))
	return d, nil
}

// ID returns virtio.IDGPU.
func (*Device) ID() virtio.DeviceID { return virtio.IDGPU }

// Features returns what there is beside 3D.
func (d *Device) Features() uint64 {
	f := uint64(featureEDID | featureResourceUUID)
	if d.cfg.Blob {
		f |= featureResourceBlob
	}
	return f
}

// QueueSizes returns the sizes of controlq and cursorq.
func (*Device) QueueSizes() []uint16 { return []uint16{512, 16} }

// ReadConfig reads struct virtio_gpu_config, §5.7.4. There are no capability sets.
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [configSize]byte
	binary.LittleEndian.PutUint32(c[configEventsRead:], d.events.Load())
	binary.LittleEndian.PutUint32(c[configNumScanouts:], uint32(len(d.cfg.Screens)))
	virtio.ConfigAt(c[:], off, p)
}

// WriteConfig takes events_clear.
func (d *Device) WriteConfig(off uint32, p []byte) {
	if off == configEventsClear && len(p) == 4 {
		d.events.And(^binary.LittleEndian.Uint32(p))
	}
}

// Start begins to serve both queues. A card that State has restored first shows what it showed; an error says that it
// cannot, since the saved state is not that of this guest's memory.
func (d *Device) Start(env *virtio.Env) error {
	d.mu.Lock()
	d.mem, d.features = env.Mem, env.Features
	err := d.complete()
	d.mu.Unlock()
	if err != nil {
		return err
	}
	d.link.Lock()
	d.env = env
	d.link.Unlock()
	for _, s := range d.cfg.Screens {
		d.unlisten = append(d.unlisten, s.OnMonitor(d.monitorChanged))
	}
	for i, m := range d.told {
		if m != d.cfg.Screens[i].Monitor() { // it has changed during a pause, or is another one after a restore
			d.monitorChanged(m)
		}
	}
	env.Serve(controlQueue, d.serveControl)
	env.Serve(cursorQueue, d.serveCursor)
	return nil
}

// monitorChanged tells the driver to ask for monitors again. It is called with a screen locked.
func (d *Device) monitorChanged(display.Monitor) {
	d.events.Or(eventDisplay)
	d.link.Lock()
	defer d.link.Unlock()
	if d.env != nil {
		d.env.ConfigChanged()
	}
}

// Stop stops listening to the screens. No command waits.
func (d *Device) Stop() {
	if d.unlisten == nil {
		return
	}
	d.told = d.told[:0]
	for i, s := range d.cfg.Screens {
		d.told = append(d.told, s.Monitor()) // first: a change in between is heard twice rather than never
		d.unlisten[i]()
	}
	d.unlisten = nil
	d.link.Lock()
	d.env = nil
	d.link.Unlock()
}

// Reset forgets all resources and turns off the scanouts.
func (d *Device) Reset() {
	d.mu.Lock()
	for i := range d.scanouts {
		d.off(&d.scanouts[i])
	}
	for len(d.shared) > 0 {
		d.unshare(d.shared[0].res)
	}
	clear(d.resources)
	d.entries = 0
	if d.arena != nil {
		d.arena.close()
		d.arena = nil
	}
	d.mu.Unlock()
	d.hideCursors()
	d.events.Store(0)
	d.told, d.restored = nil, false
}

// complain logs the first failure of the host.
func (d *Device) complain(err error) {
	if d.logged.CompareAndSwap(false, true) {
		d.cfg.Log.Error("graphics: the guest was told that memory is out; more will not be logged", "err", err)
	}
}
