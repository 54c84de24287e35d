package ps2

import (
	"sync"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// Commands of the mouse, in their order.
const (
	mouseScaling1   = 0xe6
	mouseScaling2   = 0xe7
	mouseResolution = 0xe8 // a byte follows: 0 to 3, for 1, 2, 4 or 8 counts a millimetre
	mouseStatus     = 0xe9
	mouseStream     = 0xea
	mouseRead       = 0xeb
	mouseUnwrap     = 0xec
	mouseWrap       = 0xee
	mouseRemote     = 0xf0
	mouseRate       = 0xf3 // a byte follows: reports a second
)

// Identities of a mouse, which the guest changes by setting three sample rates in a row.
const (
	idPlain        = 0
	idIntelliMouse = 3 // with a wheel: after 200, 100, 80
	idExplorer     = 4 // and five buttons: after 200, 200, 80
)

const (
	defaultResolution = 2
	defaultRate       = 100
)

// Bits of a packet's first byte, and of the status.
const (
	packetAlways = 1 << 3
	packetXNeg   = 1 << 4
	packetYNeg   = 1 << 5

	statusScaling = 1 << 4
	statusEnabled = 1 << 5
	statusRemote  = 1 << 6
)

// moveQueue is how many states of the buttons a guest can be behind before clicks are lost.
const moveQueue = 8

// move is motion with one state of the buttons.
type move struct {
	x, y, wheel int32 // to the right, down, away from the person
	buttons     uint8
}

// moveMax bounds what adds up in a move: more than the widest screen has pixels.
const moveMax = 1 << 13

// Mouse is a mouse. It is a legacy.PS2Port of the i8042, a hid.Sink and a snap.Component. It does nothing before Resume.
// Motion is in counts of the sender's: the resolution that the guest sets changes nothing.
type Mouse struct {
	ready   func()
	changed func()
	gate    gate

	mu         sync.Mutex
	id         uint8
	enabled    bool
	remote     bool
	wrap       bool
	scaling    bool // 2:1
	resolution uint8
	rate       uint8
	rates      [2]uint8 // set before
	command    uint8    // that waits for its parameter, or 0
	refused    bool     // the last byte was no command
	reply      buffer   // goes before packets
	packet     buffer   // one, or what is left of it
	last       buffer   // the reply or packet that was made last
	buttons    uint8    // as they are
	sent       uint8    // as the guest was told
	moves      [moveQueue]move
	n          int // moves that wait
}

// NewMouse returns a mouse. It calls ready, the controller's, when it has something to send, and changed, which may be nil,
// after Active has changed; changed holds a vCPU up, so it does not wait.
func NewMouse(ready, changed func()) *Mouse {
	m := &Mouse{ready: ready, changed: changed}
	m.defaults()
	return m
}

// defaults is the state after cmdDefaults.
func (m *Mouse) defaults() {
	m.enabled, m.remote, m.wrap, m.scaling = false, false, false, false
	m.resolution, m.rate = defaultResolution, defaultRate
	m.discard()
}

// discard forgets motion that was not sent. What the buttons are then, it does not.
func (m *Mouse) discard() { m.n, m.packet.n = 0, 0 }

// Active reports whether the guest takes motion.
func (m *Mouse) Active() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.active()
}

func (m *Mouse) active() bool { return (m.enabled || m.remote) && !m.wrap }

// The buttons, by the bits of a packet; the upper two are Explorer's.
const explorerButtons = 1<<3 | 1<<4

func button(code uint16) uint8 {
	switch code {
	case hid.BtnLeft:
		return 1 << 0
	case hid.BtnRight:
		return 1 << 1
	case hid.BtnMiddle:
		return 1 << 2
	case hid.BtnSide, hid.BtnBack:
		return 1 << 3
	case hid.BtnExtra, hid.BtnForward:
		return 1 << 4
	}
	return 0
}

// visible returns those of the buttons that the mouse has as the guest knows it.
func (m *Mouse) visible(buttons uint8) uint8 {
	if m.id == idExplorer {
		return buttons
	}
	return buttons &^ explorerButtons
}

// Send implements hid.Sink.
func (m *Mouse) Send(batch []hid.Event) {
	if !m.gate.enter() {
		return
	}
	defer m.gate.leave()
	m.mu.Lock()
	var d move
	active := m.active()
	for _, e := range batch {
		switch {
		case e.Type == hid.EVKey && e.Value == 0:
			m.buttons &^= button(e.Code)
		case !active:
		case e.Type == hid.EVKey && e.Value == 1:
			m.buttons |= button(e.Code)
		case e.Type == hid.EVRel && e.Code == hid.RelX:
			d.x = add(d.x, e.Value)
		case e.Type == hid.EVRel && e.Code == hid.RelY:
			d.y = add(d.y, e.Value)
		case e.Type == hid.EVRel && e.Code == hid.RelWheel && m.id != idPlain:
			d.wheel = add(d.wheel, e.Value)
		}
	}
	if active {
		m.move(d)
	}
	m.mu.Unlock()
	m.ready()
}

