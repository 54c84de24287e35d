package manager

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/fsnotify/fsnotify"

	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
)

// resolvConf names the host's resolvers, resolv.conf(5).
const resolvConf = "/etc/resolv.conf"

// resolvers returns the host's resolvers, and has networks that are up told when they are others.
func (n *networks) resolvers() []netip.AddrPort {
	n.watch.Do(func() { n.m.background(n.watchResolvers) })
	b, _ := os.ReadFile(resolvConf) // if there is none, the host's own programs ask the default, too
	return network.Resolvers(string(b))
}

// watchResolvers waits for changes of the file, and of what it is a link to.
func (n *networks) watchResolvers() {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		n.log.Warn("changes of the host's resolvers are not noticed", "err", err)
		return
	}
	defer w.Close()
	files := []string{resolvConf}
	if real, err := filepath.EvalSymlinks(resolvConf); err == nil && real != resolvConf {
		files = append(files, real)
	}
	for _, f := range files {
		if err := w.Add(filepath.Dir(f)); err != nil {
			n.log.Warn("changes of the host's resolvers are not noticed", "err", err)
		}
	}
	known := n.resolvers()
	for {
		select {
		case e := <-w.Events:
			if !slices.Contains(files, e.Name) {
				continue
			}
			if now := n.resolvers(); !slices.Equal(now, known) {
				known = now
				for _, c := range n.carriers() {
					c.setResolvers(now)
				}
			}
		case err := <-w.Errors:
			n.log.Warn("changes of the host's resolvers", "err", err)
		case <-n.m.ctx.Done():
			return
		}
	}
}

// setResolvers tells the network's lodge-net, if there is one.
func (c *carrier) setResolvers(list []netip.AddrPort) {
	ctx, cancel := context.WithTimeout(c.n.m.ctx, carrierLimit)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.helper.proc == nil {
		return
	}
	if err := c.tell(ctx, netctl.Change{Resolvers: &list}, nil); err != nil {
		if err := c.replaceHelper(ctx, err); err != nil {
			c.trouble(err)
		}
	}
}
