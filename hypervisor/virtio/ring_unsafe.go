package virtio

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

// A ring is shared with vCPUs that run at the same time, so its indices are read and written atomically. Go has no 16-bit
// atomics; both indices share an aligned 32-bit word with something else, and that word is what is accessed. On x86-64
// atomic loads have acquire and atomic stores have sequentially consistent order (XCHG), which is more than §2.7.13 asks.

// word returns the aligned 32-bit word that holds b[off]. The slices of a ring begin at even addresses of page-aligned
// memory, so the word never leaves the page.
func word(b []byte, off int) *uint32 {
	return (*uint32)(unsafe.Pointer(uintptr(unsafe.Pointer(&b[off])) &^ 3))
}

// load16 atomically reads the 16-bit little-endian integer at b[off], which is at an even address.
func load16(b []byte, off int) uint16 {
	v := atomic.LoadUint32(word(b, off))
	if uintptr(unsafe.Pointer(&b[off]))&2 != 0 {
		return uint16(v >> 16)
	}
	return uint16(v)
}

// store32 atomically writes b[off:off+4], which is aligned: a full barrier.
func store32(b []byte, off int, v uint32) {
	atomic.StoreUint32(word(b, off), v)
}

// store16 atomically writes the 16-bit little-endian integer at b[off], which is at an even address, and leaves the other
// half of its word to whoever owns it: a full barrier.
func store16(b []byte, off int, v uint16) {
	w := word(b, off)
	shift := (uintptr(unsafe.Pointer(&b[off])) & 2) * 8
	for {
		old := atomic.LoadUint32(w)
		if atomic.CompareAndSwapUint32(w, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}

func get16(b []byte, off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }

// rawVectored is one preadv, pwritev, preadv2 or pwritev2. The offset is passed whole as the low half: the high half is for
// 32-bit systems. The calls without flags ignore the argument.
func rawVectored(trap uintptr, fd int, iov []unix.Iovec, off int64, flags uintptr) (int, uintptr, unix.Errno) {
	n, r2, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)), uintptr(off), 0, flags)
	return int(n), r2, errno
}

// Address returns the guest-physical address of b, which a chain of q returned, and which is not empty.
func (q *Queue) Address(b []byte) mem.GPA {
	at := uintptr(unsafe.Pointer(&b[0]))
	for _, r := range q.mem.Regions() {
		if off := at - uintptr(unsafe.Pointer(&r.Bytes[0])); off < uintptr(len(r.Bytes)) {
			return r.Base + mem.GPA(off)
		}
	}
	return ^mem.GPA(0)
}
