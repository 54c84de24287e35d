package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"text/tabwriter"

	"github.com/lodgehv/lodge/hypervisor/manager/cell"
)

func main() {
	cell.RunInit(os.Args)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if other := otherSide(os.Args[1:]); other != nil {
		err = other()
	} else {
		err = run(ctx, os.Args[1:], os.Stdout)
	}
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// otherSide returns what this process is to do if it was started by another one of this program, to stand for the machines of
// guests; else nil.
func otherSide(args []string) func() error {
	switch {
	case len(args) == 4 && args[0] == screensCommand:
		return func() error { return serveScreens(args[1:]) }
	case len(args) == 2 && args[0] == keyGuestCommand:
		return func() error { return serveKeyGuest(args[1]) }
	}
	return nil
}

func run(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := fs.String("only", "", "measure the figures whose name matches this `pattern`")
	file := fs.String("out", filepath.Join("out", "bench.json"), "`file` for the results")
	vmm := fs.String("vmm", filepath.Join("bin", "lodge-vmm"), "the VMM to measure")
	seat := fs.String("seat", filepath.Join("bin", "lodge-seat"), "the seat to measure")
	if err := fs.Parse(args); err != nil {
		return err
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	dir, err := os.MkdirTemp("", "lodge-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// As lodge-vmm does for each vCPU.
	runtime.GOMAXPROCS(runtime.NumCPU() + 1)

	guests := &pair{vmm: *vmm}
	var results []result
	var errs []error
	for _, f := range figures(*vmm, *seat, dir, guests) {
		if !pattern.MatchString(f.name) {
			continue
		}
		fmt.Fprintf(out, "%s ...\n", f.name)
		r, err := f.measure(ctx)
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), guests.close())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.name, err))
			continue
		}
		results = append(results, r)
	}
	errs = append(errs, guests.close())
	if err := write(*file, results); err != nil {
		return err
	}
	return errors.Join(append(errs, print(out, results))...)
}

// figures are all that can be measured. guests, which is started when one of them needs it, is the caller's to close.
func figures(vmm, seat, dir string, guests *pair) []figure {
	return slices.Concat(processes(vmm, dir), []figure{managed(vmm, dir)}, fleet(vmm, dir), []figure{exits(dir), restore(dir)}, switches(dir), []figure{keys(dir)}, updates(dir),
		[]figure{idle(seat, dir)}, snapshots(vmm, dir), []figure{starts(vmm)}, transfers(guests), append(powerOns(dir), inUse(dir)))
}

func write(file string, results []result) error {
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

func print(out io.Writer, results []result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "figure\tours\tpeer\tratio\tgoal\t")
	for _, r := range results {
		peer, ratio := "", ""
		if r.Peer != nil {
			peer = fmt.Sprintf("%.4g %s (%s)", *r.Peer, r.Unit, r.PeerName)
			ratio = fmt.Sprintf("%.3f", *r.Ratio)
		}
		verdict := "met"
		if !r.met {
			verdict = "MISSED"
		}
		fmt.Fprintf(w, "%s\t%.4g %s\t%s\t%s\t%s\t%s\n", r.Name, r.Ours, r.Unit, peer, ratio, r.Goal, verdict)
	}
	return w.Flush()
}
