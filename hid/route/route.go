// Package route decides who gets what a person types, clicks and touches. It has no devices, no threads and no clock: whoever
// reads the devices calls Input, and what is to be delivered is sent to the sinks before Input returns.
//
// Exactly one target has the focus: a guest, or Lodge's console. The rules that nothing may break:
//
//   - A key's press goes to the target that has the focus, and its release to the one that got the press. When the focus
//     moves, all that is held is released in the old target, and is nothing in the new one: neither its repeats nor its
//     release arrive anywhere.
//   - The trigger of a chord reaches nobody, and the modifiers before it are released in the target that got them.
//     A modifier that turns out to be for no chord has been delivered at once, as if there were no chords.
//   - The attention key is looked at before all else, and always calls the console.
//   - A key that is held on two keyboards is up when both are.
package route

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lodgehv/lodge/hid"
)

// Console is the name of Lodge's own console among the targets.
const Console = "(console)"

// ErrLocked says that the focus does not move while the router is locked.
var ErrLocked = errors.New("the seat is locked: unlock it first")

// Config is what a Router is made from. Its functions and sinks are called while the router is busy: they do not block and do
// not call it, nor take a lock that is held by who calls it. Functions may be nil.
type Config struct {
	Console hid.Sink // Lodge's own console, which has the focus when no guest has
	Chords  Chords   // the zero value stands for DefaultChords

	// Edge lets a mouse push the focus to the neighbour through the left and the right edge of the screen. It needs to know
	// where the pointer is, which the router can but guess if the guest has no absolute pointer; SetSize tells it the size.
	// A device with absolute positions has no way to push.
	Edge Edge
	// KeyboardFollowsMouse says what goes through the edge: all of the focus, or, if it is false, only motion and wheels;
	// keys and buttons follow with the next click. That is for seats that show several guests side by side.
	KeyboardFollowsMouse bool

	OnFocus     func(Change)
	OnPointer   func(old, now string)    // motion has moved by itself, or rejoins the focus elsewhere
	OnAttention func(at time.Duration)   // the attention key, also when the console has the focus already
	OnLEDs      func(hid.LEDs)           // what the real keyboards are to show
	OnAbsent    func(slot int, n string) // a chord names a slot whose target, n, is not up, or which is empty ("")

	// Now is the clock for what no input causes: CLOCK_MONOTONIC, as in Input. If it is nil, the last input's time serves.
	Now func() time.Duration
}

// Edge is the resistance of a screen's edge. The zero value is a wall.
type Edge struct {
	Push   int           // pixels that the mouse has to move beyond the edge; 0: there is no way through
	Within time.Duration // in this time; 0 stands for half a second
}

// Change is a move of the focus.
type Change struct {
	Old, New string // targets
	Why      Reason
	At       time.Duration // time of the input, CLOCK_MONOTONIC: what it is measured from
}

// Reason says why the focus moves.
type Reason uint8

// The reasons. Those up to ByRequest are the user's decisions.
const (
	ByChord Reason = iota
	ByAttention
	ByEdge     // the mouse was pushed through the edge of the screen
	ByClick    // into the target that had the motion, but not the keys
	ByRequest  // SetFocus, or LeaveConsole
	Locked     // Lock
	Unlocked   // Unlock
	Died       // the target with the focus is no more
	Slept      // it sleeps
	Rebooting  // it is away for a moment
	CameBack   // it is there again after a reboot
	numReasons // and no reason itself
)

var reasons = [numReasons]string{"chord", "attention", "edge", "click", "request", "locked", "unlocked", "died", "slept",
	"rebooting", "came back"}

