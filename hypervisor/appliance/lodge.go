package appliance

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Where the machine has what several of its processes use.
const (
	BusAddress  = "unix:path=" + busSocket
	SeatConfig  = "/run/lodge/seat.toml" // what the seat shows
	SeatControl = "/run/lodge/seat.ctl"
	RunDir      = "/run/lodge"              // of the manager
	Resolvers   = "/run/uplink/resolv.conf" // that the uplink is told of

	busSocket = "/run/dbus/system_bus_socket"
	busConfig = "/run/dbus/lodge.conf"
)

// What lodged does in the machine beside managing guests, each in a process of its own: its first argument.
const (
	RoleUplink     = "--uplink"      // connects the machine to its networks
	RoleSeat       = "--as-seat"     // becomes the seat, with the guests that are defined
	RoleCameUp     = "--came-up"     // says of the slot that the machine was started from that it has come up, once that is so
	RoleStopGuests = "--stop-guests" // stops all guests, and waits for them
	RoleVault      = "--vault"       // makes and opens the encrypted state: see [Config]
)

// busText configures a bus for root alone, which is all that there is.
const busText = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>` + BusAddress + `</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <deny user="*"/>
    <allow user="root"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`

// Lodge returns what runs in a machine of Lodge's.
func Lodge() Config {
	const lodged = "/bin/lodged"
	return Config{
		Services: []Service{
			{Name: "bus", Args: []string{"/usr/bin/dbus-daemon", "--nofork", "--nopidfile", "--config-file=" + busConfig}, Before: writeBusConfig},
			{Name: "lodged", Args: []string{lodged, "--config-dir=" + ConfigDir, "--state-dir=" + LibDir, "--run-dir=" + RunDir, "--bus=" + BusAddress,
				"--seat=" + SeatControl}},
			{Name: "uplink", Args: []string{lodged, RoleUplink}, Before: prepareUplink, Nice: 10, Caps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}},
			{Name: "lodge-seat", Args: []string{lodged, RoleSeat}},
			{Name: "came-up", Args: []string{lodged, RoleCameUp}, Before: letOthersBegin, Once: true},
		},
		Definitions: "/etc/lodge",
		StopGuests:  []string{lodged, RoleStopGuests},
		Vault:       []string{lodged, RoleVault},
	}
}

func writeBusConfig(context.Context) error {
	if err := os.MkdirAll(filepath.Dir(busSocket), 0o755); err != nil {
		return err
	}
	if err := os.Remove(busSocket); err != nil && !errors.Is(err, os.ErrNotExist) { // of the one before
		return err
	}
	return os.WriteFile(busConfig, []byte(busText), 0o600)
}

// beginning is how long what is not urgent waits, until guests are there.
const beginning = 10 * time.Second

// letOthersBegin waits for that.
func letOthersBegin(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(beginning):
		return nil
	}
}

// prepareUplink gives the uplink a directory for the resolvers that it is told of, which are the machine's.
func prepareUplink(context.Context) error {
	dir := filepath.Dir(Resolvers)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chown(dir, Nobody, Nobody); err != nil {
		return err
	}
	if err := os.Symlink(Resolvers, "/etc/resolv.conf"); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}
