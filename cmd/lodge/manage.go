package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
	"unicode"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
)

// manageCommands are those that ask the manager, lodged, over its D-Bus API.
type manageCommands struct {
	Bus string `env:"LODGE_BUS" default:"system" placeholder:"BUS" help:"Where lodged is: system, session, or the address of a bus."`

	List    listCommand    `cmd:"" help:"List the guests."`
	Start   startCommand   `cmd:"" help:"Start guests, from their saved states if there are any."`
	Stop    stopCommand    `cmd:"" help:"Press guests' power buttons, and switch off what has not ended in time."`
	Reboot  rebootCommand  `cmd:"" help:"Stop guests and start them again."`
	Pause   pauseCommand   `cmd:"" help:"Stop guests where they are."`
	Resume  resumeCommand  `cmd:"" help:"Let paused guests run on."`
	Save    saveCommand    `cmd:"" help:"Save guests with their memory, and end them: the next start goes on from there."`
	Restore restoreCommand `cmd:"" help:"Put a snapshot of a guest back; without one, start the guest from its saved state."`
	Switch  switchCommand  `cmd:"" help:"Give screen and keyboard to a guest."`
	Clone   cloneCommand   `cmd:"" help:"Make a guest like another, with copies of its disks."`
	Import  importCommand  `cmd:"" help:"Make an image in a pool of a disk image, or a guest of an OVA."`
	Export  exportCommand  `cmd:"" help:"Write a guest as an OVA, or an image as raw, qcow2, VMDK or OVA."`
	Define  defineCommand  `cmd:"" help:"Add a guest, or several, from files."`
	Edit    editCommand    `cmd:"" help:"Change a guest's definition in the editor of VISUAL or EDITOR."`
	Delete  deleteCommand  `cmd:"" help:"Remove guests with their saved states, snapshots and logs. Disks stay."`
	Logs    logsCommand    `cmd:"" help:"Print a guest's log: what it prints on its first serial port, or what its machine reports."`
	Stats   statsCommand   `cmd:"" help:"Tell what a guest uses."`
	Top     topCommand     `cmd:"" help:"Tell what all guests use, again and again."`

	Snapshot snapshotCommands `cmd:"" help:"Snapshots of guests."`
	Pool     poolCommands     `cmd:"" help:"Pools of images."`
	Image    imageCommands    `cmd:"" help:"Images of pools."`
	Net      netCommands      `cmd:"" help:"Networks of guests."`

	Version versionCommand `cmd:"" help:"Print the versions of this program and of lodged."`
}

// Exit statuses, beside those of main.go.
const (
	exitNotFound      = 3 // no such guest, job or snapshot
	exitNotAuthorized = 4 // polkit refuses
	exitNotNow        = 5 // the guest's state does not allow that, or it is busy
	exitNoManager     = 6 // lodged does not answer
	exitCancelled     = 7 // the user has cancelled it
	exitNoSpace       = 8 // not enough space
)

// exitStatus returns what a command that failed exits with.
func exitStatus(err error) int {
	for _, s := range []struct {
		err    error
		status int
	}{
		{client.ErrNotFound, exitNotFound}, {client.ErrNotAuthorized, exitNotAuthorized}, {client.ErrNotNow, exitNotNow},
		{client.ErrBusy, exitNotNow}, {client.ErrNoManager, exitNoManager},
		{errCancelled, exitCancelled}, {client.ErrNoSpace, exitNoSpace},
	} {
		if errors.Is(err, s.err) {
			return s.status
		}
	}
	return exitError
}

// dial connects to lodged.
func (m *manageCommands) dial(ctx context.Context) (*client.Client, error) {
	c, err := client.Dial(ctx, m.Bus)
	if err == nil {
		c.Interactive = true
	}
	return c, err
}

// guestNames is the argument of commands for one guest or several.
type guestNames struct {
	Guests []string `arg:"" name:"guest" help:"Names of guests."`
}

// each carries something out for each guest, the later ones also if one fails.
func (n *guestNames) each(ctx context.Context, m *manageCommands, f func(c *client.Client, guest string) error) error {
	c, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	var errs []error
	for _, guest := range n.Guests {
		errs = append(errs, f(c, guest))
	}
	return errors.Join(errs...)
}

// jobs does it with commands that begin jobs, and waits for them. What is done is told on out. Ctrl-C cancels.
func (n *guestNames) jobs(
	ctx context.Context, m *manageCommands, out io.Writer,
	begin func(c *client.Client) func(ctx context.Context, guest string) (uint64, error),
) error {
	return n.each(ctx, m, func(c *client.Client, guest string) error {
		return await(ctx, c, out, func(ctx context.Context) (uint64, error) { return begin(c)(ctx, guest) })
	})
}