func (r Reason) String() string {
	if r < numReasons {
		return reasons[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// target is a guest, or the console.
type target struct {
	name string
	slot int // 1 to 9; 0: none
	sink hid.Sink
	abs  absolute // sink, if it has an opinion on motion
	up   bool
	used bool // has had the focus since it came, or came back from death or sleep
	leds hid.LEDs

	x, y, w, h int32 // the pointer, as far as we know, and the screen, in pixels
	slotSent   int32 // the last ABS_MT_SLOT that the sink got, -1 at first
}

// absolute is a sink that is to get motion in one form, whatever moves: absolute positions if it returns true, else
// relative distances. hid.AbsMax is the width and height of the former. A sink without it gets what the device sends.
type absolute interface{ WantsAbsolute() bool }

func (t *target) connect(sink hid.Sink) {
	t.sink, t.slotSent = sink, -1
	t.abs, _ = sink.(absolute)
}

// Device names an input device. The numbers are the caller's.
type Device int

// Router is the switch between input devices and targets. Its methods may be called by any goroutine.
type Router struct {
	cfg      Config
	bindings []binding

	mu      sync.Mutex
	now     time.Duration // of the last input
	console *target
	slots   [10]*target
	row     []*target // guests from left to right: by slot, then those that have none
	order   []*target // guests: those that have had the focus, the latest first, and then those that have not
	focus   *target   // gets keys and buttons
	pointer *target   // gets motion: as focus, unless the mouse went through the edge alone

	atConsole bool // the user wants the console
	locked    bool

	devices  map[Device]*device
	down     [hid.KeyMax + 1]uint16 // on how many devices a key is held
	sent     hid.Keys               // held keys whose press the focus has got
	contacts contacts               // of a touch screen, which the focus has got
	push     push
	out      []hid.Event // what is about to be sent
	lights   hid.LEDs    // what the keyboards show
}

// New returns a router whose only target is the console.
func New(cfg Config) (*Router, error) {
	if cfg.Console == nil {
		return nil, errors.New("router: has no console")
	}
	if cfg.Chords == (Chords{}) {
		cfg.Chords = DefaultChords()
	}
	b, err := cfg.Chords.bindings()
	if err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	if cfg.Edge.Within == 0 {
		cfg.Edge.Within = 500 * time.Millisecond
	}
	r := &Router{cfg: cfg, bindings: b, devices: make(map[Device]*device)}
	r.console = &target{name: Console, up: true, w: 1024, h: 768}
	r.console.connect(cfg.Console)
	r.focus, r.pointer = r.console, r.console
	return r, nil
}

// Add makes a guest a target, in a slot from 1 to 9 that is free, or in none (0). It is up, and does not get the focus by
// that.
func (r *Router) Add(name string, slot int, sink hid.Sink) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case name == "" || sink == nil:
		return fmt.Errorf("guest %q: needs a name and a sink to be a target", name)
	case r.find(name) != nil:
		return fmt.Errorf("guest %q: is a target already", name)
	case slot < 0 || slot >= len(r.slots):
		return fmt.Errorf("guest %q: slot %d: 1 to 9 are possible, and 0 for none", name, slot)
	case slot > 0 && r.slots[slot] != nil:
		return fmt.Errorf("guest %q: slot %d is taken by %q", name, slot, r.slots[slot].name)
	}
	t := &target{name: name, slot: slot, up: true, w: 1024, h: 768}
	t.connect(sink)
	if slot > 0 {
		r.slots[slot] = t
	}
	r.order = append(r.order, t)
	r.row = append(r.row, t)
	slices.SortStableFunc(r.row, func(a, b *target) int { return a.place() - b.place() })
	return nil
}

// place orders the row.
func (t *target) place() int {
	if t.slot == 0 {
		return 10
	}
	return t.slot
}

// Remove makes a guest no target any more. If it had the focus, that goes to the one before it.
func (r *Router) Remove(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, err := r.guest(name)
	if err != nil {
		return err
	}
	r.leave(t, Died)
	if t.slot > 0 {
		r.slots[t.slot] = nil
	}
	r.order = without(r.order, t)
	r.row = without(r.row, t)
	return nil
}

// Down says that a guest takes no input for now, and why: Died, Slept or Rebooting. If it had the focus, that goes to the
// one before it; a guest that reboots gets it again when it is Up, unless the user has chosen another meanwhile, or typed or
// clicked where the focus was. A console that the user has called keeps it until it is left.
func (r *Router) Down(name string, why Reason) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, err := r.guest(name)
	if err != nil {
		return err
	}
	r.leave(t, why)
	return nil
}

