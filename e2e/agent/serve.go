package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/e2e/agent/rpc"
)

// serve answers on all ports at once until ctx ends. It opens them all first and
// then prints the ready line with the machine's uptime, for who waits for it on
// the console.
func serve(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	clock := fs.Bool("setclock", false, "set the clock to the client's at each session")
	ready := fs.String("ready", "", "what to print when the ports are open")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() == 0 {
		return errors.New("no port given")
	}
	srv := &rpc.Server{}
	if *clock {
		srv.SetClock = setClock
	}
	var run []func() error
	for _, p := range fs.Args() {
		var f func() error
		var err error
		if strings.HasPrefix(p, "vsock:") || strings.HasPrefix(p, "unix:") {
			f, err = serveSocket(ctx, srv, p)
		} else {
			f, err = serveDevice(ctx, srv, p)
		}
		if err != nil {
			return err
		}
		run = append(run, f)
	}
	if *ready != "" {
		up, err := os.ReadFile("/proc/uptime")
		if err != nil {
			return err
		}
		fmt.Println(*ready, strings.Fields(string(up))[0])
	}
	var wg sync.WaitGroup
	errs := make([]error, len(run))
	for i, f := range run {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func serveSocket(ctx context.Context, srv *rpc.Server, port string) (func() error, error) {
	l, err := listen(port)
	if err != nil {
		return nil, err
	}
	return func() error {
		return acceptAll(ctx, l, func(c net.Conn) { _ = srv.Serve(ctx, c) })
	}, nil
}

// listen opens "vsock:PORT", "unix:PATH" or "tcp:ADDRESS".
func listen(spec string) (net.Listener, error) {
	network, addr, ok := strings.Cut(spec, ":")
	if !ok {
		return nil, fmt.Errorf("%s: want NETWORK:ADDRESS", spec)
	}
	if network != "vsock" {
		return net.Listen(network, addr)
	}
	n, err := strconv.ParseUint(addr, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", spec, err)
	}
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, uint32(n), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", spec, err)
	}
	return l, nil
}

// acceptAll gives each connection a goroutine and closes it afterwards.
func acceptAll(ctx context.Context, l net.Listener, handle func(net.Conn)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

// reopenDelay is how soon a port without a peer is looked at again; a
// virtio-serial port reports "nobody there" as end of file, at once.
const reopenDelay = 20 * time.Millisecond

func serveDevice(ctx context.Context, srv *rpc.Server, path string) (func() error, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := makeRaw(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return func() error {
		defer f.Close()
		for ctx.Err() == nil {
			if err := srv.Serve(ctx, f); err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EPIPE) {
				return fmt.Errorf("%s: %w", path, err)
			}
			time.Sleep(reopenDelay)
		}
		return nil
	}, nil
}

// makeRaw turns off all of a terminal's processing; other files are left alone.
func makeRaw(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var terr error
	err = raw.Control(func(fd uintptr) {
		t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
			return
		}
		if err != nil {
			terr = err
			return
		}
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
		t.Ispeed, t.Ospeed = unix.B115200, unix.B115200
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		terr = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
	})
	return errors.Join(err, terr)
}

func setClock(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	return unix.Settimeofday(&tv)
}

// connect joins the standard streams to a socket; one zero byte on standard
// output says that the connection stands.
func connect(ctx context.Context, args []string) error {
	if err := need(args, "NETWORK", "ADDRESS"); err != nil {
		return err
	}
	c, err := dial(ctx, args[0], args[1])
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := os.Stdout.Write([]byte{0}); err != nil {
		return err
	}
	go func() {
		if _, err := io.Copy(c, os.Stdin); err != nil {
			c.Close()
			return
		}
		if h, ok := c.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	}()
	_, err = io.Copy(os.Stdout, c)
	return err
}

// dial connects to a vsock "CID:PORT" or to what package net knows.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if network != "vsock" {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
	var cid, port uint32
	if _, err := fmt.Sscanf(addr, "%d:%d", &cid, &port); err != nil {
		return nil, fmt.Errorf("vsock address %q: want CID:PORT: %w", addr, err)
	}
	return vsock.Dial(cid, port, nil)
}
