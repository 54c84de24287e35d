package hid

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestKeys compares a set with a map.
func TestKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k Keys
		want := make(map[uint16]bool)
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				code, down := rapid.Uint16Range(0, KeyMax+10).Draw(t, "code"), rapid.Bool().Draw(t, "down")
				k.Set(code, down)
				if down && code <= KeyMax {
					want[code] = true
				} else {
					delete(want, code)
				}
				if k.Has(code) != want[code] {
					t.Fatalf("has %#x: %v", code, k.Has(code))
				}
			},
			"": func(t *rapid.T) {
				if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Collect(k.All())); diff != "" {
					t.Fatalf("(-want +got):\n%s", diff)
				}
				if k.Empty() != (len(want) == 0) {
					t.Fatalf("empty: %v, with %d keys", k.Empty(), len(want))
				}
			},
		})
	})
}
