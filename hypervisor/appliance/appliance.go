package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/u-root/u-root/pkg/watchdog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/bootimage/system"
	"github.com/lodgehv/lodge/internal/uevent"
)

// Config says what runs in the machine.
type Config struct {
	Services []Service
	// Definitions is the directory in the image or in the system with the definitions that a new state begins with; it need not be there.
	Definitions string
	// StopGuests is a program, with its arguments, that stops all guests in order, and waits for them until it gets SIGTERM.
	StopGuests []string
	// Vault is a program, with its arguments, that does what [VaultMake] and [VaultOpen] say, and says on its output why it did not.
	Vault []string
}

// How long is waited for.
const (
	systemLimit  = 10 * time.Second // a disk, before there is taken to be none with the system
	stateLimit   = 5 * time.Second  // a disk, before there is taken to be none with the state
	problemLimit = 15 * time.Second // somebody at the emergency console, before it goes on without
)

// machine is what this process does.
type machine struct {
	cfg     Config
	journal *journal
	cmdline string // the kernel's
	log     *slog.Logger
	reaper  *reaper
	ends    chan Ending
	trouble chan error
	late    context.Context // done when a shutdown has taken too long: the watchdog resets the machine
	giveUp  context.CancelFunc
	plugs   func() // ends the loading of modules for devices that come
	modules *modules
}

// IsInit reports whether this process is the first one of a machine, as opposed to that of a container.
func IsInit(args []string) bool { return os.Getpid() == 1 && len(args) > 0 && args[0] == "/init" }

