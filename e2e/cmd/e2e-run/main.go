// Command e2e-run is `make run`: it switches a simulated notebook on that has nothing but Lodge, in its flash and on its disk, and shows it, in a
// window or by a tour.
//
// With -desktops it is `make desktops`: the simulated notebook has a Debian, two Debian desktops that lodged runs, and the seat on its screen.
//
// With -consoles it is `make consoles`: two Debian guests side by side, whose serial consoles the user types into. Where KVM
// runs Linux guests directly it does so on this machine, elsewhere in the simulated notebook.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/e2e/guest"
	"github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/notebook"
)

func main() {
	bin := flag.String("bin", "bin", "the `directory` of Lodge's programs")
	desktops := flag.Bool("desktops", false, "a notebook with two desktops")
	consoles := flag.Bool("consoles", false, "serial consoles in place of desktops")
	where := flag.String("where", "auto", "with -consoles: auto, notebook or here: where the guests run")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: e2e-run [flags]\n\nSwitches a simulated notebook on that has Lodge in its flash.\n\nflags:")
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	var err error
	switch {
	case *consoles:
		err = run(ctx, filepath.Join(*bin, "lodge-vmm"), *where)
	case *desktops:
		err = showSeat(ctx, *bin)
	default:
		err = fromFlash(ctx, *bin)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "make run:", err)
		os.Exit(1)
	}
}

// begin is when the program started: progress lines tell the seconds since.
var begin = time.Now()

func say(format string, args ...any) {
	fmt.Printf("%6.1f s  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
}

// progress turns the lines of others into progress lines.
type progress struct{}

func (progress) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		say("%s", strings.TrimRight(line, "\n"))
	}
	return len(p), nil
}

// names are the two guests.
var names = []string{"amd64", "i386"}

func run(ctx context.Context, vmm, where string) (err error) {
	host, closeHost, err := findHost(ctx, vmm, where)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeHost()) }()

	lan, err := host.StartNetwork(ctx)
	if err != nil {
		return err
	}
	guests := make(map[string]*guest.Guest)
	for i, name := range names {
		say("guest %s starts: Debian 12, 256 MiB, a kernel without firmware", name)
		g, err := host.Start(ctx, guest.Config{Name: name, Arch: name, CID: uint32(10 + i), Extra: lan.NIC(), Console: newPrefixer(name)})
		if err != nil {
			return err
		}
		guests[name] = g
	}
	boot, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("the guests did not start within ten minutes"))
	defer cancel()
	for _, name := range names {
		initAt, readyAt, err := guests[name].Ready(boot)
		if err != nil {
			return err
		}
		say("guest %s is up: its init ran %.1f s after its start, its shell %.1f s", name, initAt, readyAt)
	}
	if _, e := unix.IoctlGetTermios(int(os.Stdin.Fd()), unix.TCGETS); e == nil {
		converse(ctx, guests)
	} else if err := tour(ctx, guests, lan); err != nil {
		return err
	}
	return powerOff(context.WithoutCancel(ctx), guests)
}

// findHost says where the guests run, and why.
func findHost(ctx context.Context, vmm, where string) (*guest.Host, func() error, error) {
	direct, reason := notebook.DirectKVM()
	switch where {
	case "auto":
	case "here":
		direct = true
	case "notebook":
		direct = false
	default:
		return nil, nil, fmt.Errorf("-where %s: one of auto, notebook, here", where)
	}
	b, err := image.NewBuilder(progress{})
	if err != nil {
		return nil, nil, err
	}
	if direct {
		say("%s: the guests run on this machine", reason)
		return guest.Local(ctx, b, vmm)
	}
	say("%s: the guests run in the simulated notebook", reason)
	tools, err := guest.Tools(ctx, b, vmm)
	if err != nil {
		return nil, nil, err
	}
	nb, err := notebook.Start(ctx, notebook.Config{Builder: b, Tools: tools, Log: progress{}})
	if err != nil {
		return nil, nil, err
	}
	return guest.InNotebook(nb), nb.Close, nil
}

