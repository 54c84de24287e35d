// Package life is the life of a guest as the manager sees it: a state machine without any input or output. What may happen in
// which state, and what is to be done then, stands in one table (Table), which docs/manager.md shows.
//
// An event is something that somebody wants, a command, or something that has happened, an occurrence. Next answers with the
// state that follows and the action that the manager has to take. A command that does not fit is refused with an error for
// people; an occurrence is never refused, since it is true already: one that no longer matters changes nothing.
package life

import (
	"errors"
	"fmt"
)

// State is where a guest is in its life.
type State string

// The states. In those from Starting to Stopping a process of lodge-vmm is there, or is being started; in the others there is
// none.
const (
	Defined    State = "defined"    // off
	Saved      State = "saved"      // off; a saved state is there, from which a start goes on
	Crashed    State = "crashed"    // off; the last machine ended badly
	Waiting    State = "waiting"    // to be started as soon as what it depends on is ready
	Restarting State = "restarting" // to be started again after a pause
	Starting   State = "starting"   // its process is being started, or its machine does not answer yet
	Running    State = "running"
	Paused     State = "paused"
	Saving     State = "saving"   // its memory is written, after which it goes on or ends
	Stopping   State = "stopping" // told to end, in one way or another
)

// States are all states.
func States() []State {
	return []State{Defined, Saved, Crashed, Waiting, Restarting, Starting, Running, Paused, Saving, Stopping}
}

// off stands in the table for Saved if a saved state is there, or else Defined.
const off State = "off"

// Alive reports whether a process of lodge-vmm is there in s, or is being started.
func (s State) Alive() bool {
	switch s {
	case Starting, Running, Paused, Saving, Stopping:
		return true
	}
	return false
}

// Event is what moves a guest from one state to another.
type Event string

// Commands: what somebody wants.
const (
	Start    Event = "start"
	Stop     Event = "stop" // by its power button, if it listens
	Kill     Event = "kill" // as by pulling the plug
	Reboot   Event = "reboot"
	Pause    Event = "pause"
	Resume   Event = "resume"
	Save     Event = "save"     // and end
	Snapshot Event = "snapshot" // save and go on
	Discard  Event = "discard"  // drop the saved state, or what is said of a crash
	Change   Event = "change"   // what only a guest without a machine allows: delete it, replace its disks
)

// Occurrences: what has happened.
const (
	DepsReady   Event = "deps-ready"   // all that it depends on is
	StartFailed Event = "start-failed" // no machine was made: what it depends on is missing, or its process could not be started
	IsRunning   Event = "is-running"   // its machine says so
	IsPaused    Event = "is-paused"    // its machine says so
	GaveUp      Event = "gave-up"      // a stop was cancelled: the guest goes on
	Ended       Event = "ended"        // its process has ended in good order: powered off, or as it was told
	Died        Event = "died"         // its process has ended in another way, or its machine crashed
	Due         Event = "due"          // the pause before it is started again is over
)

// Commands are all commands.
func Commands() []Event {
	return []Event{Start, Stop, Kill, Reboot, Pause, Resume, Save, Snapshot, Discard, Change}
}

// Occurrences are all occurrences.
func Occurrences() []Event {
	return []Event{DepsReady, StartFailed, IsRunning, IsPaused, GaveUp, Ended, Died, Due}
}

// Action is what the manager has to do after a step.
type Action string

// The actions.
const (
	None         Action = ""
	Await        Action = "await"         // start what it depends on and wait until that is ready; then DepsReady or StartFailed
	AbandonStart Action = "abandon-start" // end Await, or the wait before a restart
	Launch       Action = "launch"        // start its process; then IsRunning, IsPaused or StartFailed, or the process's end
	TellPause    Action = "tell-pause"    // have its machine do so: it says when it has
	TellResume   Action = "tell-resume"
	TellSave     Action = "tell-save" // to where a start finds it, after which the process ends
	TellSnapshot Action = "tell-snapshot"
	PressPower   Action = "press-power" // the power button; after the deadline, Kill's
	Unplug       Action = "unplug"      // quit, then kill
	Clear        Action = "clear"       // nothing is left of the machine: drop its disposable disks, forget its process
	Schedule     Action = "schedule"    // Clear; and Due after a pause that grows from one to the next
	ClearAwait   Action = "clear-await" // Clear; and Await
	Drop         Action = "drop"        // the saved state
)

// Facts are what a step depends on beside state and event.
type Facts struct {
	Saved   bool // a saved state is there
	Restart bool // by its restart policy the guest is started again after this end
	Afresh  bool // the machine was to go on from the guest's template, which is no good
	Again   bool // the machine was told to end so that it is started again
}

// Row is a row of the table: Event in any of the states From leads to To. Of several rows that fit, the first counts. When is a
// condition in words, which holds holds.
type Row struct {
	From   []State
	Event  Event
	When   string
	To     State
	Action Action
	holds  func(Facts) bool
}

var (
	resting = []State{Defined, Saved, Crashed}
	pending = []State{Waiting, Restarting}
)

func restart(f Facts) bool { return f.Restart }
func again(f Facts) bool   { return f.Again }
func afresh(f Facts) bool  { return f.Afresh }
func saved(f Facts) bool   { return f.Saved }

