package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/hypervisor/acpi"
	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/vcpu"
)

// Machine is one virtual machine. Its methods may be called from any goroutine that is not one of its vCPUs' or devices'.
type Machine struct {
	cfg Config
	log *slog.Logger

	mem        *mem.Memory
	romSize    uint64
	vm         *kvm.VM
	interrupts *interrupts
	mapper     *mapper
	ports      bus.Bus
	mmio       bus.Bus
	pci        pci.Root
	cards      []Card
	cpus       []*vcpu.CPU

	serial   [2]*legacy.UART
	debugcon *legacy.DebugConsole
	pm       *legacy.PM
	i8042    *legacy.I8042
	fwcfg    *legacy.FWCfg
	vmgenid  *acpi.VMGenID
	devices  []snap.Component // all but the vCPUs and what KVM keeps, in the order of saving

	mu      sync.Mutex
	running bool
	paused  bool // ran before
	saved   bool // while it was paused
	closed  bool
	over    chan struct{} // closed with the outcome
	once    sync.Once
	outcome Outcome
	ended   atomic.Bool // there is an outcome: the vCPUs do not run on
}

// New builds a machine whose guest starts from cfg.Boot. Nothing runs before Start.
func New(cfg Config) (*Machine, error) {
	var firmware *rom
	if cfg.Boot.Firmware != nil {
		var err error
		if firmware, err = loadROM(*cfg.Boot.Firmware); err != nil {
			return nil, err
		}
	}
	ranges, err := ramRanges(cfg.Memory, firmware.size())
	if err != nil {
		return nil, err
	}
	var m *mem.Memory
	if cfg.SharedMemory {
		m, err = mem.Alloc(ranges, mem.AllocOptions{Huge: true})
	} else {
		m, err = mem.AllocPrivate(ranges)
	}
	if err != nil {
		return nil, err
	}
	if err := firmware.place(m); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return build(cfg, m, firmware.size(), (*Machine).boot)
}

// build makes a machine on m, which it owns from now on, and has fill put the guest into it: a kernel or a saved state.
func build(cfg Config, memory *mem.Memory, romSize uint64, fill func(*Machine) error) (*Machine, error) {
	m := &Machine{cfg: cfg, mem: memory, romSize: romSize, log: cfg.Log, over: make(chan struct{})}
	if m.log == nil {
		m.log = slog.Default()
	}
	for _, step := range []func() error{
		m.createVM,
		m.addDevices,
		m.addChipset,
		m.addCards,
		m.addCPUs,
		func() error { return fill(m) },
	} {
		if err := step(); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// createVM makes KVM's part. Memory comes before the interrupt controllers: afterwards each slot costs milliseconds.
func (m *Machine) createVM() error {
	if m.cfg.CPUs < 1 || m.cfg.CPUs > MaxCPUs {
		return fmt.Errorf("%d CPUs: 1 to %d are possible", m.cfg.CPUs, MaxCPUs)
	}
	vm, err := m.cfg.KVM.CreateVM()
	if err != nil {
		return err
	}
	m.vm = vm
	ram := slots(m.mem, m.romSize)
	m.mapper = &mapper{vm: vm, first: uint32(len(ram))}
	for i, s := range ram {
		if err := vm.SetUserMemoryRegion(uint32(i), s.flags, uint64(s.base), s.bytes); err != nil {
			return err
		}
	}
	if err := vm.SetIdentityMapAddr(identityBase); err != nil {
		return err
	}
	if err := vm.SetTSSAddr(tssBase); err != nil {
		return err
	}
	if err := vm.CreateIRQChip(); err != nil {
		return err
	}
	if err := vm.CreatePIT2(kvm.PITSpeakerDummy); err != nil {
		return err
	}
	m.interrupts, err = newInterrupts(vm)
	return err
}

// slot is a memory slot of KVM's.
type slot struct {
	base  mem.GPA
	bytes []byte
	flags uint32
}

// slots returns what the guest sees of m: not what lies behind VGA's window, and of the ROM its last romSize bytes.
func slots(m *mem.Memory, romSize uint64) []slot {
	var ss []slot
	for _, r := range m.Regions() {
		switch {
		case r.Base == 0:
			ss = append(ss, slot{0, r.Bytes[:vgaBase], 0}, slot{highLowBase, r.Bytes[highLowBase:], 0})
		case r.End() == fourGiB:
			ss = append(ss, slot{mem.GPA(fourGiB - romSize), r.Bytes[uint64(len(r.Bytes))-romSize:], kvm.MemReadonly})
		default:
			ss = append(ss, slot{r.Base, r.Bytes, 0})
		}
	}
	return ss
}

// addCards builds the cards and gives each a slot.
func (m *Machine) addCards() error {
	names := make(map[string]bool)
	for _, s := range m.cfg.Slots {
		if names[s.Name] {
			return fmt.Errorf("two cards are called %q", s.Name)
		}
		names[s.Name] = true
		card, err := s.New(Board{Name: s.Name, Mem: m.mem, Doorbells: doorbells{m.vm}, Mapper: m.mapper, Pin: 1, Log: m.log,
			Shared: m.cfg.SharedMemory})
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		m.cards = append(m.cards, card)
		m.devices = append(m.devices, card)
		if err := m.plug(card); err != nil {
			return err
		}
	}
	return nil
}

// plug puts card into the next free slot.
func (m *Machine) plug(card Card) error {
	at, err := m.pci.Free(slotCards)
	if err != nil {
		return err
	}
	line := m.interrupts.line(intxGSI(int(at.Device), 0))
	env := pci.Env{Ports: &m.ports, MMIO: &m.mmio, Line: line, MSI: m.interrupts}
	if err := card.Function().Attach(env); err != nil {
		return err
	}
	return m.pci.Insert(at, card)
}

// addCPUs makes the vCPUs and says what CPUID tells them.
func (m *Machine) addCPUs() error {
	supported, err := m.cfg.KVM.GetSupportedCPUID()
	if err != nil {
		return err
	}
	deadline := m.cfg.KVM.CheckExtension(kvm.CapTSCDeadlineTimer) != 0
	for i := range m.cfg.CPUs {
		entries, err := vcpu.CPUID(supported, i, m.cfg.CPUs, deadline)
		if err != nil {
			return err
		}
		k, err := m.vm.CreateVCPU(i)
		if err != nil {
			return err
		}
		cpu, err := vcpu.New(k, i, entries, &m.ports, &m.mmio, m.cpuEvent)
		if err != nil {
			return err
		}
		cpu.EndWith(&m.ended)
		m.cpus = append(m.cpus, cpu)
		if m.cfg.OnVCPUThread != nil {
			if err := cpu.Do(func(*kvm.VCPU) error { return m.cfg.OnVCPUThread() }); err != nil {
				return err
			}
		}
	}
	return nil
}

// Start lets the guest run.
func (m *Machine) Start() error { return m.Resume() }

// Resume lets the guest run again after Pause. It does nothing if it does run.
func (m *Machine) Resume() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.resume()
}

func (m *Machine) resume() error {
	if m.closed {
		return errClosed
	}
	if m.running {
		return nil
	}
	if err := snap.ResumeAll(m.devices); err != nil {
		return err
	}
	m.running = true
	for _, c := range m.cpus {
		if m.paused {
			// The guest's watchdogs are told that it stood still. A guest without kvmclock makes this fail.
			_ = c.Do((*kvm.VCPU).KVMClockCtrl)
		}
		if err := c.Resume(); err != nil {
			return err
		}
	}
	m.paused, m.saved = false, false
	return nil
}

// Pause returns when no vCPU runs and no device touches the guest's memory. It does nothing if the guest is paused.
func (m *Machine) Pause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pause()
}

