package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/appliance"
	"github.com/lodgehv/lodge/hypervisor/bootimage"
)

// cameUpFlag has this program say of the slot that the machine was started from that it has come up, once that is so.
const cameUpFlag = "--came-up"

// proving is how long the manager and the seat have to be there.
const proving = 20 * time.Second

const efiVariables = "/sys/firmware/efi/efivars"

// asCameUp waits until the machine has come up and says so on its ESP. Whatever keeps it from that is logged: the slot has fewer tries then.
func asCameUp() error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	// When PID 1 mounted what there is, the kernel had no module for it yet.
	if err := unix.Mount("efivarfs", efiVariables, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		log.Info("no variables of UEFI firmware", "err", err)
		return nil
	}
	running, err := bootimage.RunningSlot(efiVariables)
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

func cameUp(ctx context.Context, running string) error {
	for i := range 2 {
		if i > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(proving):
			}
		}
		c, err := dialManager(ctx)
		if err != nil {
			return fmt.Errorf("the manager does not answer: %w", err)
		}
		c.Close()
	}
	if _, err := os.Stat(seatControl); err != nil {
		return fmt.Errorf("the seat is not there: %w", err)
	}
	guid, err := bootimage.RunningESP(efiVariables)
	if err != nil {
		return err
	}
	device, err := appliance.PartitionDevice(guid)
	if err != nil {
		return err
	}
	esp, err := bootimage.OpenESP(device)
	if err != nil {
		return err
	}
	_, err = bootimage.MarkGood(esp, running)
	return errors.Join(err, esp.Close())
}
