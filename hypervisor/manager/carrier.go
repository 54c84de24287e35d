package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/internal/procstat"
)

// carrier is what carries one network: by a lodge-net, by the host's kernel, or by both. It comes up with the first guest and goes
// down with the last.
type carrier struct {
	n    *networks
	name string
	log  *slog.Logger
	info atomic.Pointer[Network] // nil if there is no such network

	mu     sync.Mutex
	rec    *netRecord // nil while it is down
	note   string
	closed bool
	helper helper
}

// netRecord is what is on the disk of a network that is up, so that the next manager knows what this one knew when it was killed.
// It is written before what it says is done.
type netRecord struct {
	Boot    string          `json:"boot"` // of the host
	Network network.Network `json:"network"`
	Guests  []network.Guest `json:"guests"`
	PID     int             `json:"pid,omitempty"` // of its lodge-net
	Start   uint64          `json:"start,omitempty"`
}

// carrierLimit bounds how long what carries a network may take for one step.
const carrierLimit = 10 * time.Second

func (c *carrier) path(name string) string { return filepath.Join(c.n.runDir(c.name), name) }

// socket returns the path of the socket that a card's VMM connects to.
func (c *carrier) socket(mac network.MAC) string { return c.path(fmt.Sprintf("%x.sock", mac[:])) }

// find reads the record that the manager before has left.
func (c *carrier) find() {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, err := os.ReadFile(c.path(recordName))
	rec := &netRecord{}
	if err == nil {
		err = json.Unmarshal(b, rec)
	}
	if err != nil || rec.Boot != c.n.m.boot || rec.Network.Name != c.name {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("record of a network is damaged", "err", err)
		}
		if err := os.RemoveAll(c.n.runDir(c.name)); err != nil {
			c.log.Warn("left over of a network", "err", err)
		}
		return
	}
	c.rec = rec
	if rec.PID == 0 {
		return
	}
	p, err := openProcess(rec.PID, rec.Start)
	if err != nil {
		if !errors.Is(err, procstat.ErrGone) {
			c.log.Error("lodge-net on record", "err", err)
		}
		return
	}
	c.log.Info("network is up already", "pid", p.pid)
	c.adopt(p)
}