// leave takes the focus from t, if it has it.
func (r *Router) leave(t *target, why Reason) {
	t.up, t.leds = false, 0
	if why != Rebooting {
		t.used = false
		r.order = append(without(r.order, t), t)
	}
	if r.pointer == t && r.focus != t {
		r.aim(r.focus)
	}
	r.settle(why)
}

// Up says that a guest takes input again, through sink if it is not nil, else as before.
func (r *Router) Up(name string, sink hid.Sink) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, err := r.guest(name)
	if err != nil {
		return err
	}
	if t == r.focus {
		r.release() // in the sink that got the presses
	}
	if sink == nil {
		sink = t.sink
	}
	t.connect(sink)
	t.up = true
	r.settle(CameBack)
	return nil
}

// SetFocus gives the focus to a guest that is up, or to the Console, as if the user had pressed its chord.
func (r *Router) SetFocus(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.find(name)
	switch {
	case t == nil:
		return fmt.Errorf("guest %q: is no target of the seat", name)
	case r.locked:
		return fmt.Errorf("guest %q: cannot have the focus: %w", name, ErrLocked)
	case !t.up:
		return fmt.Errorf("guest %q: cannot have the focus: it is not running", name)
	}
	r.choose(t, ByRequest)
	return nil
}

// Offer gives the focus to a guest that is up, if it is the console's only because nobody else has had it: not if the user has
// called the console or types there.
func (r *Router) Offer(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, err := r.guest(name)
	if err != nil {
		return err
	}
	if t.up && r.focus == r.console && !r.atConsole && !r.locked {
		r.choose(t, ByRequest)
	}
	return nil
}

// LeaveConsole gives the focus back to the guest that had it before the console was called. If there is none, or
// the router is locked, nothing changes.
func (r *Router) LeaveConsole() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.locked {
		r.atConsole = false
		r.settle(ByRequest)
	}
}

// Lock gives the focus to the console, and keeps it there: chords do nothing until Unlock, save the attention key.
func (r *Router) Lock() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.locked = true
	r.settle(Locked)
}

// Unlock gives the focus to whoever would have it had there been no lock.
func (r *Router) Unlock() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.locked = false
	r.settle(Unlocked)
}

// Focus returns the name of the target that has the focus.
func (r *Router) Focus() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.focus.name
}

// SetLEDs says which lights a target's keyboard has. The real keyboards show them while it has the focus.
func (r *Router) SetLEDs(name string, leds hid.LEDs) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.find(name)
	if t == nil {
		return fmt.Errorf("guest %q: is no target of the seat", name)
	}
	t.leds = leds
	r.shine()
	return nil
}

// LEDs returns what the real keyboards are to show: what a keyboard that is plugged in is told.
func (r *Router) LEDs() hid.LEDs {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lights
}

// SetSize says how large a target's screen is, in pixels: at first 1024×768.
func (r *Router) SetSize(name string, width, height int) error {
	if width < 1 || height < 1 || width > maxSize || height > maxSize {
		return fmt.Errorf("guest %q: a screen of %d×%d pixels: 1 to %d are possible", name, width, height, maxSize)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.find(name)
	if t == nil {
		return fmt.Errorf("guest %q: is no target of the seat", name)
	}
	t.resize(int32(width), int32(height))
	return nil
}

// find returns the target of that name, nil if there is none.
func (r *Router) find(name string) *target {
	if name == Console {
		return r.console
	}
	for _, t := range r.row {
		if t.name == name {
			return t
		}
	}
	return nil
}

// guest returns the target of that name, which is not the console.
func (r *Router) guest(name string) (*target, error) {
	t := r.find(name)
	if t == nil || t == r.console {
		return nil, fmt.Errorf("guest %q: is no target of the seat", name)
	}
	return t, nil
}

func without(list []*target, t *target) []*target {
	return slices.DeleteFunc(list, func(u *target) bool { return u == t })
}
