package manager

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// probeEvery is how often a port is tried, and probeLimit how long one try may take.
const (
	probeEvery = 500 * time.Millisecond
	probeLimit = 5 * time.Second
)

// probe returns when the guest is ready, or ctx's error. serialFrom is where in the log of its serial port its output begins.
func probe(ctx context.Context, def *store.Guest, serialFrom int64) error {
	switch p := def.Ready; {
	case p.Serial != "":
		return probeSerial(ctx, def.SerialLog(), serialFrom, []byte(p.Serial))
	case p.Vsock != 0:
		return try(ctx, func(ctx context.Context) error { return probeVsock(ctx, def.Vsock.Path, p.Vsock) })
	case p.TCP != "":
		return try(ctx, func(ctx context.Context) error {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.TCP)
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}
	return nil
}

// try calls f until it succeeds.
func try(ctx context.Context, f func(context.Context) error) error {
	for {
		once, cancel := context.WithTimeout(ctx, probeLimit)
		err := f(once)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(probeEvery):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// probeSerial waits until the guest prints want.
func probeSerial(ctx context.Context, path string, from int64, want []byte) error {
	var last []byte // of what was printed, as long as the begin of want may be in it
	err := Follow(ctx, path, from, func(b []byte) error {
		last = append(last, b...)
		if bytes.Contains(last, want) {
			return errFound
		}
		last = append(last[:0], last[max(0, len(last)-len(want)+1):]...)
		return nil
	})
	if errors.Is(err, errFound) {
		return nil
	}
	return fmt.Errorf("it has not printed %q: %w", want, err)
}

var errFound = errors.New("found")

// probeVsock connects to a port of the guest, over the socket of its VMM.
func probeVsock(ctx context.Context, path string, port uint32) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", port); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(conn, 64).ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("vsock port %d: %w", port, err)
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return fmt.Errorf("vsock port %d: nobody listens", port)
	}
	return nil
}
