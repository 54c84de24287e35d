package vcpu

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// kickSignal is what a kick sends to the vCPU's thread. All that matters of it is that it makes KVM_RUN return, which
// every unblocked signal with a handler does: SA_RESTART, which Go sets on its handlers, does not apply to KVM_RUN.
//
//   - Go's runtime handles SIGIO like any signal that nobody has asked os/signal for: it does nothing. Nothing in Lodge
//     uses signal-driven I/O, for which it is otherwise meant.
//   - It is not a real-time signal because those queue, one for each kick, and sending fails when the queue is full.
//     An ordinary signal that is pending already is simply pending.
//   - It is not SIGURG because that is how the runtime preempts goroutines: each kick would ask for that as well. Nor may
//     SIGURG be ignored in a process with vCPUs: stopping the world would wait for ever.
const kickSignal = unix.SIGIO

// unblockKick lets the calling thread receive kicks: a process inherits blocked signals from whoever started it.
func unblockKick() error {
	var set unix.Sigset_t
	set.Val[(kickSignal-1)/64] |= 1 << ((kickSignal - 1) % 64)
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, nil); err != nil {
		return fmt.Errorf("unblock signal %d: %w", kickSignal, err)
	}
	return nil
}

// kick makes the thread look at requested, which is set already, soon. The caller holds c.mu and has seen the thread
// live: a number that no thread has any more could be another thread's.
func (c *CPU) kick() {
	c.k.SetImmediateExit(true)
	// It cannot fail: the thread is ours and live, and an ordinary signal needs no room in a queue.
	_ = unix.Tgkill(os.Getpid(), c.tid, kickSignal)
}
