package manager

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lodgehv/lodge/internal/procstat"
)

// Sampling.
const (
	sampleEvery = time.Second
	historyLen  = 600              // samples of a guest that are kept: ten minutes
	lookLimit   = 10 * time.Second // after which nobody counts as looking any more
	statsLimit  = time.Second      // for a VMM to answer
)

// Sample is what a guest used at one moment. What the VMM counts (exits, disks, networks) is from its own mouth; the rest says
// the kernel.
type Sample struct {
	Time   time.Time
	CPU    time.Duration // of all processors, since the VMM was started
	Memory uint64        // bytes that its control group has, with the page cache of its files; without one, that are resident

	DiskRead, DiskWritten uint64 // bytes, since the VMM was started
	NetReceived, NetSent  uint64 // the same, as the guest sees it
	Exits                 uint64 // of all its virtual processors
}

// vmmStats is the result of a VMM's method "stats", or nothing if it has none.
type vmmStats struct {
	Exits       uint64 `json:"exits"`
	NetReceived uint64 `json:"net_received"`
	NetSent     uint64 `json:"net_sent"`
}

// sampler measures the guests that somebody looks at, and does nothing else.
type sampler struct {
	m *Manager

	mu      sync.Mutex
	guests  map[string]*history
	running bool
}

// history is a ring of samples of one guest.
type history struct {
	samples []Sample
	next    int
	pid     int
	looked  time.Time
}

// Stats returns the newest sample of a guest and those before it, the oldest first, at most ten minutes. Who calls it counts as
// looking for some seconds: while somebody does, the guest is measured every second. The first call returns one sample.
func (m *Manager) Stats(ctx context.Context, name string) ([]Sample, error) {
	g, pid, err := m.measurable(name)
	if err != nil {
		return nil, err
	}
	return m.stats.look(ctx, g, pid)
}

// Measure returns a sample of a guest, taken now. Who calls it does not count as looking.
func (m *Manager) Measure(ctx context.Context, name string) (Sample, error) {
	g, pid, err := m.measurable(name)
	if err != nil {
		return Sample{}, err
	}
	x, err := measure(ctx, g, pid)
	if err != nil {
		err = fmt.Errorf("guest %s: %w", name, err)
	}
	return x, err
}

// measurable returns a guest that runs, and its process.
func (m *Manager) measurable(name string) (*guest, int, error) {
	g, err := m.find(name)
	if err != nil {
		return nil, 0, err
	}
	pid := g.info.Load().PID
	if pid == 0 {
		return nil, 0, fmt.Errorf("guest %s: it does not run: there is nothing to measure", name)
	}
	return g, pid, nil
}

func (s *sampler) look(ctx context.Context, g *guest, pid int) ([]Sample, error) {
	s.mu.Lock()
	h := s.guests[g.name]
	fresh := h == nil || h.pid != pid
	s.mu.Unlock()
	var first Sample
	if fresh {
		var err error
		if first, err = measure(ctx, g, pid); err != nil {
			return nil, fmt.Errorf("guest %s: %w", g.name, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if h = s.guests[g.name]; h == nil || h.pid != pid {
		h = &history{pid: pid}
		h.add(first)
		if s.guests == nil {
			s.guests = make(map[string]*history)
		}
		s.guests[g.name] = h
	}
	h.looked = time.Now()
	if !s.running {
		s.running = s.m.background(s.run)
	}
	return h.list(), nil
}

func (h *history) add(x Sample) {
	if len(h.samples) < historyLen {
		h.samples = append(h.samples, x)
		return
	}
	h.samples[h.next] = x
	h.next = (h.next + 1) % historyLen
}

func (h *history) list() []Sample {
	return append(append(make([]Sample, 0, len(h.samples)), h.samples[h.next:]...), h.samples[:h.next]...)
}

// forget drops what was measured of a guest.
func (s *sampler) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.guests, name)
}

// run measures until nobody looks any more.
func (s *sampler) run() {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.m.ctx.Done():
			return
		}
		looked := s.looked()
		if looked == nil {
			return
		}
		for name, pid := range looked {
			g, err := s.m.find(name)
			if err != nil {
				continue
			}
			if x, err := measure(s.m.ctx, g, pid); err == nil {
				s.mu.Lock()
				if h := s.guests[name]; h != nil && h.pid == pid {
					h.add(x)
				}
				s.mu.Unlock()
			}
		}
	}
}

// looked returns the guests that somebody looks at, with their processes, and nil at the end.
func (s *sampler) looked() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	looked := make(map[string]int)
	for name, h := range s.guests {
		if time.Since(h.looked) < lookLimit {
			looked[name] = h.pid
		}
	}
	if len(looked) == 0 {
		s.running = false
		return nil
	}
	return looked
}

// measure takes a sample.
func measure(ctx context.Context, g *guest, pid int) (x Sample, err error) {
	st, err := procstat.Of(pid)
	if err != nil {
		return x, err
	}
	x = Sample{Time: time.Now(), CPU: st.CPU, Memory: st.Resident}
	if p := g.m.cfg.Cgroups; p != nil {
		if u, err := p.Usage(g.cgroupName()); err == nil { // not of a VMM that was started without one
			x.CPU = u.CPU
			if u.Memory != 0 {
				x.Memory = u.Memory
			}
		}
	}
	x.DiskRead, x.DiskWritten = ioBytes(pid)
	var vmm vmmStats
	if err := g.call(ctx, statsLimit, "stats", nil, &vmm, nil); err == nil {
		x.Exits, x.NetReceived, x.NetSent = vmm.Exits, vmm.NetReceived, vmm.NetSent
	}
	return x, nil
}

// ioBytes returns what a process has read from and written to disks, proc_pid_io(5); 0 if that may not be seen.
func ioBytes(pid int) (read, written uint64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, 0
	}
	for in := bufio.NewScanner(bytes.NewReader(b)); in.Scan(); {
		key, value, _ := strings.Cut(in.Text(), ": ")
		n, err := strconv.ParseUint(value, 10, 64)
		switch {
		case err != nil:
		case key == "read_bytes":
			read = n
		case key == "write_bytes":
			written = n
		}
	}
	return read, written
}

// allocated returns what a file takes up, in bytes.
func allocated(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512 // stat(2)
	}
	return st.Size()
}
