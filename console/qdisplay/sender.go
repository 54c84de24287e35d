package qdisplay

import (
	"math"
	"sync"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
	"github.com/lodgehv/lodge/hid"
)

const (
	maxActions = 512 // calls that wait to be sent
	maxClicks  = 16  // of a wheel in one batch
)

// action is a call that is to be sent.
type action struct {
	kind   actionKind
	repeat bool  // of a key that is held
	a, b   int32 // key or button; distance; position of hid
	slot   uint8 // of a finger
}

type actionKind uint8

const (
	keyPress actionKind = iota
	keyRelease
	buttonPress
	buttonRelease
	moveBy
	moveTo
	fingerDown
	fingerMove
	fingerUp
)

// Sender is the input of a console. Its Send never waits: it sends what the socket takes at once, for no goroutine to be woken on a
// key's way, and queues the rest for a goroutine of its own. Nobody waits for a reply. When the server does not keep up movements
// are joined, and when the queue is full batches are dropped until it is empty; what was pressed is then released.
//
// A batch's movement is told before its keys and buttons, so that a click is where it was made. A key for which QEMU has no
// number, and what is neither key, pointer nor finger, is left out.
type Sender struct {
	client  *Client
	console uint32
	wake    chan struct{}

	mu    sync.Mutex
	queue []action
	full  bool // batches are dropped
	idle  bool // the goroutine has nothing to send: what is its own belongs to who has mu
	batch []action
	down  hid.Keys // what was pressed, as the server will know it
	owed  hid.Keys // of that, what was released while batches were dropped
	x, y  int32    // position of the pointer
	slot  int      // that the next MT events are about
	slots [maxSlots]finger

	// Of the goroutine, unless it is idle.
	out     []action
	body    peer.Encoder
	headers [fingerUp + 1]peer.Header
}

// finger is one on the screen.
type finger struct {
	x, y    int32
	on      bool // it touches, as of the events
	told    bool // the server knows that it touches
	changed bool // in this batch
}

// Sender returns the input of a console. It sends until the client is closed. What it has pressed at that moment the server
// releases.
func (c *Client) Sender(console uint32) *Sender {
	s := &Sender{
		client:  c,
		console: console,
		wake:    make(chan struct{}, 1),
		queue:   make([]action, 0, maxActions),
		out:     make([]action, 0, maxActions),
		batch:   make([]action, 0, maxActions),
	}
	path := consolePath(console)
	for kind, h := range [...]peer.Header{
		keyPress:      {Interface: ifaceKeyboard, Member: "Press", Signature: "u"},
		keyRelease:    {Interface: ifaceKeyboard, Member: "Release", Signature: "u"},
		buttonPress:   {Interface: ifaceMouse, Member: "Press", Signature: "u"},
		buttonRelease: {Interface: ifaceMouse, Member: "Release", Signature: "u"},
		moveBy:        {Interface: ifaceMouse, Member: "RelMotion", Signature: "ii"},
		moveTo:        {Interface: ifaceMouse, Member: "SetAbsPosition", Signature: "uu"},
		fingerDown:    {Interface: ifaceMultiTouch, Member: "SendEvent", Signature: "utdd"},
		fingerMove:    {Interface: ifaceMultiTouch, Member: "SendEvent", Signature: "utdd"},
		fingerUp:      {Interface: ifaceMultiTouch, Member: "SendEvent", Signature: "utdd"},
	} {
		h.Type, h.Flags, h.Path = peer.MethodCall, peer.NoReplyExpected, path
		s.headers[kind] = h
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		s.idle = true
		c.wg.Go(s.run)
	}
	return s
}