// settle keeps the guests that run, and brings up what does not.
func (c *carrier) settle(runs func(guest string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec == nil {
		return
	}
	for _, g := range slices.Clone(c.rec.Guests) {
		if !runs(g.Name) {
			c.drop(g.Name)
		}
	}
	if c.rec == nil || len(c.rec.Guests) == 0 {
		c.down()
		return
	}
	ctx, cancel := context.WithTimeout(c.n.m.ctx, carrierLimit)
	defer cancel()
	if err := c.up(ctx); err != nil {
		c.trouble(err)
	}
	if err := c.change(ctx); err != nil { // the definition may be another by now
		c.trouble(err)
	}
	c.publish()
}

// attach puts a guest's card on the network, and fills in what its VMM finds it by.
func (c *carrier) attach(ctx context.Context, guest string, card *definition.NIC) error {
	ctx, cancel := context.WithTimeout(ctx, carrierLimit)
	defer cancel()
	mac, err := network.ParseMAC(card.MAC)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	if fileSize(c.logFile()) > maxLog {
		if err := os.Truncate(c.logFile(), 0); err != nil {
			return err
		}
	}
	if c.rec == nil {
		def, err := c.n.store.Get(c.name)
		if err != nil {
			return err
		}
		if !def.Kind.Helper() && c.n.m.cfg.Bridge == nil {
			return fmt.Errorf("kind %s is the host's kernel's: it needs a lodged that runs as root on the system bus", def.Kind)
		}
		c.rec, c.note = &netRecord{Boot: c.n.m.boot, Network: *def}, ""
	}
	g := network.Guest{Name: guest, MAC: mac}
	if g.Address, err = c.n.address(&c.rec.Network, mac); err != nil {
		return err
	}
	c.rec.Guests = append(slices.DeleteFunc(c.rec.Guests, func(o network.Guest) bool { return o.Name == guest }), g)
	defer c.publish()
	if err := c.write(); err != nil {
		return err
	}
	if err := c.up(ctx); err != nil {
		return err
	}
	if c.rec.Network.Kind.Helper() {
		card.Socket = c.socket(mac)
		return nil
	}
	card.Tap, err = c.n.m.cfg.Bridge.AddTap(&c.rec.Network, g, uint32(os.Geteuid()))
	return err
}

// up has the network be what the record says. All but the newest guest may have been there before.
func (c *carrier) up(ctx context.Context) error {
	n := &c.rec.Network
	if !n.Kind.Helper() {
		if err := c.n.m.cfg.Bridge.Up(n, c.rec.Guests); err != nil {
			return err
		}
	}
	if n.Kind == network.Bridged {
		return nil
	}
	if c.helper.proc == nil {
		return c.startHelper(ctx)
	}
	for _, g := range c.rec.Guests {
		if c.helper.known[g.Name] == g {
			continue
		}
		if err := c.tellGuest(ctx, g); err != nil {
			return c.replaceHelper(ctx, err)
		}
	}
	return nil
}

// release takes a guest from the network.
func (c *carrier) release(guest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec == nil || c.closed {
		return
	}
	if c.drop(guest) || len(c.rec.Guests) == 0 {
		if c.rec != nil && len(c.rec.Guests) == 0 {
			c.down()
		}
		c.publish()
	}
}

// drop takes a guest from the record and from what carries the network, and reports whether it was there.
func (c *carrier) drop(guest string) bool {
	i := slices.IndexFunc(c.rec.Guests, func(g network.Guest) bool { return g.Name == guest })
	if i < 0 {
		return false
	}
	g := c.rec.Guests[i]
	c.rec.Guests = slices.Delete(c.rec.Guests, i, i+1)
	if len(c.rec.Guests) == 0 {
		return true // it goes down
	}
	ctx, cancel := context.WithTimeout(c.n.m.ctx, carrierLimit)
	defer cancel()
	err := c.write()
	n := &c.rec.Network
	if !n.Kind.Helper() {
		err = errors.Join(err, c.n.m.cfg.Bridge.RemoveTap(n, g.MAC), c.n.m.cfg.Bridge.Up(n, c.rec.Guests))
	}
	if _, known := c.helper.known[guest]; known && c.helper.proc != nil {
		delete(c.helper.known, guest)
		if e := c.tell(ctx, netctl.Change{Remove: guest}, nil); e != nil {
			err = errors.Join(err, c.replaceHelper(ctx, e))
		}
	}
	if n.Kind.Helper() {
		err = errors.Join(err, remove(c.socket(g.MAC)))
	}
	if err != nil {
		c.log.Warn("guest is off", "guest", guest, "err", err)
	}
	return true
}

// down takes the network down.
func (c *carrier) down() {
	c.endHelper()
	kernel := !c.rec.Network.Kind.Helper()
	c.rec, c.note = nil, ""
	var err error
	if kernel {
		err = c.n.m.cfg.Bridge.Down(c.name)
	}
	if p := c.n.m.cfg.Cgroups; p != nil {
		err = errors.Join(err, p.RemoveCgroup(c.groupName()))
	}
	if err := errors.Join(err, os.RemoveAll(c.n.runDir(c.name))); err != nil {
		c.log.Warn("network goes down", "err", err)
	}
	c.publish()
}

// redefine takes another definition into use, as far as it can while guests are on the network.
func (c *carrier) redefine() error {
	ctx, cancel := context.WithTimeout(c.n.m.ctx, carrierLimit)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.publish()
	return c.change(ctx)
}

// change is redefine with mu held.
func (c *carrier) change(ctx context.Context) error {
	def, err := c.n.store.Get(c.name)
	if c.rec == nil || err != nil || c.rec.Network.Kind != def.Kind {
		return nil // it stays as it is
	}
	n := &c.rec.Network
	before := *n
	n.Rules, n.Forwards = def.Rules, def.Forwards
	if same(&before, n) {
		return nil
	}
	if err := c.write(); err != nil {
		return err
	}
	switch {
	case n.Kind == network.NAT:
		return c.n.m.cfg.Bridge.Up(n, c.rec.Guests)
	case c.helper.proc == nil: // it is told when it starts
		return nil
	}
	rules := append([]network.Rule{}, n.Rules...)
	if err := c.tell(ctx, netctl.Change{Rules: &rules}, nil); err != nil {
		return c.replaceHelper(ctx, err)
	}
	return c.tellForwards(ctx)
}

// write brings the record to the disk.
func (c *carrier) write() error {
	if err := os.MkdirAll(c.n.runDir(c.name), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(c.rec)
	if err != nil {
		return err
	}
	tmp := c.path(tmpPrefix + recordName)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.path(recordName))
}

// trouble tells people what does not work.
func (c *carrier) trouble(err error) {
	c.note = err.Error()
	c.log.Error("network", "err", err)
	c.publish()
}

// publish lets others see how the network is.
func (c *carrier) publish() {
	p := &Network{Note: c.note}
	def, err := c.n.store.Get(c.name)
	switch {
	case err == nil:
		p.Network = *def
	case !errors.Is(err, network.ErrNotFound) && !errors.Is(err, network.ErrName):
		p.Fault = err.Error()
	case c.rec == nil:
		if c.info.Swap(nil) != nil {
			c.n.m.bus.send(Event{Kind: NetworkDeleted, Name: c.name})
		}
		return
	}
	if c.rec != nil {
		p.Up, p.Network = true, c.rec.Network
		p.Stale = def == nil || !same(def, &c.rec.Network)
		p.Guests = slices.Clone(c.rec.Guests)
		if c.helper.proc != nil {
			p.PID = c.helper.proc.pid
		}
	}
	p.Name = c.name
	c.info.Store(p)
	c.n.m.bus.send(Event{Kind: NetworkChanged, Name: c.name, Network: p})
}

// close lets go of the network, which stays up.
func (c *carrier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.helper.close()
}

// remove removes a file that may not be there.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
