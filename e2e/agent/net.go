package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// maxBody bounds what one HTTP request may ask for or bring, in bytes.
const maxBody = 16 << 30

// serveHTTP serves downloads whose content a checksum proves. N is a count of
// bytes and the seed of their pattern. The ready line tells the address.
func serveHTTP(ctx context.Context, args []string) error {
	if err := need(args, "ADDRESS"); err != nil {
		return err
	}
	mux := http.NewServeMux()
	size := func(w http.ResponseWriter, r *http.Request) (int64, bool) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil || n < 0 || n > maxBody {
			http.Error(w, "want a count of bytes", http.StatusBadRequest)
			return 0, false
		}
		return n, true
	}
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		if n, ok := size(w, r); ok {
			w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
			_, _ = io.Copy(w, io.LimitReader(pattern(uint64(n)), n)) // fails when the client leaves
		}
	})
	mux.HandleFunc("GET /sum/{n}", func(w http.ResponseWriter, r *http.Request) {
		if n, ok := size(w, r); ok {
			h := sha256.New()
			_, _ = io.Copy(h, io.LimitReader(pattern(uint64(n)), n))
			fmt.Fprintf(w, "%x\n", h.Sum(nil))
		}
	})
	mux.HandleFunc("POST /upload", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		if _, err := io.Copy(h, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%x\n", h.Sum(nil))
	})
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready", l.Addr())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func echo(ctx context.Context, args []string) error {
	if err := need(args, "NETWORK", "ADDRESS"); err != nil {
		return err
	}
	l, err := listen(args[0] + ":" + args[1])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return acceptAll(ctx, l, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// A throughput connection starts with the client's request of 9 bytes: 's' when
// the client sends, 'r' when it receives, then the count of bytes, little
// endian. After a transfer to the sink it answers one byte.
const requestSize = 9

func sink(ctx context.Context, args []string) error {
	if err := need(args, "NETWORK", "ADDRESS"); err != nil {
		return err
	}
	l, err := listen(args[0] + ":" + args[1])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return acceptAll(ctx, l, func(c net.Conn) {
		var req [requestSize]byte
		if _, err := io.ReadFull(c, req[:]); err != nil {
			return
		}
		n := int64(binary.LittleEndian.Uint64(req[1:]))
		if req[0] == 'r' {
			_ = transmit(c, n)
		} else if receive(c, n) == nil {
			_, _ = c.Write([]byte{0})
		}
	})
}

const transferSize = 128 << 10

func transmit(c net.Conn, n int64) error {
	buf := make([]byte, transferSize)
	for n > 0 {
		k, err := c.Write(buf[:min(n, transferSize)])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

func receive(c net.Conn, n int64) error {
	buf := make([]byte, transferSize)
	for n > 0 {
		k, err := c.Read(buf[:min(n, transferSize)])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// rate is what the measuring subcommands print.
type rate struct {
	Bytes   int64   `json:"bytes"`
	Ops     int64   `json:"ops,omitempty"`
	Seconds float64 `json:"seconds"`
	MBps    float64 `json:"mbps"` // 10⁶ bytes per second
}

func printRate(bytes, ops int64, d time.Duration) error {
	s := d.Seconds()
	return json.NewEncoder(os.Stdout).Encode(rate{bytes, ops, s, float64(bytes) / s / 1e6})
}

func throughput(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("throughput", flag.ContinueOnError)
	send := fs.Bool("send", false, "send instead of receiving")
	n := fs.Int64("bytes", 64<<20, "bytes to move")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := need(fs.Args(), "NETWORK", "ADDRESS"); err != nil {
		return err
	}
	c, err := dial(ctx, fs.Arg(0), fs.Arg(1))
	if err != nil {
		return err
	}
	defer c.Close()
	req := append([]byte{'r'}, binary.LittleEndian.AppendUint64(nil, uint64(*n))...)
	if *send {
		req[0] = 's'
	}
	start := time.Now()
	if _, err := c.Write(req); err != nil {
		return err
	}
	if *send {
		if err := errors.Join(transmit(c, *n), receive(c, 1)); err != nil {
			return err
		}
	} else if err := receive(c, *n); err != nil {
		return err
	}
	return printRate(*n, 0, time.Since(start))
}
