package appliance

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// StateLabel is the label of the file system that keeps the state.
const StateLabel = "lodge-state"

// fileSystem returns the kind and the label of the file system on a device, as the kernel's drivers know it by its superblock:
// "ext4" (also for ext2 and ext3, which its driver mounts), "xfs", or that of an encrypted partition. The kind is "" if there is none of them.
func fileSystem(r io.ReaderAt) (kind, label string, err error) {
	// ext4: at 1024 bytes, little-endian; s_magic at 0x38, s_volume_name at 0x78.
	b := make([]byte, 1024+0x88)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) { // too small for any
			return "", "", nil
		}
		return "", "", err
	}
	if s := b[1024:]; binary.LittleEndian.Uint16(s[0x38:]) == 0xef53 {
		return "ext4", text(s[0x78:0x88]), nil
	}
	// XFS: at 0, big-endian; sb_magicnum, and sb_fname at 108.
	if string(b[:4]) == "XFSB" {
		return "xfs", text(b[108:120]), nil
	}
	// LUKS2: at 0, big-endian; version at 6, label at 24.
	if string(b[:6]) == "LUKS\xba\xbe" && binary.BigEndian.Uint16(b[6:]) == 2 {
		return kindLUKS, text(b[24:72]), nil
	}
	return "", "", nil
}

// text returns what is before the first zero byte.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}
