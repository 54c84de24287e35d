package virtio

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// lingerTime is for how long a worker waits for the next kick in a system call of its own, in milliseconds, before it leaves
// the waiting to Go's poller: a driver that is busy kicks again at once.
//
// To go to sleep in the poller and to be woken there costs a busy queue a fifth of its time: two more system calls and
// a goroutine's way through the scheduler, and a wake-up of the runtime's monitor each time that the process was idle.
const lingerTime = 1

// yieldWaits is how many waits a worker stays in its place in Go's scheduler for: a few milliseconds in all. See
// yieldAfter in package vcpu for why it must not stay longer.
const yieldWaits = 16

// linger waits a moment for a kick, or for halt.
func (q *Queue) linger() {
	if q.waits++; q.waits%yieldWaits == 0 {
		runtime.Gosched()
	}
	q.poll[0] = unix.PollFd{Fd: q.fd, Events: unix.POLLIN}
	_, _ = unix.Poll(q.poll[:], lingerTime)
}