// Send implements hid.Sink.
func (s *Sender) Send(batch []hid.Event) {
	s.mu.Lock()
	s.translate(batch)
	if s.full || len(s.queue)+len(s.batch) > maxActions {
		s.full = true
		s.drop()
	} else {
		s.take()
	}
	left := !s.idle || !s.sendNow()
	s.mu.Unlock()
	if left {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// sendNow sends what is queued, and reports whether that was all. The goroutine meets an error again.
func (s *Sender) sendNow() bool {
	for i, a := range s.queue {
		if sent, err := s.write(a, s.client.conn.TrySend); !sent || err != nil {
			s.queue = append(s.queue[:0], s.queue[i:]...)
			return false
		}
	}
	s.queue = s.queue[:0]
	return !s.full
}

// take queues s.batch.
func (s *Sender) take() {
	for _, a := range s.batch {
		switch a.kind {
		case keyPress, buttonPress:
			if c := code(a); c != 0 {
				if a.repeat && !s.down.Has(c) {
					continue
				}
				s.down.Set(c, true)
			}
		case keyRelease, buttonRelease:
			if c := code(a); c != 0 {
				if !s.down.Has(c) {
					continue
				}
				s.down.Set(c, false)
			}
		case fingerDown:
			s.slots[a.slot].told = true
		case fingerUp:
			s.slots[a.slot].told = false
		case moveBy, moveTo:
			if n := len(s.queue); n > 0 && s.queue[n-1].kind == a.kind {
				last := &s.queue[n-1]
				if a.kind == moveBy {
					a.a, a.b = sum(last.a, a.a), sum(last.b, a.b)
				}
				*last = a
				continue
			}
		}
		s.queue = append(s.queue, a)
	}
}

// drop drops s.batch, but remembers what it releases.
func (s *Sender) drop() {
	for _, a := range s.batch {
		if a.kind != keyRelease && a.kind != buttonRelease {
			continue
		}
		if c := code(a); s.down.Has(c) {
			s.down.Set(c, false)
			s.owed.Set(c, true)
		}
	}
}

// release makes s.out the releases that are owed: of keys and buttons, and of fingers that were lifted.
func (s *Sender) release() {
	for c := range s.owed.All() {
		if a, ok := press(c); ok {
			a.kind++ // the release
			s.out = append(s.out, a)
		}
	}
	s.owed = hid.Keys{}
	for i := range s.slots {
		if f := &s.slots[i]; f.told && !f.on {
			f.told = false
			s.out = append(s.out, action{kind: fingerUp, slot: uint8(i)})
		}
	}
}

// press returns the action that presses a key or button of evdev. The kind after it is that of the release.
func press(c uint16) (action, bool) {
	switch c {
	case hid.BtnLeft:
		return action{kind: buttonPress, a: buttonLeft}, true
	case hid.BtnMiddle:
		return action{kind: buttonPress, a: buttonMiddle}, true
	case hid.BtnRight:
		return action{kind: buttonPress, a: buttonRight}, true
	case hid.BtnSide:
		return action{kind: buttonPress, a: buttonSide}, true
	case hid.BtnExtra:
		return action{kind: buttonPress, a: buttonExtra}, true
	}
	n, ok := qnumOfKey(c)
	return action{kind: keyPress, a: int32(n)}, ok
}

// code is the inverse of press, for the releases too. It returns 0 for what is a wheel.
func code(a action) uint16 {
	if a.kind == keyPress || a.kind == keyRelease {
		c, _ := keyOfQnum(uint32(a.a))
		return c
	}
	return buttonCode(uint32(a.a))
}

func sum(a, b int32) int32 {
	return int32(min(max(int64(a)+int64(b), math.MinInt32), math.MaxInt32))
}

// translate makes s.batch of a batch.
func (s *Sender) translate(batch []hid.Event) {
	s.batch = s.batch[:0]
	by, moved := action{kind: moveBy}, false
	for _, e := range batch {
		switch {
		case e.Type == hid.EVRel && e.Code == hid.RelX:
			by.a = sum(by.a, e.Value)
		case e.Type == hid.EVRel && e.Code == hid.RelY:
			by.b = sum(by.b, e.Value)
		case e.Type == hid.EVAbs && e.Code == hid.AbsX:
			s.x, moved = e.Value, true
		case e.Type == hid.EVAbs && e.Code == hid.AbsY:
			s.y, moved = e.Value, true
		case e.Type == hid.EVAbs:
			s.finger(e)
		}
	}
	if by.a != 0 || by.b != 0 {
		s.batch = append(s.batch, by)
	}
	if moved {
		s.batch = append(s.batch, action{kind: moveTo, a: s.x, b: s.y})
	}
	for _, e := range batch {
		switch {
		case e.Type == hid.EVKey:
			a, ok := press(e.Code)
			if !ok {
				continue
			}
			switch e.Value {
			case 0:
				a.kind++ // the release
			case 1:
			case 2:
				a.repeat = true
			default:
				continue
			}
			s.batch = append(s.batch, a)
		case e.Type == hid.EVRel && e.Code == hid.RelWheel:
			s.turn(e.Value, buttonWheelUp, buttonWheelDown)
		case e.Type == hid.EVRel && e.Code == hid.RelHWheel:
			s.turn(e.Value, buttonWheelRight, buttonWheelLeft)
		}
	}
	for i := range s.slots {
		f := &s.slots[i]
		if !f.changed {
			continue
		}
		f.changed = false
		a := action{kind: fingerMove, a: f.x, b: f.y, slot: uint8(i)}
		switch {
		case f.on && !f.told:
			a.kind = fingerDown
		case !f.on && f.told:
			a.kind = fingerUp
		case !f.on:
			continue
		}
		s.batch = append(s.batch, a)
	}
}

// turn turns a wheel: by pressing its button for each notch.
func (s *Sender) turn(notches int32, positive, negative int32) {
	button := positive
	if notches < 0 {
		button, notches = negative, max(-notches, 0) // of the least int32 too
	}
	for range min(notches, maxClicks) {
		s.batch = append(s.batch, action{kind: buttonPress, a: button}, action{kind: buttonRelease, a: button})
	}
}

// finger takes an event of the multi-touch protocol, type B.
func (s *Sender) finger(e hid.Event) {
	if e.Code == hid.AbsMTSlot {
		s.slot = int(e.Value)
	}
	if s.slot < 0 || s.slot >= maxSlots {
		return
	}
	f := &s.slots[s.slot]
	switch e.Code {
	case hid.AbsMTTrackingID:
		f.on, f.changed = e.Value >= 0, true
	case hid.AbsMTPositionX:
		f.x, f.changed = e.Value, true
	case hid.AbsMTPositionY:
		f.y, f.changed = e.Value, true
	}
}

// run sends what is queued until the client is closed.
func (s *Sender) run() {
	for {
		select {
		case <-s.wake:
		case <-s.client.done:
			return
		}
		for s.next() {
			for _, a := range s.out {
				if _, err := s.write(a, s.send); err != nil { // the connection has ended
					return
				}
			}
		}
	}
}

// next moves what is queued to s.out. It returns false if that is nothing.
func (s *Sender) next() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out, s.queue = s.queue, s.out[:0]
	if len(s.out) == 0 && s.full {
		s.release()
		s.full = false
	}
	s.idle = len(s.out) == 0
	return !s.idle
}

func (s *Sender) send(h *peer.Header, body []byte) (bool, error) {
	return true, s.client.conn.Send(h, body)
}

// write sends a call by send, and returns what that returns.
func (s *Sender) write(a action, send func(*peer.Header, []byte) (bool, error)) (bool, error) {
	s.body.Reset()
	switch a.kind {
	case keyPress, keyRelease, buttonPress, buttonRelease:
		s.body.Uint32(uint32(a.a))
	case moveBy:
		s.body.Int32(a.a)
		s.body.Int32(a.b)
	case moveTo:
		at := s.client.size(s.console)
		if at.width == 0 { // nothing is shown that the position could be of
			return true, nil
		}
		s.body.Uint32(toPixel(a.a, at.width))
		s.body.Uint32(toPixel(a.b, at.height))
	default:
		at := s.client.size(s.console)
		s.body.Uint32(uint32(touchBegin + a.kind - fingerDown))
		s.body.Uint64(uint64(a.slot))
		s.body.Double(float64(toPixel(a.a, at.width)))
		s.body.Double(float64(toPixel(a.b, at.height)))
	}
	return send(&s.headers[a.kind], s.body.Bytes())
}
