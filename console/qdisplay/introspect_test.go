package qdisplay

import (
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// What is introspected is the contract with clients that are not ours.
func TestIntrospect(t *testing.T) {
	g := newGuest(t)
	server := g.raw(t)
	_, _, listener := hostileVMM(t, ReceiverConfig{})
	for file, got := range map[string]string{
		"root.xml":     introspection(t, server, "/"),
		"display1.xml": introspection(t, server, pathRoot),
		"vm.xml":       introspection(t, server, pathVM),
		"console.xml":  introspection(t, server, consolePath(0)),
		"listener.xml": introspection(t, listener, pathListener),
	} {
		name := "testdata/" + file
		if *update {
			if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s: %s", file, diff)
		}
	}
}
