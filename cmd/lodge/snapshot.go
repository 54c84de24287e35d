package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// snapshotCommands are the group "snapshot".
type snapshotCommands struct {
	Create  snapshotCreateCommand  `cmd:"" help:"Make a snapshot of a guest: of one that runs with its memory, it is paused meanwhile."`
	List    snapshotListCommand    `cmd:"" help:"List the snapshots of a guest."`
	Restore snapshotRestoreCommand `cmd:"" help:"Put a snapshot of a guest back, which is off: what its disks hold now is lost."`
	Delete  snapshotDeleteCommand  `cmd:"" help:"Remove snapshots of a guest."`
	Clone   snapshotCloneCommand   `cmd:"" help:"Make a guest like another was at a snapshot, without its memory."`
	Picture snapshotPictureCommand `cmd:"" help:"Write the picture of a guest's screen at a snapshot to a PNG file."`
}

// snapshotName is the argument of commands for one snapshot.
type snapshotName struct {
	Guest    string `arg:"" help:"Name of the guest."`
	Snapshot string `arg:"" help:"Name of the snapshot."`
}

type snapshotCreateCommand struct {
	snapshotName
	Disks bool `help:"Leave the memory out: the guest is paused for milliseconds where the file system has reflinks."`
}

// Run makes a snapshot.
func (c *snapshotCreateCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	begin := k.Snapshot
	if c.Disks {
		begin = k.SnapshotDisks
	}
	return await(ctx, k, out, func(ctx context.Context) (uint64, error) { return begin(ctx, c.Guest, c.Snapshot) })
}

type snapshotListCommand struct {
	Guest string `arg:"" help:"Name of the guest."`
	JSON  bool   `name:"json" help:"Print for programs."`
}

// Run lists snapshots.
func (c *snapshotListCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	list, err := k.Snapshots(ctx, c.Guest)
	if err != nil {
		return err
	}
	if c.JSON {
		return asJSON(out, list)
	}
	rows := [][]string{{"SNAPSHOT", "MADE", "MEMORY", "TAKEN", "DISKS"}}
	for _, s := range list {
		memory := "no"
		if s.Memory {
			memory = "yes"
		}
		rows = append(rows, []string{s.Name, s.Created.Format("2006-01-02 15:04:05"), memory, size(s.Size), strings.Join(s.Disks, " ")})
	}
	return table(out, rows)
}

type snapshotRestoreCommand struct {
	snapshotName
	Cold bool `help:"Leave the snapshot's memory out: the guest boots from the disks as they were."`
}

// Run puts a snapshot back.
func (c *snapshotRestoreCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	return putBack(ctx, k, out, c.Guest, c.Snapshot, c.Cold)
}

// putBack puts a snapshot back, with memory if it has some and cold is not set.
func putBack(ctx context.Context, k *client.Client, out io.Writer, guest, snapshot string, cold bool) error {
	list, err := k.Snapshots(ctx, guest)
	if err != nil {
		return err
	}
	memory := slices.ContainsFunc(list, func(s client.Snapshot) bool { return s.Name == snapshot && s.Memory }) && !cold
	err = await(ctx, k, out, func(ctx context.Context) (uint64, error) { return k.RestoreSnapshot(ctx, guest, snapshot, memory) })
	if err == nil && memory {
		fmt.Fprintf(out, "guest %s goes on from there when it is started\n", guest)
	}
	return err
}

type snapshotDeleteCommand struct {
	Guest     string   `arg:"" help:"Name of the guest."`
	Snapshots []string `arg:"" name:"snapshot" help:"Names of snapshots."`
}

// Run removes snapshots, the later ones also if one fails.
func (c *snapshotDeleteCommand) Run(ctx context.Context, m *manageCommands) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	var errs []error
	for _, s := range c.Snapshots {
		errs = append(errs, k.DeleteSnapshot(ctx, c.Guest, s))
	}
	return errors.Join(errs...)
}

type snapshotCloneCommand struct {
	snapshotName
	Name string `arg:"" help:"Name of the new guest."`
}

// Run makes a guest of a snapshot.
func (c *snapshotCloneCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	return (&cloneCommand{Guest: c.Guest, Name: c.Name, Snapshot: c.Snapshot}).Run(ctx, m, out)
}

type snapshotPictureCommand struct {
	snapshotName
	File string `arg:"" help:"The file to make."`
}

// Run writes a picture.
func (c *snapshotPictureCommand) Run(ctx context.Context, m *manageCommands) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	png, err := k.SnapshotPicture(ctx, c.Guest, c.Snapshot)
	if err != nil {
		return err
	}
	return os.WriteFile(c.File, png, 0o600)
}