// ReleaseAll releases every button that is down. When the person lets go of one later, the guest does not hear of it.
func (m *Mouse) ReleaseAll() {
	if !m.gate.enter() {
		return
	}
	defer m.gate.leave()
	m.mu.Lock()
	m.buttons = 0
	if m.active() {
		m.move(move{})
	}
	m.mu.Unlock()
	m.ready()
}

// move adds motion to what waits, with the buttons as they are now.
func (m *Mouse) move(d move) {
	before := m.sent
	if m.n > 0 {
		before = m.moves[m.n-1].buttons
	}
	d.buttons = m.visible(m.buttons)
	if d == (move{buttons: before}) {
		return
	}
	if m.n == moveQueue || m.n > 0 && before == d.buttons {
		l := &m.moves[m.n-1]
		*l = move{add(l.x, d.x), add(l.y, d.y), add(l.wheel, d.wheel), d.buttons}
		return
	}
	m.moves[m.n] = d
	m.n++
}

// add adds without running over.
func add(a, b int32) int32 {
	return int32(min(max(int64(a)+int64(b), -moveMax), moveMax))
}

// Next implements legacy.PS2Port. Packets are made when the guest has read the last: so motion adds up, and a packet is
// whole.
func (m *Mouse) Next() (b byte, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok = m.reply.pop(); ok {
		return b, ok
	}
	if m.command != 0 || !m.enabled || m.remote || m.wrap {
		return 0, false
	}
	if m.packet.n == 0 && (m.n > 0 || m.visible(m.buttons) != m.visible(m.sent)) {
		m.makePacket(&m.packet, m.scaling)
		m.last = m.packet
	}
	return m.packet.pop()
}

// makePacket appends a packet to q: of a movement that is too large for one, the rest stays for the next.
func (m *Mouse) makePacket(q *buffer, scaling bool) {
	d := move{buttons: m.visible(m.buttons)}
	if m.n > 0 {
		d = m.moves[0]
	}
	limit, wheel := int32(255), int32(127)
	if scaling {
		limit = 127
	}
	if m.id == idExplorer {
		wheel = 7
	}
	x, y, z := clamp(d.x, limit), clamp(d.y, limit), clamp(d.wheel, wheel)
	if m.n > 0 {
		rest := &m.moves[0]
		rest.x, rest.y, rest.wheel = rest.x-x, rest.y-y, rest.wheel-z
		if rest.x|rest.y|rest.wheel == 0 || m.id == idPlain && rest.x|rest.y == 0 {
			m.n = copy(m.moves[:], m.moves[1:m.n])
		}
	}
	m.sent = m.visible(d.buttons)
	if scaling {
		x, y = scale(x), scale(y)
	}
	y, z = -y, -z // up is positive, and the wheel is towards the person
	first := packetAlways | m.sent&7
	if x < 0 {
		first |= packetXNeg
	}
	if y < 0 {
		first |= packetYNeg
	}
	q.push(first, byte(x), byte(y))
	switch m.id {
	case idIntelliMouse:
		q.push(byte(z))
	case idExplorer:
		q.push(byte(z)&0xf | m.sent&explorerButtons<<1)
	}
}

func clamp(v, limit int32) int32 { return min(max(v, -limit), limit) }

// scale is what 2:1 scaling makes of a movement.
func scale(v int32) int32 {
	slow := [...]int32{0, 1, 1, 3, 6, 9}
	switch {
	case v < 0:
		return -scale(-v)
	case int(v) < len(slow):
		return slow[v]
	}
	return 2 * v
}

// Write implements legacy.PS2Port: a command or its parameter.
func (m *Mouse) Write(b byte) {
	m.mu.Lock()
	was := m.active()
	switch {
	case b == cmdResend && !m.wrap:
		m.reply = m.last
	default:
		m.reply.n = 0
		m.take(b)
		m.last = m.reply
	}
	changed := m.active() != was
	m.mu.Unlock()
	if changed && m.changed != nil {
		m.changed()
	}
}

func (m *Mouse) take(b byte) {
	switch {
	case m.wrap && b != cmdReset && b != mouseUnwrap:
		m.reply.set(b)
	case m.command == 0 || b >= mouseScaling1: // which no parameter is
		m.command = 0
		m.execute(b)
	default:
		m.parameter(b)
	}
}

