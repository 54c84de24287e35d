package qdisplay

// qnumToKey are the evdev codes of QEMU's key numbers: scan codes of set 1, with bit 7 for those that follow 0xe0. 0 is no
// key. The two scan codes of Print Screen are one key of evdev, as of the kernel's driver; the first is what is sent.
//
// The numbers are those of https://gitlab.com/keycodemap/keycodemapdb, the table of QEMU, libvirt and the viewers.
var qnumToKey = [256]uint16{
	0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, // 0x00
	16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, // 0x10
	32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, // 0x20
	48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, // 0x30
	64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, // 0x40
	80, 81, 82, 83, 99, 186, 86, 87, 88, 117, 190, 101, 95, 183, 184, 185, // 0x50
	0, 0, 0, 169, 134, 135, 141, 144, 145, 146, 151, 153, 161, 193, 0, 194, // 0x60
	93, 123, 122, 89, 191, 177, 85, 91, 90, 92, 0, 94, 0, 124, 121, 0, // 0x70
	0, 171, 150, 187, 189, 129, 130, 131, 176, 181, 182, 120, 132, 0, 233, 178, // 0x80
	165, 0, 152, 147, 222, 195, 196, 149, 168, 163, 197, 198, 96, 97, 139, 148, // 0x90
	113, 140, 164, 160, 166, 205, 154, 199, 200, 201, 0, 202, 203, 204, 114, 206, // 0xa0
	115, 167, 172, 207, 208, 98, 209, 99, 100, 210, 211, 212, 137, 213, 214, 215, // 0xb0
	216, 136, 218, 219, 220, 221, 119, 102, 103, 104, 223, 105, 224, 106, 118, 107, // 0xc0
	108, 109, 110, 111, 225, 234, 227, 228, 229, 230, 231, 125, 126, 127, 116, 142, // 0xd0
	0, 0, 0, 143, 232, 217, 156, 173, 128, 159, 158, 157, 155, 226, 0, 112, // 0xe0
	235, 236, 237, 238, 239, 138, 179, 188, 133, 192, 0, 180, 0, 162, 0, 0, // 0xf0
}

// keyOfQnum returns the evdev code of a key number, false if there is none.
func keyOfQnum(n uint32) (uint16, bool) {
	if n >= uint32(len(qnumToKey)) || qnumToKey[n] == 0 {
		return 0, false
	}
	return qnumToKey[n], true
}

// qnumOfKey returns the key number of an evdev code, false if there is none: keys that came after the PS/2 keyboards have
// none.
func qnumOfKey(code uint16) (uint32, bool) {
	if code > 0 {
		for n, have := range qnumToKey {
			if have == code {
				return uint32(n), true
			}
		}
	}
	return 0, false
}
