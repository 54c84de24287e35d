package client

import (
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

// The names of the API on the bus.
const (
	BusName = "org.lodgehv.Lodge1"

	ManagerInterface  = BusName + ".Manager"
	GuestInterface    = BusName + ".Guest"
	SnapshotInterface = BusName + ".Snapshot"
	PoolInterface     = BusName + ".Pool"
	ImageInterface    = BusName + ".Image"
	JobInterface      = BusName + ".Job"
	NetworkInterface  = BusName + ".Network"

	// ErrorPrefix is what the names of its errors begin with.
	ErrorPrefix = BusName + ".Error."
)

// Paths of objects.
const (
	ManagerPath   dbus.ObjectPath = "/org/lodgehv/Lodge1"
	GuestsPath    dbus.ObjectPath = ManagerPath + "/guests"
	PoolsPath     dbus.ObjectPath = ManagerPath + "/pools"
	JobsPath      dbus.ObjectPath = ManagerPath + "/jobs"
	NetworksPath  dbus.ObjectPath = ManagerPath + "/networks"
	snapshotsPart                 = "snapshots"
	imagesPart                    = "images"
)

// GuestPath returns the path of a guest's object.
func GuestPath(guest string) dbus.ObjectPath { return GuestsPath + "/" + label(guest) }

// SnapshotPath returns the path of the object of a guest's snapshot.
func SnapshotPath(guest, snapshot string) dbus.ObjectPath {
	return GuestPath(guest) + "/" + snapshotsPart + "/" + label(snapshot)
}

// PoolPath returns the path of a pool's object.
func PoolPath(pool string) dbus.ObjectPath { return PoolsPath + "/" + label(pool) }

// ImagePath returns the path of the object of an image of a pool.
func ImagePath(pool, image string) dbus.ObjectPath {
	return PoolPath(pool) + "/" + imagesPart + "/" + label(image)
}

// NetworkPath returns the path of a network's object.
func NetworkPath(network string) dbus.ObjectPath { return NetworksPath + "/" + label(network) }

// JobPath returns the path of a job's object.
func JobPath(id uint64) dbus.ObjectPath { return JobsPath + dbus.ObjectPath(fmt.Sprintf("/%d", id)) }

// Object is what a path names. Of the fields those are set that are part of it; none for the manager.
type Object struct {
	Guest, Snapshot string
	Pool, Image     string
	Job             uint64
	Network         string
}

// ParsePath returns what path names, and whether it is the path of an object, which need not exist.
func ParsePath(path dbus.ObjectPath) (o Object, ok bool) {
	rest, ok := strings.CutPrefix(string(path), string(ManagerPath))
	if !ok || rest == "" {
		return o, ok
	}
	if id, isJob := strings.CutPrefix(rest, "/jobs/"); isJob {
		if _, err := fmt.Sscanf(id, "%d", &o.Job); err != nil || o.Job == 0 || JobPath(o.Job) != path {
			return Object{}, false
		}
		return o, true
	}
	if pool, isPool := strings.CutPrefix(rest, "/pools/"); isPool {
		o.Pool, o.Image, ok = parseNested(pool, imagesPart)
		return o, ok
	}
	if name, isNetwork := strings.CutPrefix(rest, "/networks/"); isNetwork {
		o.Network, ok = unlabel(name)
		return o, ok
	}
	rest, ok = strings.CutPrefix(rest, "/guests/")
	if ok {
		o.Guest, o.Snapshot, ok = parseNested(rest, snapshotsPart)
	}
	return o, ok
}

// parseNested takes NAME, or NAME/part/INNER, apart.
func parseNested(s, part string) (name, inner string, ok bool) {
	parts := strings.Split(s, "/")
	if name, ok = unlabel(parts[0]); !ok || len(parts) == 1 {
		return name, "", ok
	}
	if len(parts) != 3 || parts[1] != part {
		return "", "", false
	}
	if inner, ok = unlabel(parts[2]); !ok {
		return "", "", false
	}
	return name, inner, true
}

const hexDigits = "0123456789abcdef"

// plain reports whether a byte may stand for itself in a path.
func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// label writes a name as an element of a path: what D-Bus does not allow there becomes "_" and two hexadecimal digits.
func label(name string) dbus.ObjectPath {
	b := make([]byte, 0, len(name))
	for _, c := range []byte(name) {
		if plain(c) {
			b = append(b, c)
			continue
		}
		b = append(b, '_', hexDigits[c>>4], hexDigits[c&15])
	}
	return dbus.ObjectPath(b)
}

// unlabel undoes label. Each name has one label: what is written in another way is none.
func unlabel(s string) (name string, ok bool) {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '_' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b = append(b, byte(hi<<4|lo))
		i += 2
	}
	return string(b), len(b) > 0 && string(label(string(b))) == s
}
