package main

import (
	"maps"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/vmm"
	"github.com/lodgehv/lodge/internal/seccomp/seccomptest"
)

// traced starts the guest's lodge-vmm, without a cell, and traces it. Its errors come from the channel.
func (i *inhabitant) traced(tr *seccomptest.Trace, program string) (<-chan error, error) {
	files, err := vmm.Open(&i.guest)
	defer vmm.Close(files)
	if err != nil {
		return nil, err
	}
	args := []string{"run", logSyscalls, i.guest.File}
	if i.guest.Restore != "" {
		args = append(args, "--restore", i.guest.Restore)
	}
	cmd := exec.Command("sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$0" "$@"`, program}, args...)...)
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f.File)
	}
	cmd.Env = append(os.Environ(), "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.Stdout, cmd.Stderr = i.err, i.err
	ended, err := tr.Start(cmd)
	if err == nil {
		i.pid = cmd.Process.Pid
	}
	return ended, err
}

// elsewhere has who needs what. What drivers need is what a real guest does in the notebook, where TestCell sees it made.
var elsewhere = map[seccomptest.Need]string{
	{Call: unix.SYS_IOCTL, Request: 0x8138ae83}: older, {Call: unix.SYS_IOCTL, Request: 0x4138ae84}: older, // KVM_GET_SREGS, KVM_SET_SREGS
	{Call: unix.SYS_IOCTL, Request: 0x9000aea4}:           older,                                                     // KVM_GET_XSAVE
	{Call: unix.SYS_IOCTL, Request: 0xaea2}:               "a guest that was saved on a host with another frequency", // KVM_SET_TSC_KHZ
	{Call: unix.SYS_IOCTL, Request: 0x4008ae90}:           "a guest that was saved by another version",               // KVM_SET_CPUID2
	{Call: unix.SYS_IOCTL, Request: 0x4020aea5}:           drivers,                                                   // KVM_SIGNAL_MSI
	{Call: unix.SYS_IOCTL, Request: 0x4020ae76}:           drivers,                                                   // KVM_IRQFD
	{Call: unix.SYS_IOCTL, Request: 0x4008ae6a}:           drivers,                                                   // KVM_SET_GSI_ROUTING
	{Call: unix.SYS_IOCTL, Request: unix.BLKSSZGET}:       "a block device",
	{Call: unix.SYS_IOCTL, Request: unix.BLKDISCARD}:      "a block device",
	{Call: unix.SYS_IOCTL, Request: unix.TUNGETIFF}:       tap,
	{Call: unix.SYS_IOCTL, Request: unix.TUNSETVNETHDRSZ}: tap,
	{Call: unix.SYS_IOCTL, Request: unix.TUNSETOFFLOAD}:   tap,
	{Call: unix.SYS_READV}:                                tap,
	{Call: unix.SYS_WRITEV}:                               tap,
	{Call: unix.SYS_PREADV}:                               drivers,
	{Call: unix.SYS_PWRITEV}:                              drivers,
	{Call: unix.SYS_FALLOCATE}:                            drivers,
	{Call: unix.SYS_SHUTDOWN}:                             drivers,
	{Call: unix.SYS_SCHED_GETAFFINITY}:                    "a start that takes more than a second",
}

const (
	older   = "an older kernel"
	drivers = "drivers of a guest"
	tap     = "a tap"
)

// chance is what Go's runtime does on whichever thread it happens to be.
var chance = map[seccomptest.Need]string{
	{Call: unix.SYS_MADVISE}: "chance", {Call: unix.SYS_MMAP}: "chance", {Call: unix.SYS_WRITE}: "chance", {Call: unix.SYS_EPOLL_PWAIT}: "chance",
	{Call: unix.SYS_GETPID}: "chance", {Call: unix.SYS_GETTID}: "chance", {Call: unix.SYS_TGKILL}: "chance", {Call: unix.SYS_EXIT_GROUP}: "a crash",
	{Call: unix.SYS_RT_SIGRETURN}: "chance", {Call: unix.SYS_FUTEX}: "chance", {Call: unix.SYS_CLOSE}: "a driver that resets its device",
	{Call: unix.SYS_EPOLL_CTL}: "a driver that resets its device",
}

// TestSyscalls holds that lodge-vmm makes no call that its lists leave out, and that the lists have none that it does not make.
func TestSyscalls(t *testing.T) {
	needRootAndKVM(t)
	program, err := buildStatic()
	if err != nil {
		t.Fatal(err)
	}
	var tr seccomptest.Trace
	start := func(i *inhabitant) func() <-chan struct{} {
		return func() <-chan struct{} {
			ended, err := i.traced(&tr, program)
			if err != nil {
				t.Fatal(err)
			}
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}()
			return gone
		}
	}
	i := newInhabitant(t)
	i.live(t, start(i))
	i = newInhabitant(t)
	i.farDisk(t)
	i.liveFar(t, start(i))
	seccomptest.Compare(t, "the process", tr.Process, processCalls(), elsewhere, seccomptest.Runtime)
	ofThreads := maps.Clone(chance)
	maps.Copy(ofThreads, elsewhere)
	seccomptest.Compare(t, "a vCPU's thread", tr.Narrow, vcpuCalls(), ofThreads, seccomptest.Runtime)
}
