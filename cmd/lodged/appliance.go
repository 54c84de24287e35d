package main

import (
	"cmp"
	"context"
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

// roles are what this program does in the appliance beside managing guests, by its first argument; they get the others.
var roles = map[string]func(ctx context.Context, args []string) error{
	appliance.RoleUplink: func(ctx context.Context, _ []string) error {
		return uplink.Run(ctx, uplink.Config{Resolvers: appliance.Resolvers, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	},
	appliance.RoleSeat:       becomeSeat,
	appliance.RoleCameUp:     sayCameUp,
	appliance.RoleStopGuests: stopGuests,
	appliance.RoleVault:      keepVault,
}

// play does what a role is, until SIGTERM.
func play(role func(ctx context.Context, args []string) error, args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	return role(ctx, args)
}

// dialManager waits a little for the manager.
func dialManager(ctx context.Context) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		c, err := client.Dial(ctx, appliance.BusAddress)
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// becomeSeat writes what the seat shows, the guests that are defined and have a screen, and becomes lodge-seat.
func becomeSeat(ctx context.Context, _ []string) error {
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
	if err := os.WriteFile(appliance.SeatConfig, b, 0o600); err != nil {
		return err
	}
	const seat = "/bin/lodge-seat"
	return &os.PathError{Op: "exec", Path: seat, Err: unix.Exec(seat, []string{seat, "--manager=" + appliance.BusAddress, appliance.SeatConfig}, os.Environ())}
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
	}{Control: appliance.SeatControl}
	for _, g := range guests {
		cfg.Guests = append(cfg.Guests, shown{g.Name, g.Label, cmp.Or(g.Color, "grey"), g.Slot, filepath.Join(appliance.RunDir, "guests", g.Name, "display.sock")})
	}
	return toml.Marshal(cfg)
}

// stopGuests has the manager stop all guests, and waits for them.
func stopGuests(ctx context.Context, _ []string) error {
	dialing, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := client.Dial(dialing, appliance.BusAddress)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Do(ctx, c.StopAll, nil, nil)
	return err
}