// Run runs the machine until it is switched off or reboots. It returns only with an error of that itself.
func Run(cfg Config) error {
	m := &machine{cfg: cfg, journal: &journal{}, reaper: newReaper(), ends: make(chan Ending, 2), trouble: make(chan error, 8), plugs: func() {}}
	m.log = slog.New(slog.NewTextHandler(m.journal, &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	m.late, m.giveUp = context.WithCancel(context.Background())
	m.begin()
	feeding, sleep := context.WithCancel(context.Background())
	defer sleep()
	fed := make(chan struct{})
	go func() { defer close(fed); m.watchdog(feeding) }()
	ending, known := m.prepareSystem()
	if !known {
		ending, known = m.prepareState()
	}
	ctx, stop := context.WithCancel(context.Background())
	var services sync.WaitGroup
	if !known {
		sv := supervisor{m.reaper, m.journal, m.log, func(err error) {
			select {
			case m.trouble <- err:
			default: // there is enough of it
			}
		}}
		for _, s := range cfg.Services {
			services.Go(func() { sv.run(ctx, s) })
		}
		time.AfterFunc(beginning, debug.FreeOSMemory) // that the tables of modules took
		ending = m.wait()
	}
	m.shutdown(ending, stop, &services)
	if ending == PowerOff { // a machine that cannot switch itself off stays as it is; one that does not reboot is reset
		sleep()
		<-fed
	}
	if err := unix.Reboot(ending.command()); err != nil {
		return fmt.Errorf("%s: %w", ending, err)
	}
	return nil
}

// withoutTime drops the time: the kernel's log has it.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

// begin makes the machine one in which programs can run. What fails is logged: a machine that does little is better than none.
func (m *machine) begin() {
	rootErr := leaveRootfs()
	mountErr := mountAll(mounts, unix.Mount)
	// Else the kernel drops all but ten lines in five seconds. It takes the word only with its newline.
	limitErr := os.WriteFile("/proc/sys/kernel/printk_devkmsg", []byte("on\n"), 0o644)
	if f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		m.journal.kmsg = f
	}
	check := func(what string, err error) {
		if err != nil {
			m.log.Error(what, "err", err)
		}
	}
	check("root directory", rootErr)
	check("mounts", mountErr)
	check("the kernel's log is limited", limitErr)
	// Else programs have memory in pieces of 2 MiB of which they use a part.
	check("huge pages", os.WriteFile("/sys/kernel/mm/transparent_hugepage/enabled", []byte("madvise"), 0o644))
	check("environment", errors.Join(
		os.Setenv("PATH", "/bin:/usr/bin:/usr/sbin"), os.Setenv("HOME", "/"), unix.Sethostname([]byte("lodge")),
		os.MkdirAll("/etc", 0o755), os.WriteFile("/etc/passwd", []byte("root:x:0:0::/:/bin/false\n"), 0o644)))
	if lo, err := netlink.LinkByName("lo"); err == nil {
		err = netlink.LinkSetUp(lo)
		check("loopback", err)
	}
	if b, err := os.ReadFile("/proc/cmdline"); err == nil {
		m.cmdline = string(b)
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() { check("reaper", m.reaper.run(children)) }()
	check("ctrl+alt+del", unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)) // then it is SIGINT
	asked := make(chan os.Signal, 2)
	signal.Notify(asked, unix.SIGINT, unix.SIGTERM, unix.SIGUSR2, unix.SIGPWR)
	go func() {
		for s := range asked {
			if s == unix.SIGINT || s == unix.SIGTERM {
				m.end(Reboot)
			} else {
				m.end(PowerOff)
			}
		}
	}()
	go watchButtons(context.Background(), func() { m.end(PowerOff) })
	names := alwaysLoad
	if parameter(m.cmdline, system.Parameter) != "" { // which has those
		names = systemModules
	}
	check("kernel modules", m.loadModules(names))
	check("mounts", mountAll(lateMounts, unix.Mount))
}

// prepareSystem mounts the system, and begins anew with its modules. Without it there is nothing to run: somebody has to help.
func (m *machine) prepareSystem() (ending Ending, known bool) {
	for {
		device, err := mountSystem(m.cmdline, time.Now().Add(systemLimit))
		if err == nil && device != "" {
			m.log.Info("system", "device", device)
			err = m.loadModules(alwaysLoad)
			err = errors.Join(err, mountAll(lateMounts, unix.Mount))
		}
		if err == nil {
			return 0, false
		}
		m.log.Error("system", "err", err)
		switch m.emergency(err) {
		case ChooseReboot:
			return Reboot, true
		case ChoosePowerOff:
			return PowerOff, true
		}
	}
}

// end asks for the end of all.
func (m *machine) end(e Ending) {
	select {
	case m.ends <- e:
	default: // it is asked for twice already
	}
}

// loadModules loads modules by name and for the devices that there are, and from then on for those that come: from where modules are now.
func (m *machine) loadModules(names []string) error {
	m.plugs()
	ctx, stop := context.WithCancel(context.Background())
	m.plugs = stop
	events, err := uevent.Listen() // before devices are looked at, so that none is missed
	if err != nil {
		return err
	}
	mods, err := openModules(m.log)
	if err != nil {
		events.Close()
		return err
	}
	if err := serveModprobe(); err != nil {
		m.log.Warn("modules that the kernel asks for are not loaded", "err", err)
	}
	err = mods.coldplug("/sys")
	mods.loadAll(names...)
	m.modules = mods
	go func() {
		if err := mods.hotplug(ctx, events); err != nil {
			m.log.Error("devices that come are not seen", "err", err)
		}
	}()
	return err
}

// watchdog feeds the machine's watchdog, if there is one.
func (m *machine) watchdog(ctx context.Context) {
	const device = "/dev/watchdog"
	for range 30 { // its driver may be loaded later
		w, err := watchdog.Open(device)
		if err == nil {
			m.log.Info("watchdog is on")
			if err := feed(ctx, w, feedEvery, func() bool { return m.late.Err() == nil }); err != nil {
				m.log.Error("watchdog", "err", err)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
	m.log.Info("there is no watchdog")
}

// prepareState mounts the state, or has it in RAM and says so on the screen. An ending is known then if somebody wants one.
func (m *machine) prepareState() (ending Ending, known bool) {
	for {
		problem, err := m.mountState()
		if device, err := mountGuests(); err == nil {
			m.log.Info("guests come along", "device", device)
		} else if !errors.Is(err, errNoGuests) {
			problem = errors.Join(problem, err)
		}
		if err == nil {
			err = seed(m.log, m.cfg.Definitions, filepath.Join(SystemDir, m.cfg.Definitions), filepath.Join(GuestsDir, GuestDefinitions))
		}
		if err == nil {
			err = m.journal.keep(filepath.Join(logDir, "lodge.log"))
		}
		if err = errors.Join(problem, err); err == nil {
			return 0, false
		}
		m.log.Error("state", "err", err)
		select {
		case e := <-m.ends:
			return e, true
		default:
		}
		switch m.emergency(err) {
		case GoOn:
			return 0, false
		case ChooseReboot:
			return Reboot, true
		case ChoosePowerOff:
			return PowerOff, true
		case Retry:
			if err := errors.Join(m.journal.close(), unmountState()); err != nil {
				m.log.Error("state", "err", err)
			}
		}
	}
}

// mountState mounts the state partition, which it makes if the machine has none, or has the state in RAM for the reason problem.
func (m *machine) mountState() (problem, err error) {
	device, kind, err := awaitState(time.Now().Add(stateLimit))
	if errors.Is(err, ErrNoState) {
		format, made := m.mke2fs, "ext4"
		if m.encrypts() {
			format, made = m.makeVault, kindLUKS
		}
		if device, err = makeState(parameter(m.cmdline, "lodge.state"), format); err == nil {
			kind = made
			m.log.Info("state partition is made", "device", device, "kind", kind)
		}
	}
	switch {
	case err != nil:
	case kind == kindLUKS:
		device, kind, err = m.openVault(device)
	case m.encrypts():
		err = fmt.Errorf("the file system labelled %s on %s is not encrypted, which this image wants it to be: relabel it, and copy what is needed from it to the one that the next start makes, or build the image without --encrypt",
			StateLabel, device)
	}
	if err == nil {
		m.modules.loadAll("crc32c_generic") // the kernel would ask for both itself, which takes longer
		m.modules.loadAll(kind)
		if problem, err = mountState(device, kind); err == nil {
			m.log.Info("state", "device", device, "kind", kind, "writable", problem == nil)
			return problem, nil
		}
	}
	return fmt.Errorf("the state is kept in RAM, and lost at the end: %w", err), ramState()
}

// parameter returns the value of a parameter of the kernel's, "" if it is not there.
func parameter(cmdline, name string) (value string) {
	for _, w := range strings.Fields(cmdline) {
		if v, ok := strings.CutPrefix(w, name+"="); ok {
			value = v
		}
	}
	return value
}

func (m *machine) mke2fs(device string) error {
	return m.reaper.runProgram(context.Background(), m.journal, "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-L", StateLabel, device)
}

// emergency shows what is wrong on the kernel's console.
func (m *machine) emergency(problem error) Choice {
	s, done, err := consolePage()
	if err != nil {
		m.log.Error("nobody can be told", "err", err)
		return GoOn
	}
	defer done()
	p := &page{problem: problem.Error(), log: m.journal.last, until: time.Now().Add(problemLimit)}
	return p.show(context.Background(), s)
}

// wait waits until somebody wants the machine to end.
func (m *machine) wait() Ending {
	for {
		select {
		case e := <-m.ends:
			return e
		case err := <-m.trouble:
			switch m.emergency(err) {
			case ChooseReboot:
				return Reboot
			case ChoosePowerOff:
				return PowerOff
			}
		}
	}
}

// shutdown ends everything, in the order in which it needs each other. When it is asked for once more, guests are waited for no
// longer.
func (m *machine) shutdown(e Ending, stop func(), services *sync.WaitGroup) {
	m.log.Info("shutdown", "ending", e.String())
	steps := []step{
		{"guests", guestsLimit, func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() {
				select {
				case <-m.ends:
					cancel()
				case <-ctx.Done():
				}
			}()
			return m.reaper.runProgram(ctx, m.journal, m.cfg.StopGuests...)
		}},
		{"services", serviceLimit, func(context.Context) error { stop(); services.Wait(); return nil }},
		{"processes", remainLimit + time.Second, killRest},
		{"disks", diskLimit, func(context.Context) error {
			err := m.journal.close()
			unix.Sync()
			return errors.Join(err, unmountState())
		}},
	}
	total := remainLimit
	for _, s := range steps {
		total += s.limit
	}
	time.AfterFunc(total, m.giveUp)
	perform(steps, m.log)
}
