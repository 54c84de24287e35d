package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lodgehv/lodge/internal/doctor"
)

type doctorCommand struct {
	JSON     bool   `name:"json" help:"Print for programs."`
	StateDir string `default:"/var/lib/lodge" placeholder:"DIR" help:"Where lodged keeps guests."`
	Root     string `hidden:"" help:"Look at the machine whose files are here."`
}

// Run says what this machine can do for guests.
func (c *doctorCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	list := examine(ctx, m, c.Root, c.StateDir)
	if c.JSON {
		if err := asJSON(out, list); err != nil {
			return err
		}
	} else if err := diagnosis(out, list); err != nil {
		return err
	}
	for _, k := range list {
		if k.Needed && k.State == doctor.Lack {
			return errors.New("guests cannot run here")
		}
	}
	return nil
}

func examine(ctx context.Context, m *manageCommands, root, stateDir string) []doctor.Check {
	h := doctor.Host{Root: root, StateDir: stateDir, Manager: func(ctx context.Context) (string, error) {
		k, err := m.dial(ctx)
		if err != nil {
			return "", err
		}
		defer k.Close()
		return k.Version(ctx)
	}}
	return h.Examine(ctx)
}

// diagnosis prints what was found for people: a table, and below it what to do.
func diagnosis(out io.Writer, list []doctor.Check) error {
	rows := [][]string{{"WHAT", "STATE", "SEEN"}}
	for _, k := range list {
		rows = append(rows, []string{k.Name, string(k.State), printable(k.Seen)})
	}
	if err := table(out, rows); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, k := range list {
		if k.Do != "" {
			fmt.Fprintf(out, "%s: %s.\n", k.Name, k.Do)
		}
	}
	return nil
}
