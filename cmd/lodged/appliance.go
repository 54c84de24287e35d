package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/appliance"
	"github.com/lodgehv/lodge/hypervisor/appliance/uplink"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// Where the appliance has what several of its processes use.
const (
	busSocket   = "/run/dbus/system_bus_socket"
	busAddress  = "unix:path=" + busSocket
	busConfig   = "/run/dbus/lodge.conf"
	seatConfig  = "/run/lodge/seat.toml"
	seatControl = "/run/lodge/seat.ctl"
	runDir      = "/run/lodge"
	resolvers   = "/run/uplink/resolv.conf"
)

// busText configures a bus for root alone, which is all that there is.
const busText = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>` + busAddress + `</listen>
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

// asInit runs the machine: this process is its first.
func asInit() error {
	return appliance.Run(appliance.Config{
		Services: []appliance.Service{
			{Name: "bus", Args: []string{"/usr/bin/dbus-daemon", "--nofork", "--nopidfile", "--config-file=" + busConfig}, Before: writeBusConfig},
			{Name: "lodged", Args: []string{"/init", "--config-dir=" + appliance.ConfigDir, "--state-dir=" + appliance.LibDir,
				"--run-dir=" + runDir, "--bus=" + busAddress, "--seat=" + seatControl}, Before: awaitBus},
			{Name: "uplink", Args: []string{"/init", uplinkFlag}, Before: prepareUplink, Caps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}},
			{Name: "lodge-seat", Args: []string{"/bin/lodge-seat", "--manager=" + busAddress, seatConfig}, Before: writeSeatConfig},
			{Name: "came-up", Args: []string{"/init", cameUpFlag}, Once: true},
		},
		Definitions: "/etc/lodge",
		StopGuests:  stopGuests,
	})
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

// uplinkFlag has this program connect the appliance to its networks, and do nothing else.
const uplinkFlag = "--uplink"

// prepareUplink gives the uplink a directory for the resolvers that it is told of, which are the machine's.
func prepareUplink(context.Context) error {
	dir := filepath.Dir(resolvers)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chown(dir, appliance.Nobody, appliance.Nobody); err != nil {
		return err
	}
	if err := os.Symlink(resolvers, "/etc/resolv.conf"); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// asUplink connects the machine to its networks until it is told to end.
func asUplink() error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	return uplink.Run(ctx, uplink.Config{Resolvers: resolvers, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}

// awaitBus waits a little for the bus.
func awaitBus(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		if _, err := os.Stat(busSocket); err == nil {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("%s: there is no bus: %w", busSocket, err)
		}
	}
}

// pause waits between two tries.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(50 * time.Millisecond):
		return nil
	}
}

// dialManager waits a little for the manager.
func dialManager(ctx context.Context) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		c, err := client.Dial(ctx, busAddress)
		if err == nil {
			return c, nil
		}
		if pause(ctx) != nil {
			return nil, err
		}
	}
}

// writeSeatConfig writes what the seat shows: the guests that are defined and have a screen.
func writeSeatConfig(ctx context.Context) error {
	c, err := dialManager(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	guests, err := c.Guests(ctx)
	if err != nil {
		return err
	}
	b, err := seatText(guests)
	if err != nil {
		return err
	}
	return os.WriteFile(seatConfig, b, 0o600)
}

// seatText returns a configuration of lodge-seat.
func seatText(guests []client.Guest) ([]byte, error) {
	type shown struct {
		Name    string `toml:"name"`
		Label   string `toml:"label,omitempty"`
		Color   string `toml:"color"`
		Slot    uint32 `toml:"slot"`
		Display string `toml:"display"`
	}
	cfg := struct {
		Control string  `toml:"control"`
		Guests  []shown `toml:"guest"`
	}{Control: seatControl}
	for _, g := range guests {
		cfg.Guests = append(cfg.Guests, shown{g.Name, g.Label, cmp.Or(g.Color, "grey"), g.Slot, filepath.Join(runDir, "guests", g.Name, "display.sock")})
	}
	return toml.Marshal(cfg)
}

// stopGuests has the manager stop all guests, and waits for them.
func stopGuests(ctx context.Context) error {
	dialing, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := client.Dial(dialing, busAddress)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Do(ctx, c.StopAll, nil, nil)
	return err
}
