package kvmtest

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/bus"
)

// RemotePort is where a Remote is to be mapped on a machine's port bus, with RemoteSize ports.
const (
	RemotePort = 0xe00
	RemoteSize = 32
)

// Ports of a Remote, relative to RemotePort, each 4 bytes wide.
const (
	remoteOp     = 0  // read: the address of the code of the next access, or 0; write: the access is done, with its result
	remoteAddr   = 4  // read: where
	remoteValue  = 8  // read: what to write
	remoteVector = 12 // write: an interrupt has come
	remoteWindow = 16 // read: interrupts are let in
)

// poll bounds how long a vCPU waits in an access for the test's next wish: an interrupt has to wait as long.
const poll = 100 * time.Microsecond

// Remote is a guest that does what the test tells it, access by access: port I/O, memory-mapped I/O and memory, all from
// ring 0, and it tells of interrupts. Guest and test meet at a device that the test maps at RemotePort.
//
//	test: Out8(port, v) ─▶ guest: IN op, IN address, IN value, OUT port ─▶ the device under test
//	                       guest: OUT result ─▶ test: Out8 returns
//
// An interrupt's handler reports its vector and then does what it is told as well, so that the test can do what a driver's
// handler would, until EndOfInterrupt. All methods but those of bus.Device are the test's, for one goroutine.
type Remote struct {
	ops        map[string]uint32
	wishes     chan wish
	results    chan uint32
	interrupts chan byte
	t          testing.TB
	over       <-chan struct{}

	mu   sync.Mutex
	next wish // what the vCPU has taken
}

type wish struct{ op, addr, value uint32 }

// remoteCode is where the code of the accesses is; the loop is at Code.
const remoteCode = Code + 0x100

// accesses are what a Remote can do, with the address in RDI and in RDX and the value in RAX. The result is in RAX.
var accesses = []struct {
	name string
	code func(a *Asm)
}{
	{"in8", func(a *Asm) { a.Mov(RAX, 0).In8() }},
	{"in16", func(a *Asm) { a.Mov(RAX, 0).In16() }},
	{"in32", func(a *Asm) { a.In32() }},
	{"out8", func(a *Asm) { a.Out8() }},
	{"out16", func(a *Asm) { a.Out16() }},
	{"out32", func(a *Asm) { a.Out32() }},
	{"load8", func(a *Asm) { a.Mov(RAX, 0).Load8(RAX, RDI) }},
	{"load16", func(a *Asm) { a.Mov(RAX, 0).Load16(RAX, RDI) }},
	{"load32", func(a *Asm) { a.Load32(RAX, RDI) }},
	{"store8", func(a *Asm) { a.Store8(RDI, RAX) }},
	{"store16", func(a *Asm) { a.Store16(RDI, RAX) }},
	{"store32", func(a *Asm) { a.Store32(RDI, RAX) }},
	{"sti", func(a *Asm) { a.Mov(RBX, 1) }},
	{"cli", func(a *Asm) { a.Mov(RBX, 0) }},
	{"fault", func(a *Asm) { a.Mov(RDI, 0x100000).Lidt(RDI).Bytes(0x0f, 0x0b) }}, // ud2 without an interrupt table
}

// remoteSlot is how many bytes of code an access has.
const remoteSlot = 64

// RemoteVectors are the interrupt vectors that a Remote has handlers for: 0x20 to 0x37.
const (
	RemoteFirstVector = 0x20
	RemoteVectors     = 24
)

// NewRemote returns the other end of RemoteProgram. over ends every wait: the machine has ended. An access that takes long
// fails t.
func NewRemote(t testing.TB, over <-chan struct{}) *Remote {
	r := &Remote{t: t, over: over, ops: make(map[string]uint32), wishes: make(chan wish), results: make(chan uint32, 1),
		interrupts: make(chan byte, 256)}
	for i, x := range accesses {
		r.ops[x.name] = uint32(remoteCode + remoteSlot*i)
	}
	r.ops["eoi"] = uint32(remoteCode + remoteSlot*len(accesses))
	return r
}

// RemoteProgram is the guest of a Remote.
func RemoteProgram() Program {
	p := Program{Ring: Ring0, Handlers: make(map[byte]func(*Asm)), Masked: true, Main: remoteMain}
	for v := range byte(RemoteVectors) {
		p.Handlers[RemoteFirstVector+v] = func(a *Asm) {
			a.Push(RAX).Push(RDX).Push(RBX).Mov(RBX, 0)
			a.Mov(RDX, RemotePort+remoteVector).Mov(RAX, uint64(RemoteFirstVector+v)).Out32().Jmp(Code)
		}
	}
	return p
}

