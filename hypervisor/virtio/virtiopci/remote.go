package virtiopci

import (
	"fmt"
	"os"

	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// aside runs f and returns when it has. What is done for a Remote device is done by another goroutine: that of a vCPU may be
// held to system calls that talk to nobody.
func (t *Transport) aside(f func() error) error {
	if t.remote == nil {
		return f()
	}
	done := make(chan error)
	go func() { done <- f() }()
	return <-done
}

// findCalls sets Env.Calls before a Remote device starts.
func (t *Transport) findCalls() error {
	if t.remote == nil {
		return nil
	}
	t.env.Calls = make([]int, len(t.queues))
	for i := range t.queues {
		var err error
		if t.env.Calls[i], err = t.call(i); err != nil {
			return err
		}
	}
	return nil
}

// moveCalls tells a Remote device that runs which queues interrupt elsewhere now: the driver has given one another vector,
// or has switched MSI-X on or off. It is called with t locked. What the other process signalled meanwhile at the old place may
// be lost, so the driver is told to look.
func (t *Transport) moveCalls() {
	if t.remote == nil || !t.running {
		return
	}
	if err := t.aside(func() error {
		for i := range t.queues {
			call, err := t.call(i)
			if err != nil {
				return err
			}
			if call != t.env.Calls[i] {
				t.env.Calls[i] = call
				t.remote.SetCall(i, call)
				t.interruptQueue(&t.queues[i])
			}
		}
		return nil
	}); err != nil {
		t.broken(err)
	}
}

// call returns the eventfd that interrupts for queue i: the vector's own, which KVM serves, or a relay of ours if the driver
// uses the pin. It is -1 if the driver did not enable the queue.
func (t *Transport) call(i int) (int, error) {
	q := &t.queues[i]
	if !q.enabled {
		return -1, nil
	}
	if v := q.vector.Load(); v != noVector && t.msix.Enabled() {
		return t.msix.EventFD(int(v))
	}
	if q.relay == nil {
		r, err := newRelay(fmt.Sprintf("%s queue %d: interrupts", t.cfg.Name, i), func() { t.interruptQueue(q) })
		if err != nil {
			return -1, err
		}
		q.relay = r
	}
	return virtio.EventFD(q.relay.file), nil
}

// relay is an eventfd whose signals a goroutine turns into interrupts.
type relay struct {
	file *os.File
	done chan struct{}
}

func newRelay(name string, interrupt func()) (*relay, error) {
	f, err := virtio.NewEventFD(name)
	if err != nil {
		return nil, err
	}
	r := &relay{file: f, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		var count [8]byte
		for {
			if _, err := f.Read(count[:]); err != nil {
				return // closed
			}
			interrupt()
		}
	}()
	return r, nil
}

func (r *relay) close() error {
	err := r.file.Close()
	<-r.done
	return err
}
