package machine

import (
	"path/filepath"
	"testing"

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
	for b.Loop() {
		m, err := New(cfg)
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Start(); err != nil {
			b.Fatal(err)
		}
		<-m.over
		b.StopTimer()
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkRestore1GiB is from a saved guest of 1 GiB on a full board to its first exit.
func BenchmarkRestore1GiB(b *testing.B) {
	cfg := fullBoard(b, exits, rawDisk(b, 64<<20))
	cfg.Memory = 1 << 30
	dir := filepath.Join(b.TempDir(), "saved")
	m, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	if err := m.Start(); err != nil {
		b.Fatal(err)
	}
	<-m.over
	if err := m.Save(b.Context(), dir, nil, nil); err != nil {
		b.Fatal(err)
	}
	if err := m.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := OpenSaved(dir)
		if err != nil {
			b.Fatal(err)
		}
		m, err := Restore(cfg, s, RestoreOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Start(); err != nil {
			b.Fatal(err)
		}
		<-m.over
		b.StopTimer()
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
