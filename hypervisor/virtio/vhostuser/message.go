package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"golang.org/x/sys/unix"
)

// request is what a message asks for.
type request uint32

// Requests of the front end, "Front-end message types".
const (
	getFeatures         request = 1
	setFeatures         request = 2
	setOwner            request = 3
	setMemTable         request = 5
	setVringNum         request = 8
	setVringAddr        request = 9
	setVringBase        request = 10
	getVringBase        request = 11
	setVringKick        request = 12
	setVringCall        request = 13
	getProtocolFeatures request = 15
	setProtocolFeatures request = 16
	getQueueNum         request = 17
	setVringEnable      request = 18
	setBackendReqFD     request = 21
	getConfig           request = 24
	setConfig           request = 25
	getInflightFD       request = 31
	setInflightFD       request = 32
)

// backendConfigChange is the request of the back end (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG) that we serve.
const backendConfigChange request = 2

// String returns the specification's name, without VHOST_USER_.
func (r request) String() string {
	names := map[request]string{
		getFeatures: "GET_FEATURES", setFeatures: "SET_FEATURES", setOwner: "SET_OWNER", setMemTable: "SET_MEM_TABLE",
		setVringNum: "SET_VRING_NUM", setVringAddr: "SET_VRING_ADDR", setVringBase: "SET_VRING_BASE",
		getVringBase: "GET_VRING_BASE", setVringKick: "SET_VRING_KICK", setVringCall: "SET_VRING_CALL",
		getProtocolFeatures: "GET_PROTOCOL_FEATURES", setProtocolFeatures: "SET_PROTOCOL_FEATURES",
		getQueueNum: "GET_QUEUE_NUM", setVringEnable: "SET_VRING_ENABLE", setBackendReqFD: "SET_BACKEND_REQ_FD",
		getConfig: "GET_CONFIG", setConfig: "SET_CONFIG", getInflightFD: "GET_INFLIGHT_FD", setInflightFD: "SET_INFLIGHT_FD",
	}
	if s, ok := names[r]; ok {
		return s
	}
	return fmt.Sprintf("request %d", uint32(r))
}

// Flags of a message, "Message specification".
const (
	version       = 1
	versionMask   = 3
	flagReply     = 1 << 2
	flagNeedReply = 1 << 3
)

// Protocol features, "Protocol features".
const (
	protocolMQ         = 1 << 0
	protocolReplyAck   = 1 << 3
	protocolBackendReq = 1 << 5
	protocolConfig     = 1 << 9
	protocolInflight   = 1 << 12
	protocolWanted     = protocolMQ | protocolReplyAck | protocolBackendReq | protocolConfig | protocolInflight
)

const (
	headerSize = 12
	maxPayload = 512 // of a message that we take, in bytes: the largest is a configuration space
	maxFDs     = 8   // in one message
)

// message is one message in either direction. Who has it closes its descriptors.
type message struct {
	request request
	flags   uint32
	payload []byte
	fds     []int
}

func (m *message) close() {
	for _, fd := range m.fds {
		_ = unix.Close(fd)
	}
	m.fds = nil
}

// encode returns the bytes of m. All integers are of the machine's byte order, which is little-endian.
func (m *message) encode() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(make([]byte, 0, headerSize+len(m.payload)), uint32(m.request))
	b = le.AppendUint32(b, m.flags|version)
	b = le.AppendUint32(b, uint32(len(m.payload)))
	return append(b, m.payload...)
}

// write sends m whole. The descriptors stay the caller's.
func (m *message) write(c *net.UnixConn) error {
	var rights []byte
	if len(m.fds) > 0 {
		rights = unix.UnixRights(m.fds...)
	}
	b := m.encode()
	n, _, err := c.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = c.Write(b[n:])
	}
	return err
}

// readMessage reads the next message. Its errors are those of the connection, and what cannot be a message.
func readMessage(c *net.UnixConn) (message, error) {
	var m message
	if err := m.read(c); err != nil {
		m.close()
		return message{}, err
	}
	return m, nil
}

