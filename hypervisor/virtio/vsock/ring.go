package vsock

// ringSize is the size in bytes of a ring, a power of two: what a connection buffers in each direction.
const ringSize = 64 << 10

// ring is a byte buffer between one producer and one consumer. Its counters run freely, modulo 2³², as those of the
// protocol do: taken is the connection's fwd_cnt in one direction, and its tx_cnt in the other.
//
// The counters are under the muxer's lock. The slices may be used without it: space's by the producer only, data's by the
// consumer only.
type ring struct {
	buf        []byte
	put, taken uint32 // bytes since the beginning
}

// len returns how many bytes are in the ring.
func (r *ring) len() int { return int(r.put - r.taken) }

// room returns how many bytes fit into the ring.
func (r *ring) room() int { return ringSize - r.len() }

// space returns the first contiguous piece of what is free. It is empty when the ring is full.
func (r *ring) space() []byte {
	i := int(r.put % ringSize)
	return r.buf[i : i+min(r.room(), ringSize-i)]
}

// data returns the first contiguous piece of what is in the ring.
func (r *ring) data() []byte {
	i := int(r.taken % ringSize)
	return r.buf[i : i+min(r.len(), ringSize-i)]
}
