package vcpu_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/vcpu"
)

const (
	port   = 0x510
	mmioAt = 0xd0000000
)

func TestPortIO(t *testing.T) {
	m := newMachine(t, 1)
	dev := newRecorder(0x89abcdef)
	if err := m.ports.Map(bus.Range{Base: port, Size: 4}, dev); err != nil {
		t.Fatal(err)
	}
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring0, Main: func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RAX, 0x11223344).Mov(kvmtest.RDX, port).Out8().Out16().Out32()
		a.In32().Out32() // what was read comes back
		// A string instruction: one exit with several accesses.
		a.Mov(kvmtest.RSI, kvmtest.Code).Mov(kvmtest.RCX, 3).Bytes(0xf3, 0x6e) // rep outsb
		a.Mov(kvmtest.RDX, 0x600).In8()                                        // nobody's port
		a.Mov(kvmtest.RDX, port).Out8().Spin()
	}})
	want := []write{
		{port, 0x44, 1, 0}, {port, 0x3344, 2, 0}, {port, 0x11223344, 4, 0}, {port, 0x89abcdef, 4, 0},
		{port, 0x48, 1, 0}, {port, 0xb8, 1, 0}, {port, 0x44, 1, 0}, // the first instruction's bytes
		{port, 0xff, 1, 0},
	}
	if diff := cmp.Diff(want, m.take(t, dev, len(want))); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
}

func TestMMIO(t *testing.T) {
	for name, ring := range map[string]kvmtest.Ring{"ring 0": kvmtest.Ring0, "ring 3": kvmtest.Ring3} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 1)
			dev := newRecorder(0x0123456789abcdef)
			if err := m.mmio.Map(bus.Range{Base: mmioAt, Size: 0x2000}, dev); err != nil {
				t.Fatal(err)
			}
			m.start(t, kvmtest.Program{Ring: ring, Main: func(a *kvmtest.Asm) {
				a.Mov(kvmtest.RDI, mmioAt+8).Mov(kvmtest.RAX, 0x1122334455667788)
				a.Store8(kvmtest.RDI, kvmtest.RAX).Store32(kvmtest.RDI, kvmtest.RAX).Store64(kvmtest.RDI, kvmtest.RAX)
				a.Load64(kvmtest.RAX, kvmtest.RDI).Store64(kvmtest.RDI, kvmtest.RAX)
				// Across a page: one byte in the first, three in the second, which no device need know how to take.
				a.Mov(kvmtest.RDI, mmioAt+0xfff).Mov(kvmtest.RAX, 0x44332211).Store32(kvmtest.RDI, kvmtest.RAX).Spin()
			}})
			want := []write{
				{mmioAt + 8, 0x88, 1, 0}, {mmioAt + 8, 0x55667788, 4, 0}, {mmioAt + 8, 0x1122334455667788, 8, 0},
				{mmioAt + 8, 0x0123456789abcdef, 8, 0},
				{mmioAt + 0xfff, 0x11, 1, 0}, {mmioAt + 0x1000, 0x3322, 2, 0}, {mmioAt + 0x1002, 0x44, 1, 0},
			}
			if diff := cmp.Diff(want, m.take(t, dev, len(want))); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
		})
	}
}

// take returns the next n writes to dev, or fails when something else happens.
func (m *machine) take(t testing.TB, dev *recorder, n int) (ws []write) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for len(ws) < n {
		select {
		case w := <-dev.writes:
			ws = append(ws, w)
		case e := <-m.events:
			t.Fatalf("after %d writes %v: %v, %v", len(ws), ws, e.Kind, e.Err)
		case <-deadline:
			var regs kvm.Regs
			err := m.cpus[0].Do(func(k *kvm.VCPU) error { return k.GetRegs(&regs) })
			t.Fatalf("%d writes in 20 s: %v; %+v %v", len(ws), ws, regs, err)
		}
	}
	return ws
}

// event waits for the machine's next event.
func (m *machine) event(t testing.TB) vcpu.Event {
	t.Helper()
	select {
	case e := <-m.events:
		return e
	case <-time.After(20 * time.Second):
		t.Fatal("no event in 20 s")
		return vcpu.Event{}
	}
}

func (m *machine) counterAt(off int) uint64 {
	return binary.LittleEndian.Uint64(m.ram[kvmtest.Data+off:])
}

// countInMemory says that it runs, counts in memory, and never exits.
func countInMemory(a *kvmtest.Asm) {
	a.Mov(kvmtest.RDI, mmioAt).Store8(kvmtest.RDI, kvmtest.RAX).Mov(kvmtest.RDI, kvmtest.Data)
	top := a.Here()
	a.IncMem(kvmtest.RDI).Jmp(top)
}

