package store

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The page lodge-guest(5) describes every key of a definition, and no other.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../../data/man/lodge-guest.5")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "\n.SH KEYS\n")
	text, _, _ = strings.Cut(text, "\n.SH ")
	var described []string
	table, tag := "", false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if heading, ok := strings.CutPrefix(line, ".SS "); ok {
			if table = strings.Trim(heading, "[]") + "."; !strings.HasPrefix(heading, "[") {
				table = ""
			}
		}
		if key, ok := strings.CutPrefix(line, ".B "); ok && tag {
			described = append(described, table+key)
		}
		tag = line == ".TP"
	}
	keys := keysOf(reflect.TypeFor[Guest](), "")
	slices.Sort(keys)
	slices.Sort(described)
	if diff := cmp.Diff(keys, described); diff != "" {
		t.Errorf("data/man/lodge-guest.5 (-keys, +described):\n%s", diff)
	}
}

// keysOf returns the keys of a table that is decoded into a struct, and of the tables in it.
func keysOf(t reflect.Type, table string) (keys []string) {
	for _, field := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(field.Tag.Get("toml"), ",")
		if name == "" {
			continue // embedded, or no part of the file
		}
		k := field.Type
		for k.Kind() == reflect.Pointer || k.Kind() == reflect.Slice && k.Elem().Kind() == reflect.Struct {
			k = k.Elem()
		}
		if k.Kind() == reflect.Struct {
			keys = append(keys, keysOf(k, table+name+".")...)
			continue
		}
		keys = append(keys, table+name)
	}
	return keys
}
