// Command e2e-image builds and caches the images of the end-to-end tests and
// prints where they are.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

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
	set, err := b.All(ctx)
	if err != nil {
		return err
	}
	for _, g := range set.Guests {
		fmt.Println(g.Disk)
		fmt.Println(g.Initrd)
		fmt.Println(g.Kernel.VMLinux)
	}
	fmt.Println(set.Notebook.Disk)
	fmt.Println(set.Notebook.Initrd)
	return nil
}
