// Command lodged is the manager of guests: it keeps their definitions, starts and stops them and knows how they are. It only
// parses flags and composes; the manager is hypervisor/manager.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/appliance"
	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/api"
	"github.com/lodgehv/lodge/hypervisor/manager/cell"
	"github.com/lodgehv/lodge/hypervisor/manager/network/bridge"
	"github.com/lodgehv/lodge/internal/logfile"
	"github.com/lodgehv/lodge/internal/program"
	"github.com/lodgehv/lodge/internal/uevent"
)

const usage = `usage: lodged [--config-dir DIR] [--state-dir DIR] [--run-dir DIR] [--vmm FILE]
              [--net FILE] [--bus BUS] [--seat SOCKET] [--log FILE]
              [--metrics ADDRESS] [--cgroup PATH] [--cell off]

Manages guests. The definition of each is CONFIG-DIR/guests/NAME.toml, that of a network CONFIG-DIR/networks/NAME.toml.

  --config-dir DIR   definitions (/etc/lodge)
  --state-dir DIR    saved guests, snapshots, logs, earlier definitions (/var/lib/lodge)
  --run-dir DIR      sockets of guests that run (/run/lodge)
  --cell off         start VMMs without cells around them, to find out whether a fault is the cell's (on)
  --vmm FILE         the program that runs a guest (lodge-vmm beside this one, or on the PATH)
  --net FILE         the program that carries a network of guests (lodge-net beside this one, or on the PATH)
  --bus BUS          where org.lodgehv.Lodge1 is offered: system, where polkit decides who may do what; session or the address of
                     a bus, for this user only; or none (system)
  --log FILE         write the log there, and keep as much again of it as FILE.1, 16 MiB each; else it goes to the journal, with
                     fields, or to standard error
  --seat SOCKET      the control socket of lodge-seat, to switch between guests
  --cgroup PATH      the control group in which those of guests are, from the root of the hierarchy: that of a service which keeps it,
                     so that lodged can be restarted while they run (lodged's own)
  --metrics ADDRESS  where Prometheus may ask, as 127.0.0.1:9177: everybody who can connect learns of all guests (off)

SIGHUP reads the definitions anew. SIGTERM ends lodged and leaves the guests running: the next lodged finds them.
`

const defaultStateDir = "/var/lib/lodge"