func TestLifeCycle(t *testing.T) {
	m := newMachine(t, 1)
	c := m.cpus[0]
	if err := c.Pause(); err != nil || c.Status() != vcpu.Created {
		t.Errorf("pausing what never ran: %v, %v", c.Status(), err)
	}
	dev := newRecorder(0)
	if err := m.mmio.Map(bus.Range{Base: mmioAt, Size: 4}, dev); err != nil {
		t.Fatal(err)
	}
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring3, Main: countInMemory})
	m.take(t, dev, 1)
	for range 200 { // each a chance to lose a kick
		if err := c.Pause(); err != nil || c.Status() != vcpu.Paused {
			t.Fatalf("paused is %v: %v", c.Status(), err)
		}
		n := m.counterAt(0)
		if err := c.Do(func(*kvm.VCPU) error { return nil }); err != nil || m.counterAt(0) != n {
			t.Fatalf("counted from %d to %d while paused: %v", n, m.counterAt(0), err)
		}
		if err := errors.Join(c.Pause(), c.Resume(), c.Resume()); err != nil || c.Status() != vcpu.Running {
			t.Fatalf("resumed is %v: %v", c.Status(), err)
		}
		for range 3 { // while it runs
			if err := c.Do(func(k *kvm.VCPU) error { return k.GetRegs(new(kvm.Regs)) }); err != nil {
				t.Fatal(err)
			}
		}
		if c.Status() != vcpu.Running {
			t.Fatalf("running is %v after Do", c.Status())
		}
	}
	sentinel := errors.New("sentinel")
	if err := c.Do(func(*kvm.VCPU) error { return sentinel }); !errors.Is(err, sentinel) {
		t.Errorf("Do returned %v", err)
	}
	if err := errors.Join(c.Stop(), c.Stop()); err != nil || c.Status() != vcpu.Stopped {
		t.Errorf("stopped is %v: %v", c.Status(), err)
	}
	for _, err := range []error{c.Pause(), c.Resume(), c.Do(func(*kvm.VCPU) error { return nil })} {
		if !errors.Is(err, vcpu.ErrStopped) {
			t.Errorf("after Stop: %v", err)
		}
	}
}

// An input is not over until the guest has the value. A pause right after the device answered must not lose it.
func TestPauseCompletesAccess(t *testing.T) {
	m := newMachine(t, 1)
	dev := &slowDevice{entered: make(chan struct{}), leave: make(chan struct{})}
	if err := m.mmio.Map(bus.Range{Base: mmioAt, Size: 4}, dev); err != nil {
		t.Fatal(err)
	}
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring3, Main: func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RDI, mmioAt).Load32(kvmtest.RAX, kvmtest.RDI).Spin()
	}})
	<-dev.entered
	done := make(chan error)
	go func() { done <- m.cpus[0].Pause() }()
	close(dev.leave)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var r kvm.Regs
	if err := m.cpus[0].Do(func(k *kvm.VCPU) error { return k.GetRegs(&r) }); err != nil {
		t.Fatal(err)
	}
	if r.RAX != 0xcafef00d {
		t.Errorf("RAX is %#x at %#x: the value that was read is lost", r.RAX, r.RIP)
	}
}

type slowDevice struct{ entered, leave chan struct{} }

func (d *slowDevice) Read(_ bus.Access, p []byte) {
	d.entered <- struct{}{}
	<-d.leave
	binary.LittleEndian.PutUint32(p, 0xcafef00d)
}

func (d *slowDevice) Write(bus.Access, []byte) {}

func TestTripleFault(t *testing.T) {
	m := newMachine(t, 1)
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring3, Main: func(a *kvmtest.Asm) {
		a.Bytes(0x0f, 0x0b) // ud2, and no handler for it nor for what follows
	}})
	if e := m.event(t); e.Kind != vcpu.TripleFault || e.CPU != 0 {
		t.Errorf("got %v, %v", e.Kind, e.Err)
	}
	if s := m.cpus[0].Status(); s != vcpu.Paused {
		t.Errorf("is %v afterwards", s)
	}
	if err := m.cpus[0].Pause(); err != nil {
		t.Error(err)
	}
}

