package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// FuzzServer sends whatever lines: each is answered by exactly one line that a client understands, in order, and the
// server ends the connection without a panic or a goroutine left behind.
func FuzzServer(f *testing.F) {
	f.Add([]byte(`{"id":1,"method":"ok"}` + "\n"))
	f.Add([]byte(`{"id":2,"method":"echo","params":{"text":"x"}}` + "\n" + `{"id":3,"method":"none"}` + "\n\n"))
	f.Add([]byte(`{"id":18446744073709551615,"method":"echo","params":[1]}` + "\r\nnull\n[]\n"))
	f.Add([]byte("{\"id\":1,\"id\":2,\"method\":\"\\ud800\",\"params\":nul\x00}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		methods := map[string]Handler{
			"ok": func(context.Context, *Call) (any, error) { return nil, nil },
			"echo": func(_ context.Context, c *Call) (any, error) {
				var p struct{ Text string }
				err := c.Params(&p)
				return p.Text, err
			},
		}
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- (&Server{Methods: methods}).Serve(ctx, l) }()
		defer func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}()
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			_, _ = conn.Write(data)
			_ = conn.(*net.UnixConn).CloseWrite()
		}()
		answers, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		want := 0 // lines as the server's scanner sees them
		for in := bufio.NewScanner(bytes.NewReader(data)); in.Scan(); {
			want++
		}
		got := 0
		for line := range bytes.Lines(answers) {
			var a reply
			if err := json.Unmarshal(line, &a); err != nil || (a.Error == nil) == (a.Result == nil) {
				t.Errorf("answer %q: %v", line, err)
			}
			got++
		}
		if got != want && len(data) < maxLine {
			t.Errorf("%d answers to %d lines", got, want)
		}
	})
}
