package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lodgehv/lodge/hypervisor/appliance"
	"github.com/lodgehv/lodge/hypervisor/bootimage"
)

// proving is how long the manager and the seat have to be there, from when this process begins.
const proving = 15 * time.Second

// sayCameUp waits until the machine has come up and says so on its ESP. Whatever keeps it from that is logged: the slot has fewer tries then.
func sayCameUp(ctx context.Context, _ []string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if used, total, err := memoryInUse(); err == nil {
		log.Info("memory in use", "MiB", used>>20, "of", total>>20)
	}
	running, err := bootimage.RunningSlot(appliance.FirmwareVariables)
	if err == nil && running == "" {
		return nil // it has come up before, or there are no slots
	}
	if err == nil {
		err = cameUp(ctx, running)
	}
	if err != nil {
		log.Warn("the slot that runs is not known to come up", "slot", running, "err", err)
		return nil
	}
	log.Info("the slot that runs has come up", "slot", running)
	return nil
}

// memoryInUse returns how much memory is in use, without what can be dropped, and how much there is, bytes: proc(5). It is not what MemAvailable leaves: the kernel
// counts its reserve against that, which is a share of the memory and has nothing in it.
func memoryInUse() (used, total uint64, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	kib := make(map[string]uint64)
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 50); err == nil {
			kib[name] = n
		}
	}
	total, free := kib["MemTotal"]<<10, (kib["MemFree"]+kib["Active(file)"]+kib["Inactive(file)"]+kib["SReclaimable"])<<10
	if total == 0 || free == 0 || free > total {
		return 0, 0, errors.New("/proc/meminfo does not say")
	}
	return total - free, total, nil
}

// cameUp marks the slot whose file is running, once the manager and the seat have answered for a while.
func cameUp(ctx context.Context, running string) error {
	if err := answers(ctx); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(proving):
	}
	if err := answers(ctx); err != nil {
		return err
	}
	seat, err := net.Dial("unix", appliance.SeatControl)
	if err != nil {
		return fmt.Errorf("the seat does not answer: %w", err)
	}
	seat.Close()
	guid, err := bootimage.RunningESP(appliance.FirmwareVariables)
	if err != nil {
		return err
	}
	device, err := appliance.PartitionDevice(guid)
	if err != nil {
		return err
	}
	esp, err := bootimage.OpenOwnESP(device)
	if err != nil {
		return err
	}
	_, err = bootimage.MarkGood(esp, running)
	return errors.Join(err, esp.Close())
}

// answers reports whether the manager does, for which it waits a little.
func answers(ctx context.Context) error {
	c, err := dialManager(ctx)
	if err != nil {
		return fmt.Errorf("the manager does not answer: %w", err)
	}
	c.Close()
	return nil
}