// A vCPU that jumps where no memory is makes KVM give up: its machine gets an error that tells where, and another
// machine goes on.
func TestFailureStopsItsMachineOnly(t *testing.T) {
	other := newMachine(t, 1)
	ticks := newCounter()
	if err := other.ports.Map(bus.Range{Base: port, Size: 4}, ticks); err != nil {
		t.Fatal(err)
	}
	other.start(t, kvmtest.Program{Ring: kvmtest.Ring0, Main: pioLoop})

	m := newMachine(t, 1)
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring0, Main: func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RAX, 0xd0000000).Bytes(0xff, 0xe0) // jmp rax
	}})
	e := m.event(t)
	var fail *vcpu.ExitError
	if e.Kind != vcpu.Failure || !errors.As(e.Err, &fail) {
		t.Fatalf("got %v, %v", e.Kind, e.Err)
	}
	if fail.Reason != kvm.ExitInternalError || fail.Regs.RIP != 0xd0000000 {
		t.Errorf("reason %d at %#x", fail.Reason, fail.Regs.RIP)
	}
	if s := e.Err.Error(); !strings.Contains(s, "vcpu 0: ") || !strings.Contains(s, "0010:00000000d0000000") {
		t.Errorf("error does not say where: %s", s)
	}
	t.Log(e.Err)
	ticks.wait(100)
}

func pioLoop(a *kvmtest.Asm) {
	a.Mov(kvmtest.RDX, port)
	top := a.Here()
	a.Out8().Jmp(top)
}

func TestHaltWithoutIRQChip(t *testing.T) {
	sys := kvmtest.Open(t)
	vm, err := sys.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	ram := kvmtest.RAM(t, memorySize)
	if err := vm.SetUserMemoryRegion(0, 0, 0, ram); err != nil {
		t.Fatal(err)
	}
	k, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan vcpu.Event, 1)
	cpuid, err := sys.GetSupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	c, err := vcpu.New(k, 0, cpuid, new(bus.Bus), new(bus.Bus), func(e vcpu.Event) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Stop()
	entry := kvmtest.Load(ram, kvmtest.Program{Ring: kvmtest.Ring0, Main: func(a *kvmtest.Asm) { a.Hlt() }})
	if err := errors.Join(c.Do(entry.SetRegisters), c.Resume()); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Kind != vcpu.Halt {
		t.Errorf("got %v, %v", e.Kind, e.Err)
	}
}

// The other processors do nothing until the first sends INIT and SIPI, then begin in real mode at the SIPI's page.
func TestStartUp(t *testing.T) {
	for _, n := range []int{2, vcpu.MaxCPUs} {
		t.Run(fmt.Sprint(n), func(t *testing.T) { startUp(t, newMachine(t, n)) })
	}
}

func startUp(t *testing.T, m *machine) {
	dev := newRecorder(0)
	if err := m.ports.Map(bus.Range{Base: port, Size: 4}, dev); err != nil {
		t.Fatal(err)
	}
	const page = 0x30
	copy(m.ram[page<<12:], []byte{
		0xba, port & 0xff, port >> 8, // mov dx, port
		0xb0, 0x5a, // mov al, 0x5a
		0xee,       // out dx, al
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	})
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring0, Main: func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RDX, port).Mov(kvmtest.RAX, 0x01).Out8()
		// The interrupt command register: INIT, then start-up, to all but ourselves (Intel SDM volume 3, §11.6.1).
		a.Mov(kvmtest.RDI, 0xfee00300).Mov(kvmtest.RAX, 0xc4500).Store32(kvmtest.RDI, kvmtest.RAX)
		a.Mov(kvmtest.RAX, 0xc4600|page).Store32(kvmtest.RDI, kvmtest.RAX).Hlt()
	}})
	want := []write{{port, 0x01, 1, 0}}
	for i := 1; i < len(m.cpus); i++ {
		want = append(want, write{port, 0x5a, 1, i})
	}
	got := m.take(t, dev, len(want))
	slices.SortFunc(got, func(a, b write) int { return a.VCPU - b.VCPU }) // they start in any order
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("writes (-want +got):\n%s", diff)
	}
	m.pause(t) // all in HLT
	m.resume(t)
	m.pause(t)
}

// An application processor that was never started can be paused, and goes on waiting.
func TestPauseWaitingForSIPI(t *testing.T) {
	ap := newMachine(t, 2).cpus[1]
	for range 20 {
		if err := errors.Join(ap.Resume(), ap.Pause()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIRQFD(t *testing.T) {
	m := newMachine(t, 1)
	dev := newRecorder(0)
	if err := m.mmio.Map(bus.Range{Base: mmioAt, Size: 4}, dev); err != nil {
		t.Fatal(err)
	}
	const gsi, vector = 24, 0x51
	if err := m.vm.SetGSIRouting([]kvm.RoutingEntry{kvm.RouteMSI(gsi, 0xfee00000, vector)}); err != nil {
		t.Fatal(err)
	}
	fd := eventfd(t)
	if err := m.vm.IRQFD(kvm.IRQFD{FD: uint32(fd), GSI: gsi}); err != nil {
		t.Fatal(err)
	}
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring3, Main: countInMemory, Handlers: map[byte]func(*kvmtest.Asm){
		vector: func(a *kvmtest.Asm) {
			a.Push(kvmtest.RAX).Push(kvmtest.RDI)
			a.Mov(kvmtest.RDI, mmioAt).Mov(kvmtest.RAX, 0x77).Store8(kvmtest.RDI, kvmtest.RAX)
			kvmtest.EndOfInterrupt(a)
			a.Pop(kvmtest.RDI).Pop(kvmtest.RAX).Iretq()
		},
	}})
	m.take(t, dev, 1)
	for range 50 {
		if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]write{{mmioAt, 0x77, 1, 0}}, m.take(t, dev, 1)); diff != "" {
			t.Fatalf("handler's write (-want +got):\n%s", diff)
		}
	}
}