func (m *Mouse) execute(b byte) {
	m.reply.set(ack)
	refused := false
	switch b {
	case mouseScaling1, mouseScaling2:
		m.scaling = b == mouseScaling2
	case mouseResolution, mouseRate:
		m.command = b
	case mouseStatus:
		m.reply.push(m.status(), m.resolution, m.rate)
	case mouseStream:
		m.remote = false
		m.discard()
	case mouseRead:
		m.makePacket(&m.reply, false)
	case mouseWrap, mouseUnwrap:
		m.wrap = b == mouseWrap
		m.discard()
	case mouseRemote:
		m.remote = true
		m.discard()
	case cmdID:
		m.reply.push(m.id)
	case cmdEnable:
		m.enabled = true
		m.discard()
	case cmdDisable:
		m.enabled = false
		m.discard()
	case cmdDefaults:
		m.defaults()
	case cmdReset:
		m.defaults()
		m.id, m.buttons, m.sent, m.rates = idPlain, 0, 0, [2]uint8{}
		m.reply.push(selfTest, m.id)
	default:
		m.refuse()
		refused = true
	}
	m.refused = refused
}

// refuse answers what the mouse does not understand, and the second time in a row.
func (m *Mouse) refuse() {
	if m.refused {
		m.reply.set(failure)
	} else {
		m.reply.set(resend)
	}
}

// parameter takes the byte after a command. A byte that it cannot be leaves the command waiting, as the guest is asked to
// send it again, once.
func (m *Mouse) parameter(b byte) {
	m.reply.set(ack)
	switch {
	case m.command == mouseResolution && b <= 3:
		m.resolution = b
	case m.command == mouseRate && validRate(b):
		m.knock(b)
		m.rate = b
	default:
		m.refuse()
		if m.refused {
			m.command = 0
		}
		m.refused = !m.refused
		return
	}
	m.command, m.refused = 0, false
}

// knock looks for the rates that change the identity.
func (m *Mouse) knock(rate uint8) {
	switch [3]uint8{m.rates[0], m.rates[1], rate} {
	case [3]uint8{200, 100, 80}:
		m.id = idIntelliMouse
	case [3]uint8{200, 200, 80}:
		m.id = idExplorer
	}
	m.rates = [2]uint8{m.rates[1], rate}
}

func validRate(rate uint8) bool {
	switch rate {
	case 10, 20, 40, 60, 80, 100, 200:
		return true
	}
	return false
}

// status returns the first byte of the answer to mouseStatus, in which right and middle are the other way round.
func (m *Mouse) status() (s uint8) {
	s = m.buttons&1<<2 | m.buttons>>1&1 | m.buttons>>2&1<<1
	if m.scaling {
		s |= statusScaling
	}
	if m.enabled {
		s |= statusEnabled
	}
	if m.remote {
		s |= statusRemote
	}
	return s
}

// SnapID implements snap.Component.
func (*Mouse) SnapID() string { return "ps2.mouse" }

// SnapVersion implements snap.Component.
func (*Mouse) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component.
func (m *Mouse) Pause() error {
	m.gate.set(false)
	return nil
}

// Resume implements snap.Component. Buttons that are down are released: a person may have let go of them meanwhile.
func (m *Mouse) Resume() error {
	m.gate.set(true)
	m.ReleaseAll()
	if m.changed != nil {
		m.changed()
	}
	return nil
}

// State implements snap.Component.
func (m *Mouse) State(c *snap.Codec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range []*bool{&m.enabled, &m.remote, &m.wrap, &m.scaling, &m.refused} {
		c.Bool(v)
	}
	for _, v := range []*uint8{&m.id, &m.resolution, &m.rate, &m.rates[0], &m.rates[1], &m.command, &m.buttons, &m.sent} {
		c.U8(v)
	}
	for _, q := range []*buffer{&m.reply, &m.packet, &m.last} {
		q.state(c)
	}
	m.n = c.Len(m.n, moveQueue)
	for i := range m.moves[:m.n] {
		d := &m.moves[i]
		for _, v := range []*int32{&d.x, &d.y, &d.wheel} {
			u := uint32(*v)
			c.U32(&u)
			if *v = clamp(int32(u), moveMax); *v != int32(u) {
				c.Fail("moves by %d", int32(u))
			}
		}
		c.U8(&d.buttons)
	}
	oneOf(c, "identity", m.id, idPlain, idIntelliMouse, idExplorer)
	oneOf(c, "resolution", m.resolution, 0, 1, 2, 3)
	oneOf(c, "command that waits", m.command, 0, mouseResolution, mouseRate)
	if !validRate(m.rate) {
		c.Fail("sample rate %d", m.rate)
	}
}
