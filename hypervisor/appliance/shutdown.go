package appliance

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Ending is what becomes of the machine.
type Ending int

// The endings.
const (
	PowerOff Ending = iota
	Reboot
)

func (e Ending) String() string {
	if e == Reboot {
		return "reboot"
	}
	return "power off"
}

// command is that of reboot(2).
func (e Ending) command() int {
	if e == Reboot {
		return unix.LINUX_REBOOT_CMD_RESTART
	}
	return unix.LINUX_REBOOT_CMD_POWER_OFF
}

// Bounds of the parts of a shutdown.
const (
	guestsLimit  = 75 * time.Second // a guest has a minute from its power button on, unless its definition says otherwise
	serviceLimit = 2*stopLimit + time.Second
	remainLimit  = 2 * time.Second // for what else runs, from SIGTERM to SIGKILL
	diskLimit    = 20 * time.Second
)

// step is a part of a shutdown. It may take no longer than limit: then the next one begins, whether it has ended or not.
type step struct {
	name  string
	limit time.Duration
	do    func(ctx context.Context) error
}

// perform does steps one after the other, and goes on after errors.
func perform(steps []step, log *slog.Logger) {
	for _, s := range steps {
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), s.limit)
		end := make(chan error, 1)
		go func() { end <- s.do(ctx) }()
		select {
		case err := <-end:
			if err != nil {
				log.Error("shutdown", "step", s.name, "err", err)
			}
		case <-ctx.Done():
			log.Error("shutdown: has not ended in time: goes on without", "step", s.name, "limit", s.limit)
		}
		cancel()
		log.Info("shutdown", "step", s.name, "took", time.Since(began).Round(time.Millisecond))
	}
}

// killRest ends all other processes: SIGTERM, and SIGKILL a little later.
func killRest(ctx context.Context) error {
	if err := unix.Kill(-1, unix.SIGTERM); errors.Is(err, unix.ESRCH) {
		return nil
	}
	for deadline := time.Now().Add(remainLimit); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if others() == 0 {
			return nil
		}
	}
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// others returns how many other processes there are that are programs: the kernel's threads have no memory, so no command line.
func others() (n int) {
	dirs, err := fs.Glob(os.DirFS("/proc"), "[0-9]*")
	if err != nil {
		return 0
	}
	for _, d := range dirs {
		if b, err := os.ReadFile("/proc/" + d + "/cmdline"); d != "1" && err == nil && len(b) > 0 {
			n++
		}
	}
	return n
}