// Table returns the whole state machine. To is "off" where it is Saved if a saved state is there, or else Defined.
func Table() []Row {
	return []Row{
		{From: resting, Event: Start, To: Waiting, Action: Await},
		{From: []State{Crashed}, Event: Discard, To: off}, // the saved state, if there is one, takes a second command
		{From: []State{Defined, Saved}, Event: Discard, To: Defined, Action: Drop},
		{From: []State{Defined}, Event: Change, To: Defined},
		{From: []State{Saved}, Event: Change, To: Saved},
		{From: []State{Crashed}, Event: Change, To: Crashed},

		{From: []State{Restarting}, Event: Start, To: Waiting, Action: Await},
		{From: []State{Restarting}, Event: Due, To: Waiting, Action: Await},
		{From: pending, Event: Stop, To: off, Action: AbandonStart},
		{From: pending, Event: Kill, To: off, Action: AbandonStart},
		{From: []State{Waiting}, Event: DepsReady, To: Starting, Action: Launch},
		{From: []State{Waiting}, Event: StartFailed, To: off},

		{From: []State{Starting, Stopping}, Event: StartFailed, To: off, Action: Clear},
		{From: []State{Starting, Running, Paused, Saving}, Event: IsRunning, To: Running},
		{From: []State{Starting, Running, Paused, Saving}, Event: IsPaused, To: Paused},

		{From: []State{Running}, Event: Pause, To: Running, Action: TellPause},
		{From: []State{Paused}, Event: Pause, To: Paused},
		{From: []State{Paused}, Event: Resume, To: Paused, Action: TellResume},
		{From: []State{Running}, Event: Resume, To: Running},
		{From: []State{Running, Paused}, Event: Save, To: Saving, Action: TellSave},
		{From: []State{Running, Paused}, Event: Snapshot, To: Saving, Action: TellSnapshot},

		{From: []State{Starting, Running, Paused}, Event: Stop, To: Stopping, Action: PressPower},
		{From: []State{Running, Paused}, Event: Reboot, To: Stopping, Action: PressPower},
		{From: []State{Starting, Running, Paused, Saving, Stopping}, Event: Kill, To: Stopping, Action: Unplug},
		{From: []State{Stopping}, Event: Stop, To: Stopping},
		{From: []State{Stopping}, Event: GaveUp, To: Running},

		{From: []State{Stopping}, Event: Ended, When: "to start again", To: Waiting, Action: ClearAwait, holds: again},
		{From: []State{Stopping}, Event: Died, When: "to start again", To: Waiting, Action: ClearAwait, holds: again},
		{From: []State{Stopping, Saving}, Event: Ended, To: off, Action: Clear},
		{From: []State{Stopping}, Event: Died, To: off, Action: Clear},
		{From: []State{Saving}, Event: Died, When: "saved", To: Saved, Action: Clear, holds: saved},
		{From: []State{Starting}, Event: Died, When: "of its template", To: Waiting, Action: ClearAwait, holds: afresh},
		{From: []State{Starting, Running, Paused}, Event: Ended, When: "by policy", To: Restarting, Action: Schedule, holds: restart},
		{From: []State{Starting, Running, Paused, Saving}, Event: Died, When: "by policy", To: Restarting, Action: Schedule, holds: restart},
		{From: []State{Starting, Running, Paused}, Event: Ended, To: off, Action: Clear},
		{From: []State{Starting, Running, Paused, Saving}, Event: Died, To: Crashed, Action: Clear},
	}
}

// ErrNotNow is what a command gets that does not fit a guest's state.
var ErrNotNow = errors.New("not possible now")

// Next returns what follows from e in state s. A command that does not fit is an ErrNotNow; an occurrence that does not matter
// in s leaves everything as it is.
func Next(s State, e Event, f Facts) (State, Action, error) {
	for _, r := range Table() {
		if r.Event != e || !contains(r.From, s) || r.holds != nil && !r.holds(f) {
			continue
		}
		to := r.To
		if to == off {
			to = Rest(f)
		}
		return to, r.Action, nil
	}
	if contains(Commands(), e) {
		return s, None, fmt.Errorf("%w: %s", ErrNotNow, why(s, e))
	}
	return s, None, nil
}

// Rest is the state of a guest without a machine of which nothing bad is known.
func Rest(f Facts) State {
	if f.Saved {
		return Saved
	}
	return Defined
}

// why tells people why e does not fit s, and what to do.
func why(s State, e Event) string {
	switch {
	case s == Saving:
		return "the guest is being saved: wait for that, cancel it, or kill the guest"
	case s == Stopping:
		return "the guest is being stopped: wait for that, or kill it"
	case s == Waiting && e != Start:
		return "the guest is about to start: wait for that, or stop it"
	case e == Start:
		return "the guest is " + string(s) + " already"
	case s.Alive() && (e == Discard || e == Change):
		return "the guest is " + string(s) + ": stop it first"
	case s == Starting:
		return "the guest is starting: wait until it runs, or kill it"
	case s == Restarting:
		return "the guest is about to be started again: start it now, or stop it"
	}
	return "the guest is " + string(s) + ": start it first"
}

func contains[T comparable](list []T, v T) bool {
	for _, l := range list {
		if l == v {
			return true
		}
	}
	return false
}
