package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testrun:", err)
		code = 2
	}
	os.Exit(code)
}

// options is the command line.
type options struct {
	stages   []string
	fuzzTime time.Duration
	only     *regexp.Regexp
	out      string
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("testrun", flag.ContinueOnError)
	stages := fs.String("stages", "unit,fuzz,e2e", "comma-separated `list` of stages to run")
	only := fs.String("only", "", "run the packages, and of stage fuzz the targets, whose name (such as hypervisor/pci.FuzzConfig) matches this `pattern`")
	fs.DurationVar(&o.fuzzTime, "fuzztime", 10*time.Second, "how long each fuzz target runs")
	fs.StringVar(&o.out, "out", filepath.Join("out", "test.json"), "`file` for the summary")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	o.stages = strings.Split(*stages, ",")
	for _, s := range o.stages {
		if !slices.Contains([]string{"unit", "fuzz", "e2e"}, s) {
			return o, fmt.Errorf("-stages: there is no stage %q: name some of unit, fuzz, e2e", s)
		}
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	return o, nil
}

// run returns the exit status: 0 if all is well, 1 if a test failed, 130 if ctx ended.
func run(ctx context.Context, args []string) (int, error) {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	skips, err := readSkips(ctx, filepath.Join(".ci", "skips"))
	if err != nil {
		return 0, err
	}
	pkgs, err := list(ctx)
	if err != nil {
		return 0, err
	}
	r := &runner{out: os.Stdout, skips: skips, report: &report{}}
	begin := time.Now()
	if slices.Contains(o.stages, "e2e") && o.only.String() == "" {
		defer r.images(ctx)()
	}
	var beside sync.WaitGroup
	for i, s := range o.stages {
		switch jobs := o.jobs(s, pkgs); {
		case ctx.Err() != nil:
		case s == "fuzz" && slices.Contains(o.stages[i:], "e2e"):
			// The notebook has one CPU: fuzzers have the other.
			beside.Go(func() { r.stage(ctx, s, jobs, 1) })
		case s == "fuzz":
			r.stage(ctx, s, jobs, runtime.NumCPU())
		default:
			r.stage(ctx, s, jobs, 1)
		}
	}
	beside.Wait()
	r.report.Seconds = seconds(time.Since(begin))
	if err := r.report.write(o.out); err != nil {
		return 0, err
	}
	if ctx.Err() != nil {
		fmt.Println("interrupted")
	}
	r.report.print(os.Stdout)
	switch {
	case ctx.Err() != nil:
		return 130, nil
	case r.report.Failed > 0:
		return 1, nil
	}
	return 0, nil
}

// jobs returns the commands of a stage.
func (o *options) jobs(stage string, pkgs []testPackage) []job {
	var jobs []job
	var together []string // packages that one command tests
	for _, p := range pkgs {
		switch {
		case stage == "fuzz":
			for _, f := range p.fuzz {
				if o.only.MatchString(short(p.path) + "." + f) {
					// One try at a smaller input: otherwise go spends up to a minute on each that is interesting, most of fuzzTime.
					jobs = append(jobs, job{[]string{"-run=^$", "-fuzz=^" + f + "$", "-fuzztime=" + o.fuzzTime.String(),
						"-fuzzminimizetime=1x", "-parallel=1", p.path}})
				}
			}
		case p.notebook == (stage == "e2e") && o.only.MatchString(short(p.path)):
			together = append(together, p.path)
		}
	}
	if together == nil {
		return jobs
	}
	args := []string{"-count=1"}
	if stage == "e2e" {
		args = append(args, "-p=1", "-timeout=40m")
	} else {
		args = append(args, "-race", "-timeout=10m")
	}
	return []job{{append(args, together...)}}
}
