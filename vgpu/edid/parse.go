package edid

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
)

// Info is what a monitor says of itself. What it does not say is zero.
type Info struct {
	Vendor  string // three letters that the UEFI Forum gives out (PNP ID)
	Product uint16
	Serial  uint32
	// SerialText is the serial number as people read it: many monitors have only that one, some only Serial.
	SerialText string
	Name       string // of the model

	Width, Height     int // pixels: the preferred mode
	RefreshMilliHz    int // of the preferred mode
	WidthMM, HeightMM int // of the picture
}

// ErrFormat reports bytes that are not an EDID, or damaged.
var ErrFormat = errors.New("not an EDID of version 1, or damaged")

// Parse reads a base block and the extensions behind it, of which some may be missing; what Info has no room for, and damaged
// extensions, it leaves aside. The error is ErrFormat.
func Parse(b []byte) (Info, error) {
	h := header()
	if len(b) < BlockSize || !bytes.HasPrefix(b, h[:]) || b[offVersion] != 1 || checksum(b[:BlockSize]) != 0 {
		return Info{}, ErrFormat
	}
	i := Info{
		Vendor:  decodeVendor(binary.BigEndian.Uint16(b[offVendor:])),
		Product: binary.LittleEndian.Uint16(b[offProduct:]),
		Serial:  binary.LittleEndian.Uint32(b[offSerial:]),
	}
	if w, h := int(b[offSize]), int(b[offSize+1]); w > 0 && h > 0 { // else unknown, or an aspect ratio
		i.WidthMM, i.HeightMM = 10*w, 10*h
	}
	for n := range numDescriptors {
		i.descriptor(b[offDescriptors+n*descriptorSize:][:descriptorSize])
	}
	for n := 1; n <= int(b[offExtensions]) && len(b) >= (n+1)*BlockSize; n++ {
		if ext := b[n*BlockSize : (n+1)*BlockSize]; ext[0] == tagDisplayID && checksum(ext) == 0 {
			i.displayID(ext)
		}
	}
	return i, nil
}

func decodeVendor(v uint16) string {
	s := []byte{'@' + byte(v>>10&31), '@' + byte(v>>5&31), '@' + byte(v&31)}
	for _, c := range s {
		if c < 'A' || c > 'Z' {
			return ""
		}
	}
	return string(s)
}

// descriptor takes over one of the four 18-byte descriptors. The first detailed timing is the preferred one.
func (i *Info) descriptor(d []byte) {
	if clock := int(binary.LittleEndian.Uint16(d)) * clockUnit; clock != 0 {
		if i.Width != 0 {
			return
		}
		high := func(at int) (upper, lower int) { return int(d[at]) >> 4 << 8, int(d[at]) & 15 << 8 }
		w, hBlank := high(4)
		h, vBlank := high(7)
		i.mode(w|int(d[2]), h|int(d[5]), hBlank|int(d[3]), vBlank|int(d[6]), clock)
		if d[17]&(1<<7) != 0 {
			i.Height *= 2 // interlaced: the lines are a field's
		}
		wMM, hMM := high(14)
		if wMM, hMM = wMM|int(d[12]), hMM|int(d[13]); wMM > 0 && hMM > 0 {
			i.WidthMM, i.HeightMM = wMM, hMM
		}
		return
	}
	switch d[3] {
	case tagName:
		i.Name = text(d)
	case tagSerial:
		i.SerialText = text(d)
	}
}

// mode sets the preferred mode, if it can be one.
func (i *Info) mode(w, h, hBlank, vBlank, clock int) {
	if w == 0 || h == 0 {
		return
	}
	total := (w + hBlank) * (h + vBlank)
	i.Width, i.Height, i.RefreshMilliHz = w, h, (1000*clock+total/2)/total
}

// text returns the text of a descriptor, which a line feed ends. Characters that are not printable ASCII become dots.
func text(d []byte) string {
	t, _, _ := bytes.Cut(d[descriptorSize-textSize:], []byte{'\n'})
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.'
		}
		return r
	}, string(t)))
}
