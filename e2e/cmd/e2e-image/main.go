// Command e2e-image builds and caches the images of the end-to-end tests and
// prints where they are. Those that do not need each other are built side by
// side, for each waits for the network.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sync/errgroup"

	"github.com/lodgehv/lodge/e2e/image"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e-image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	b, err := image.NewBuilder(os.Stderr)
	if err != nil {
		return err
	}
	var set *image.Set
	var desktop *image.Guest
	var instant string
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { set, err = b.All(ctx); return err })
	g.Go(func() (err error) { desktop, err = b.Desktop(ctx); return err })
	g.Go(func() (err error) { instant, err = b.Instant(ctx); return err })
	if err := g.Wait(); err != nil {
		return err
	}
	for _, g := range append(set.Guests, desktop) {
		fmt.Println(g.Disk)
		fmt.Println(g.Initrd)
		fmt.Println(g.Kernel.VMLinux)
	}
	fmt.Println(set.Notebook.Disk)
	fmt.Println(set.Notebook.Initrd)
	fmt.Println(instant)
	return nil
}
