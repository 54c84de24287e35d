package virtionet

import (
	"encoding/binary"

	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// HeaderSize is the length in bytes of struct virtio_net_hdr, which precedes every frame (virtio 1.2 §5.1.6).
const HeaderSize = 12

// header is a struct virtio_net_hdr.
type header [HeaderSize]byte

// Fields of a header, all little-endian.
const (
	hdrFlags      = 0
	hdrGSOType    = 1
	hdrLen        = 2 // le16 from here on
	hdrGSOSize    = 4
	hdrCSUMStart  = 6
	hdrCSUMOffset = 8
	hdrNumBuffers = 10
)

// Values of flags and gso_type.
const (
	flagNeedsCSUM = 1 // the checksum at csum_start+csum_offset has to be completed
	flagDataValid = 2 // the checksum has been checked

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoECN   = 0x80
)

// offloads are what the headers of one direction may ask for.
type offloads struct {
	flags      byte // the flags that mean something
	tso4, tso6 bool
	ecn        bool
}

// hostOffloads are those of packets from the driver, guestOffloads of packets to it. Segmentation is only ever negotiated
// together with checksums (§5.1.3.1).
func hostOffloads(env *virtio.Env) (o offloads) {
	if env.Has(FeatureCSUM) {
		o = offloads{flags: flagNeedsCSUM, tso4: env.Has(FeatureHostTSO4), tso6: env.Has(FeatureHostTSO6), ecn: env.Has(FeatureHostECN)}
	}
	return o
}

func guestOffloads(env *virtio.Env) (o offloads) {
	if env.Has(FeatureGuestCSUM) {
		o = offloads{flags: flagNeedsCSUM | flagDataValid, tso4: env.Has(FeatureGuestTSO4), tso6: env.Has(FeatureGuestTSO6), ecn: env.Has(FeatureGuestECN)}
	}
	return o
}

func (h *header) get(field int) int       { return int(binary.LittleEndian.Uint16(h[field:])) }
func (h *header) set(field int, v uint16) { binary.LittleEndian.PutUint16(h[field:], v) }

// clean reports whether h asks for nothing but what o has, of a frame of n bytes, and clears what has no meaning there.
// A packet whose header does not pass is to be dropped.
func (h *header) clean(n int, o offloads) bool {
	needs := h[hdrFlags]&flagNeedsCSUM != 0
	h[hdrFlags] &= o.flags
	h.set(hdrNumBuffers, 0)
	switch {
	case needs:
		// Two bytes of checksum, inside the frame.
		if o.flags&flagNeedsCSUM == 0 || h.get(hdrCSUMStart)+h.get(hdrCSUMOffset)+2 > n {
			return false
		}
	default:
		h.set(hdrCSUMStart, 0)
		h.set(hdrCSUMOffset, 0)
	}
	kind := h[hdrGSOType]
	if kind == gsoNone {
		h.set(hdrLen, 0)
		h.set(hdrGSOSize, 0)
		return true
	}
	h.set(hdrLen, uint16(min(h.get(hdrLen), n))) // only a hint (§5.1.6.2.2)
	switch kind &^ gsoECN {
	case gsoTCPv4:
		if !o.tso4 {
			return false
		}
	case gsoTCPv6:
		if !o.tso6 {
			return false
		}
	default:
		return false
	}
	return needs && h.get(hdrGSOSize) != 0 && (o.ecn || kind&gsoECN == 0)
}
