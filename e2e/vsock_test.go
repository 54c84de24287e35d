package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"testing"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
	"github.com/lodgehv/lodge/e2e/guest"
)

func (l *lab) testVsock(ctx context.Context, t *testing.T) {
	const port = 5000
	amd64, i386 := l.pair(ctx, t)
	for _, m := range []*vm{amd64, i386} {
		if _, _, err := guest.StartServer(ctx, m.agent, rpc.Self, "echo", "vsock", fmt.Sprint(port)); err != nil {
			t.Fatal(err)
		}
		conn, err := m.DialVsock(ctx, port)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkEcho(ctx, conn); err != nil {
			t.Errorf("to guest %s: %v", m.Name(), err)
		}

		// What listens for a port of a guest's host is the socket PATH_PORT.
		if _, _, err := guest.StartServer(ctx, l.nb.Client, rpc.Self, "echo", "unix", fmt.Sprintf("%s_%d", l.host.Path(m.Name(), ".vsock"), port)); err != nil {
			t.Fatal(err)
		}
		if conn, err = m.agent.Dial(ctx, "vsock", fmt.Sprintf("2:%d", port)); err != nil {
			t.Fatal(err)
		}
		if err := checkEcho(ctx, conn); err != nil {
			t.Errorf("from guest %s: %v", m.Name(), err)
		}
		if _, err := m.agent.Dial(ctx, "vsock", fmt.Sprintf("2:%d", port+1)); err == nil {
			t.Errorf("guest %s is connected to a port that nobody serves", m.Name())
		}
	}
}

// checkEcho sends random bytes, more than a connection's buffers hold, compares them with what comes back, and closes conn.
func checkEcho(ctx context.Context, conn io.ReadWriteCloser) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	sent := make([]byte, 1<<20+1)
	if _, err := rand.Read(sent); err != nil {
		return err
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- err
	}()
	got := make([]byte, len(sent))
	if n, err := io.ReadFull(conn, got); err != nil {
		return fmt.Errorf("%d bytes came back: %w", n, err)
	}
	if err := <-wrote; err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("other bytes came back than were sent")
	}
	return nil
}
