// Package managed lists and commands the guests of lodged, over its D-Bus API. It is the System of a console (console/textui).
package managed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// Guests are the guests of a lodged. The methods may be called by any goroutine.
type Guests struct {
	bus     string
	changed chan struct{}
	ready   chan string
	booting map[string]bool // guests that run and were not ready when they were last looked at; of Run alone

	mu   sync.Mutex
	conn *client.Client // nil: there is none now
}

// New returns the guests of the lodged on a bus: "system", "session" or an address. Run has to run.
func New(bus string) *Guests {
	return &Guests{bus: bus, changed: make(chan struct{}, 1), ready: make(chan string, readyQueue), booting: make(map[string]bool)}
}

// readyQueue is how many names Ready holds; more are dropped.
const readyQueue = 16

var _ textui.System = (*Guests)(nil)

// retry is how long Run waits before it looks for lodged again.
const retry = time.Second

// Run hears of changes until ctx ends, and looks for lodged again when it is gone.
func (g *Guests) Run(ctx context.Context) {
	defer g.close()
	for ctx.Err() == nil {
		_ = g.with(ctx, func(c *client.Client) error { // what goes wrong is told where guests are asked for
			return c.Watch(ctx, func(e client.Event) error {
				g.tell()
				return g.follow(ctx, c, e)
			})
		})
		g.tell()
		select {
		case <-time.After(retry):
		case <-ctx.Done():
		}
	}
}

// follow looks at the guest that an event is about, at all of them when it is the first event.
func (g *Guests) follow(ctx context.Context, c *client.Client, e client.Event) error {
	switch {
	case e.Name == "":
		clear(g.booting)
		list, err := c.Guests(ctx)
		for _, k := range list {
			g.see(k)
		}
		return err
	case e.Object.Guest != "" && (e.Name == "StateChanged" || e.Name == "PropertiesChanged"):
		k, err := c.Guest(ctx, e.Object.Guest)
		switch {
		case err == nil:
			g.see(k)
		case !errors.Is(err, client.ErrNotFound): // it has just been deleted
			return err
		}
	}
	return nil
}

// see tells that a guest has become ready.
func (g *Guests) see(k client.Guest) {
	if k.Ready && g.booting[k.Name] {
		select {
		case g.ready <- k.Name:
		default:
		}
	}
	delete(g.booting, k.Name)
	if k.State == "running" && !k.Ready {
		g.booting[k.Name] = true
	}
}

// Ready returns the names of guests that have become ready: their definition says how that is known, and they had not been when
// they began to run.
func (g *Guests) Ready() <-chan string { return g.ready }

func (g *Guests) tell() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

func (g *Guests) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conn != nil {
		g.conn.Close()
		g.conn = nil
	}
}

// with calls f with a connection, which is given up if nobody is at its other end any more.
func (g *Guests) with(ctx context.Context, f func(c *client.Client) error) error {
	g.mu.Lock()
	if g.conn == nil {
		c, err := client.Dial(ctx, g.bus)
		if err != nil {
			g.mu.Unlock()
			return err
		}
		g.conn = c
	}
	c := g.conn
	g.mu.Unlock()
	err := f(c)
	if errors.Is(err, client.ErrNoManager) {
		g.mu.Lock()
		if g.conn == c {
			c.Close()
			g.conn = nil
		}
		g.mu.Unlock()
	}
	return err
}

// Changed implements textui.System.
func (g *Guests) Changed() <-chan struct{} { return g.changed }

// states are those of the API. What is off and crashed has a note.
var states = map[string]textui.State{
	"defined": textui.Off, "crashed": textui.Off, "saved": textui.Saved, "waiting": textui.Starting, "restarting": textui.Starting,
	"starting": textui.Starting, "running": textui.Running, "paused": textui.Paused, "saving": textui.Saving, "stopping": textui.Running,
}

// Guests implements textui.System.
func (g *Guests) Guests(ctx context.Context) (list []textui.Guest, err error) {
	err = g.with(ctx, func(c *client.Client) error {
		guests, err := c.Guests(ctx)
		if err != nil {
			return err
		}
		list = make([]textui.Guest, len(guests))
		for n, k := range guests {
			list[n] = look(ctx, c, k)
		}
		return nil
	})
	return list, err
}

