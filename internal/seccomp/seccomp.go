// Package seccomp builds lists of the system calls that a process or a thread may make, and gives them to the kernel, which
// holds the process to them for good: seccomp(2), Documentation/userspace-api/seccomp_filter.rst. A list is a program of
// classic BPF that the kernel runs at each call.
//
// What a list does not name ends the process by SIGSYS: a program that makes a call which its authors never meant it to make
// is somebody else's by then, and an error that it could handle would only let it try the next.
package seccomp

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Rule is about one system call. A list may have several for one call: the first that fits counts.
type Rule struct {
	Call  uintptr    // SYS_*
	Only  []Arg      // it fits if all these do
	Fails unix.Errno // if not 0, the call is not made and fails with it; else it is allowed
}

// Arg is a condition on an argument. It looks at the lower 32 bits only, which are all that the kernel looks at of
// commands, requests and protections.
type Arg struct {
	Index  int    // from 0 to 5
	Mask   uint32 // the bits to look at; 0 stands for all
	Values []uint32
}

// List is what a process or thread may do.
type List struct {
	Rules []Rule
	// LogOnly has the kernel log what the list does not name, and allow it: to find out what is missing.
	LogOnly bool
}

// Allow returns a rule for each of the calls, whatever their arguments.
func Allow(calls ...uintptr) []Rule {
	rules := make([]Rule, len(calls))
	for i, c := range calls {
		rules[i].Call = c
	}
	return rules
}

// Where struct seccomp_data (linux/seccomp.h) has what a filter looks at.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// x32 is set in the numbers of the calls of the x32 ABI, which has the same architecture.
const x32 = 0x40000000

// maxJump is how far a conditional jump of classic BPF reaches.
const maxJump = 255

// program returns l as the kernel takes it.
func (l *List) program() ([]unix.SockFilter, error) {
	otherwise := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	if l.LogOnly {
		otherwise = unix.SECCOMP_RET_LOG
	}
	p := []unix.SockFilter{
		load(offArch), jump(unix.BPF_JEQ, unix.AUDIT_ARCH_X86_64, 1, 0), ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(offNumber), jump(unix.BPF_JGE, x32, 0, 1), ret(unix.SECCOMP_RET_KILL_PROCESS),
	}
	number := true // the accumulator holds the call's number
	for _, r := range l.Rules {
		body, err := r.body()
		if err != nil {
			return nil, fmt.Errorf("rule for system call %d: %w", r.Call, err)
		}
		if !number {
			p = append(p, load(offNumber))
		}
		p = append(append(p, jump(unix.BPF_JEQ, uint32(r.Call), 0, len(body))), body...)
		number = len(r.Only) == 0
	}
	p = append(p, ret(otherwise))
	if len(p) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("%d instructions, where the kernel takes %d", len(p), unix.BPF_MAXINSNS)
	}
	return p, nil
}

// body returns what is executed when the call's number is r's. It jumps behind its end if an argument does not fit.
func (r *Rule) body() ([]unix.SockFilter, error) {
	action := uint32(unix.SECCOMP_RET_ALLOW)
	if r.Fails != 0 {
		action = unix.SECCOMP_RET_ERRNO | uint32(r.Fails)&unix.SECCOMP_RET_DATA
	}
	body := []unix.SockFilter{ret(action)}
	for i := len(r.Only) - 1; i >= 0; i-- { // from the end, since each needs to know how far it is
		a := &r.Only[i]
		if a.Index < 0 || a.Index > 5 || len(a.Values) == 0 {
			return nil, fmt.Errorf("condition on argument %d with %d values", a.Index, len(a.Values))
		}
		head := []unix.SockFilter{load(offArgs + 8*uint32(a.Index))}
		if a.Mask != 0 {
			head = append(head, stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, a.Mask))
		}
		last := len(a.Values) - 1
		for k, v := range a.Values {
			otherwise := 0
			if k == last {
				otherwise = len(body)
			}
			head = append(head, jump(unix.BPF_JEQ, v, last-k, otherwise))
		}
		body = append(head, body...)
	}
	if len(body) > maxJump {
		return nil, errors.New("too many values: divide them between two rules")
	}
	return body, nil
}

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func load(off uint32) unix.SockFilter { return stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }

func ret(action uint32) unix.SockFilter { return stmt(unix.BPF_RET|unix.BPF_K, action) }

func jump(test uint16, k uint32, ifTrue, ifFalse int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, Jt: uint8(ifTrue), Jf: uint8(ifFalse), K: k}
}
