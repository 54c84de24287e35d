package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/internal/program"
)

// runSubnet is that of the network of a guest without a manager. It is the guest's alone.
var runSubnet = netip.MustParsePrefix("10.77.0.0/24")

// network returns the program that carries the network of a guest's only card.
func (r *oneRun) network(ctx context.Context, def *definition.Definition) (*exec.Cmd, error) {
	helper, err := program.Find("lodge-net")
	if err != nil {
		return nil, err
	}
	resolvConf, _ := os.ReadFile("/etc/resolv.conf") // if there is none, the host's own programs ask the default, too
	c := netctl.Config{Network: network.Network{Name: "run", Kind: network.User, Subnet: runSubnet},
		Resolvers: network.Resolvers(string(resolvConf))}
	g := network.Guest{Name: def.Name}
	if g.MAC, err = network.ParseMAC(def.NICs[0].MAC); err != nil {
		return nil, err
	}
	if g.Address, err = c.Network.Assign(g.MAC, nil); err != nil {
		return nil, err
	}
	c.Guests = []network.Guest{g}
	config, err := os.Create(r.path("net.json"))
	if err != nil {
		return nil, err
	}
	r.files = append(r.files, config)
	if err := netctl.WriteConfig(config, c); err != nil {
		return nil, err
	}
	if _, err := config.Seek(0, 0); err != nil {
		return nil, err
	}
	// The shell, since LISTEN_PID is the number of a process that is not there yet (sd_listen_fds(3)).
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, helper)
	names := []string{"config"}
	cmd.ExtraFiles = []*os.File{config}
	for name, path := range map[string]string{"control": r.path("net.ctl"), "guest." + def.Name: def.NICs[0].Socket} {
		f, err := listener(path)
		if err != nil {
			return nil, err
		}
		r.files = append(r.files, f)
		names, cmd.ExtraFiles = append(names, name), append(cmd.ExtraFiles, f)
	}
	cmd.Env = []string{fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
	cmd.Stderr = new(lastWords) // what it tells of guests' frames is not for the guest's terminal
	return cmd, nil
}

// listener returns a Unix socket that listens at path.
func listener(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}
