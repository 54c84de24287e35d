package machine

import (
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/vcpu"
)

// Reason is why a machine ended.
type Reason int

// The reasons.
const (
	PowerOff  Reason = iota // the guest switched the machine off
	Reboot                  // the guest reset it: whoever runs it builds a new one
	DebugExit               // the guest wrote to the debug-exit port
	Crashed                 // a vCPU cannot run on
	Closed                  // Close was called
)

// String returns r's name.
func (r Reason) String() string {
	switch r {
	case PowerOff:
		return "powered off"
	case Reboot:
		return "reboot"
	case DebugExit:
		return "debug exit"
	case Crashed:
		return "crashed"
	case Closed:
		return "closed"
	}
	return fmt.Sprintf("Reason(%d)", int(r))
}

// Outcome is how a machine ended.
type Outcome struct {
	Reason Reason
	Detail string // what the guest did, such as "reset by port 0xcf9"
	Code   int    // of DebugExit: the exit status that it asks for
	Err    error  // of Crashed
}

// finish records the first outcome. It is called on vCPUs' threads: it waits for nobody.
func (m *Machine) finish(o Outcome) {
	m.once.Do(func() {
		m.outcome = o
		m.ended.Store(true)
		close(m.over)
	})
}

// cpuEvent is told why a vCPU paused itself.
func (m *Machine) cpuEvent(e vcpu.Event) {
	switch e.Kind {
	case vcpu.TripleFault:
		m.finish(Outcome{Reason: Reboot, Detail: "triple fault"})
	case vcpu.Reset:
		m.finish(Outcome{Reason: Reboot, Detail: "reset by hypercall"})
	case vcpu.Shutdown:
		m.finish(Outcome{Reason: PowerOff, Detail: "shut down by hypercall"})
	case vcpu.Crash:
		m.finish(Outcome{Reason: Crashed, Detail: "the guest reports that it crashed", Err: e.Err})
	default:
		m.finish(Outcome{Reason: Crashed, Detail: e.Kind.String(), Err: e.Err})
	}
}

// reset returns what a device calls when the guest resets the machine by it.
func (m *Machine) reset(by string) func() {
	return func() { m.finish(Outcome{Reason: Reboot, Detail: "reset by " + by}) }
}

func (m *Machine) resetKind(by string) func(legacy.ResetKind) {
	return func(legacy.ResetKind) { m.reset(by)() }
}

// sleep is the guest's request for a sleep state. S3 is not offered.
func (m *Machine) sleep(s legacy.SleepState) {
	switch s {
	case legacy.S4, legacy.S5:
		m.finish(Outcome{Reason: PowerOff, Detail: fmt.Sprintf("ACPI state S%d", int(s))})
	default:
		m.log.Warn("the guest asks for a sleep state that it was not offered", "state", int(s))
	}
}