// remoteMain lets interrupts in, if RBX says so, between two accesses only: an access that causes an interrupt is reported
// before it. KVM may overlook a window that has no exit in it.
func remoteMain(a *Asm) {
	a.Mov(RDX, RemotePort+remoteWindow)
	a.Bytes(0x85, 0xdb, 0x74, 3).Sti().In32().Cli() // test ebx, ebx; jz over these three
	a.Mov(RDX, RemotePort+remoteOp).In32()
	a.Bytes(0x85, 0xc0, 0x0f, 0x84).imm32(uint32(Code - a.Here() - 4)) // test eax, eax; jz Code
	a.Bytes(0x89, 0xc6)                                                // mov esi, eax
	a.Mov(RDX, RemotePort+remoteAddr).In32().Bytes(0x89, 0xc7)         // mov edi, eax
	a.Mov(RDX, RemotePort+remoteValue).In32()
	a.Bytes(0x89, 0xfa, 0xff, 0xe6) // mov edx, edi; jmp rsi
	done := func() { a.Mov(RDX, RemotePort+remoteOp).Out32() }
	for i, x := range accesses {
		a.pad(remoteCode + remoteSlot*uint64(i))
		x.code(a)
		done()
		a.Jmp(Code)
	}
	a.pad(remoteCode + remoteSlot*uint64(len(accesses)))
	EndOfInterrupt(a)
	done()
	a.Pop(RBX).Pop(RDX).Pop(RAX).Iretq()
}

// Read implements bus.Device.
func (r *Remote) Read(a bus.Access, p []byte) {
	var v uint32
	r.mu.Lock()
	defer r.mu.Unlock()
	switch a.Off {
	case remoteOp:
		select {
		case r.next = <-r.wishes:
			v = r.next.op
		case <-time.After(poll):
		}
	case remoteAddr:
		v = r.next.addr
	case remoteValue:
		v = r.next.value
	}
	var b [8]byte
	binary.LittleEndian.PutUint32(b[:], v)
	copy(p, b[:])
}

// Write implements bus.Device.
func (r *Remote) Write(a bus.Access, p []byte) {
	var b [8]byte
	copy(b[:], p)
	v := binary.LittleEndian.Uint32(b[:])
	switch a.Off {
	case remoteOp:
		r.results <- v
	case remoteVector:
		select {
		case r.interrupts <- byte(v):
		default: // nobody counts them
		}
	}
}

// patience is how long an access may take.
const patience = 20 * time.Second

// do makes an access and returns its result, or 0 if the machine ended over it.
func (r *Remote) do(op string, addr, value uint32) uint32 {
	r.t.Helper()
	late := time.After(patience)
	select {
	case r.wishes <- wish{r.ops[op], addr, value}:
	case <-r.over:
		return 0
	case <-late:
		r.t.Fatalf("%s of %#x: the guest does not listen", op, addr)
	}
	select {
	case v := <-r.results:
		return v
	case <-r.over:
	case <-late:
		r.t.Fatalf("%s of %#x: no answer", op, addr)
	}
	return 0
}

// In8, In16 and In32 read a port; Out8, Out16 and Out32 write one.
func (r *Remote) In8(port uint16) uint8       { return uint8(r.do("in8", uint32(port), 0)) }
func (r *Remote) In16(port uint16) uint16     { return uint16(r.do("in16", uint32(port), 0)) }
func (r *Remote) In32(port uint16) uint32     { return r.do("in32", uint32(port), 0) }
func (r *Remote) Out8(port uint16, v uint8)   { r.do("out8", uint32(port), uint32(v)) }
func (r *Remote) Out16(port uint16, v uint16) { r.do("out16", uint32(port), uint32(v)) }
func (r *Remote) Out32(port uint16, v uint32) { r.do("out32", uint32(port), v) }

// Load8, Load16 and Load32 read memory or a register in it; Store8, Store16 and Store32 write it.
func (r *Remote) Load8(addr uint32) uint8       { return uint8(r.do("load8", addr, 0)) }
func (r *Remote) Load16(addr uint32) uint16     { return uint16(r.do("load16", addr, 0)) }
func (r *Remote) Load32(addr uint32) uint32     { return r.do("load32", addr, 0) }
func (r *Remote) Store8(addr uint32, v uint8)   { r.do("store8", addr, uint32(v)) }
func (r *Remote) Store16(addr uint32, v uint16) { r.do("store16", addr, uint32(v)) }
func (r *Remote) Store32(addr uint32, v uint32) { r.do("store32", addr, v) }

// Sti lets interrupts in; Cli keeps them out.
func (r *Remote) Sti() { r.do("sti", 0, 0) }
func (r *Remote) Cli() { r.do("cli", 0, 0) }

// TripleFault makes the vCPU shut down.
func (r *Remote) TripleFault() { r.do("fault", 0, 0) }

// Interrupt waits for an interrupt and returns its vector. The guest is in its handler then, interrupts off. It returns 0
// if none comes within limit.
func (r *Remote) Interrupt(limit time.Duration) byte {
	select {
	case v := <-r.interrupts:
		return v
	default:
	}
	select {
	case v := <-r.interrupts:
		return v
	case <-r.over:
		return 0
	case <-time.After(limit):
		return 0
	}
}

// EndOfInterrupt tells the local APIC and returns from the handler.
func (r *Remote) EndOfInterrupt() { r.do("eoi", 0, 0) }
