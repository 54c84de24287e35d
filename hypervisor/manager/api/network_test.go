package api

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

const office = "# Ours.\nname = \"office\"\nkind = \"user\"\nsubnet = \"10.95.0.0/24\"\n"

// A network is defined, changed and deleted by a client; another one hears of it.
func TestNetworks(t *testing.T) {
	r := newRig(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	watcher, err := client.Dial(ctx, r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	var mu sync.Mutex
	var heard []string
	watching, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- watcher.Watch(ctx, func(e client.Event) error {
			mu.Lock()
			defer mu.Unlock()
			if e.Name == "" {
				close(watching)
			} else if e.Object.Network != "" && !slices.Contains(heard, e.Name+" "+e.Object.Network) {
				heard = append(heard, e.Name+" "+e.Object.Network)
			}
			if e.Name == "NetworkRemoved" {
				return errStop
			}
			return nil
		})
	}()
	<-watching

	if list, err := r.c.Networks(ctx); err != nil || len(list) != 1 || list[0].Name != "default" || list[0].Kind != "user" {
		t.Fatalf("%+v, %v", list, err)
	}
	if name, err := r.c.DefineNetwork(ctx, office); err != nil || name != "office" {
		t.Fatal(name, err)
	}
	bad := strings.Replace(office, "10.95.0.0/24", "10.95.0.0/30", 1)
	for what, err := range map[string]error{
		"Exists":            r.errOf(r.c.DefineNetwork(ctx, office)),
		"InvalidDefinition": r.c.CheckNetwork(ctx, bad),
		"NotFound":          r.c.DeleteNetwork(ctx, "none"),
		"InvalidName":       r.c.DeleteNetwork(ctx, "None/.."),
		"Needed":            r.c.DeleteNetwork(ctx, "default"),
	} {
		var e *client.Error
		if !errors.As(err, &e) || e.Name != client.ErrorPrefix+what {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Forwards and rules, which leave the rest of the text as it is.
	web := client.Forward{Protocol: "tcp", Listen: "127.0.0.1:8080", Guest: "web", Port: 80}
	first := client.Rule{Guest: "web", Direction: "out", Action: "deny", Protocol: "tcp", CIDR: "192.168.0.0/16", Ports: "1-1024"}
	last := client.Rule{Direction: "in", Action: "deny"}
	for what, err := range map[string]error{
		"forward": r.c.AddForward(ctx, "office", web), "rule": r.c.AddRule(ctx, "office", 0, last),
	} {
		if err != nil {
			t.Error(what, err)
		}
	}
	if err := r.c.AddRule(ctx, "office", 0, first); err != nil {
		t.Error(err)
	}
	want := client.Network{Name: "office", Kind: "user", Subnet: "10.95.0.0/24", Gateway: "10.95.0.1", DNS: []string{},
		Forwards: []client.Forward{web}, Rules: []client.Rule{first, last}, Guests: []client.NetworkGuest{}}
	got, err := r.c.Network(ctx, "office")
	tag := got.DefinitionTag
	got.DefinitionTag = ""
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(err, d)
	}
	for what, err := range map[string]error{
		"NotFound":          r.c.RemoveForward(ctx, "office", client.Forward{Protocol: "udp", Listen: web.Listen}),
		"InvalidDefinition": r.c.AddForward(ctx, "office", web),
	} {
		var e *client.Error
		if !errors.As(err, &e) || e.Name != client.ErrorPrefix+what {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, err := range []error{
		r.c.AddForward(ctx, "office", client.Forward{Protocol: "tcp", Listen: "8080"}),
		r.c.AddRule(ctx, "office", 0, client.Rule{CIDR: "10"}), r.c.AddRule(ctx, "office", 0, client.Rule{Ports: "a"}),
	} {
		var e *client.Error
		if !errors.As(err, &e) || e.Name != "org.freedesktop.DBus.Error.InvalidArgs" {
			t.Error(err)
		}
	}
	text, tag2, err := r.c.NetworkDefinition(ctx, "office")
	if err != nil || tag2 != tag || !strings.HasPrefix(text, office) {
		t.Errorf("%s, %v", text, err)
	}
	for _, err := range []error{r.c.RemoveRule(ctx, "office", 0), r.c.RemoveForward(ctx, "office", web), r.c.SetNetworkDefinition(ctx, "office", office, "")} {
		if err != nil {
			t.Error(err)
		}
	}
	if err := r.c.SetNetworkDefinition(ctx, "office", office, tag); !errors.Is(err, client.ErrChanged) {
		t.Error(err)
	}
	if traffic, err := r.c.Traffic(ctx, "office"); err != nil || len(traffic) != 0 {
		t.Error(traffic, err)
	}
	if err := r.c.DeleteNetwork(ctx, "office"); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, errStop) {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"NetworkAdded office", "PropertiesChanged office", "NetworkRemoved office"}; !slices.Equal(heard, want) {
		t.Errorf("heard %v, want %v", heard, want)
	}
}

// errOf is the error of two results.
func (r *rig) errOf(_ string, err error) error { return err }