func (m *Machine) pause() error {
	if m.closed {
		return errClosed
	}
	if !m.running {
		return nil
	}
	for _, c := range m.cpus {
		if err := c.Pause(); err != nil {
			return err
		}
	}
	if err := snap.PauseAll(m.devices); err != nil {
		return err
	}
	m.running, m.paused = false, true
	return nil
}

// Running reports whether the guest runs.
func (m *Machine) Running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}

// PowerButton presses the power button: an operating system with ACPI shuts down.
func (m *Machine) PowerButton() { m.pm.PowerButton() }

// Exits returns how often the guest has left its processors for a device, since the machine was made.
func (m *Machine) Exits() (n uint64) {
	for _, c := range m.cpus {
		n += c.Exits()
	}
	return n
}

// NMI sends a non-maskable interrupt to vCPU 0, which makes most systems dump or panic.
func (m *Machine) NMI() error { return m.cpus[0].Do((*kvm.VCPU).NMI) }

// Serial returns COM1 (0) or COM2 (1), or nil if the machine does not have it.
func (m *Machine) Serial(i int) *legacy.UART { return m.serial[i] }

// Memory returns the guest's memory.
func (m *Machine) Memory() *mem.Memory { return m.mem }

// Wait returns how the machine ended, once it has, or ctx's error.
func (m *Machine) Wait(ctx context.Context) (Outcome, error) {
	select {
	case <-m.over:
		return m.outcome, nil
	case <-ctx.Done():
		return Outcome{}, ctx.Err()
	}
}

var errClosed = errors.New("machine is closed")

// Close ends the machine: its vCPUs, devices and memory. What the guest wrote to its serial ports has been written then,
// or is part of the state that was saved.
func (m *Machine) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	var errs []error
	for _, c := range m.cpus {
		errs = append(errs, c.Stop())
	}
	switch outputs := m.outputs(); {
	case m.running:
		m.flush()
		errs = append(errs, snap.PauseAll(m.devices))
		m.running = false
	case m.paused && !m.saved:
		errs = append(errs, snap.ResumeAll(outputs))
		m.flush()
		errs = append(errs, snap.PauseAll(outputs))
	}
	m.closed = true
	for _, c := range m.cards {
		errs = append(errs, c.Function().Detach(), c.Close())
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	errs = append(errs, m.mem.Close())
	m.finish(Outcome{Reason: Closed})
	return errors.Join(errs...)
}

// outputs returns the devices that keep what nobody has taken yet.
func (m *Machine) outputs() (cs []snap.Component) {
	for _, p := range m.serial {
		if p != nil {
			cs = append(cs, p)
		}
	}
	if m.debugcon != nil {
		cs = append(cs, m.debugcon)
	}
	return cs
}

// flushLimit bounds how long a machine that ends waits for somebody to take its last output.
const flushLimit = time.Second

// flush writes what the guest has sent to its ports and nobody has taken yet. A reader that has gone loses it.
func (m *Machine) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushLimit)
	defer cancel()
	for _, p := range m.serial {
		if p != nil {
			_ = p.Flush(ctx)
		}
	}
	if m.debugcon != nil {
		_ = m.debugcon.Flush(ctx)
	}
}
