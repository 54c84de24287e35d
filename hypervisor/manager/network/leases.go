package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/lodgehv/lodge/internal/deffile"
)

// Leases are the addresses that cards have, by network. They are kept in a file, so that a card's address stays the same whatever
// other cards come.
type Leases struct {
	path string

	mu sync.Mutex
	of map[string]map[MAC]netip.Addr
}

// OpenLeases reads the leases at path, if there are any.
func OpenLeases(path string) (*Leases, error) {
	l := &Leases{path: path, of: make(map[string]map[MAC]netip.Addr)}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &l.of)
	}
	if err != nil {
		return nil, fmt.Errorf("leases %s: %w: remove it, and guests may get other addresses", path, err)
	}
	return l, nil
}

// Get returns the address of a card on n; it gets one if it has none. When all are taken, those of cards go that inUse does not
// know.
func (l *Leases) Get(n *Network, mac MAC, inUse func(MAC) bool) (netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := maps.Clone(l.of[n.Name])
	if of == nil {
		of = make(map[MAC]netip.Addr)
	}
	if a, ok := of[mac]; ok && n.isGuest(a) {
		return a, nil
	}
	a, err := l.assign(n, mac, of)
	if errors.Is(err, ErrFull) {
		maps.DeleteFunc(of, func(m MAC, a netip.Addr) bool { return m != mac && (!inUse(m) || !n.isGuest(a)) })
		a, err = l.assign(n, mac, of)
	}
	if err != nil {
		return netip.Addr{}, err
	}
	of[mac] = a
	before := l.of[n.Name]
	l.of[n.Name] = of
	if err := l.save(); err != nil {
		l.of[n.Name] = before
		return netip.Addr{}, err
	}
	return a, nil
}

func (l *Leases) assign(n *Network, mac MAC, of map[MAC]netip.Addr) (netip.Addr, error) {
	taken := make(map[netip.Addr]bool)
	for m, a := range of {
		taken[a] = m != mac
	}
	return n.Assign(mac, func(a netip.Addr) bool { return taken[a] })
}

// Forget drops the leases of a network that is gone.
func (l *Leases) Forget(network string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[network] == nil {
		return nil
	}
	delete(l.of, network)
	return l.save()
}

func (l *Leases) save() error {
	b, err := json.Marshal(l.of)
	if err != nil {
		return err
	}
	dir, name := filepath.Split(l.path)
	return deffile.Publish(dir, name, b, os.Rename)
}
