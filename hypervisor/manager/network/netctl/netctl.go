// Package netctl is what a manager of lodge-net knows of it: how it is configured, what it is told while it runs, and what it
// answers. What does the work is package usermode, in another process.
package netctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
)

// Config is what a network is made from.
type Config struct {
	Network   network.Network
	Guests    []network.Guest
	Resolvers []netip.AddrPort // that DNS questions go to, if the network names none
}

// ReadConfig reads a Config as WriteConfig writes it.
func ReadConfig(r io.Reader) (Config, error) {
	var c Config
	d := json.NewDecoder(io.LimitReader(r, MaxMessage))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	return c, nil
}

// WriteConfig writes c, for the process that the network is to run in.
func WriteConfig(w io.Writer, c Config) error { return json.NewEncoder(w).Encode(c) }

// MaxMessage is more than a configuration with all that it can have, in bytes.
const MaxMessage = 128 << 10

// Change is what a manager tells a running network: exactly one of its fields is set.
type Change struct {
	Guest     *network.Guest    `json:",omitempty"` // is there from now on; comes with a socket for Plug, if this process carries its frames
	Remove    string            `json:",omitempty"` // the name of a guest that is not there any more
	Rules     *[]network.Rule   `json:",omitempty"` // in place of those that held
	Forward   *network.Forward  `json:",omitempty"` // comes with its socket
	Unforward *network.Forward  `json:",omitempty"`
	Resolvers *[]netip.AddrPort `json:",omitempty"` // the host's
}

// Changed answers a Change.
type Changed struct {
	Error string `json:",omitempty"`
}

// Manager is a connection to a network's ServeChanges.
type Manager struct{ conn *net.UnixConn }

// DialManager connects to the socket at path. Close closes the connection.
func DialManager(path string) (*Manager, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("network helper: %w: is it running?", err)
	}
	return &Manager{conn}, nil
}

// Close closes the connection.
func (m *Manager) Close() error { return m.conn.Close() }

// Do has the network carry out c. file is a guest's socket, of which the network gets a copy, or nil.
func (m *Manager) Do(ctx context.Context, c Change, file *os.File) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { m.conn.Close() })
	defer stop()
	var oob []byte
	if file != nil {
		oob = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err := m.conn.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("network helper: %w", err)
	}
	answer := make([]byte, MaxMessage)
	k, err := m.conn.Read(answer)
	if err != nil {
		return fmt.Errorf("network helper: %w", err)
	}
	var a Changed
	if err := json.Unmarshal(answer[:k], &a); err != nil {
		return fmt.Errorf("network helper: answer %q: %w", answer[:k], err)
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return nil
}

// Status is what a network is doing.
type Status struct {
	Network string        `json:"network"`
	Kind    network.Kind  `json:"kind"`
	Gateway netip.Addr    `json:"gateway"`
	Guests  []GuestStatus `json:"guests"`
}

// GuestStatus is a guest's part of Status. Counts are of frames unless they say otherwise, since the guest is known.
type GuestStatus struct {
	Name      string      `json:"name"`
	MAC       network.MAC `json:"mac"`
	Address   netip.Addr  `json:"address"`
	Connected bool        `json:"connected"`

	Sent          uint64 `json:"sent"` // by the guest
	SentBytes     uint64 `json:"sent_bytes"`
	Received      uint64 `json:"received"` // by the guest
	ReceivedBytes uint64 `json:"received_bytes"`
	Malformed     uint64 `json:"malformed"` // dropped: not what this network carries
	Spoofed       uint64 `json:"spoofed"`   // dropped: from another's address
	Refused       uint64 `json:"refused"`   // dropped: by the firewall
	Overflow      uint64 `json:"overflow"`  // dropped: the guest did not take them in time, or has too many flows
	TCP           int64  `json:"tcp"`       // connections to the outside, and forwarded ones
	UDP           int64  `json:"udp"`       // flows to the outside
}

// Lease is an address that a guest has, whether it has asked for it by DHCP or not.
type Lease struct {
	Guest   string      `json:"guest"`
	MAC     network.MAC `json:"mac"`
	Address netip.Addr  `json:"address"`
	Given   *time.Time  `json:"given,omitempty"` // when it was last given by DHCP
}