func (m *message) read(c *net.UnixConn) error {
	var h [headerSize]byte
	rights := make([]byte, unix.CmsgSpace(4*maxFDs))
	for got := 0; got < headerSize; {
		n, oobn, flags, _, err := c.ReadMsgUnix(h[got:], rights)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
		if err := m.take(rights[:oobn]); err != nil {
			return err
		}
		if flags&unix.MSG_CTRUNC != 0 || len(m.fds) > maxFDs {
			return fmt.Errorf("a message with more than %d descriptors", maxFDs)
		}
		got += n
	}
	le := binary.LittleEndian
	m.request, m.flags = request(le.Uint32(h[0:])), le.Uint32(h[4:])
	size := le.Uint32(h[8:])
	if m.flags&versionMask != version {
		return fmt.Errorf("a message of protocol version %d", m.flags&versionMask)
	}
	if size > maxPayload {
		return fmt.Errorf("a message of %d bytes (%v)", size, m.request)
	}
	m.payload = make([]byte, size)
	_, err := io.ReadFull(c, m.payload)
	return err
}

// take adds the descriptors of a control message.
func (m *message) take(rights []byte) error {
	if len(rights) == 0 {
		return nil
	}
	cs, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return err
	}
	for _, c := range cs {
		fds, err := unix.ParseUnixRights(&c)
		if err != nil {
			return err
		}
		m.fds = append(m.fds, fds...)
	}
	return nil
}

var errLength = errors.New("an answer of the wrong length")

// The payloads, in the specification's order.

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func parseU64(p []byte) (uint64, error) {
	if len(p) != 8 {
		return 0, errLength
	}
	return binary.LittleEndian.Uint64(p), nil
}

// vringState is a vring's number and another number.
func vringState(index int, num uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, uint32(index)), num)
}

// parseBase returns the position in the available ring of split vring index.
func parseBase(p []byte, index int) (uint16, error) {
	if len(p) != 8 {
		return 0, errLength
	}
	i, num := binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint32(p[4:])
	if int64(i) != int64(index) || num > 0xffff {
		return 0, fmt.Errorf("base %d of vring %d, asked for vring %d", num, i, index)
	}
	return uint16(num), nil
}

// vringFD is the payload that goes with an eventfd.
func vringFD(index int) []byte { return u64(uint64(index)) }

// vringAddr is where a vring is, in user addresses.
func vringAddr(index int, desc, used, avail uint64) []byte {
	b := vringState(index, 0) // no flags: dirty pages are not logged
	for _, a := range []uint64{desc, used, avail, 0} {
		b = binary.LittleEndian.AppendUint64(b, a)
	}
	return b
}

// region is one of a table of memory regions.
type region struct{ guest, size, user, offset uint64 }

func memTable(regions []region) []byte {
	b := vringState(len(regions), 0) // the number, and padding
	for _, r := range regions {
		for _, v := range []uint64{r.guest, r.size, r.user, r.offset} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	return b
}

// configRange is a piece of the device's configuration space: what is read is left empty.
func configRange(off int, p []byte) []byte {
	var b []byte
	for _, v := range []int{off, len(p), 0} { // no flags: the driver's doing, not a migration's
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return append(b, p...)
}

// parseConfig returns the size bytes at 0 of the configuration space.
func parseConfig(p []byte, size int) ([]byte, error) {
	if len(p) != headerSize+size || binary.LittleEndian.Uint32(p) != 0 || binary.LittleEndian.Uint32(p[4:]) != uint32(size) {
		return nil, errLength // an empty payload is the back end's way to say that it cannot
	}
	return slices.Clone(p[headerSize:]), nil
}

// inflight describes the buffer in which the back end keeps what requests it has begun.
type inflight struct {
	size, offset     uint64
	queues, queueLen uint16
}

func (f inflight) payload() []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(u64(f.size), f.offset)
	b = le.AppendUint16(b, f.queues)
	return le.AppendUint16(b, f.queueLen)
}

func parseInflight(p []byte) (f inflight, err error) {
	le := binary.LittleEndian
	if len(p) < 20 || len(p) > 24 { // some pad the structure to its alignment
		return f, errLength
	}
	return inflight{le.Uint64(p), le.Uint64(p[8:]), le.Uint16(p[16:]), le.Uint16(p[18:])}, nil
}
