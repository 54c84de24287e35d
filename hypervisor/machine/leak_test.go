package machine

import (
	"fmt"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/rng"
)

// A machine that is closed gives all back, whatever it was doing.
func TestCloseGivesBack(t *testing.T) {
	disk := rawDisk(t, 1<<20)
	cfg := fullBoard(t, kvmtest.RemoteProgram(), disk)
	cfg.CPUs = 3
	once := func() {
		g := newGuest(t, cfg)
		find(g, virtio.IDBlock).start(false, featureFlush)
		if err := g.Close(); err != nil {
			t.Error(err)
		}
		m := newMachine(t, cfg) // and one that never ran
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	once()
	before := holding(t)
	for range 20 {
		once()
	}
	before.noMore(t)
}

// A machine that cannot be built gives all back, too.
func TestFailedNewGivesBack(t *testing.T) {
	good := fullBoard(t, counts, rawDisk(t, 1<<20))
	before := holding(t)
	for name, spoil := range map[string]func(*Config){
		"no CPU":           func(c *Config) { c.CPUs = 0 },
		"CPUs":             func(c *Config) { c.CPUs = MaxCPUs + 1 },
		"memory":           func(c *Config) { c.Memory = 4096 },
		"half a page":      func(c *Config) { c.Memory += 2048 },
		"names":            func(c *Config) { c.Slots = append(c.Slots[:2:2], c.Slots[0]) },
		"slots":            func(c *Config) { c.Slots = manySlots(40) },
		"nothing to boot":  func(c *Config) { c.Boot = Boot{} },
		"kernel":           func(c *Config) { c.Boot.Cmdline = string(make([]byte, 1<<20)) },
		"kernel, firmware": func(c *Config) { c.Boot.Firmware = c.Boot.Kernel },
	} {
		cfg := good
		spoil(&cfg)
		if m, err := New(cfg); err == nil {
			t.Errorf("%s: no error", name)
			m.Close()
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	before.noMore(t)
}

func manySlots(n int) (slots []Slot) {
	for i := range n {
		slots = append(slots, Virtio(fmt.Sprint("rng", i), func() (virtio.Device, error) { return &rng.Device{}, nil }))
	}
	return slots
}
