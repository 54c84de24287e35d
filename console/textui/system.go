package textui

import (
	"context"
	"errors"
	"time"
)

// System is what the console manages. Its methods are called by any goroutine, several at a time. They may wait, and end with
// their context.
type System interface {
	// Guests returns the guests in the order in which to list them.
	Guests(ctx context.Context) ([]Guest, error)
	// Details returns what is known of a guest beside what Guests tells.
	Details(ctx context.Context, guest string) (Details, error)
	// Log returns the end of one of the logs that a guest's Details name, up to limit bytes of it.
	Log(ctx context.Context, guest, log string, limit int) ([]byte, error)
	// Do carries out a command. progress may be called until Do returns, at most. An error says what to do.
	Do(ctx context.Context, guest string, c Command, progress func(Progress)) error
	// Switch gives screen and keyboard to a guest. It is ErrNoSeat where nothing does.
	Switch(ctx context.Context, guest string) error
	// Changed has a value when something has changed beside the figures: the console need not wait for its next look. It may be
	// nil, and drop what nobody takes.
	Changed() <-chan struct{}
}

// ErrNoSeat says that there is no seat here to switch.
var ErrNoSeat = errors.New("switching is only possible on the seat: set control = \"seat.sock\" in its file, and start lodge-seat")

// Guest is a guest as it is in the list.
type Guest struct {
	Name     string
	Color    string // see trustbar.ColorNames; "" if it has none
	Slot     int    // 1 to 9, of its chord; 0 is none
	State    State
	OnScreen bool    // its picture is on the seat
	CPU      float64 // processors' time that it uses now, in per cent of one; negative: unknown
	CPUs     int     // that it has; 0: unknown
	Memory   uint64  // bytes that it was given; 0: unknown
	Resident uint64  // bytes of the host's memory that its process has; 0: unknown
	Uptime   time.Duration
	Note     string // what is wrong with it, and what to do
}

// State is what a guest does.
type State uint8

// The states.
const (
	Unknown State = iota // nobody can tell; Note says why
	Off
	Starting
	Running
	Paused
	Saving
	Saved // off, with its memory in a file: it goes on from there
	Hung  // its machine does not answer
)

func (s State) String() string {
	names := [...]string{"unknown", "off", "starting", "running", "paused", "saving", "saved", "no answer"}
	if int(s) < len(names) {
		return names[s]
	}
	return names[Unknown]
}

// Details are a guest's devices and places.
type Details struct {
	Sections []Section
	Logs     []string // their names
}

// Section is a group of facts.
type Section struct {
	Title string
	Facts []Fact
}

// Fact is a name and what there is to say of it.
type Fact struct{ Name, Text string }

// Command is what can be done to a guest.
type Command uint8

// The commands.
const (
	Start       Command = iota // switch on, or go on from the saved state
	PowerButton                // press it: the guest shuts down if it likes
	ForceOff                   // as by pulling the plug
	Pause
	Resume
	Save    // memory to a file, then off
	Discard // the saved state
	numCommands
)

// commands are the commands' names and what the console says while they are carried out.
var commands = [numCommands]struct{ name, doing string }{
	{"start", "starting"}, {"power button", "stopping"}, {"force off", "stopping"}, {"pause", "pausing"}, {"resume", "resuming"},
	{"save", "saving"}, {"discard saved state", "discarding"},
}

func (c Command) String() string {
	if c < numCommands {
		return commands[c].name
	}
	return "no command"
}

// possible reports whether c makes sense in a state.
func (c Command) possible(s State) bool {
	switch c {
	case Start:
		return s == Off || s == Saved
	case PowerButton:
		return s == Running
	case ForceOff:
		return s == Running || s == Paused || s == Starting || s == Saving || s == Hung
	case Pause, Save:
		return s == Running || c == Save && s == Paused
	case Resume:
		return s == Paused
	case Discard:
		return s == Saved
	}
	return false
}

// Progress is how far a command has come.
type Progress struct{ Done, Total uint64 }

// percent returns 0 to 100, or -1 if nothing is known.
func (p Progress) percent() int {
	if p.Total == 0 {
		return -1
	}
	return int(100 * (float64(min(p.Done, p.Total)) / float64(p.Total)))
}
