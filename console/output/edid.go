package output

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// edidSize is the size of EDID's base block (VESA E-EDID 1.4 §3).
const edidSize = 128

// The base block's fields (§3.1) and display descriptors (§3.10.3) that identify a monitor.
const (
	edidVendor      = 8  // three letters of five bits, big-endian
	edidProduct     = 10 // little-endian
	edidSerial      = 12 // little-endian
	edidDescriptors = 54 // four of 18 bytes
	edidDescriptor  = 18
	edidSerialText  = 0xff // tag of a descriptor: serial number in ASCII
)

// Identity returns a monitor's identity by its EDID, such as "DEL-a0b1-12345678-ABC123": letters, digits, '-', '_' and '.'
// alone. Monitors that come without a serial number share it with their like. It is "" if the EDID is damaged.
func Identity(edid []byte) string {
	if !validEDID(edid) {
		return ""
	}
	id := fmt.Sprintf("%s-%04x-%08x", vendor(edid), binary.LittleEndian.Uint16(edid[edidProduct:]),
		binary.LittleEndian.Uint32(edid[edidSerial:]))
	if s := text(edid, edidSerialText); s != "" {
		id += "-" + s
	}
	return id
}

// validEDID reports whether b begins with EDID's header and its base block adds up.
func validEDID(b []byte) bool {
	if len(b) < edidSize || !bytes.HasPrefix(b, []byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0}) {
		return false
	}
	var sum byte
	for _, v := range b[:edidSize] {
		sum += v
	}
	return sum == 0
}

// vendor returns the manufacturer's three letters (§3.4.1).
func vendor(edid []byte) string {
	v := binary.BigEndian.Uint16(edid[edidVendor:])
	var s [3]byte
	for i := range s {
		s[i] = '@' + byte(v>>(10-5*i)&0x1f)
		if s[i] < 'A' || s[i] > 'Z' {
			s[i] = '_'
		}
	}
	return string(s[:])
}

// text returns the text of the descriptor with the given tag, what is not fit for a file's name as '_'.
func text(edid []byte, tag byte) string {
	for i := range 4 {
		d := edid[edidDescriptors+i*edidDescriptor:][:edidDescriptor]
		if d[0] != 0 || d[1] != 0 || d[2] != 0 || d[3] != tag { // not zero: a timing
			continue
		}
		s, _, _ := bytes.Cut(d[5:], []byte{'\n'}) // shorter ones end with a line feed and are padded by spaces
		s = bytes.TrimSpace(s)
		out := make([]byte, len(s))
		for i, c := range s {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.':
				out[i] = c
			default:
				out[i] = '_'
			}
		}
		return string(out)
	}
	return ""
}
