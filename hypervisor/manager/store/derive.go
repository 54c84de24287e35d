package store

import (
	"fmt"

	"github.com/pelletier/go-toml/v2"
)

// Derive returns the definition of another guest that is made like the one of text: called name, with UUID, MACs, slot and
// sockets of its own, and with the context identifier cid if it has a vsock device. Its disks are the images of that map by
// the disks' names, or else the same. Comments are lost.
func Derive(text []byte, name string, cid uint32, images map[string]string) ([]byte, error) {
	var m map[string]any
	if err := toml.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("definition: %w", err)
	}
	m["name"] = name
	delete(m, "uuid")
	delete(m, "slot")
	for _, n := range tables(m["nic"]) {
		delete(n, "mac")
	}
	for _, k := range tables(m["disk"]) {
		if image := images[fmt.Sprint(k["name"])]; image != "" {
			delete(k, "path")
			k["image"] = image
		}
	}
	for _, key := range []string{"display", "console", "vsock"} {
		if t, ok := m[key].(map[string]any); ok {
			delete(t, "path")
		}
	}
	if t, ok := m["vsock"].(map[string]any); ok {
		t["cid"] = cid
	}
	if t, ok := m["serial"].(map[string]any); ok && (t["mode"] == nil || t["mode"] == "socket") {
		delete(m, "serial")
	}
	return toml.Marshal(m)
}

// tables returns the tables of an array.
func tables(v any) (list []map[string]any) {
	array, _ := v.([]any)
	for _, t := range array {
		if t, ok := t.(map[string]any); ok {
			list = append(list, t)
		}
	}
	return list
}
