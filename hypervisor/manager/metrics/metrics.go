// Package metrics tells Prometheus of guests and pools, in its text format, version 0.0.4
// (https://prometheus.io/docs/instrumenting/exposition_formats/).
package metrics

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
)

// Source is what is measured: the manager.
type Source interface {
	List() []manager.Guest
	Measure(ctx context.Context, guest string) (manager.Sample, error)
	Pools() []manager.Pool
	PoolUsage(name string) (pool.Usage, error)
}

// limit is how long the measuring of all guests may take.
const limit = 10 * time.Second

// Handler answers at /metrics. Guests are measured when it is asked, and only then.
func Handler(s Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(page(ctx, s))
	})
	return mux
}

// family is one metric, of each guest or pool.
type family struct {
	name, kind, help string
	values           bytes.Buffer
}

// add adds a value with labels: pairs of a name and a value.
func (f *family) add(value float64, labels ...string) {
	f.values.WriteString(f.name)
	for i := 0; i < len(labels); i += 2 {
		fmt.Fprintf(&f.values, "%c%s=%q", "{,"[min(i, 1)], labels[i], labels[i+1]) // names of ours need no other quoting
	}
	f.values.WriteString("} " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

func page(ctx context.Context, s Source) []byte {
	state := &family{name: "lodge_guest_state", kind: "gauge", help: "1 for the state that the guest is in, 0 for the others."}
	of := []struct {
		family
		value func(x *manager.Sample) float64
	}{
		{family{name: "lodge_guest_cpu_seconds_total", kind: "counter", help: "Time of processors, since the guest was started."},
			func(x *manager.Sample) float64 { return x.CPU.Seconds() }},
		{family{name: "lodge_guest_memory_bytes", kind: "gauge", help: "Memory that the guest's process has."},
			func(x *manager.Sample) float64 { return float64(x.Memory) }},
		{family{name: "lodge_guest_disk_read_bytes_total", kind: "counter", help: "Read from disks."},
			func(x *manager.Sample) float64 { return float64(x.DiskRead) }},
		{family{name: "lodge_guest_disk_written_bytes_total", kind: "counter", help: "Written to disks."},
			func(x *manager.Sample) float64 { return float64(x.DiskWritten) }},
		{family{name: "lodge_guest_network_receive_bytes_total", kind: "counter", help: "Received by the guest."},
			func(x *manager.Sample) float64 { return float64(x.NetReceived) }},
		{family{name: "lodge_guest_network_transmit_bytes_total", kind: "counter", help: "Sent by the guest."},
			func(x *manager.Sample) float64 { return float64(x.NetSent) }},
		{family{name: "lodge_guest_exits_total", kind: "counter", help: "Exits of the guest's virtual processors."},
			func(x *manager.Sample) float64 { return float64(x.Exits) }},
	}
	for _, g := range s.List() {
		for _, is := range life.States() {
			value := 0.0
			if g.State == is {
				value = 1
			}
			state.add(value, "guest", g.Name, "state", string(is))
		}
		x, err := s.Measure(ctx, g.Name)
		if err != nil { // it does not run
			continue
		}
		for i := range of {
			of[i].add(of[i].value(&x), "guest", g.Name)
		}
	}
	size := &family{name: "lodge_pool_size_bytes", kind: "gauge", help: "Size of the pool's file system."}
	free := &family{name: "lodge_pool_free_bytes", kind: "gauge", help: "What is free of it."}
	for _, p := range s.Pools() {
		u, err := s.PoolUsage(p.Name)
		if err != nil { // it cannot be used
			continue
		}
		size.add(float64(u.Total), "pool", p.Name)
		free.add(float64(u.Free), "pool", p.Name)
	}

	all := []*family{state}
	for i := range of {
		all = append(all, &of[i].family)
	}
	var b bytes.Buffer
	for _, f := range append(all, size, free) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind)
		b.Write(f.values.Bytes())
	}
	return b.Bytes()
}
