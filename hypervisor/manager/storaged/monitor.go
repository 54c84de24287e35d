package storaged

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// monitorSockets returns the two ends of the daemon's monitor (QMP): it is how the daemon says that it serves, since the
// socket for VMMs takes one at a time, and one may be waiting there already.
func monitorSockets() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("monitor: %w", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), "monitor")
	f := os.NewFile(uintptr(fds[0]), "monitor")
	defer f.Close()
	if ours, err = net.FileConn(f); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("monitor: %w", err), theirs.Close())
	}
	return ours, theirs, nil
}

// askCapacity waits for the daemon, which listens to its monitor when it serves its image, and returns the image's size in
// bytes as the guest sees it.
func askCapacity(ctx context.Context, monitor net.Conn) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = monitor.SetDeadline(time.Unix(1, 0)) }) // in the past
	defer stop()
	in, out := json.NewDecoder(monitor), json.NewEncoder(monitor)
	var greeting struct{ QMP json.RawMessage }
	if err := in.Decode(&greeting); err != nil {
		return 0, fmt.Errorf("it does not answer: %w", errors.Join(ctx.Err(), err))
	}
	ask := func(command string, result any) error {
		if err := out.Encode(object{"execute": command}); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		answer := struct {
			Return any
			Error  *struct{ Desc string }
		}{Return: result}
		if err := in.Decode(&answer); err != nil {
			return fmt.Errorf("%s: %w", command, errors.Join(ctx.Err(), err))
		}
		if answer.Error != nil {
			return fmt.Errorf("%s: %s", command, answer.Error.Desc)
		}
		return nil
	}
	if err := ask("qmp_capabilities", new(any)); err != nil {
		return 0, err
	}
	var nodes []struct {
		Name  string `json:"node-name"`
		Image struct {
			Size uint64 `json:"virtual-size"`
		}
	}
	if err := ask("query-named-block-nodes", &nodes); err != nil {
		return 0, err
	}
	for _, n := range nodes {
		if n.Name == topNode {
			return n.Image.Size, nil
		}
	}
	return 0, fmt.Errorf("it has no node %q", topNode)
}
