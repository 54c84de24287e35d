package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// rename gives the process its name in lists of processes: in a cell it was executed by a descriptor, whose number would be its
// name.
func rename() {
	name := []byte("lodge-vmm\x00")
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0) // only people look at it
}
