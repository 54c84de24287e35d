package vcpu

import (
	"runtime"
	"time"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// yieldAfter is for how long a vCPU's goroutine runs before it lets Go's scheduler run once.
//
// The runtime's monitor takes the processor (P) away from a goroutine that it finds in a system call, where a vCPU's nearly
// always is, if it was not scheduled within the last 10 ms; and as long as it finds anything to take it looks every
// 20 µs, not every 10 ms. Beside a guest with many exits that is 4,000 wake-ups in a second and 6 % of a host's CPU, and
// more in the simulated notebook. (runtime/proc.go: sysmon, retake)
const yieldAfter = 5 * time.Millisecond

// yielder tells when to yield, by the host's time-stamp counter: it is read at each exit, and a clock is not everywhere
// as cheap.
type yielder struct {
	ticks uint64 // in yieldAfter
	last  uint64
}

// newYielder returns a yielder for a host whose counter k knows the frequency of. If it does not, any will do.
func newYielder(k *kvm.VCPU) yielder {
	kHz, err := k.GetTSCKHz()
	if err != nil || kHz <= 0 {
		kHz = 2_000_000
	}
	return yielder{ticks: uint64(kHz) * uint64(yieldAfter/time.Millisecond)}
}

// exit is called at an exit, when now ticks are over.
func (y *yielder) exit(now uint64) {
	if y.due(now) {
		runtime.Gosched()
	}
}

// due reports whether it is time. A counter that has gone back, as on another socket, makes it so.
func (y *yielder) due(now uint64) bool {
	if now-y.last < y.ticks {
		return false
	}
	y.last = now
	return true
}

// rdtsc returns the host's time-stamp counter.
func rdtsc() uint64
