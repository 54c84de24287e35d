package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/mem"
)

// guestStatus is the result of the method "status".
type guestStatus struct {
	Name    string         `json:"name"`
	UUID    string         `json:"uuid"`
	State   string         `json:"state"`            // starting, running, paused or saving
	Reason  string         `json:"reason,omitempty"` // of paused, if nobody asked for it: disk-full
	PID     int            `json:"pid,omitempty"`    // not in a cell, where it is another one
	CPUs    int            `json:"cpus"`
	Memory  uint64         `json:"memory"` // bytes
	Uptime  float64        `json:"uptime"` // seconds since the process began to run the guest
	Reboots int            `json:"reboots"`
	Change  uint64         `json:"change"` // another number whenever the state or the reboots have changed
	Balloon *balloonStatus `json:"balloon,omitempty"`
}

// watchParams are the parameters of the method "watch".
type watchParams struct {
	After uint64 `json:"after"` // the change that the caller knows
}

// saveParams are the parameters of the method "save".
type saveParams struct {
	Dir  string `json:"dir,omitempty"` // if it is missing, two files come with the request: for the RAM, and for the state
	Stop bool   `json:"stop,omitempty"`
}

// balloonParams are the parameters of the method "balloon".
type balloonParams struct {
	Target *uint64 `json:"target"` // bytes of memory that the guest is to keep
}

// methods are what the control socket offers; docs/control.md describes them.
func (g *guest) methods() map[string]control.Handler {
	plain := func(f func(context.Context, *control.Call) (any, error)) control.Handler {
		return func(ctx context.Context, c *control.Call) (any, error) {
			if err := c.Params(&struct{}{}); err != nil {
				return nil, err
			}
			return f(ctx, c)
		}
	}
	return map[string]control.Handler{
		"status":       plain(func(context.Context, *control.Call) (any, error) { return g.status(), nil }),
		"pause":        plain(func(ctx context.Context, _ *control.Call) (any, error) { return nil, g.pause(ctx) }),
		"resume":       plain(func(ctx context.Context, _ *control.Call) (any, error) { return nil, g.resume(ctx) }),
		"power-button": plain(func(ctx context.Context, _ *control.Call) (any, error) { return nil, g.powerButton(ctx) }),
		"nmi":          plain(func(ctx context.Context, _ *control.Call) (any, error) { return nil, g.nmi(ctx) }),
		"quit":         plain(func(_ context.Context, c *control.Call) (any, error) { c.After(g.quit); return nil, nil }),
		"save": func(ctx context.Context, c *control.Call) (any, error) {
			var p saveParams
			if err := c.Params(&p); err != nil {
				return nil, err
			}
			to, err := g.saveTo(c, p.Dir)
			if err != nil {
				return nil, err
			}
			if err := g.save(ctx, to, p.Stop, c.Progress); err != nil {
				return nil, err
			}
			if p.Stop {
				c.After(g.quit)
			}
			return nil, nil
		},
		"broker": plain(func(_ context.Context, c *control.Call) (any, error) { return nil, g.res.takeBroker(c) }),
		"stats":  plain(func(context.Context, *control.Call) (any, error) { return g.stats(), nil }),
		"watch": func(ctx context.Context, c *control.Call) (any, error) {
			var p watchParams
			if err := c.Params(&p); err != nil {
				return nil, err
			}
			if err := g.watch(ctx, p.After); err != nil {
				return nil, err
			}
			return g.status(), nil
		},
		"balloon": func(_ context.Context, c *control.Call) (any, error) {
			var p balloonParams
			if err := c.Params(&p); err != nil {
				return nil, err
			}
			if p.Target == nil {
				return nil, &control.Error{Code: control.CodeBadRequest, Message: "balloon: target is missing: how many bytes the guest is to keep"}
			}
			return nil, g.setBalloon(*p.Target)
		},
	}
}

// saveTo returns how a machine is saved: to the directory dir, or to the files that came with the request.
func (g *guest) saveTo(c *control.Call, dir string) (saver, error) {
	if dir == "" {
		files, err := c.Files(2)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, m *machine.Machine, def []byte, progress mem.Progress) error {
			err := m.SaveTo(ctx, files[0], files[1], def, progress)
			return errors.Join(err, files[0].Close(), files[1].Close())
		}, nil
	}
	if !filepath.IsAbs(dir) {
		return nil, &control.Error{Code: control.CodeBadRequest, Message: fmt.Sprintf("dir %q: give an absolute path", dir)}
	}
	if g.res.handed.sealed() {
		return nil, &control.Error{Code: control.CodeBadRequest, Message: "dir: in its cell a guest has no paths: send the two files along"}
	}
	return func(ctx context.Context, m *machine.Machine, def []byte, progress mem.Progress) error {
		return m.Save(ctx, dir, def, progress)
	}, nil
}

func (g *guest) status() guestStatus {
	s := guestStatus{Name: g.def.Name, UUID: g.def.UUID, State: g.state(), Reason: g.reason(), CPUs: g.def.CPUs,
		Memory: uint64(g.def.Memory), Uptime: time.Since(g.started).Seconds(), Balloon: g.balloonStatus()}
	if !g.res.handed.sealed() {
		s.PID = os.Getpid()
	}
	g.mu.Lock()
	s.Reboots, s.Change = g.reboots, g.changes
	g.mu.Unlock()
	return s
}

// dialGuest connects to the control socket of a guest that is named by its definition or by the socket itself.
func dialGuest(ctx context.Context, arg string) (*control.Client, error) {
	st, err := os.Stat(arg)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", arg, err)
	}
	if st.Mode().Type() == os.ModeSocket {
		return control.Dial(ctx, arg)
	}
	def, err := definition.Load(arg)
	if err != nil {
		return nil, err
	}
	if def.Control == "" {
		return nil, fmt.Errorf("%s: the guest has no control socket: set control = \"PATH\" in it", arg)
	}
	return control.Dial(ctx, def.Control)
}
