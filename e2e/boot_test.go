package e2e_test

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func (l *lab) testStart(ctx context.Context, t *testing.T) {
	amd64, i386 := l.pair(ctx, t)
	const script = "uname -m; nproc; hostname; cat /sys/class/dmi/id/sys_vendor"
	for _, c := range []struct {
		m    *vm
		want string
	}{
		{amd64, "x86_64\n2\namd64\nLodge"},
		{i386, "i686\n1\ni386\nLodge"},
	} {
		if d := cmp.Diff(c.want, c.m.shell(ctx, t, script)); d != "" {
			t.Errorf("%s: (-want +got)\n%s", script, d)
		}
	}
}

// harmless are the warnings of a Debian kernel that are no fault of our machine.
var harmless = []*regexp.Regexp{
	// The notebook's emulated processor: KVM does not see that a guest changes XCR0, so that CPUID does not follow, of
	// which the kernel complains at length; and its time-stamp counter is not constant.
	regexp.MustCompile(`(?s)[^\n]*------------\[ cut here \]-[^\n]*\n([^\n]*XSAVE consistency problem|[^\n]*\.c:606 fpu__init_system_xstate).*?end trace [^\n]*\n([^\n]*CPUID\[0d, [^\n]*\n)*`),
	regexp.MustCompile(`[^\n]*Speculative Return Stack Overflow[^\n]*\n`),
	regexp.MustCompile(`[^\n]*Unstable clock detected, [^\n]*\n([^\n]*If you want[^\n]*\n[^\n]*trace_clock=local[^\n]*\n[^\n]*kernel command line\n)?`),
	// slub_debug, which 32-bit guests have in the notebook (see notebook.I386Cmdline), is for debugging, says the kernel.
	regexp.MustCompile(`([^\n]*\] \*\*[^\n]*\n)+`),
	// The guest's two processors share the notebook's one.
	regexp.MustCompile(`[^\n]*hrtimer: interrupt took \d+ ns\n`),
	// The notebook has one processor for all, and the machine that emulates it other work: a guest may be without for a second.
	regexp.MustCompile(`[^\n]*clocksource: Long readout interval, skipping watchdog check[^\n]*\n`),
	// A 32-bit kernel without PAE cannot use the window for 64-bit BARs, and need not.
	regexp.MustCompile(`[^\n]*acpi resource window [^\n]*ignored, not CPU addressable[^\n]*\n`),
	// The LPC bridge has no watchdog and no GPIO, which is all that the driver would serve.
	regexp.MustCompile(`[^\n]*lpc_ich [^\n]*: No MFD cells added\n`),
	// After the VMM was killed, the guest's file system replays its journal.
	regexp.MustCompile(`[^\n]*EXT4-fs [^\n]*recovery[^\n]*\n`),
}

func (l *lab) testKernelLog(ctx context.Context, t *testing.T) {
	amd64, i386 := l.pair(ctx, t)
	for _, m := range []*vm{amd64, i386} {
		log := m.shell(ctx, t, "dmesg -l emerg,alert,crit,err,warn") + "\n"
		for _, re := range harmless {
			log = re.ReplaceAllString(log, "")
		}
		if log = strings.TrimSpace(log); log != "" {
			t.Errorf("the kernel of guest %s complains:\n%s", m.Name(), log)
		}
	}
}

// What "lspci -vvv" is to say of each kind of function.
const (
	hostBridge = "8086:29c0"
	lpcBridge  = "8086:2918"
	virtioCard = "1af4:10"
)

func (l *lab) testLSPCI(ctx context.Context, t *testing.T) {
	amd64, i386 := l.pair(ctx, t)
	for _, c := range []struct {
		m    *vm
		want string // block, network, rng, balloon and vsock devices between the bridges
	}{
		{amd64, hostBridge + " 1af4:1042 1af4:1042 1af4:1042 1af4:1041 1af4:1041 1af4:1044 1af4:1045 1af4:1053 " + lpcBridge},
		{i386, hostBridge + " 1af4:1042 1af4:1041 1af4:1041 1af4:1044 1af4:1045 1af4:1053 " + lpcBridge},
	} {
		var ids []string
		for fn := range strings.SplitSeq(c.m.shell(ctx, t, "lspci -nvvv"), "\n\n") {
			id := regexp.MustCompile(`^[0-9a-f:.]+ [0-9a-f]{4}: ([0-9a-f:]{9})`).FindStringSubmatch(fn)
			if id == nil {
				t.Errorf("guest %s: lspci: %s", c.m.Name(), fn)
				continue
			}
			ids = append(ids, id[1])
			checkFunction(t, c.m.Name(), fn, strings.HasPrefix(id[1], virtioCard))
		}
		if d := cmp.Diff(c.want, strings.Join(ids, " ")); d != "" {
			t.Errorf("guest %s: functions (-want +got)\n%s", c.m.Name(), d)
		}
	}
}

// checkFunction checks what lspci says of one function. A device of ours has a driver that uses its MSI-X vectors and found
// its structures; no function reports an error.
func checkFunction(t *testing.T, guest, fn string, virtio bool) {
	t.Helper()
	if m := regexp.MustCompile(`[<>](TAbort|MAbort|SERR|PERR)\+|ParErr\+|!!!|\?\?|disabled|invalid|\[virtual\]`).FindString(fn); m != "" {
		t.Errorf("guest %s: %q in\n%s", guest, m, fn)
	}
	if !virtio {
		return
	}
	for _, want := range []string{
		`Control: I/O- Mem\+ BusMaster\+ .* DisINTx\+`, `Status: Cap\+ .* INTx-`, `Region 0: Memory at [0-9a-f]{8,} .*\[size=16K\]`,
		`MSI-X: Enable\+ Count=[2-9] Masked-`, `VirtIO: CommonCfg`, `VirtIO: Notify`, `VirtIO: ISR`, `VirtIO: DeviceCfg`,
		`Kernel driver in use: virtio-pci`,
	} {
		if !regexp.MustCompile(want).MatchString(fn) {
			t.Errorf("guest %s: no %q in\n%s", guest, want, fn)
		}
	}
}
