package virtiopci

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// remote is a device whose queues somebody else serves: nobody, here.
type remote struct {
	echo
	calls []int // as told last
	moves int   // times that SetCall was called
}

func (d *remote) Start(env *virtio.Env) error {
	d.env, d.calls = env, append([]int(nil), env.Calls...)
	return nil
}

func (*remote) Stop() {}

func (d *remote) SetCall(queue, call int) {
	d.calls[queue] = call
	d.moves++
}

// vectorFDs returns the eventfds of the given vectors, or -1 for a negative one.
func (d *driver) vectorFDs(vectors ...int) (fds []int) {
	d.t.Helper()
	for _, v := range vectors {
		fd := -1
		if v >= 0 {
			var err error
			if fd, err = d.msi.Last().EventFD(v); err != nil {
				d.t.Fatal(err)
			}
		}
		fds = append(fds, fd)
	}
	return fds
}

// The kicks of a remote device's driver stay in the eventfd for the other process.
func TestRemoteKick(t *testing.T) {
	dev := new(remote)
	d := probe(newBoard(t, dev, false))
	d.start(true)
	for range 3 {
		d.queues[1].kick()
	}
	var count [8]byte
	if n, err := unix.Read(dev.env.Queues[1].KickFD(), count[:]); n != 8 || err != nil || count != [8]byte{3} {
		t.Errorf("read %d bytes, %x, %v", n, count, err)
	}
	if n, err := unix.Read(dev.env.Queues[0].KickFD(), count[:]); err != unix.EAGAIN {
		t.Errorf("the other queue: read %d bytes, %v", n, err)
	}
}

// A remote device is told where its queues interrupt, when it starts and when the driver moves that.
func TestRemoteCalls(t *testing.T) {
	dev := new(remote)
	d := probe(newBoard(t, dev, false))
	d.start(true)
	if diff := cmp.Diff(d.vectorFDs(1, 2), dev.calls); diff != "" {
		t.Errorf("at the start (-want +got)\n%s", diff)
	}
	before := d.interrupts(1)
	d.put(capCommon, regQueueSelect, 2, 1)
	d.put(capCommon, regQueueVector, 2, 1)
	if diff := cmp.Diff(d.vectorFDs(1, 1), dev.calls); diff != "" {
		t.Errorf("one vector for both (-want +got)\n%s", diff)
	}
	if n := d.interrupts(1) - before; n != 1 {
		t.Errorf("the driver was told %d times to look at the queue", n)
	}
	d.put(capCommon, regQueueVector, 2, 1)
	if dev.moves != 1 {
		t.Errorf("told %d times of one move", dev.moves)
	}

	d.write(config(d.msixCap+2), 2, 0) // MSI-X off: the pin, which we have to set
	eventually(t, "the pin, for the move", d.line.Level)
	d.get(capISR, 0, 1)
	for i, fd := range dev.calls {
		if n, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); n != 8 || err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pin", d.line.Level)
		if v := d.get(capISR, 0, 1); v != isrQueue || d.line.Level() {
			t.Errorf("queue %d: ISR status %#x", i, v)
		}
	}
	d.write(config(d.msixCap+2), 2, 1<<15)
	if diff := cmp.Diff(d.vectorFDs(1, 1), dev.calls); diff != "" {
		t.Errorf("MSI-X on again (-want +got)\n%s", diff)
	}

	// Stopped, it is told nothing, and finds everything when it starts again.
	d.write(config(pci.Command), 2, pci.CommandMemory)
	moves := dev.moves
	d.put(capCommon, regQueueVector, 2, 2)
	if dev.moves != moves {
		t.Error("told while it was stopped")
	}
	d.write(config(pci.Command), 2, pci.CommandMemory|pci.CommandMaster)
	if diff := cmp.Diff(d.vectorFDs(1, 2), dev.calls); diff != "" {
		t.Errorf("started again (-want +got)\n%s", diff)
	}
}

// A queue that the driver does not use interrupts nowhere.
func TestRemoteUnusedQueue(t *testing.T) {
	dev := new(remote)
	d := probe(newBoard(t, dev, false))
	d.negotiate(virtio.FeatureVersion1)
	d.setStatus(allSet)
	if diff := cmp.Diff([]int{-1, -1}, dev.calls); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
