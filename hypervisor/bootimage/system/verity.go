package system

import "crypto/sha256"

// The hash tree: Linux, admin-guide/device-mapper/verity.rst, version 1, SHA-256, without a salt and without a header.

// BlockSize is the size of a block of data and of the tree, bytes.
const BlockSize = 4096

// levels returns the number of blocks of each level of the tree, from the lowest to the uppermost, which is one block. One block of data
// needs no tree.
func (v ID) levels() (list []uint64) {
	const perBlock = BlockSize / sha256.Size
	for n := v.Blocks; n > 1; {
		n = (n + perBlock - 1) / perBlock
		list = append(list, n)
	}
	return list
}

// Size returns the size of data and tree, bytes.
func (v ID) Size() int64 {
	n := v.Blocks
	for _, l := range v.levels() {
		n += l
	}
	return int64(n) * BlockSize
}

// Seal returns data, filled up with zeros to whole blocks, with its hash tree behind it: the uppermost level first.
func Seal(data []byte) ([]byte, ID) {
	v := ID{Blocks: max((uint64(len(data))+BlockSize-1)/BlockSize, 1)}
	sizes := v.levels()
	out := make([]byte, v.Size())
	copy(out, data)
	end := len(out)
	below := out[:v.Blocks*BlockSize]
	for _, n := range sizes {
		level := out[end-int(n)*BlockSize : end]
		end -= len(level)
		for i := 0; i*BlockSize < len(below); i++ {
			sum := sha256.Sum256(below[i*BlockSize:][:BlockSize])
			copy(level[i*sha256.Size:], sum[:])
		}
		below = level
	}
	v.Root = sha256.Sum256(below)
	return out, v
}
