package evdev

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"strings"
)

// uevent is the kernel's word that a device has come, changed or gone: kobject_uevent_env in lib/kobject_uevent.c.
type uevent struct {
	action    string // "add", "remove", "change" and others
	devpath   string // below /sys
	subsystem string
	devname   string // below /dev; empty if there is no node
}

// parseUevent reads a datagram of the kernel's: "ACTION@DEVPATH", and then "KEY=VALUE", each ended by a zero byte.
func parseUevent(p []byte) (uevent, error) {
	var u uevent
	if len(p) == 0 || p[len(p)-1] != 0 {
		return u, errors.New("uevent: does not end with a zero byte")
	}
	head, rest, _ := bytes.Cut(p, []byte{0})
	action, devpath, ok := strings.Cut(string(head), "@")
	if !ok || action == "" || !strings.HasPrefix(devpath, "/") {
		return u, fmt.Errorf("uevent: begins with %.40q, and not with ACTION@DEVPATH", head)
	}
	u.action, u.devpath = action, devpath
	for len(rest) > 0 {
		var field []byte
		field, rest, _ = bytes.Cut(rest, []byte{0})
		key, value, ok := strings.Cut(string(field), "=")
		if !ok {
			return u, fmt.Errorf("uevent: has %.40q, and not KEY=VALUE", field)
		}
		switch key {
		case "ACTION":
			if value != action {
				return u, fmt.Errorf("uevent: is of %.20q and of %.20q", action, value)
			}
		case "SUBSYSTEM":
			u.subsystem = value
		case "DEVNAME":
			u.devname = value
		}
	}
	return u, nil
}

// node returns the name of the evdev node that u is about, "event3", or "" if it is about none.
func (u *uevent) node() string {
	dir, name := path.Split(u.devname)
	if u.subsystem != "input" || dir != "input/" || !isNode(name) {
		return ""
	}
	return name
}

// isNode says whether a file in /dev/input is an evdev node.
func isNode(name string) bool {
	digits, ok := strings.CutPrefix(name, "event")
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}
