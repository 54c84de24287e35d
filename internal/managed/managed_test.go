package managed

import (
	"testing"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// A guest is told of when it was seen to run before it was ready, and once each time.
func TestReady(t *testing.T) {
	g := New("none")
	for _, step := range []struct {
		what string
		now  client.Guest
		want bool
	}{
		{"is ready when it is seen first", client.Guest{State: "running", Ready: true}, false},
		{"is started", client.Guest{State: "starting"}, false},
		{"runs", client.Guest{State: "running"}, false},
		{"is ready", client.Guest{State: "running", Ready: true}, true},
		{"is still ready", client.Guest{State: "running", Ready: true}, false},
		{"is off", client.Guest{State: "defined"}, false},
		{"is ready as soon as it runs", client.Guest{State: "running", Ready: true}, false},
		{"runs again", client.Guest{State: "running"}, false},
		{"has crashed", client.Guest{State: "crashed"}, false},
		{"runs at last", client.Guest{State: "running", Ready: true}, false},
	} {
		step.now.Name = "work"
		g.see(step.now)
		got := false
		select {
		case name := <-g.Ready():
			got = name == "work"
		default:
		}
		if got != step.want {
			t.Errorf("a guest that %s: told %v, want %v", step.what, got, step.want)
		}
	}
}
