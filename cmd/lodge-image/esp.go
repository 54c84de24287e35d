package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lodgehv/lodge/hypervisor/bootimage"
)

// target is the ESP of a command.
type target struct {
	Target string `arg:"" help:"The directory where the ESP is mounted, or a disk image or block device that is not mounted."`
}

// with calls do with the ESP.
func (t *target) with(do func(esp bootimage.ESP) error) error {
	esp, err := bootimage.OpenESP(t.Target)
	if err != nil {
		return err
	}
	return errors.Join(do(esp), esp.Close())
}

// installCommand is the command "install".
type installCommand struct {
	target
	From  string `required:"" placeholder:"DIR" help:"What lodge-image build has made."`
	Erase bool   `help:"The target is a block device or an image file: erase it and make it Lodge's."`
	ESP   int64  `name:"esp" default:"128" placeholder:"MIB" help:"With --erase: size of the ESP in MiB, 64 to 4096."`
}

// Run installs.
func (c *installCommand) Run(_ context.Context, out io.Writer) error {
	release, err := readRelease(filepath.Join(c.From, fileUKI))
	if err != nil {
		return err
	}
	manager, err := os.ReadFile(filepath.Join(c.From, fileManager))
	if err != nil {
		return err
	}
	if c.Erase {
		err = c.erase(manager, release)
	} else {
		err = c.with(func(esp bootimage.ESP) error { return bootimage.Install(esp, manager, release) })
	}
	if err == nil {
		fmt.Fprintf(out, "%s: installed\n", c.Target)
	}
	return err
}

// erase makes the target a disk of Lodge's.
func (c *installCommand) erase(manager []byte, release bootimage.Release) error {
	st, err := os.Stat(c.Target)
	if err != nil {
		return err
	}
	if st.IsDir() {
		return fmt.Errorf("%s is a directory: --erase is for disks", c.Target)
	}
	// Of a block device that is in use, the kernel refuses it.
	f, err := os.OpenFile(c.Target, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return err
	}
	content := bootimage.Content{ESP: c.ESP << 20, Manager: manager, Release: release}
	guests, done, err := openGuests(c.From)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	defer done()
	content.Guests = guests
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = bootimage.WriteDisk(f, size, content)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", c.Target, err)
	}
	return errors.Join(err, f.Close())
}

// updateCommand is the command "update".
type updateCommand struct {
	target
	UKI   string `arg:"" help:"The new UKI, lodge.efi of a build, with system.img beside it."`
	Tries int    `default:"3" help:"How often it may fail to come up before the other one is started, 1 to 9."`
}

// Run updates.
func (c *updateCommand) Run(_ context.Context, out io.Writer) error {
	release, err := readRelease(c.UKI)
	if err != nil {
		return err
	}
	return c.with(func(esp bootimage.ESP) error {
		s, err := bootimage.Update(esp, release, c.Tries)
		if err == nil {
			fmt.Fprintf(out, "slot %s\n", describe(s))
		}
		return err
	})
}

// rollbackCommand is the command "rollback".
type rollbackCommand struct{ target }

// Run rolls back.
func (c *rollbackCommand) Run(_ context.Context, out io.Writer) error {
	return c.with(func(esp bootimage.ESP) error {
		s, err := bootimage.Rollback(esp)
		if err == nil {
			fmt.Fprintf(out, "slot %d starts next\n", s.Generation)
		}
		return err
	})
}

// goodCommand is the command "good".
type goodCommand struct {
	target
	Variables string `default:"/sys/firmware/efi/efivars" help:"Where efivarfs is mounted."`
}

// Run marks the slot that runs.
func (c *goodCommand) Run(_ context.Context, out io.Writer) error {
	running, err := bootimage.RunningSlot(c.Variables)
	if err != nil {
		return err
	}
	return c.with(func(esp bootimage.ESP) error {
		s, err := bootimage.MarkGood(esp, running)
		if err == nil {
			fmt.Fprintf(out, "slot %s\n", describe(s))
		}
		return err
	})
}

// statusCommand is the command "status".
type statusCommand struct{ target }

// Run lists the slots.
func (c *statusCommand) Run(_ context.Context, out io.Writer) error {
	return c.with(func(esp bootimage.ESP) error {
		slots, err := bootimage.Slots(esp)
		for _, s := range slots {
			fmt.Fprintf(out, "slot %s\n", describe(s))
		}
		return err
	})
}

// describe says what a slot is.
func describe(s bootimage.Slot) string {
	switch {
	case s.Good:
		return fmt.Sprintf("%d: has come up", s.Generation)
	case s.Failed():
		return fmt.Sprintf("%d: given up", s.Generation)
	}
	return fmt.Sprintf("%d: to be tried, %d times at most", s.Generation, s.Left)
}
