// Command e2e-notebook starts the simulated notebook and runs one shell command
// in it, with the terminal's input and output:
//
//	e2e-notebook [-tool NAME=FILE]... [-- QEMU ARGUMENTS...] 'SHELL COMMAND'
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/notebook"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code, err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e-notebook:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context) (code int, err error) {
	cfg := notebook.Config{Tools: map[string]string{}, Log: os.Stderr}
	flag.BoolVar(&cfg.ICount, "icount", false, "one processor, whose clock counts instructions")
	flag.StringVar(&cfg.Append, "append", "", "add to the kernel's command line")
	flag.Func("tool", "NAME=FILE: have FILE as /tools/NAME", func(s string) error {
		name, file, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want NAME=FILE")
		}
		cfg.Tools[name] = file
		return nil
	})
	flag.Parse()
	if flag.NArg() < 1 {
		flag.Usage()
		return 2, nil
	}
	script := flag.Arg(flag.NArg() - 1)
	cfg.Args = flag.Args()[:flag.NArg()-1]
	n, err := notebook.Start(ctx, cfg)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	p, err := n.Start(rpc.Cmd{Args: []string{"/bin/sh", "-c", script}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		return 0, err
	}
	st, err := p.Wait(ctx)
	if errors.Is(err, rpc.ErrClosed) {
		err = fmt.Errorf("%w\n%s", err, n.Postmortem())
	}
	return st.Code, err
}
