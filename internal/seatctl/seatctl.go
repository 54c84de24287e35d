// Package seatctl is the control socket of lodge-seat, both ends of it: JSON lines as hypervisor/control has them. docs/seat.md
// lists the methods.
package seatctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/lodgehv/lodge/hypervisor/control"
)

// Seat is what a control socket commands.
type Seat interface {
	// Focus returns the name of the guest that has screen and keyboard, "Lodge" if it is the seat's own console.
	Focus() string
	// SetFocus gives them to a guest that is there.
	SetFocus(name string) error
	// Each calls f for each guest, in the order of the seat's file.
	Each(f func(name string, slot int, there bool))
}

// Status is the result of the method "status".
type Status struct {
	Focus  string  `json:"focus"`
	Guests []Guest `json:"guests"`
}

// Guest is a guest of the seat.
type Guest struct {
	Name  string `json:"name"`
	Slot  int    `json:"slot"`
	There bool   `json:"there"` // it has a picture
}

// focusParams are the parameters of the method "focus".
type focusParams struct {
	Name string `json:"name"`
}

// Methods returns what the control socket of s offers.
func Methods(s Seat) map[string]control.Handler {
	return map[string]control.Handler{
		"status": func(_ context.Context, c *control.Call) (any, error) {
			if err := c.Params(&struct{}{}); err != nil {
				return nil, err
			}
			st := Status{Focus: s.Focus()}
			s.Each(func(name string, slot int, there bool) { st.Guests = append(st.Guests, Guest{name, slot, there}) })
			return st, nil
		},
		"focus": func(_ context.Context, c *control.Call) (any, error) {
			var p focusParams
			if err := c.Params(&p); err != nil {
				return nil, err
			}
			if p.Name == "" {
				return nil, &control.Error{Code: control.CodeBadRequest, Message: "focus: name is missing: which guest is to have the screen"}
			}
			return nil, s.SetFocus(p.Name)
		},
	}
}

// ErrNone says that nobody serves the socket.
var ErrNone = errors.New("no seat is there: start lodge-seat")

// Look asks the seat at path for its status.
func Look(ctx context.Context, path string) (Status, error) {
	var st Status
	return st, call(ctx, path, "status", nil, &st)
}

// Focus asks the seat at path to give screen and keyboard to a guest.
func Focus(ctx context.Context, path, name string) error {
	return call(ctx, path, "focus", focusParams{name}, nil)
}

func call(ctx context.Context, path, method string, params, result any) error {
	c, err := control.Dial(ctx, path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s: %w", path, ErrNone)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, method, params, result, nil)
}