func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// drain returns what an eventfd counted.
func drain(t testing.TB, fd int) uint64 {
	t.Helper()
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil && err != unix.EAGAIN {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

// Writes of the value that was asked for signal the eventfd and never reach the bus; others do.
func TestIOEventFD(t *testing.T) {
	m := newMachine(t, 1)
	onPort, onMemory := newRecorder(0), newRecorder(0)
	if err := errors.Join(
		m.ports.Map(bus.Range{Base: port, Size: 4}, onPort), m.mmio.Map(bus.Range{Base: mmioAt, Size: 4}, onMemory),
	); err != nil {
		t.Fatal(err)
	}
	pio, mmio := eventfd(t), eventfd(t)
	if err := errors.Join(
		m.vm.IOEventFD(kvm.IOEventFD{
			Addr: port, Len: 2, Datamatch: 7, FD: int32(pio), Flags: kvm.IOEventFDPIO | kvm.IOEventFDDatamatch,
		}),
		m.vm.IOEventFD(kvm.IOEventFD{Addr: mmioAt, Len: 4, Datamatch: 9, FD: int32(mmio), Flags: kvm.IOEventFDDatamatch}),
	); err != nil {
		t.Fatal(err)
	}
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring0, Main: func(a *kvmtest.Asm) {
		a.Mov(kvmtest.RDX, port).Mov(kvmtest.RAX, 7).Out16().Out16()
		a.Mov(kvmtest.RAX, 8).Out16()
		a.Mov(kvmtest.RDI, mmioAt).Mov(kvmtest.RAX, 9).Store32(kvmtest.RDI, kvmtest.RAX)
		a.Mov(kvmtest.RAX, 10).Store32(kvmtest.RDI, kvmtest.RAX).Spin()
	}})
	if diff := cmp.Diff([]write{{mmioAt, 10, 4, 0}}, m.take(t, onMemory, 1)); diff != "" {
		t.Errorf("writes to memory (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]write{{port, 8, 2, 0}}, m.take(t, onPort, 1)); diff != "" {
		t.Errorf("writes to the port (-want +got):\n%s", diff)
	}
	if n := drain(t, pio); n != 2 {
		t.Errorf("the port's eventfd counted %d, want 2", n)
	}
	if n := drain(t, mmio); n != 1 {
		t.Errorf("the memory's eventfd counted %d, want 1", n)
	}
}

func TestDirtyLog(t *testing.T) {
	m := newMachine(t, 1)
	dev := newRecorder(0)
	if err := m.mmio.Map(bus.Range{Base: mmioAt, Size: 4}, dev); err != nil {
		t.Fatal(err)
	}
	if err := m.vm.SetUserMemoryRegion(0, kvm.MemLogDirtyPages, 0, m.ram); err != nil {
		t.Fatal(err)
	}
	const page = 0x35
	m.start(t, kvmtest.Program{Ring: kvmtest.Ring3, Main: func(a *kvmtest.Asm) {
		say := func() { a.Mov(kvmtest.RDI, mmioAt).Store8(kvmtest.RDI, kvmtest.RAX) }
		say()
		a.Mov(kvmtest.RDI, page<<12).IncMem(kvmtest.RDI)
		say()
		a.Spin()
	}})
	m.take(t, dev, 2)
	m.pause(t)
	bitmap := make([]uint64, memorySize/4096/64)
	if err := m.vm.GetDirtyLog(0, bitmap); err != nil {
		t.Fatal(err)
	}
	if bitmap[page/64]>>(page%64)&1 == 0 {
		t.Errorf("page %#x was written, but the log is %#x", page, bitmap)
	}
	if bitmap[3] != 0 {
		t.Errorf("nobody wrote above page 0xc0, but the log is %#x", bitmap)
	}
	if err := m.vm.GetDirtyLog(0, bitmap); err != nil || bitmap[page/64]>>(page%64)&1 != 0 {
		t.Errorf("the log was not cleared by reading: %#x, %v", bitmap, err)
	}
}