// converse hands the user's lines to a guest until the end of the input, ":off" or a guest's end.
func converse(ctx context.Context, guests map[string]*guest.Guest) {
	current := names[0]
	say("type lines for the console of %s; ':amd64' and ':i386' change the guest, ':off' ends", current)
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			lines <- in.Text()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case line, ok := <-lines:
			name, isCommand := strings.CutPrefix(line, ":")
			switch {
			case !ok || line == ":off":
				return
			case isCommand && guests[name] != nil:
				current = name
				say("lines go to %s now", current)
			case isCommand:
				say("no guest %q: ':amd64', ':i386' or ':off'", name)
			default:
				if err := guests[current].Type(line + "\n"); err != nil {
					say("guest %s: %v", current, err)
					return
				}
			}
		}
	}
}

// tour does what a user would: it types commands on each console and waits for their answers.
func tour(ctx context.Context, guests map[string]*guest.Guest, lan *guest.Network) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("no answer within five minutes"))
	defer cancel()
	ask := func(name, command, answer string) (string, error) {
		g := guests[name]
		shown := len(g.Console())
		if err := g.Type(command + "\n"); err != nil {
			return "", err
		}
		m, err := g.Await(ctx, shown, regexp.MustCompile(answer))
		if err != nil {
			return "", err
		}
		return m[len(m)-1], nil
	}
	address := make(map[string]string)
	for _, name := range names {
		say("typing on the console of %s", name)
		// A serial line has no width: without one, the shell breaks its line at 80 characters.
		if _, err := ask(name, "stty cols 500; echo wi''de", "wide"); err != nil {
			return err
		}
		_, err := ask(name, "echo $(uname -sm), $(nproc) CPU, $(awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo) MiB, "+
			"$(head -c4 /dev/hwrng | wc -c) random bytes", `\d random bytes`)
		if err != nil {
			return err
		}
		if address[name], err = ask(name, "until ip -4 -br a show eth0 | grep /; do sleep 1; done", `UP +(192\.168\.[0-9.]+)`); err != nil {
			return err
		}
		say("guest %s has the address %s", name, address[name])
	}
	for i, name := range names {
		other := names[1-i]
		if _, err := ask(name, "ping -q -c 3 "+address[other], `3 received`); err != nil {
			return err
		}
		say("guest %s reaches %s", name, other)
		_, err := ask(name, fmt.Sprintf("curl -sS %s/sum/1000000; curl -sS %[1]s/bytes/1000000 | sha256sum", lan.URL),
			`(?s)([0-9a-f]{64})\r?\n([0-9a-f]{64})  -`)
		if err != nil {
			return err
		}
		sums := regexp.MustCompile(`[0-9a-f]{64}`).FindAllString(guests[name].Console(), -1)
		if n := len(sums); sums[n-1] != sums[n-2] {
			return fmt.Errorf("guest %s: a download came with other bytes than were sent", name)
		}
		say("guest %s downloads a megabyte, which is right", name)
	}
	return nil
}

func powerOff(ctx context.Context, guests map[string]*guest.Guest) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, errors.New("not off within three minutes"))
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(names))
	for i, name := range names {
		say("pressing the power button of %s", name)
		wg.Go(func() {
			if errs[i] = guests[name].PowerOff(ctx); errs[i] == nil {
				say("guest %s is off", name)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// prefixer shows a guest's console, each line with the guest's name. A line without an end, such as a prompt, is shown
// when nothing follows it for a moment.
type prefixer struct {
	name  string
	mu    sync.Mutex
	line  []byte
	timer *time.Timer
}

func newPrefixer(name string) io.Writer { return &prefixer{name: name} }

const promptDelay = 300 * time.Millisecond

// control matches what moves the cursor or changes its colour: two consoles share this terminal.
var control = regexp.MustCompile("\x1b\\[[0-9;?]*[a-zA-Z]|\r")

func (p *prefixer) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range b {
		if c == '\n' {
			p.flush()
		} else {
			p.line = append(p.line, c)
		}
	}
	if p.timer != nil {
		p.timer.Stop()
	}
	if len(p.line) > 0 {
		p.timer = time.AfterFunc(promptDelay, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.flush()
		})
	}
	return len(b), nil
}

func (p *prefixer) flush() {
	if text := strings.TrimSpace(control.ReplaceAllString(string(p.line), "")); text != "" {
		fmt.Printf("%-6s│ %s\n", p.name, text)
	}
	p.line = p.line[:0]
}
