// Package vga is a VGA card with the Bochs VBE extensions, as the PCI card that QEMU calls VGA or stdvga: what firmware,
// boot loaders, kernels' boot consoles and every system's generic driver can draw on.
//
// It is all that a VGA's registers can make of 256 KiB (text, 16-colour, 4-colour and 256-colour modes, with their write
// modes, split screen and panning), and linear modes of up to 32 bits a pixel on all of its video memory. The guest has
// that memory as a BAR; a 32-bit mode is shown where it lies, without a copy. It is not cycle-exact: dots have no time, and
// there is no monochrome or CGA register set beyond what a VGA has.
//
// The picture that the Screen gets is what would go over the cable: a mode with 320 pixels in a line has 640, of 200 lines
// each is there twice.
//
// Specifications: IBM, PS/2 Hardware Interface Technical Reference, Video Subsystem (1991), for the VGA; for the rest QEMU,
// docs/specs/standard-vga, and Bochs, iodev/display/vga.h (the "dispi" interface).
package vga

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/vgpu/display"
)

// Sizes of video memory, in bytes: powers of two.
const (
	MinMemory     = 1 << 20
	MaxMemory     = 32 << 20 // a saved state has to hold all of it
	DefaultMemory = 16 << 20
)

// What the card is on the PCI bus. Drivers look for extended registers from revision 2 on.
const (
	vendorID        = 0x1234
	deviceID        = 0x1111
	subsystemVendor = 0x1af4
	subsystemID     = 0x1100
	class           = 0x030000
	revision        = 2

	memoryBAR    = 0
	registersBAR = 2
)

// Config describes a card.
type Config struct {
	Name   string // of the card, unique in its machine
	Screen *display.Screen
	EDID   func(display.Monitor) []byte // what a monitor tells of itself, up to 1024 bytes; nil: nothing
	ROM    []byte                       // the option ROM, such as Debian's vgabios-stdvga.bin; not copied; empty: none
	Memory int                          // bytes of video memory; 0 is DefaultMemory
	Mapper bus.Mapper                   // puts video memory into the guest; nil: each access exits
	Log    *slog.Logger                 // nil: nobody is told
}

// Card is a VGA card. It implements pci.ConfigSpace and snap.Component.
//
// Locks, in the order in which they are taken: drawing; the function's own; mu; the surface's. The Screen calls the card
// with its own lock held, so what it calls takes none of these, and the card calls it with drawing held at most.
type Card struct {
	cfg   Config
	fn    *pci.Function
	start time.Time
	now   func() time.Duration // since start

	edid        atomic.Pointer[[edidSize]byte]
	watched     atomic.Bool
	warned      atomic.Bool
	wake        chan struct{} // holds a token when there is something to draw
	stopMonitor func()
	stopWatch   func()
	stop, done  chan struct{} // of the goroutine that draws; nil while it does not run. Under drawing

	drawing sync.Mutex
	picture picture // changed with mu held as well

	mu      sync.Mutex // of all below
	regs    registers
	vbe     vbe
	video   video
	touched bool // since the last drawing
	closed  bool
}

// New returns a card, which shows nothing before Resume.
func New(cfg Config) (*Card, error) {
	if cfg.Memory == 0 {
		cfg.Memory = DefaultMemory
	}
	if cfg.Memory < MinMemory || cfg.Memory > MaxMemory || bits.OnesCount(uint(cfg.Memory)) != 1 {
		return nil, fmt.Errorf("%s: video memory of %d bytes: a power of two from %d to %d MiB is possible",
			cfg.Name, cfg.Memory, MinMemory>>20, MaxMemory>>20)
	}
	file, memory, err := newMemory("vga-memory", cfg.Memory)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Name, err)
	}
	c, err := build(cfg, video{memory: memory, file: file})
	if err != nil {
		return nil, errors.Join(err, freeMemory(file, memory))
	}
	return c, nil
}

// build returns a card with the given video memory, which may lie on the heap.
func build(cfg Config, v video) (*Card, error) {
	c := &Card{cfg: cfg, start: time.Now(), wake: make(chan struct{}, 1), video: v}
	c.now = func() time.Duration { return time.Since(c.start) }
	c.video.init()
	c.regs.powerOn()
	c.vbe.powerOn(len(v.memory))
	fn, err := pci.NewFunction(pci.Config{
		Name: cfg.Name, Vendor: vendorID, Device: deviceID, SubsystemVendor: subsystemVendor, Subsystem: subsystemID,
		Class: class, Revision: revision, ROM: cfg.ROM,
		BARs: [6]pci.BAR{
			memoryBAR:    {Kind: pci.BARMem32Prefetch, Size: uint64(len(v.memory)), Device: frameBuffer{c}, Moved: c.moved},
			registersBAR: {Kind: pci.BARMem32, Size: mmioSize, Device: mmio{c}},
		},
		Fixed: []pci.Fixed{
			{Ports: true, Range: bus.Range{Base: monoPorts, Size: monoPortsSize}, Device: ports{c}},
			{Ports: true, Range: bus.Range{Base: vgaPorts, Size: vgaPortsSize}, Device: ports{c}},
			{Ports: true, Range: bus.Range{Base: vbePortIndex, Size: vbePortsSize}, Device: vbePorts{c}},
			{Range: bus.Range{Base: windowBase, Size: windowSize}, Device: window{c}},
		},
	})
	if err != nil {
		return nil, err
	}
	c.fn = fn
	c.setMonitor(cfg.Screen.Monitor())
	c.stopMonitor = cfg.Screen.OnMonitor(c.setMonitor)
	c.stopWatch = cfg.Screen.OnWatch(c.watch, func() { c.draw() })
	return c, nil
}

// Function returns the PCI function, to attach and to place its registers.
func (c *Card) Function() *pci.Function { return c.fn }

// ReadConfig implements pci.ConfigSpace.
func (c *Card) ReadConfig(off int, p []byte) { c.fn.ReadConfig(off, p) }

// WriteConfig implements pci.ConfigSpace.
func (c *Card) WriteConfig(off int, p []byte) { c.fn.WriteConfig(off, p) }

// Close shows nothing any more and frees the memory. The function must be detached.
func (c *Card) Close() error {
	c.stopMonitor()
	c.stopWatch()
	c.drawing.Lock()
	defer c.drawing.Unlock()
	c.halt()
	c.mu.Lock()
	shown := c.picture.surface != nil
	retire := c.picture.retire
	c.picture = picture{}
	v := c.video
	c.video, c.closed = video{}, true
	c.mu.Unlock()
	if shown {
		c.cfg.Screen.Scanout(nil)
	}
	if retire != nil {
		retire()
	}
	if v.file == nil {
		return nil
	}
	return freeMemory(v.file, v.memory)
}

// warn tells the log, once: a guest can cause it as often as it likes.
func (c *Card) warn(msg string, err error) {
	if c.cfg.Log != nil && c.warned.CompareAndSwap(false, true) {
		c.cfg.Log.Warn(msg, "device", c.cfg.Name, "err", err)
	}
}
