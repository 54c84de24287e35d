package metrics

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
)

type fake struct{}

func (fake) List() []manager.Guest {
	return []manager.Guest{{Name: "off", State: life.Defined}, {Name: "work", State: life.Running}}
}

func (fake) Measure(_ context.Context, name string) (manager.Sample, error) {
	if name != "work" {
		return manager.Sample{}, errors.New("it does not run")
	}
	return manager.Sample{CPU: 1500 * time.Millisecond, Memory: 1 << 31, DiskRead: 1, DiskWritten: 2, NetReceived: 3, NetSent: 4, Exits: 5}, nil
}

func (fake) Pools() []manager.Pool { return []manager.Pool{{Name: "broken"}, {Name: "default"}} }

func (fake) PoolUsage(name string) (pool.Usage, error) {
	if name != "default" {
		return pool.Usage{}, errors.New("it cannot be used")
	}
	return pool.Usage{Total: 1000, Free: 400}, nil
}

func TestHandler(t *testing.T) {
	s := httptest.NewServer(Handler(fake{}))
	defer s.Close()
	get := func(path string, status int) string {
		t.Helper()
		r, err := http.Get(s.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != status {
			t.Fatalf("%s: %s, %v", path, r.Status, err)
		}
		return string(b)
	}
	get("/", http.StatusNotFound)
	text := get("/metrics", http.StatusOK)
	for _, want := range []string{
		"# TYPE lodge_guest_state gauge\n", `lodge_guest_state{guest="off",state="defined"} 1`, `lodge_guest_state{guest="work",state="defined"} 0`,
		`lodge_guest_state{guest="work",state="running"} 1`,
		"# TYPE lodge_guest_cpu_seconds_total counter\n" + `lodge_guest_cpu_seconds_total{guest="work"} 1.5` + "\n# HELP",
		`lodge_guest_memory_bytes{guest="work"} 2.147483648e+09`,
		`lodge_guest_disk_read_bytes_total{guest="work"} 1`, `lodge_guest_disk_written_bytes_total{guest="work"} 2`,
		`lodge_guest_network_receive_bytes_total{guest="work"} 3`, `lodge_guest_network_transmit_bytes_total{guest="work"} 4`,
		`lodge_guest_exits_total{guest="work"} 5`, `lodge_pool_size_bytes{pool="default"} 1000`, `lodge_pool_free_bytes{pool="default"} 400`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("without %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "broken") {
		t.Errorf("tells of a pool that cannot be used:\n%s", text)
	}
}