type startCommand struct {
	guestNames
	Key map[string]string `placeholder:"DISK=FILE" help:"File that has the key of an encrypted disk, for one that is not asked for on the terminal."`
}

// Run starts guests.
func (c *startCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	return c.each(ctx, m, func(k *client.Client, guest string) error {
		if err := giveKeys(ctx, k, guest, c.Key); err != nil {
			return err
		}
		return await(ctx, k, out, func(ctx context.Context) (uint64, error) { return k.Start(ctx, guest) })
	})
}

type stopCommand struct {
	Guests []string `arg:"" optional:"" name:"guest" help:"Names of guests."`
	All    bool     `help:"All guests, in the order in which they need each other."`
	Now    bool     `help:"Switch them off at once, as by pulling the plug."`
}

// Run stops guests.
func (c *stopCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	if c.All != (len(c.Guests) == 0) {
		return errors.New("name guests, or give --all")
	}
	if c.All {
		k, err := m.dial(ctx)
		if err != nil {
			return err
		}
		defer k.Close()
		if !c.Now {
			return await(ctx, k, out, k.StopAll)
		}
		guests, err := k.Guests(ctx)
		if err != nil {
			return err
		}
		for _, g := range guests {
			switch life.State(g.State) {
			case life.Defined, life.Saved, life.Crashed: // off
			default:
				c.Guests = append(c.Guests, g.Name)
			}
		}
	}
	names := guestNames{c.Guests}
	return names.jobs(ctx, m, out, func(k *client.Client) func(context.Context, string) (uint64, error) {
		if c.Now {
			return k.Kill
		}
		return k.Stop
	})
}

type rebootCommand struct{ guestNames }

// Run reboots guests.
func (c *rebootCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	return c.jobs(ctx, m, out, func(c *client.Client) func(context.Context, string) (uint64, error) { return c.Reboot })
}

type saveCommand struct{ guestNames }

// Run saves guests.
func (c *saveCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	return c.jobs(ctx, m, out, func(c *client.Client) func(context.Context, string) (uint64, error) { return c.Save })
}

type pauseCommand struct{ guestNames }

// Run pauses guests.
func (c *pauseCommand) Run(ctx context.Context, m *manageCommands) error {
	return c.each(ctx, m, func(c *client.Client, guest string) error { return c.Pause(ctx, guest) })
}

type resumeCommand struct{ guestNames }

// Run lets guests run on.
func (c *resumeCommand) Run(ctx context.Context, m *manageCommands) error {
	return c.each(ctx, m, func(c *client.Client, guest string) error { return c.Resume(ctx, guest) })
}

type switchCommand struct {
	Guest string `arg:"" help:"Name of the guest."`
}

// Run has the seat show a guest.
func (c *switchCommand) Run(ctx context.Context, m *manageCommands) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	return k.Switch(ctx, c.Guest)
}

type restoreCommand struct {
	Guest    string `arg:"" help:"Name of the guest."`
	Snapshot string `arg:"" optional:"" help:"Name of the snapshot."`
	Cold     bool   `help:"Leave the snapshot's memory out: the guest boots from the disks as they were."`
}

// Run restores a guest.
func (c *restoreCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	if c.Snapshot != "" {
		return putBack(ctx, k, out, c.Guest, c.Snapshot, c.Cold)
	}
	g, err := k.Guest(ctx, c.Guest)
	if err != nil {
		return err
	}
	if g.SavedAt.IsZero() {
		return fmt.Errorf("guest %s has no saved state: name a snapshot, or start it", c.Guest)
	}
	if err := giveKeys(ctx, k, c.Guest, nil); err != nil {
		return err
	}
	return await(ctx, k, out, func(ctx context.Context) (uint64, error) { return k.Start(ctx, c.Guest) })
}

type defineCommand struct {
	Files []string `arg:"" name:"file" help:"Definitions, lodge-guest(5); - is the standard input."`
}

// maxDefinition bounds what is read of a file, in bytes. The manager says what is too long.
const maxDefinition = 2 << 20

// Run adds guests.
func (c *defineCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	return m.defineFiles(ctx, c.Files, func(k *client.Client, text string) error {
		name, err := k.Define(ctx, text)
		if err == nil {
			fmt.Fprintf(out, "guest %s is defined\n", name)
		}
		return err
	})
}

