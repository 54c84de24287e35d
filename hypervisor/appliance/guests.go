package appliance

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// GuestsLabel is the label of the file system with the guests that come along with Lodge.
const GuestsLabel = "lodge-guests"

// GuestsDir is where it is mounted, which nobody writes to. In it are
//
//	NAME/             files of a guest
//	etc/guests/*.toml their definitions
const GuestsDir = "/guests"

// GuestDefinitions is the directory in it with definitions.
const GuestDefinitions = "etc"

// errNoGuests says that no guests come along.
var errNoGuests = errors.New("no disk has a file system labelled " + GuestsLabel)

// mountGuests mounts the guests that come along, and returns their device.
func mountGuests() (device string, err error) {
	devices, err := blockDevices()
	if err != nil {
		return "", err
	}
	device, kind, err := findLabelled(GuestsLabel, devices)
	if err != nil {
		return "", err
	}
	if device == "" {
		return "", errNoGuests
	}
	if err := os.MkdirAll(GuestsDir, 0o700); err != nil {
		return "", err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY
	if err := unix.Mount(device, GuestsDir, kind, flags, ""); err != nil {
		return "", fmt.Errorf("guests on %s: %w", device, err)
	}
	return device, nil
}
