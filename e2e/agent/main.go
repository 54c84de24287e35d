// Command agent is what the end-to-end tests run inside the simulated notebook
// and inside its guests: one static program that executes commands for a test,
// and the small servers and clients that the tests talk to.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// A subcommand parses its own arguments.
type subcommand struct {
	name, usage string
	run         func(ctx context.Context, args []string) error
}

func subcommands() []subcommand {
	return []subcommand{
		{"serve", "serve PORT...: execute commands for tests; PORT is a device file, vsock:N or unix:PATH", serve},
		{"put", "put PATH MODE: write standard input to PATH", put},
		{"get", "get PATH: write PATH to standard output", get},
		{"unpack", "unpack DEVICE DIR: extract the tar archive that starts DEVICE into DIR, past the page cache", unpack},
		{"connect", "connect NETWORK ADDRESS: join standard input and output to a socket", connect},
		{"http", "http ADDRESS: serve /bytes/N (N bytes of a known pattern), /sum/N (their SHA-256) and /upload", serveHTTP},
		{"fill", "fill PATH SIZE SEED: write SIZE pseudo-random bytes, sync, print their SHA-256", fill},
		{"sum", "sum PATH SIZE: print the SHA-256 of the first SIZE bytes of PATH, past the page cache", sum},
		{"echo", "echo NETWORK ADDRESS: send back what connections bring", echo},
		{"sink", "sink NETWORK ADDRESS: the throughput server", sink},
		{"throughput", "throughput [-send] [-bytes N] NETWORK ADDRESS: move N bytes to or from a sink, print JSON", throughput},
		{"blkread", "blkread [-size N] [-count N] [-random] [-depth N] DEVICE: read a block device past the page cache, print JSON", blkread},
		{"records", "records DEVICE: write numbered records, and print the number of each when it is on the disk", records},
		{"recorded", "recorded PATH: print the numbers of the records in PATH, block by block; 0 is none, -1 a damaged one", recorded},
		{"counter", "counter [-every D]: print a counter and the clocks", counter},
		{"screen", "screen: write what the first monitor shows to standard output, as PNG", screen},
		{"paint", "paint X Y DURATION: draw the PNG picture on standard input on the first monitor, behind the desktop's back", paint},
		{"keys", "keys: print the keys and buttons of all input devices, as CODE VALUE", keys},
		{"follow", "follow PATH: print what is appended to a file from now on", followFile},
		{"blink", "blink DURATION: switch a keyboard light on and off as fast as can be, print how often", blink},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "agent:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	cmds := subcommands()
	if len(args) > 0 {
		if i := slices.IndexFunc(cmds, func(c subcommand) bool { return c.name == args[0] }); i >= 0 {
			if err := cmds[i].run(ctx, args[1:]); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return nil
		}
	}
	fmt.Fprintln(os.Stderr, "usage: agent COMMAND ...")
	for _, c := range cmds {
		fmt.Fprintln(os.Stderr, "  agent", c.usage)
	}
	return flag.ErrHelp
}

// need returns args when there are exactly as many as names, else an error that
// tells them.
func need(args []string, names ...string) error {
	if len(args) != len(names) {
		return fmt.Errorf("want %d arguments %v, got %d", len(names), names, len(args))
	}
	return nil
}