// look says how a guest is.
func look(ctx context.Context, c *client.Client, k client.Guest) textui.Guest {
	t := textui.Guest{
		Name: k.Name, Color: k.Color, Slot: int(k.Slot), State: states[k.State], CPU: -1, CPUs: int(k.CPUs), Memory: k.Memory, Note: k.Note,
	}
	switch {
	case k.Fault != "":
		t.Note = k.Fault
	case t.State == textui.Unknown:
		t.Note = "it is " + k.State + ", which this program does not know: use programs of one version"
	case t.Note == "" && k.State != t.State.String() && k.State != "defined":
		t.Note = k.State
	}
	t.Note, _, _ = strings.Cut(t.Note, "\n")
	if k.PID == 0 {
		return t
	}
	if !k.Began.IsZero() {
		t.Uptime = time.Since(k.Began)
	}
	samples, err := c.Statistics(ctx, k.Name)
	if err != nil || len(samples) == 0 {
		return t // it has just ended
	}
	last := samples[len(samples)-1]
	t.Resident = last.Memory
	if len(samples) > 1 {
		before := samples[len(samples)-2]
		if d := last.Time.Sub(before.Time); d > 0 {
			t.CPU = 100 * float64(last.CPU-before.CPU) / float64(d)
		}
	}
	return t
}

// Details implements textui.System.
func (g *Guests) Details(ctx context.Context, guest string) (d textui.Details, err error) {
	err = g.with(ctx, func(c *client.Client) error {
		k, err := c.Guest(ctx, guest)
		if err != nil {
			return err
		}
		machine := []textui.Fact{
			{Name: "label", Text: k.Label}, {Name: "uuid", Text: k.UUID}, {Name: "state", Text: k.State + ", since " + k.Since.Format(time.DateTime)},
			{Name: "note", Text: k.Note}, {Name: "depends on", Text: strings.Join(k.Depends, ", ")},
		}
		if k.PID != 0 {
			machine = append(machine, textui.Fact{Name: "process", Text: fmt.Sprint(k.PID)}, textui.Fact{Name: "reboots", Text: fmt.Sprint(k.Reboots)})
		}
		if !k.SavedAt.IsZero() {
			machine = append(machine, textui.Fact{Name: "saved", Text: k.SavedAt.Format(time.DateTime)})
		}
		sockets := []textui.Fact{
			{Name: "display", Text: k.DisplaySocket}, {Name: "serial port", Text: k.SerialSocket}, {Name: "console", Text: k.ConsoleSocket},
			{Name: "vsock", Text: k.VsockSocket},
		}
		snapshots, err := c.Snapshots(ctx, guest)
		if err != nil {
			return err
		}
		var facts []textui.Fact
		for _, s := range snapshots {
			facts = append(facts, textui.Fact{Name: s.Name, Text: s.Created.Format(time.DateTime)})
		}
		for _, s := range []textui.Section{{Title: "Machine", Facts: known(machine)}, {Title: "Sockets", Facts: known(sockets)}, {Title: "Snapshots", Facts: facts}} {
			if len(s.Facts) > 0 {
				d.Sections = append(d.Sections, s)
			}
		}
		d.Logs, err = c.Logs(ctx, guest)
		return err
	})
	return d, err
}

// known leaves out what is empty.
func known(facts []textui.Fact) (list []textui.Fact) {
	for _, f := range facts {
		if f.Text != "" {
			list = append(list, f)
		}
	}
	return list
}

// Log implements textui.System.
func (g *Guests) Log(ctx context.Context, guest, log string, limit int) (b []byte, err error) {
	return b, g.with(ctx, func(c *client.Client) error {
		b, err = c.ReadLog(ctx, guest, log, uint32(max(limit, 0))) //nolint:gosec // the manager bounds it
		return err
	})
}

// Do implements textui.System.
func (g *Guests) Do(ctx context.Context, guest string, command textui.Command, progress func(textui.Progress)) error {
	job := func(begin func(c *client.Client) func(context.Context, string) (uint64, error)) error {
		// A connection of its own: each watches one job.
		c, err := client.Dial(ctx, g.bus)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Do(ctx, func(ctx context.Context) (uint64, error) { return begin(c)(ctx, guest) },
			func(j client.Job) { progress(textui.Progress{Done: j.Done, Total: j.Total}) }, nil)
		return err
	}
	switch command {
	case textui.Start:
		return job(func(c *client.Client) func(context.Context, string) (uint64, error) { return c.Start })
	case textui.PowerButton:
		return job(func(c *client.Client) func(context.Context, string) (uint64, error) { return c.Stop })
	case textui.ForceOff:
		return job(func(c *client.Client) func(context.Context, string) (uint64, error) { return c.Kill })
	case textui.Save:
		return job(func(c *client.Client) func(context.Context, string) (uint64, error) { return c.Save })
	case textui.Pause:
		return g.with(ctx, func(c *client.Client) error { return c.Pause(ctx, guest) })
	case textui.Resume:
		return g.with(ctx, func(c *client.Client) error { return c.Resume(ctx, guest) })
	case textui.Discard:
		return g.with(ctx, func(c *client.Client) error { return c.Discard(ctx, guest) })
	}
	return fmt.Errorf("no command %d", command)
}

// Switch implements textui.System.
func (g *Guests) Switch(ctx context.Context, guest string) error {
	return g.with(ctx, func(c *client.Client) error { return c.Switch(ctx, guest) })
}
