package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// uses returns what a guest has that no other may have, and the key that says so.
func (g *Guest) uses() []use {
	list := []use{{"uuid", "uuid", "uuid " + strings.ToLower(g.UUID)}}
	if g.Slot != 0 {
		list = append(list, use{"slot", "slot", fmt.Sprintf("slot %d", g.Slot)})
	}
	for i, n := range g.NICs {
		list = append(list, use{fmt.Sprintf("nic[%d].mac", i), "mac", "mac " + n.MAC})
		if n.Tap != "" {
			list = append(list, use{fmt.Sprintf("nic[%d].tap", i), "tap", "tap " + n.Tap})
		}
	}
	if g.Vsock != nil {
		list = append(list, use{"vsock.cid", "cid", fmt.Sprintf("vsock cid %d", g.Vsock.CID)})
	}
	for i, k := range g.Disks {
		if !k.ReadOnly && (!g.Disposable || k.Keep) { // a disposable guest only reads it
			what := k.URL
			if k.Path != "" {
				what = realPath(k.Path)
			}
			list = append(list, use{fmt.Sprintf("disk[%d].path", i), "disk", "disk " + what})
		}
	}
	for key, path := range g.sockets() {
		list = append(list, use{key, "socket", "socket " + filepath.Clean(path)})
	}
	return list
}

type use struct{ key, kind, what string }

// sockets returns the sockets and logs that the guest's process makes, by key.
func (g *Guest) sockets() map[string]string {
	all := map[string]string{"serial.path": g.Serial.Path, "serial2.path": g.Serial2.Path, "serial.log": g.Serial.Log, "serial2.log": g.Serial2.Log, "debug_console": g.Debug}
	if g.Display != nil {
		all["display.path"] = g.Display.Path
	}
	if g.Console != nil {
		all["console.path"] = g.Console.Path
	}
	if g.Vsock != nil {
		all["vsock.path"] = g.Vsock.Path
	}
	for key, path := range all {
		if path == "" {
			delete(all, key)
		}
	}
	return all
}

// realPath returns a path by which one file is not known by two names, as far as can be told: it may not be there yet.
func realPath(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return filepath.Clean(path)
}

// advice is what to do about two guests that have one thing.
var advice = map[string]string{
	"uuid":   "give each guest its own, or leave it out",
	"slot":   "give each guest its own",
	"mac":    "give each card its own, or leave it out",
	"tap":    "give each card its own",
	"cid":    "give each guest its own",
	"disk":   "make it readonly in both, or clone it",
	"socket": "give each its own, or leave it out",
}

// check reports what of g does not go together with the other guests, and which of its networks are not there. file is what errors
// call g's file.
func (s *Store) check(file string, g *Guest, others map[string]*Guest) error {
	errs := []error{crossCheck(file, g, others)}
	for i, n := range g.NICs {
		if n.Network != "" && s.cfg.Network != nil && !s.cfg.Network(n.Network) {
			errs = append(errs, g.Fault(file, fmt.Sprintf("nic[%d].network", i),
				"nic %q: there is no network %q: define it first, or correct the name", n.Name, n.Network))
		}
	}
	return errors.Join(errs...)
}

func crossCheck(file string, g *Guest, others map[string]*Guest) error {
	taken := make(map[string]string)
	for name, o := range others {
		if name != g.Name {
			for _, u := range o.uses() {
				taken[u.what] = name
			}
		}
	}
	var errs []error
	own := make(map[string]bool)
	for _, u := range g.uses() {
		switch other := taken[u.what]; {
		case other != "":
			errs = append(errs, g.Fault(file, u.key, "%s is also guest %s's: %s", u.what, other, advice[u.kind]))
		case own[u.what]:
			errs = append(errs, g.Fault(file, u.key, "%s is there twice: %s", u.what, advice[u.kind]))
		}
		own[u.what] = true
	}
	for _, name := range g.Depends {
		if others[name] == nil {
			errs = append(errs, g.Fault(file, "depends", "depends: there is no guest %q: define it first, or correct the name", name))
		}
	}
	if cycle := findCycle(g, others); cycle != nil {
		errs = append(errs, g.Fault(file, "depends", "depends: %s: no guest can be the first of a circle: remove one", strings.Join(cycle, " needs ")))
	}
	return errors.Join(errs...)
}

// findCycle returns the names along a way of dependencies from g to itself, or nil.
func findCycle(g *Guest, others map[string]*Guest) []string {
	seen := make(map[string]bool)
	var walk func(at *Guest, way []string) []string
	walk = func(at *Guest, way []string) []string {
		for _, name := range at.Depends {
			if name == g.Name {
				return append(way, name)
			}
			if o := others[name]; o != nil && !seen[name] {
				seen[name] = true
				if found := walk(o, append(slices.Clip(way), name)); found != nil {
					return found
				}
			}
		}
		return nil
	}
	return walk(g, []string{g.Name})
}
