package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// blkread measures reads with O_DIRECT. The same seed gives the same offsets in
// every run.
func blkread(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("blkread", flag.ContinueOnError)
	size := fs.Int("size", 4096, "bytes per read, a multiple of 512")
	count := fs.Int64("count", 1000, "number of reads")
	random := fs.Bool("random", false, "at random offsets")
	depth := fs.Int("depth", 1, "reads under way at once")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := need(fs.Args(), "DEVICE"); err != nil {
		return err
	}
	if *size <= 0 || *size%512 != 0 || *depth < 1 {
		return errors.New("want -size a multiple of 512 and -depth at least 1")
	}
	f, err := os.OpenFile(fs.Arg(0), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	blocks := end / int64(*size)
	if blocks == 0 {
		return fmt.Errorf("%s: smaller than one read", fs.Arg(0))
	}
	offsets := make([]int64, *count)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range offsets {
		offsets[i] = int64(i) % blocks * int64(*size)
		if *random {
			offsets[i] = rnd.Int64N(blocks) * int64(*size)
		}
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, *depth)
	start := time.Now()
	for w := range *depth {
		wg.Go(func() {
			buf := aligned(*size)
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= *count {
					return
				}
				if _, err := f.ReadAt(buf, offsets[i]); err != nil {
					errs[w] = err
					return
				}
			}
		})
	}
	wg.Wait()
	d := time.Since(start)
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return err
	}
	return printRate(*count*int64(*size), *count, d)
}

// counter prints "N REALTIME MONOTONIC", the clocks in nanoseconds: gaps show
// for how long this machine stood still and whether its clock is right.
func counter(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("counter", flag.ContinueOnError)
	every := fs.Duration("every", 100*time.Millisecond, "period")
	if err := fs.Parse(args); err != nil {
		return err
	}
	tick := time.NewTicker(*every)
	defer tick.Stop()
	for n := 0; ; n++ {
		var mono unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
			return err
		}
		if _, err := fmt.Println(n, time.Now().UnixNano(), mono.Nano()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
