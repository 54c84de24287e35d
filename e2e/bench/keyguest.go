package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/console/qdisplay"
	guestinput "github.com/lodgehv/lodge/hid/guest"
	"github.com/lodgehv/lodge/hid/virtioinput"
	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/vgpu/display"
)

// keyGuestCommand names what serveKeyGuest does.
const keyGuestCommand = "keyguest"

// serveKeyGuest runs a guest with a keyboard, as lodge-vmm composes it, at the display socket that its argument names. The
// guest is a driver of the keyboard and no more: it sleeps, and tells of each interrupt. Of each, the time (CLOCK_MONOTONIC,
// in nanoseconds, eight bytes) goes to standard output, after a '!' once the guest is ready. It ends when standard input does.
func serveKeyGuest(path string) (err error) {
	runtime.GOMAXPROCS(runtime.NumCPU() + 1) // as lodge-vmm has it
	sys, err := kvm.Open("/dev/kvm")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	w := &witness{told: make(chan uint64, 64)}
	var in guestinput.Input
	keyboard := machine.Virtio("input.keyboard", in.Virtio(virtioinput.Keyboard))
	var card machine.Card
	m, err := machine.New(machine.Config{
		Name: "bench", KVM: sys, CPUs: 1, Memory: 16 << 20, Log: slog.New(slog.DiscardHandler),
		Boot: machine.Boot{Kernel: kvmtest.Image(kvmtest.Program{
			Ring: kvmtest.Ring0, Main: func(*kvmtest.Asm) {}, Handlers: map[byte]func(*kvmtest.Asm){keyVector: interrupted},
		})},
		Slots: []machine.Slot{
			{Name: "witness", New: w.build},
			{Name: keyboard.Name, New: func(b machine.Board) (machine.Card, error) {
				var err error
				card, err = keyboard.New(b)
				return card, err
			}},
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := drive(m.Memory(), card); err != nil {
		return err
	}

	screen := display.NewScreen(display.Monitor{Connected: true, Width: 1024, Height: 768})
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	server := qdisplay.NewServer(qdisplay.Config{
		Name: "bench", UUID: "00000000-0000-4000-8000-000000000000", Screens: []*display.Screen{screen}, Input: &in,
	})
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }() // ends with Close
	defer func() { _ = server.Close(); <-served }()
	if err := m.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		cancel(err)
	}()
	go func() {
		o, err := m.Wait(ctx)
		cancel(fmt.Errorf("the guest has ended: %v: %s: %w", o.Reason, o.Detail, err))
	}()
	return tell(ctx, w.told)
}

// tell passes on when the guest has been interrupted.
func tell(ctx context.Context, told <-chan uint64) error {
	ready := false
	for {
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); err != context.Canceled {
				return err
			}
			return nil
		case at := <-told:
			p := binary.LittleEndian.AppendUint64(nil, at)
			if !ready {
				ready, p = true, []byte{'!'}
			}
			if _, err := os.Stdout.Write(p); err != nil {
				return err
			}
		}
	}
}

// witness is a card with one port: it tells when the guest writes to it.
type witness struct {
	pci.ConfigSpace
	snap.Component
	fn   *pci.Function
	told chan uint64
}

const witnessPort = 0xe00

func (w *witness) build(b machine.Board) (_ machine.Card, err error) {
	w.fn, err = pci.NewFunction(pci.Config{
		Name: b.Name, Class: 0xff0000, DefaultCommandBits: pci.CommandIO,
		Fixed: []pci.Fixed{{Ports: true, Range: bus.Range{Base: witnessPort, Size: 4}, Device: w}},
	})
	w.ConfigSpace, w.Component = w.fn, w.fn
	return w, err
}

// Function and Close implement machine.Card.
func (w *witness) Function() *pci.Function { return w.fn }
func (w *witness) Close() error            { return nil }

// Read and Write implement bus.Device.
func (w *witness) Read(_ bus.Access, p []byte) { clear(p) }
func (w *witness) Write(bus.Access, []byte) {
	select {
	case w.told <- uint64(monotonic()):
	default: // a guest that interrupts all the time; the figure notices
	}
}

// monotonic is the clock of input events.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it exists
	return time.Duration(ts.Nano())
}

