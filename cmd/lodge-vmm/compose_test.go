package main

import (
	"log/slog"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/mem"
)

// The host's wish for the balloon outlives a reboot, which makes a new one.
func TestBalloonTargetOutlivesReboot(t *testing.T) {
	var r resources
	if err := r.others(&definition.Definition{RNG: new(bool), Balloon: true}, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	const pages = 1000
	for boot := range 3 {
		card, err := r.config.Slots[0].New(machine.Board{Name: "balloon", Mem: mem.NewHeap(mem.PageSize)})
		if err != nil {
			t.Fatal(err)
		}
		defer card.Close()
		switch got := r.balloon.Load().Target(); {
		case boot == 0:
			r.balloon.Load().SetTarget(pages)
		case got != pages:
			t.Errorf("after reboot %d the target is %d pages, want %d", boot, got, pages)
		}
	}
}
