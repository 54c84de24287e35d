package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/internal/program"
)

// asJSON prints for programs. The names are those of the D-Bus API.
func asJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// table prints rows for people, of which the first is the heading.
func table(out io.Writer, rows [][]string) error {
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(text.String()) {
		if _, err := fmt.Fprintln(out, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// size is a number of bytes for people.
func size(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, unit := float64(n), 0
	for v >= 1024 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	if unit == 0 || v >= 100 {
		return fmt.Sprintf("%.0f %s", v, units[unit])
	}
	return fmt.Sprintf("%.1f %s", v, units[unit])
}

type listCommand struct {
	JSON bool `name:"json" help:"Print for programs."`
}

// Run lists the guests.
func (c *listCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	guests, err := k.Guests(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		return asJSON(out, guests)
	}
	rows := [][]string{{"GUEST", "STATE", "CPUS", "MEMORY", "SLOT", "LABEL", "NOTE"}}
	for _, g := range guests {
		slot := "-"
		if g.Slot > 0 {
			slot = fmt.Sprint(g.Slot)
		}
		note := g.Note
		if g.Fault != "" {
			note = g.Fault
		}
		note, _, _ = strings.Cut(note, "\n")
		rows = append(rows, []string{g.Name, g.State, fmt.Sprint(g.CPUs), size(g.Memory), slot, printable(g.Label), printable(note)})
	}
	return table(out, rows)
}

// usage is what a guest uses.
type usage struct {
	Guest          string
	State          string
	CPU            float64 // processors, in the time between the last two samples
	Memory         uint64  // bytes
	DiskPerSecond  uint64  // bytes read and written
	NetPerSecond   uint64  // bytes received and sent
	ExitsPerSecond uint64
}

// measure returns what a guest uses, by its last two samples.
func measure(g client.Guest, s []client.Sample) usage {
	u := usage{Guest: g.Name, State: g.State}
	if len(s) == 0 {
		return u
	}
	b := s[len(s)-1]
	u.Memory = b.Memory
	if len(s) < 2 {
		return u
	}
	a := s[len(s)-2]
	seconds := b.Time.Sub(a.Time).Seconds()
	if seconds <= 0 {
		return u
	}
	rate := func(a, b uint64) uint64 { return uint64(float64(b-min(a, b)) / seconds) }
	u.CPU = max((b.CPU-a.CPU).Seconds()/seconds, 0)
	u.DiskPerSecond = rate(a.DiskRead+a.DiskWritten, b.DiskRead+b.DiskWritten)
	u.NetPerSecond = rate(a.NetReceived+a.NetSent, b.NetReceived+b.NetSent)
	u.ExitsPerSecond = rate(a.Exits, b.Exits)
	return u
}

func usageTable(out io.Writer, list []usage) error {
	rows := [][]string{{"GUEST", "STATE", "CPU", "MEMORY", "DISK/s", "NET/s", "EXITS/s"}}
	for _, u := range list {
		rows = append(rows, []string{u.Guest, u.State, fmt.Sprintf("%.0f %%", u.CPU*100), size(u.Memory), size(u.DiskPerSecond),
			size(u.NetPerSecond), fmt.Sprint(u.ExitsPerSecond)})
	}
	return table(out, rows)
}

// samplePause is what the manager lets pass between two samples, and some.
const samplePause = 1200 * time.Millisecond

type statsCommand struct {
	Guest string `arg:"" help:"Name of the guest."`
	JSON  bool   `name:"json" help:"Print all samples for programs: times, and totals since the guest's start."`
}

// Run measures a guest for a second.
func (c *statsCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	g, err := k.Guest(ctx, c.Guest)
	if err != nil {
		return err
	}
	samples, err := k.Statistics(ctx, c.Guest)
	if err == nil && len(samples) < 2 {
		if err = pause(ctx, samplePause); err == nil {
			samples, err = k.Statistics(ctx, c.Guest)
		}
	}
	if err != nil {
		return err
	}
	if c.JSON {
		return asJSON(out, samples)
	}
	return usageTable(out, []usage{measure(g, samples)})
}

type topCommand struct {
	Every time.Duration `default:"2s" placeholder:"TIME" help:"How often."`
	Count int           `short:"n" default:"0" placeholder:"N" help:"End after so many tables; 0 goes on until Ctrl-C."`
	JSON  bool          `name:"json" help:"Print for programs."`
}

// Run prints tables of what guests use.
func (c *topCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	for n := 0; ; n++ {
		guests, err := k.Guests(ctx)
		if err != nil {
			return err
		}
		list := make([]usage, 0, len(guests))
		for _, g := range guests {
			samples, _ := k.Statistics(ctx, g.Name) // of a guest that is off there are none
			list = append(list, measure(g, samples))
		}
		if n > 0 || c.Count == 1 { // the first round only begins to measure
			if c.JSON {
				err = asJSON(out, list)
			} else if err = usageTable(out, list); err == nil {
				_, err = fmt.Fprintln(out)
			}
			if err != nil || n == c.Count || c.Count == 1 {
				return err
			}
		}
		wait := max(c.Every, samplePause)
		if n == 0 {
			wait = samplePause
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type versionCommand struct {
	JSON bool `name:"json" help:"Print for programs."`
}

// Run prints versions.
func (c *versionCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	own := program.Version()
	manager := ""
	k, err := m.dial(ctx)
	if err == nil {
		defer k.Close()
		manager, err = k.Version(ctx)
	}
	if c.JSON {
		return asJSON(out, map[string]string{"lodge": own, "lodged": manager})
	}
	fmt.Fprintln(out, "lodge ", own)
	if err != nil {
		fmt.Fprintf(out, "lodged: %v\n", err)
		return nil // its own version is what was asked for
	}
	fmt.Fprintln(out, "lodged", manager)
	return nil
}
