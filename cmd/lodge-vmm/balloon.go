package main

import (
	"errors"
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/virtio/balloon"
)

// balloonStatus is what "status" tells of the balloon, in bytes.
type balloonStatus struct {
	Actual    uint64 `json:"actual"`              // what the guest has given up
	Free      uint64 `json:"free,omitempty"`      // by the guest's own account; 0 if it has not told
	Available uint64 `json:"available,omitempty"` // the same, with what it could free
}

// setBalloon asks the guest to keep that many bytes of its memory.
func (g *guest) setBalloon(keep uint64) error {
	b := g.res.balloon.Load()
	if b == nil {
		return errors.New("the guest has no balloon: set balloon = true in its definition")
	}
	if total := uint64(g.def.Memory); keep > total {
		return fmt.Errorf("%v is more than the guest's %v", definition.Size(keep), g.def.Memory)
	}
	b.SetTarget(uint32((uint64(g.def.Memory) - keep) / balloon.PageSize))
	return nil
}

func (g *guest) balloonStatus() *balloonStatus {
	b := g.res.balloon.Load()
	if b == nil {
		return nil
	}
	b.AskStats() // for whoever asks next
	stats, _ := b.Stats()
	return &balloonStatus{
		Actual: uint64(b.Actual()) * balloon.PageSize,
		Free:   stats[balloon.StatFree], Available: stats[balloon.StatAvailable],
	}
}