// defineFiles calls define for what is in each file. One may need another that is named later: those that fail are tried again
// for as long as others succeed.
func (m *manageCommands) defineFiles(ctx context.Context, files []string, define func(c *client.Client, text string) error) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	var unread []error
	var texts []string
	for _, file := range files {
		text, err := readDefinition(file)
		if err != nil {
			unread = append(unread, err)
			continue
		}
		texts = append(texts, text)
	}
	for {
		var errs []error
		var failed []string
		for _, text := range texts {
			if err := define(k, text); err != nil {
				errs, failed = append(errs, err), append(failed, text)
			}
		}
		if len(failed) == 0 || len(failed) == len(texts) || ctx.Err() != nil {
			return errors.Join(append(unread, errs...)...)
		}
		texts = failed
	}
}

func readDefinition(file string) (string, error) {
	in := io.NopCloser(os.Stdin)
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		in = f
	}
	defer in.Close()
	text, err := io.ReadAll(io.LimitReader(in, maxDefinition))
	return string(text), err
}

type editCommand struct {
	Guest string `arg:"" help:"Name of the guest."`
}

// Run lets the user edit a definition until it is valid, or left as it was.
func (c *editCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	text, tag, err := k.Definition(ctx, c.Guest)
	if err != nil {
		return err
	}
	return editText(ctx, out, "guest "+c.Guest, text, func(edited string) error { return k.SetDefinition(ctx, c.Guest, edited, tag) })
}

// editText lets the user edit a definition until set takes it, or it is left as it was.
func editText(ctx context.Context, out io.Writer, what, text string, set func(edited string) error) error {
	f, err := os.CreateTemp("", "lodge-*.toml")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	editor := os.Getenv("VISUAL")
	if editor == "" {
		editor = os.Getenv("EDITOR")
	}
	if editor == "" {
		editor = "editor"
	}
	for last := text; ; {
		cmd := exec.CommandContext(ctx, "sh", "-c", editor+` "$1"`, "sh", f.Name())
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("editor %s: %w", editor, err)
		}
		b, err := os.ReadFile(f.Name())
		if err != nil {
			return err
		}
		edited := string(b)
		if edited == text {
			fmt.Fprintln(out, "nothing was changed")
			return nil
		}
		err = set(edited)
		if err == nil {
			fmt.Fprintf(out, "%s is changed\n", what)
			return nil
		}
		if !errors.Is(err, client.ErrDefinition) || edited == last { // the user has given up
			return err
		}
		last = edited
		fmt.Fprintf(out, "%s\nEdit it again, or leave it as it is to give up.\n", printable(err.Error()))
		time.Sleep(time.Second) // else the editor covers it before it was seen
	}
}

type deleteCommand struct{ guestNames }

// Run removes guests.
func (c *deleteCommand) Run(ctx context.Context, m *manageCommands) error {
	return c.each(ctx, m, func(c *client.Client, guest string) error { return c.Delete(ctx, guest) })
}

type logsCommand struct {
	Guest  string `arg:"" help:"Name of the guest."`
	Log    string `default:"serial" placeholder:"NAME" help:"serial, what it prints; vmm, what its machine says; serial2; debug."`
	Follow bool   `short:"f" help:"Go on with what is written from now on, until Ctrl-C."`
	Bytes  uint32 `short:"n" default:"16384" placeholder:"N" help:"Begin with the last so many bytes, at most 1 MiB."`
	Raw    bool   `help:"Leave control characters as they are: what a guest prints can then command your terminal."`
}

// Run prints a log.
func (c *logsCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	k, err := m.dial(ctx)
	if err != nil {
		return err
	}
	defer k.Close()
	show := func(b []byte) error {
		if !c.Raw {
			b = bytes.Map(harmless, b)
		}
		_, err := out.Write(b)
		return err
	}
	b, err := k.ReadLog(ctx, c.Guest, c.Log, c.Bytes)
	if err != nil {
		return err
	}
	if err := show(b); err != nil || !c.Follow {
		return err
	}
	return k.FollowLog(ctx, c.Guest, c.Log, show)
}

// harmless replaces what commands a terminal.
func harmless(r rune) rune {
	switch {
	case r == '\n' || r == '\t' || unicode.IsPrint(r):
		return r
	case r == '\r':
		return -1
	}
	return '\uFFFD'
}

// printable is a text of the manager, parts of which may be a guest's, on one terminal or another.
func printable(s string) string { return strings.Map(harmless, s) }
