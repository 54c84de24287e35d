package bootimage

import (
	"encoding/binary"
	"errors"
	"unicode/utf16"
)

// A variable store: EDK II, MdeModulePkg/Include/Guid/VariableFormat.h, with authenticated variables. It is the first thing in the firmware
// volume (UEFI PI 1.7, volume 3, §3.2.1) that OVMF's variables are in.
const (
	fvHeaderSizeAt     = 0x30
	storeHeaderSize    = 28
	variableHeaderSize = 60
	variableStart      = 0x55aa
	variableAdded      = 0x3f
	variableAttributes = 7 // non-volatile, at boot and run time
)

var (
	// guidAuthenticated is a store's format: AAF32C78-947B-439A-A180-2E144EC37792.
	guidAuthenticated = guid{0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92}
	// guidGlobal is the vendor of UEFI's own variables: 8BE4DF61-93CA-11D2-AA0D-00E098032B8C (UEFI 2.10 §3.3).
	guidGlobal = guid{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	// guidDXE is the firmware volume of OVMF's drivers: 7CB8BDC9-F8EB-4F34-AAEA-3EE4AF6516A1.
	guidDXE = guid{0xc9, 0xbd, 0xb8, 0x7c, 0xeb, 0xf8, 0x34, 0x4f, 0xaa, 0xea, 0x3e, 0xe4, 0xaf, 0x65, 0x16, 0xa1}
)

var errVariables = errors.New("the firmware's variables: no store that is known: give OVMF_VARS_4M.fd of Debian's package ovmf")

// bootFlashFirst returns OVMF's variables with a boot option for the program in place of the shell, before all others: else disks and
// the network would be tried first, and a disk with a boot manager never leave it its turn.
func bootFlashFirst(vars []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(vars) < fvHeaderSizeAt+2 || string(vars[40:44]) != "_FVH" {
		return nil, errVariables
	}
	store := int(le.Uint16(vars[fvHeaderSizeAt:]))
	if store+storeHeaderSize > len(vars) || guid(vars[store:store+16]) != guidAuthenticated {
		return nil, errVariables
	}
	end := store + int(le.Uint32(vars[store+16:]))
	if end < store || end > len(vars) {
		return nil, errVariables
	}
	at := store + storeHeaderSize
	for at+variableHeaderSize <= end && le.Uint16(vars[at:]) == variableStart {
		at = alignUp(at+variableHeaderSize+int(le.Uint32(vars[at+36:])+le.Uint32(vars[at+40:])), 4)
	}
	added := appendVariable(nil, "Boot0000", bootOption("Lodge"))
	added = appendVariable(added, "BootOrder", []byte{0, 0})
	if at+len(added) > end {
		return nil, errors.New("the firmware's variables: no room for another")
	}
	out := append([]byte(nil), vars...)
	copy(out[at:], added)
	return out, nil
}

// bootOption is an EFI_LOAD_OPTION (UEFI 2.10 §3.1.3) for the program in place of OVMF's shell, by its device path (§10.3.5.7, PI volume 2).
func bootOption(description string) []byte {
	const active = 1
	path := append([]byte{4, 7, 20, 0}, guidDXE[:]...)
	path = append(append(path, 4, 6, 20, 0), guidShell[:]...)
	path = append(path, 0x7f, 0xff, 4, 0)
	b := binary.LittleEndian.AppendUint32(nil, active)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(path))) //nolint:gosec // 44
	return append(append(b, ucs2(description)...), path...)
}

// ucs2 is a text as UEFI has it, ended by a zero.
func ucs2(s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// appendVariable appends a variable of UEFI's own to a store's, which begin at multiples of four.
func appendVariable(b []byte, name string, data []byte) []byte {
	le := binary.LittleEndian
	h := make([]byte, variableHeaderSize)
	le.PutUint16(h, variableStart)
	h[2] = variableAdded
	le.PutUint32(h[4:], variableAttributes)
	le.PutUint32(h[36:], uint32(len(ucs2(name)))) //nolint:gosec // a few bytes
	le.PutUint32(h[40:], uint32(len(data)))       //nolint:gosec // a few bytes
	copy(h[44:], guidGlobal[:])
	b = append(append(append(b, h...), ucs2(name)...), data...)
	for len(b)%4 != 0 {
		b = append(b, 0xff)
	}
	return b
}
