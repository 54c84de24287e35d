package api

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/godbus/dbus/v5"
)

// Caller is who asks for something.
type Caller struct {
	Conn        *dbus.Conn // the bus
	Name        string     // unique on it
	UID         uint32
	Interactive bool // may be asked for a password
}

// Authorizer decides who may do what.
type Authorizer interface {
	// Allow returns nil if the caller may, else an error that says why not.
	Allow(ctx context.Context, c Caller, a Action, details map[string]string) error
	// Changed calls f whenever the answers may be others than before. It returns when that is arranged, until ctx ends.
	Changed(ctx context.Context, conn *dbus.Conn, f func()) error
}

// Owner allows everything to the user whose process this is and to root, and nothing to others. It is for buses without polkit.
type Owner struct{}

// Allow implements Authorizer.
func (Owner) Allow(_ context.Context, c Caller, a Action, _ map[string]string) error {
	if c.UID == 0 || int(c.UID) == os.Getuid() {
		return nil
	}
	return fmt.Errorf("%w: %s is for the user whose manager this is", errDenied, a)
}

// Changed implements Authorizer: the answers stay.
func (Owner) Changed(context.Context, *dbus.Conn, func()) error { return nil }

// Polkit asks polkit, which is to be on the same bus as the callers.
type Polkit struct{}

// polkit's D-Bus API.
const (
	polkitName      = "org.freedesktop.PolicyKit1"
	polkitPath      = "/org/freedesktop/PolicyKit1/Authority"
	polkitInterface = polkitName + ".Authority"
	allowInteract   = 1 // CheckAuthorizationFlags
)

type polkitSubject struct {
	Kind    string
	Details map[string]dbus.Variant
}

type polkitResult struct {
	Authorized, Challenge bool
	Details               map[string]string
}

// Allow implements Authorizer.
func (Polkit) Allow(ctx context.Context, c Caller, a Action, details map[string]string) error {
	subject := polkitSubject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(c.Name)}}
	var flags uint32
	if c.Interactive {
		flags = allowInteract
	}
	if details == nil {
		details = map[string]string{}
	}
	var r polkitResult
	err := c.Conn.Object(polkitName, polkitPath).
		CallWithContext(ctx, polkitInterface+".CheckAuthorization", 0, subject, string(a), details, flags, "").Store(&r)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%w: nobody has answered the question for a password", errDenied)
	case err != nil:
		return fmt.Errorf("%w: polkit: %w", errDenied, err)
	case r.Authorized:
		return nil
	case r.Challenge && !c.Interactive:
		return fmt.Errorf("%w: %s", errInteractive, a)
	}
	return fmt.Errorf("%w: polkit refuses %s: sit at the machine, or have the administrator add you to the group lodge",
		errDenied, a)
}

// Changed implements Authorizer: polkit says so when its rules change, and when sessions come, go, or are switched.
func (Polkit) Changed(ctx context.Context, conn *dbus.Conn, f func()) error {
	err := conn.AddMatchSignalContext(ctx, dbus.WithMatchSender(polkitName), dbus.WithMatchInterface(polkitInterface),
		dbus.WithMatchMember("Changed"))
	if err != nil {
		return fmt.Errorf("polkit: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	go func() {
		defer conn.RemoveSignal(signals)
		for {
			select {
			case s, ok := <-signals:
				if !ok {
					return
				}
				if s.Name == polkitInterface+".Changed" {
					f()
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return nil
}
