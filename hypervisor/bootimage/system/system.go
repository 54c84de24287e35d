// Package system is about the image with Lodge's programs and the kernel's modules (squashfs), which the first program goes on with. It is on
// the ESP, beside the UKIs, and a UKI says on its command line which one is its own: by the root of a hash tree (dm-verity), by which the
// kernel checks each block when it is read. So what Secure Boot and a TPM vouch for is the system too, and none of it stays in memory
// that is not used.
package system

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Parameter is the kernel's parameter with the ID of the system.
const Parameter = "lodge.system"

// Dir is the directory of systems on the ESP, and Unfinished one in it that is being written.
const (
	Dir        = "EFI/Lodge"
	Unfinished = Dir + "/system.new"
)

// ID is which system it is, and all that dm-verity has to be told to check it.
type ID struct {
	Root   [sha256.Size]byte // hash of the tree's uppermost block
	Blocks uint64            // of data; the tree is behind them
}

// String returns it as Parse reads it: the root in hexadecimal digits, a colon, the number of blocks.
func (v ID) String() string { return fmt.Sprintf("%x:%d", v.Root, v.Blocks) }

// Path returns the system's file on the ESP. It is short, so that the directory stays one sector, which is written at once.
func (v ID) Path() string { return fmt.Sprintf("%s/%x.img", Dir, v.Root[:8]) }

// Parse reads what String returns.
func Parse(s string) (v ID, err error) {
	root, blocks, ok := strings.Cut(s, ":")
	b, errRoot := hex.DecodeString(root)
	n, errBlocks := strconv.ParseUint(blocks, 10, 40)
	if !ok || errRoot != nil || errBlocks != nil || len(b) != len(v.Root) || n == 0 {
		return v, fmt.Errorf("%s=%s: not a SHA-256 in hexadecimal digits, a colon, and a number of blocks", Parameter, s)
	}
	v.Blocks = n
	copy(v.Root[:], b)
	return v, nil
}

// Of returns the ID on a kernel's command line, nil if there is none.
func Of(cmdline string) (*ID, error) {
	for _, w := range strings.Fields(cmdline) {
		if value, ok := strings.CutPrefix(w, Parameter+"="); ok {
			id, err := Parse(value)
			return &id, err
		}
	}
	return nil, nil
}
