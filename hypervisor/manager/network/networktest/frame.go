// Package networktest has what tests of networks share.
package networktest

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// UDP returns a frame with a datagram.
func UDP(dst, src network.MAC, from, to netip.AddrPort, data string) []byte {
	b := append(append(append([]byte{}, dst[:]...), src[:]...), 0x08, 0x00)
	ip := make([]byte, 20, 28+len(data))
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(data)))
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], to.Addr().AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	ip = binary.BigEndian.AppendUint16(ip, from.Port())
	ip = binary.BigEndian.AppendUint16(ip, to.Port())
	ip = binary.BigEndian.AppendUint16(ip, uint16(8+len(data)))
	ip = append(ip, 0, 0) // no checksum, RFC 768
	return append(append(b, ip...), data...)
}
