package vcpu

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// ErrStopped is returned by the methods of a CPU that was stopped.
var ErrStopped = errors.New("vcpu is stopped")

// Status is where a CPU is in its life; see the package's description.
type Status int32

// The states.
const (
	Created Status = iota
	Running
	Paused
	Stopped
)

// String returns s's name in lower case.
func (s Status) String() string {
	switch s {
	case Created:
		return "created"
	case Running:
		return "running"
	case Paused:
		return "paused"
	case Stopped:
		return "stopped"
	}
	return fmt.Sprintf("Status(%d)", int32(s))
}

// CPU is one virtual CPU. Its methods may be called from any goroutine except on its own thread, that is, from the
// devices and from Events: what they want done they leave to another goroutine.
type CPU struct {
	k           *kvm.VCPU
	able, cpuid []kvm.CPUIDEntry // what CPUID can answer here, and what it does answer: a restored guest may know less
	index       int
	ports, mmio *bus.Bus
	events      Events
	tid         int

	mu        sync.Mutex   // held by whoever has a request
	status    atomic.Int32 // Status. Only the thread changes it
	requested atomic.Bool  // a request comes: leave the guest
	requests  chan request // received by the thread, out of the guest
	over      *atomic.Bool // never nil; see EndWith
	exited    chan struct{}
	exits     atomic.Uint64 // written by the thread only

	// The thread's own. completed is false after an exit whose access KVM finishes on the next KVM_RUN only.
	completed bool
	yield     yielder
}

// request is a function for the thread to call. It returns the next status.
type request struct {
	do   func(Status) Status
	done chan struct{}
}

// New makes a CPU of k, which it owns from now on, with its thread. index is the vCPU's number, which devices see in
// bus.Access; cpuid is what it answers to CPUID, which is kept. Port I/O goes to ports, memory-mapped I/O to mmio.
func New(k *kvm.VCPU, index int, cpuid []kvm.CPUIDEntry, ports, mmio *bus.Bus, events Events) (*CPU, error) {
	c := &CPU{
		k: k, able: cpuid, cpuid: cpuid, index: index, ports: ports, mmio: mmio, events: events,
		requests: make(chan request), over: new(atomic.Bool), exited: make(chan struct{}), completed: true,
	}
	if err := k.SetCPUID2(cpuid); err != nil { // here, since there is no thread yet to change to
		k.Close()
		return nil, fmt.Errorf("vcpu %d: %w", index, err)
	}
	c.yield = newYielder(k)
	ready := make(chan error)
	go c.thread(ready)
	if err := <-ready; err != nil {
		k.Close()
		return nil, fmt.Errorf("vcpu %d: %w", index, err)
	}
	return c, nil
}

// EndWith makes the vCPU pause itself for good once over is true, at its next exit: a device that ends the machine, such as
// a reset register, sets it on the vCPU's own thread, and the guest does not see the next instruction. Call it before the
// first Resume.
func (c *CPU) EndWith(over *atomic.Bool) { c.over = over }

// Index returns the vCPU's number.
func (c *CPU) Index() int { return c.index }

// Status returns the current state. Unless it is Stopped, or the caller prevents it, it may change at any time.
func (c *CPU) Status() Status { return Status(c.status.Load()) }

// Exits returns how often the guest has left the processor for a device of ours.
func (c *CPU) Exits() uint64 { return c.exits.Load() }

// Resume lets the guest run, for the first time or again. It does nothing if it does run.
func (c *CPU) Resume() error {
	return c.request(func(Status) Status { return Running })
}

// Pause returns when the vCPU is out of the guest and the access that made it exit, if one did, is completed, so that
// its state is that between two instructions. It does nothing if the vCPU is paused, and a CPU that was only created
// stays so.
func (c *CPU) Pause() error {
	return c.request(func(s Status) Status {
		if s == Created {
			return Created
		}
		return Paused
	})
}

// Do calls f with the vCPU on its thread, where the vCPU's ioctls belong, and returns f's error. If the vCPU runs, it is
// taken out of the guest for as long, its last access completed.
func (c *CPU) Do(f func(*kvm.VCPU) error) error {
	var err error
	if e := c.request(func(s Status) Status {
		err = f(c.k)
		return s
	}); e != nil {
		return e
	}
	if err != nil {
		return fmt.Errorf("vcpu %d: %w", c.index, err)
	}
	return nil
}

// Stop ends the thread and closes the vCPU. Stopping twice does nothing.
func (c *CPU) Stop() error {
	err := c.request(func(Status) Status { return Stopped })
	if errors.Is(err, ErrStopped) {
		return nil
	}
	<-c.exited
	return c.k.Close()
}

// request has the thread call do between two entries into the guest.
func (c *CPU) request(do func(Status) Status) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.Status() {
	case Stopped:
		return fmt.Errorf("vcpu %d: %w", c.index, ErrStopped)
	case Running:
		c.requested.Store(true)
		c.kick()
	}
	r := request{do, make(chan struct{})}
	c.requests <- r
	<-r.done
	return nil
}

// thread is the life of the vCPU's thread. It is locked to its goroutine for good, so that it ends with it: KVM_RUN and
// the signal mask leave traces on a thread that no other goroutine should meet.
func (c *CPU) thread(ready chan<- error) {
	runtime.LockOSThread()
	c.tid = unix.Gettid()
	err := unblockKick()
	ready <- err
	if err != nil {
		return
	}
	defer close(c.exited)
	for s := Created; s != Stopped; {
		if s == Running {
			e, ok := c.run()
			if ok || c.over.Load() {
				s = Paused
				c.status.Store(int32(s))
			}
			if ok {
				c.events(e)
			}
		}
		r := <-c.requests
		c.requested.Store(false)
		s = r.do(s)
		c.status.Store(int32(s))
		close(r.done)
	}
}

// run runs the guest until there is a request or the machine is over, for which it returns false, or an event.
func (c *CPU) run() (Event, bool) {
	for !c.requested.Load() && !c.over.Load() {
		switch errno := c.k.Run(); errno {
		case 0:
			c.completed = false
			c.exits.Store(c.exits.Load() + 1)
			if e, ok := c.exit(); ok {
				return e, true
			}
			c.yield.exit(rdtsc())
		case unix.EINTR:
			c.completed = true
			c.k.SetImmediateExit(false) // before looking at requested again, see the package's description
		case unix.EAGAIN: // an application processor was woken from its wait for SIPI
		default:
			return c.failed(errno), true
		}
	}
	return c.complete()
}

// complete has KVM finish the access of the last exit: what a device answered is in the run structure, and the
// instruction is not over, until the next KVM_RUN. With immediate_exit that does nothing else. An instruction that
// makes several accesses exits for each.
func (c *CPU) complete() (Event, bool) {
	for !c.completed {
		c.k.SetImmediateExit(true)
		switch errno := c.k.Run(); errno {
		case 0:
			if e, ok := c.exit(); ok {
				return e, true
			}
		case unix.EINTR:
			c.completed = true
		case unix.EAGAIN:
		default:
			return c.failed(errno), true
		}
	}
	c.k.SetImmediateExit(false)
	return Event{}, false
}
