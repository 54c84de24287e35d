package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lodgehv/lodge/hypervisor/acpi"
	"github.com/lodgehv/lodge/hypervisor/boot"
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
	cpuid      []kvm.CPUIDEntry // what KVM supports
	interrupts *interrupts
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
	closed  bool
	over    chan struct{} // closed with the outcome
	once    sync.Once
	outcome Outcome
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
	var entry boot.Entry
	return build(cfg, plan{
		romSize: firmware.size(),
		ram:     func() (*mem.Memory, error) { return mem.Alloc(ranges, mem.AllocOptions{Huge: cfg.Huge}) },
		load: func(m *Machine) (err error) {
			if err := firmware.place(m.mem); err != nil {
				return err
			}
			entry, err = m.boot()
			return err
		},
		enter: func(m *Machine) error { return m.enter(entry) },
	})
}

// plan is what building a new machine and restoring one differ in.
type plan struct {
	romSize uint64
	ram     func() (*mem.Memory, error)
	load    func(*Machine) error // puts what it can into the board and its memory, before there are vCPUs
	enter   func(*Machine) error // puts the vCPUs where they begin
}

// build makes a machine. KVM works long on its part, most of all on the tables that it keeps of the guest's memory, so
// the rest is done meanwhile.
func build(cfg Config, p plan) (*Machine, error) {
	if cfg.CPUs < 1 || cfg.CPUs > MaxCPUs {
		return nil, fmt.Errorf("%d CPUs: 1 to %d are possible", cfg.CPUs, MaxCPUs)
	}
	m := &Machine{cfg: cfg, romSize: p.romSize, log: cfg.Log, interrupts: newInterrupts(), over: make(chan struct{})}
	if m.log == nil {
		m.log = slog.Default()
	}
	for _, step := range []func() error{
		func() error {
			created := meanwhile(m.createVM)
			memory, err := p.ram()
			m.mem = memory
			return errors.Join(err, created())
		},
		func() error {
			wired := meanwhile(m.wireVM)
			return errors.Join(m.addBoard(p.load), wired())
		},
		m.addCPUs,
		func() error { return p.enter(m) },
	} {
		if err := step(); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// meanwhile calls f in a goroutine. What it returns waits for f and returns its error.
func meanwhile(f func() error) (wait func() error) {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return func() error { return <-done }
}

func (m *Machine) createVM() (err error) {
	m.vm, err = m.cfg.KVM.CreateVM()
	return err
}

// wireVM gives the VM its memory and interrupt controllers. Memory comes first: afterwards each slot costs milliseconds.
func (m *Machine) wireVM() error {
	for i, s := range slots(m.mem, m.romSize) {
		if err := m.vm.SetUserMemoryRegion(uint32(i), s.flags, uint64(s.base), s.bytes); err != nil {
			return err
		}
	}
	if err := m.vm.SetIdentityMapAddr(identityBase); err != nil {
		return err
	}
	if err := m.vm.SetTSSAddr(tssBase); err != nil {
		return err
	}
	if err := m.vm.CreateIRQChip(); err != nil {
		return err
	}
	if err := m.vm.CreatePIT2(kvm.PITSpeakerDummy); err != nil {
		return err
	}
	return m.interrupts.attach(m.vm)
}

// addBoard does all that needs memory, but no VM.
func (m *Machine) addBoard(load func(*Machine) error) (err error) {
	if m.cpuid, err = m.cfg.KVM.GetSupportedCPUID(); err != nil {
		return err
	}
	for _, step := range []func() error{m.addDevices, m.addChipset, m.addCards} {
		if err := step(); err != nil {
			return err
		}
	}
	return load(m)
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
		card, err := s.New(Board{Name: s.Name, Mem: m.mem, Doorbells: doorbells{m}, Pin: 1, Log: m.log})
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
	deadline := m.cfg.KVM.CheckExtension(kvm.CapTSCDeadlineTimer) != 0
	for i := range m.cfg.CPUs {
		entries, err := vcpu.CPUID(m.cpuid, i, m.cfg.CPUs, deadline)
		if err != nil {
			return err
		}
		k, err := m.vm.CreateVCPU(i)
		if err != nil {
			return err
		}
		if err := k.SetCPUID2(entries); err != nil { // here, since the vCPU has no thread yet
			return errors.Join(err, k.Close())
		}
		cpu, err := vcpu.New(k, i, &m.ports, &m.mmio, m.cpuEvent)
		if err != nil {
			return err
		}
		m.cpus = append(m.cpus, cpu)
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
	m.paused = false
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

// Close ends the machine: its vCPUs, devices and memory. What the guest wrote to its serial ports has been written then.
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
	if m.running {
		m.flush()
		errs = append(errs, snap.PauseAll(m.devices))
		m.running = false
	}
	m.closed = true
	for _, c := range m.cards {
		errs = append(errs, c.Function().Detach(), c.Close())
	}
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	m.finish(Outcome{Reason: Closed})
	return errors.Join(errs...)
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
