package machine

import (
	"slices"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/legacy"
)

// exits is a guest that ends its machine with its first instruction that anybody sees. Restored, it goes on in the loop.
var exits = kvmtest.Program{Ring: kvmtest.Ring0, Main: func(a *kvmtest.Asm) {
	a.Mov(kvmtest.RDX, legacy.DebugExitBase)
	top := a.Here()
	a.Out8().Jmp(top)
}}

// BenchmarkStart is from nothing to the first exit of a guest of 256 MiB on a full board.
func BenchmarkStart(b *testing.B) {
	cfg := fullBoard(b, exits, rawDisk(b, 64<<20))
	cfg.Memory = 256 << 20
	toFirstExit(b, func() (*Machine, error) { return New(cfg) })
}

// BenchmarkRestore1GiB is from a saved guest of 1 GiB on a full board to its first exit.
func BenchmarkRestore1GiB(b *testing.B) {
	cfg := fullBoard(b, exits, rawDisk(b, 64<<20))
	cfg.Memory = 1 << 30
	m := newMachine(b, cfg)
	start(b, m)
	<-m.over
	dir := save(b, m, "")
	if err := m.Close(); err != nil {
		b.Fatal(err)
	}
	toFirstExit(b, func() (*Machine, error) {
		s, err := OpenSaved(dir)
		if err != nil {
			return nil, err
		}
		return Restore(cfg, s, RestoreOptions{})
	})
}

// toFirstExit reports the median and the least time too: a machine that does something else besides has long outliers.
func toFirstExit(b *testing.B, build func() (*Machine, error)) {
	var times []float64
	for b.Loop() {
		began := time.Now()
		m, err := build()
		if err != nil {
			b.Fatal(err)
		}
		start(b, m)
		<-m.over
		times = append(times, float64(time.Since(began))/1e6)
		b.StopTimer() // closing is not what is measured
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(times)
	b.ReportMetric(times[len(times)/2], "median-ms")
	b.ReportMetric(times[0], "least-ms")
}
