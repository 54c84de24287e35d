package seccomp

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process holds all threads of the process to l, those that are still to come too, and gives up what set-user-ID programs
// could give (PR_SET_NO_NEW_PRIVS).
func (l *List) Process() error {
	runtime.LockOSThread() // no_new_privs is a thread's; the kernel gives it to all with the list
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("seccomp: no_new_privs: %w", err)
	}
	return l.install(unix.SECCOMP_FILTER_FLAG_TSYNC)
}

// Thread holds the calling thread to l, beside what it is held to already: a call has to be allowed by both. The goroutine
// must be locked to the thread for as long as that lives.
func (l *List) Thread() error { return l.install(0) }

func (l *List) install(flags uintptr) error {
	p, err := l.program()
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if thread != 0 {
		return fmt.Errorf("seccomp: thread %d is held to another list", thread)
	}
	return nil
}