// What the guest's driver uses.
const (
	keyVector  = 0x30
	localAPIC  = 0xfee00000
	keyRing    = 64 // buffers
	keyDesc    = kvmtest.Data
	keyAvail   = kvmtest.Data + 0x1000
	keyUsed    = kvmtest.Data + 0x2000
	keyBuffers = kvmtest.Data + 0x3000
	keyEvent   = 8 // bytes: struct virtio_input_event (virtio 1.2 §5.8.6)
)

// interrupted is the guest's interrupt handler: it tells, and gives the two buffers back that a key takes.
func interrupted(a *kvmtest.Asm) {
	a.Push(kvmtest.RAX).Push(kvmtest.RDX).Push(kvmtest.RDI)
	a.Mov(kvmtest.RDX, witnessPort).Out8()
	a.Mov(kvmtest.RDI, keyAvail+2).Bytes(0x66, 0x83, 0x07, 2) // add word [rdi], 2
	kvmtest.EndOfInterrupt(a).Pop(kvmtest.RDI).Pop(kvmtest.RDX).Pop(kvmtest.RAX).Iretq()
}

// drive puts the driver of a virtio keyboard into a guest's memory, where it goes on after its first steps: it sets the device
// up with its first queue and one MSI-X vector (virtio 1.2 §3.1.1, §4.1.5), tells that it is ready, and sleeps.
func drive(ram *mem.Memory, card machine.Card) error {
	u8 := func(off int) int { var b [1]byte; card.ReadConfig(off, b[:]); return int(b[0]) }
	u32 := func(off int) uint64 {
		var b [4]byte
		card.ReadConfig(off, b[:])
		return uint64(binary.LittleEndian.Uint32(b[:]))
	}
	bar := u32(pci.BAR0) &^ 0xf
	var common, table uint64
	for at := u8(pci.CapPointer); at != 0; at = u8(at + 1) {
		switch id := u8(at); {
		case id == pci.CapVendor && u8(at+3) == 1: // VIRTIO_PCI_CAP_COMMON_CFG
			common = bar + u32(at+8)
		case id == pci.CapMSIX:
			table = bar + u32(at+4)&^7
			card.WriteConfig(at+2, []byte{0, 0x80}) // enabled
		}
	}
	if common == 0 || table == 0 {
		return errors.New("the keyboard has no such capabilities as a virtio device has")
	}
	card.WriteConfig(pci.Command, []byte{pci.CommandMemory | pci.CommandMaster, 0})

	le := binary.LittleEndian
	desc, avail := make([]byte, 16*keyRing), []byte{0, 0, keyRing, 0}
	for i := range uint64(keyRing) {
		le.PutUint64(desc[16*i:], keyBuffers+keyEvent*i)
		le.PutUint32(desc[16*i+8:], keyEvent)
		le.PutUint16(desc[16*i+12:], 2) // VIRTQ_DESC_F_WRITE
		avail = le.AppendUint16(avail, uint16(i))
	}

	a := &kvmtest.Asm{Base: kvmtest.Code}
	store := func(at, v uint64, op func(base, r kvmtest.Reg) *kvmtest.Asm) {
		a.Mov(kvmtest.RDI, at).Mov(kvmtest.RAX, v)
		op(kvmtest.RDI, kvmtest.RAX)
	}
	store(table, localAPIC, a.Store32)
	store(table+4, 0, a.Store32)
	store(table+8, keyVector, a.Store32)
	store(table+12, 0, a.Store32)
	const acknowledge, driver, driverOK, featuresOK = 1, 2, 4, 8
	store(common+20, acknowledge|driver, a.Store8)
	store(common+8, 1, a.Store32)  // the features' second half, of which
	store(common+12, 1, a.Store32) // VIRTIO_F_VERSION_1
	store(common+20, acknowledge|driver|featuresOK, a.Store8)
	store(common+22, 0, a.Store16) // queue 0
	store(common+24, keyRing, a.Store16)
	store(common+26, 0, a.Store16) // its vector
	for i, at := range []uint64{keyDesc, keyAvail, keyUsed} {
		store(common+32+8*uint64(i), at, a.Store32)
		store(common+36+8*uint64(i), 0, a.Store32)
	}
	store(common+28, 1, a.Store16)
	store(common+20, acknowledge|driver|featuresOK|driverOK, a.Store8)
	a.Mov(kvmtest.RDX, witnessPort).Out8()
	sleep := a.Here()
	a.Hlt().Jmp(sleep)
	return errors.Join(ram.WriteAt(desc, keyDesc), ram.WriteAt(avail, keyAvail), ram.WriteAt(a.Code, kvmtest.Code))
}
