package vsock

import "encoding/binary"

// headerSize is the length in bytes of struct virtio_vsock_hdr (virtio 1.2 §5.10.6).
const headerSize = 44

// hostCID is the context identifier of the host.
const hostCID = 2

// typeStream is the only socket type without further features.
const typeStream = 1

// Operations, §5.10.6.
const (
	opInvalid       = 0
	opRequest       = 1
	opResponse      = 2
	opRST           = 3
	opShutdown      = 4
	opRW            = 5
	opCreditUpdate  = 6
	opCreditRequest = 7
)

// Flags of opShutdown: the sender of the packet will not receive, or not send, any more.
const (
	shutReceive = 1
	shutSend    = 2
	shutBoth    = shutReceive | shutSend
)

// eventTransportReset is VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (§5.10.6.7).
const eventTransportReset = 0

// packet is a struct virtio_vsock_hdr.
type packet struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	length           uint32 // of the payload, in bytes
	kind, op         uint16
	flags            uint32
	bufAlloc, fwdCnt uint32 // the sender's receive buffer, and how much it has taken out of it
}

func (p *packet) decode(b *[headerSize]byte) {
	le := binary.LittleEndian
	*p = packet{
		srcCID: le.Uint64(b[0:]), dstCID: le.Uint64(b[8:]),
		srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		length: le.Uint32(b[24:]), kind: le.Uint16(b[28:]), op: le.Uint16(b[30:]), flags: le.Uint32(b[32:]),
		bufAlloc: le.Uint32(b[36:]), fwdCnt: le.Uint32(b[40:]),
	}
}

func (p *packet) encode(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], p.srcCID)
	le.PutUint64(b[8:], p.dstCID)
	le.PutUint32(b[16:], p.srcPort)
	le.PutUint32(b[20:], p.dstPort)
	le.PutUint32(b[24:], p.length)
	le.PutUint16(b[28:], p.kind)
	le.PutUint16(b[30:], p.op)
	le.PutUint32(b[32:], p.flags)
	le.PutUint32(b[36:], p.bufAlloc)
	le.PutUint32(b[40:], p.fwdCnt)
}

// refusal returns the opRST that answers p.
func (p *packet) refusal() packet {
	return packet{srcCID: p.dstCID, dstCID: p.srcCID, srcPort: p.dstPort, dstPort: p.srcPort, kind: typeStream, op: opRST}
}