func main() {
	cell.RunInit(os.Args)
	manager.RunGate()
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		exit(play(roles[os.Args[1]], os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	exit(err)
}

func exit(err error) {
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "lodged:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// errUsage says that the usage was shown.
var errUsage = errors.New("usage")

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	fs := flag.NewFlagSet("lodged", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	var cfg manager.Config
	fs.StringVar(&cfg.ConfigDir, "config-dir", "/etc/lodge", "")
	fs.StringVar(&cfg.StateDir, "state-dir", defaultStateDir, "")
	fs.StringVar(&cfg.RunDir, "run-dir", "/run/lodge", "")
	vmm := fs.String("vmm", "", "")
	fs.StringVar(&cfg.LodgeNet, "net", "", "")
	bus := fs.String("bus", "system", "")
	seat := fs.String("seat", "", "")
	logTo := fs.String("log", "", "")
	metrics := fs.String("metrics", "", "")
	cells := fs.String("cell", "on", "")
	group := fs.String("cgroup", "", "")
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, usage)
		return err
	}
	if err == nil && fs.NArg() > 0 {
		err = fmt.Errorf("%q is too much", fs.Arg(0))
	}
	if err == nil && *cells != "on" && *cells != "off" {
		err = fmt.Errorf("--cell %s: on or off", *cells)
	}
	if err != nil {
		fmt.Fprintf(errOut, "lodged: %v\n%s", err, usage)
		return errUsage
	}
	if *vmm, err = find("lodge-vmm", *vmm); err != nil {
		return err
	}
	if *logTo != "" {
		f, err := logfile.Open(*logTo)
		if err != nil {
			return fmt.Errorf("--log: %w", err)
		}
		defer f.Close()
		cfg.Log = slog.New(slog.NewTextHandler(f, nil))
	} else {
		cfg.Log = newLog(errOut)
	}
	if cfg.LodgeNet, err = find("lodge-net", cfg.LodgeNet); err != nil {
		cfg.Log.Warn("guests have no networks", "err", err)
	}
	if (*bus == "system" || *bus == appliance.BusAddress) && os.Geteuid() == 0 { // there is one manager that changes the host
		cfg.Bridge = &bridge.Host{State: filepath.Join(cfg.RunDir, "ip_forward")}
	}
	if *cells == "off" {
		cfg.Log.Warn("VMMs are started without cells: a guest that takes its VMM over has this user's rights")
		cfg.Launcher = &manager.Plain{VMM: *vmm}
	} else {
		cfg.Launcher = &manager.Cells{VMM: *vmm}
		if cfg.Cgroups, err = openCgroups(cfg.Log, *group, cfg.StateDir); err != nil {
			cfg.Log.Warn("guests have no control groups: [shares] do not hold", "err", err)
			cfg.Cgroups = nil
		}
	}
	cfg.Screen = screenshot
	return serve(ctx, cfg, api.Config{Bus: *bus, Switch: switcher(*seat)}, *metrics)
}

// openCgroups returns where the guests' control groups are: in the group that is named, or else in lodged's own.
func openCgroups(log *slog.Logger, group, stateDir string) (*cell.Parent, error) {
	if group != "" {
		p, err := cell.OpenDelegated(group)
		if err == nil {
			return p, nil
		}
		log.Warn("guests are in lodged's own control group", "err", err)
	}
	return cell.OpenParent(groupName(stateDir))
}

// groupName returns what the control group of the guests in a directory is called: those of another lodged have another.
func groupName(stateDir string) string {
	if stateDir == defaultStateDir {
		return "lodge"
	}
	return fmt.Sprintf("lodge-%x", sha256.Sum256([]byte(stateDir)))[:14]
}

// find returns the program of that name: path, unless that is "".
func find(name, path string) (string, error) {
	if path != "" {
		return filepath.Abs(path)
	}
	return program.Find(name)
}

// serve runs the manager until ctx ends. metricsAt is the address for Prometheus; "" is none.
func serve(ctx context.Context, cfg manager.Config, bus api.Config, metricsAt string) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP)
	defer signal.Stop(hangup)
	m, err := manager.New(cfg)
	if err != nil {
		return err
	}
	defer func() {
		m.Close()
		if cfg.Cgroups != nil {
			_ = cfg.Cgroups.Remove() // unless guests run
		}
	}()
	if err := m.Autostart(); err != nil {
		cfg.Log.Error("autostart", "err", err)
	}
	defer followPower(ctx, m, cfg.Log)()
	bus.Manager, bus.Log = m, cfg.Log
	apiEnd, err := offer(ctx, bus)
	if err != nil {
		return err
	}
	if err := measured(ctx, metricsAt, m, cfg.Log); err != nil {
		return err
	}
	notify(cfg.Log, daemon.SdNotifyReady)
	for {
		select {
		case <-hangup:
			notify(cfg.Log, daemon.SdNotifyReloading)
			if err := m.Reload(); err != nil {
				cfg.Log.Error("reload", "err", err)
			}
			notify(cfg.Log, daemon.SdNotifyReady)
		case <-ctx.Done():
			notify(cfg.Log, daemon.SdNotifyStopping)
			<-apiEnd
			return nil
		}
	}
}

// followPower tells the manager when the host goes on battery or mains. The function that it returns waits until it has ended.
func followPower(ctx context.Context, m *manager.Manager, log *slog.Logger) (wait func()) {
	events, err := uevent.Listen()
	if err != nil {
		log.Warn("guests that wait for mains power are not started when it comes", "err", err)
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	tell := func(*uevent.Event) {
		if err := m.PowerChanged(); err != nil {
			log.Warn("mains power", "err", err)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		tell(nil) // it may have come before we listened
		if err := events.Follow(ctx, "power_supply", tell); err != nil {
			log.Warn("guests that wait for mains power are not started when it comes", "err", err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// notify tells the service manager, if there is one, how far we are (sd_notify(3)).
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("service manager", "err", err)
	}
}
