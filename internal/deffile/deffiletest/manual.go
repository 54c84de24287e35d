// Package deffiletest holds manual pages to the definitions that they describe.
package deffiletest

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// CheckManual fails the test unless the section KEYS of the page in a file describes every key of a definition, which is decoded into
// a struct of type t, and no other.
func CheckManual(tb testing.TB, file string, t reflect.Type) {
	tb.Helper()
	page, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
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
	keys := keysOf(t, "")
	slices.Sort(keys)
	slices.Sort(described)
	if diff := cmp.Diff(keys, described); diff != "" {
		tb.Errorf("%s (-keys, +described):\n%s", file, diff)
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
			if inner := keysOf(k, table+name+"."); len(inner) > 0 {
				keys = append(keys, inner...)
				continue // else it is a value that is written as text
			}
		}
		keys = append(keys, table+name)
	}
	return keys
}
