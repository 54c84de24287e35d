package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// Event is a signal of the manager.
type Event struct {
	Name   string // such as "StateChanged", docs/api
	Object Object // what it is about
	// Of "GuestAdded" and "GuestRemoved", and the same of pools and networks, Object has the name; of "StateChanged" State and Text, the
	// note; of "Step" Text; of "Log" Text is the log's name and Data what was written to it; of "Ended" State and Text, the
	// message; of "SpaceChanged" Text is the level.
	State, Text string
	Data        []byte
}

// signalQueue is how many signals wait for f of Watch before the D-Bus library keeps them itself.
const signalQueue = 256

// Watch subscribes to all events and calls f for each, until ctx ends or f returns an error, which it returns. Once it has
// subscribed, it calls f with an empty Event: what is asked for from then on is no older than the events. Each Client watches
// once at a time.
func (c *Client) Watch(ctx context.Context, f func(Event) error) error {
	return c.listen(ctx, func() error { return c.call(ctx, ManagerPath, ManagerInterface, "Subscribe", nil) }, f)
}

// FollowLog calls f with what is written to a guest's log from now on, until ctx ends or f returns an error.
func (c *Client) FollowLog(ctx context.Context, guest, log string, f func(b []byte) error) error {
	return c.listen(ctx, func() error { return c.guestCall(ctx, guest, "FollowLog", []any{log}) }, func(e Event) error {
		switch {
		case e.Name == "Log" && e.Object.Guest == guest && e.Text == log:
			return f(e.Data)
		case e.Name == "Unsubscribed":
			return &Error{ErrNotAuthorized.Name, e.Text}
		}
		return nil
	})
}

func (c *Client) listen(ctx context.Context, subscribe func() error, f func(Event) error) error {
	signals := make(chan *dbus.Signal, signalQueue)
	c.conn.Signal(signals)
	defer c.conn.RemoveSignal(signals)
	var owner string
	if err := c.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, BusName).Store(&owner); err != nil {
		return apiError(err)
	}
	gone := []dbus.MatchOption{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
		dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, BusName)}
	if err := c.conn.AddMatchSignalContext(ctx, gone...); err != nil {
		return apiError(err)
	}
	defer c.conn.RemoveMatchSignal(gone...) //nolint:errcheck // the bus drops it with the connection
	if err := subscribe(); err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = c.call(end, ManagerPath, ManagerInterface, "Unsubscribe", nil) // the manager notices it anyhow when we leave
	}()
	if err := f(Event{}); err != nil {
		return err
	}
	for {
		select {
		case s, ok := <-signals:
			switch {
			case !ok || s.Sender == "org.freedesktop.DBus" && s.Name == "org.freedesktop.DBus.NameOwnerChanged" && s.Body[0] == BusName:
				return fmt.Errorf("%w: it has ended", ErrNoManager)
			case s.Sender == owner:
				if err := f(event(s)); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// event is a signal as an Event.
func event(s *dbus.Signal) Event {
	e := Event{Name: s.Name[strings.LastIndexByte(s.Name, '.')+1:]}
	e.Object, _ = ParsePath(s.Path)
	str := func(n int) string {
		if n >= len(s.Body) {
			return ""
		}
		v, _ := s.Body[n].(string)
		return v
	}
	switch e.Name {
	case "GuestAdded", "GuestRemoved":
		e.Object.Guest = str(1)
	case "PoolAdded", "PoolRemoved":
		e.Object.Pool = str(1)
	case "SpaceChanged":
		e.Text = str(0)
	case "NetworkAdded", "NetworkRemoved":
		e.Object.Network = str(1)
	case "JobAdded":
		if len(s.Body) > 0 {
			path, _ := s.Body[0].(dbus.ObjectPath)
			e.Object, _ = ParsePath(path)
		}
	case "StateChanged":
		e.State, e.Text = str(0), str(1)
	case "Ended":
		e.State, e.Text = str(0), str(2)
	case "Step", "Unsubscribed":
		e.Text = str(0)
	case "Log":
		e.Text = str(0)
		if len(s.Body) > 1 {
			e.Data, _ = s.Body[1].([]byte)
		}
	}
	return e
}

// errEnded ends a Watch.
var errEnded = errors.New("the job has ended")

// Do calls begin, which begins a job, and waits for its end. progress, which may be nil, is told how far the job is, and step
// what is done to its guest, for people. If ctx ends before the job, the job is cancelled and Do waits for that. The error is the
// job's.
func (c *Client) Do(
	ctx context.Context, begin func(ctx context.Context) (job uint64, err error), progress func(Job), step func(text string),
) (j Job, err error) {
	var id uint64
	watch, stop := context.WithCancel(context.WithoutCancel(ctx)) // the end of a job that is cancelled is waited for
	defer stop()
	look := func() error {
		if j, err = c.Job(watch, id); err != nil {
			return err
		}
		if progress != nil {
			progress(j)
		}
		if j.State != "running" {
			return errEnded
		}
		return nil
	}
	err = c.Watch(watch, func(e Event) error {
		switch {
		case e.Name == "":
			if id, err = begin(ctx); err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { _ = c.Cancel(watch, id) }) // a job that has ended meanwhile is as good
			return look()
		case e.Name == "Step" && step != nil && e.Object.Guest == j.Object:
			step(e.Text)
		case e.Object.Job == id || e.Name == "Resync":
			return look()
		case e.Name == "Unsubscribed":
			return &Error{ErrNotAuthorized.Name, e.Text}
		}
		return nil
	})
	if errors.Is(err, errEnded) {
		err = j.Err
		if j.State == "cancelled" {
			err = context.Canceled
		}
	}
	return j, err
}
