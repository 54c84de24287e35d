package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/manager/storaged"
	"github.com/lodgehv/lodge/hypervisor/mem"
)

// A disk of a storage daemon is there for every boot, in memory that the daemon can map; without the daemon nothing is composed.
func TestRemoteDisk(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	def := &definition.Definition{CPUs: 1, Disks: []definition.Disk{{Name: "far", Socket: socket}}}
	log := slog.New(slog.DiscardHandler)
	var r resources
	if err := r.disks(def, log); err == nil || !strings.Contains(err.Error(), "disk far") || !strings.Contains(err.Error(), "storage daemon") {
		t.Errorf("without a daemon: %v", err)
	}
	d, err := storaged.Start(t.Context(), storaged.Config{Name: "far", Socket: socket, ReadOnly: true,
		Image: storaged.Image{Path: image, Format: storaged.Raw}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	def.Disks[0].ReadOnly = true
	if err := r.disks(def, log); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 {
		card, err := r.config.Slots[0].New(machine.Board{Name: "blk.far", Mem: mem.NewHeap(mem.PageSize), Shared: def.SharesMemory()})
		if err != nil {
			t.Fatal(err)
		}
		defer card.Close()
	}
}

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
