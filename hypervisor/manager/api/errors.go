package api

import (
	"context"
	"errors"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/job"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// Errors of the API itself.
var (
	errDenied      = errors.New("not allowed")
	errInteractive = errors.New("not allowed without a password")
	errTooMany     = errors.New("too many calls at a time: wait for some")
	errNoSeat      = errors.New("there is no seat to show it")
)

// errorNames are the names of errors, behind client.ErrorPrefix. The first that fits counts.
func errorNames() []namedError {
	return append(poolErrors(), []namedError{
		{store.ErrName, "InvalidName"}, {network.ErrName, "InvalidName"},
		{store.ErrNotFound, "NotFound"}, {job.ErrNotFound, "NotFound"}, {manager.ErrNoSnapshot, "NotFound"},
		{network.ErrNotFound, "NotFound"}, {network.ErrNoForward, "NotFound"}, {network.ErrNoRule, "NotFound"},
		{store.ErrExists, "Exists"}, {manager.ErrSnapshotExists, "Exists"}, {network.ErrExists, "Exists"},
		{store.ErrChanged, "Changed"}, {network.ErrChanged, "Changed"},
		{store.ErrNeeded, "Needed"}, {manager.ErrNetworkUsed, "Needed"}, {network.ErrBuiltIn, "Needed"},
		{life.ErrNotNow, "NotNow"},
		{manager.ErrBusy, "Busy"},
		{manager.ErrKey, "KeyNeeded"},
		{manager.ErrNoMemory, "NoMemory"},
		{manager.ErrNoScreen, "NoScreen"},
		{store.ErrTooMany, "TooMany"}, {network.ErrTooMany, "TooMany"}, {job.ErrTooMany, "TooMany"}, {errTooMany, "TooMany"},
		{errDenied, "NotAuthorized"},
		{errNoSeat, "NoSeat"},
		{manager.ErrClosed, "Closing"}, {job.ErrClosed, "Closing"},
		{context.DeadlineExceeded, "Timeout"},
	}...)
}

type namedError struct {
	err  error
	name string
}

// maxErrorText bounds what people are told, in bytes.
const maxErrorText = 8 << 10

// busError is an error as it is sent.
func busError(err error) *dbus.Error {
	var e *dbus.Error
	if errors.As(err, &e) {
		return e
	}
	name := client.ErrorPrefix + errorName(err)
	if errors.Is(err, errInteractive) {
		name = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
	}
	return dbus.NewError(name, []any{text(err.Error(), maxErrorText)})
}

func errorName(err error) string {
	for _, n := range errorNames() {
		if errors.Is(err, n.err) {
			return n.name
		}
	}
	var def *definition.Error
	if errors.As(err, &def) {
		return "InvalidDefinition"
	}
	return "Failed"
}

// text makes s a string that D-Bus carries, of at most limit bytes.
func text(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// standard returns an error that D-Bus itself defines.
func standard(name, message string) *dbus.Error {
	return dbus.NewError("org.freedesktop.DBus.Error."+name, []any{message})
}
