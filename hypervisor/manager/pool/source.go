package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Source is what is imported.
type Source struct {
	Origin string    // where it is from, for people
	Reader io.Reader // with a SetReadDeadline, as pipes have, a wait for it can be cancelled
	Size   int64     // bytes, for the progress; 0 is not known

	file *os.File // Reader, if that is a file that can be read anywhere
}

// FromReader is a source of what r has from now on.
func FromReader(r io.Reader, origin string) *Source { return &Source{Origin: origin, Reader: r} }

// FromFile is a source of f from its begin on, if it is a regular file, else of what can be read from it. f stays the
// caller's.
func FromFile(f *os.File) (*Source, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s := &Source{Origin: filepath.Base(f.Name()), Reader: f}
	switch {
	case st.Mode().IsRegular():
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		s.file, s.Size = f, st.Size()
	case st.IsDir():
		return nil, fmt.Errorf("%s is a directory: give a file in it", f.Name())
	}
	return s, nil
}

const (
	httpStall = time.Minute // without a byte
	httpTries = 5           // that get nowhere, one after the other
	httpPause = time.Second // before the first of them is made again; then twice as long each time
)

// FromURL is a source of what is at an http or https address. A connection that is lost is made again, and goes on where the
// other ended if the server can do that. Close it.
func FromURL(ctx context.Context, address string) (*Source, io.Closer, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, nil, fmt.Errorf("address: %w", errors.Unwrap(err)) // which would repeat it, password and all
	}
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path} // no password, no token
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, nil, fmt.Errorf("address %s: give one that begins with https:// or http://", shown.String())
	}
	secure := u.Scheme == "https"
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		ResponseHeaderTimeout: httpStall, TLSHandshakeTimeout: httpStall, ForceAttemptHTTP2: true,
		DisableCompression: true, // we want the file as it is, and its size
	}
	d := &download{ctx: ctx, address: address, shown: shown.String(), pause: httpPause, transport: transport}
	d.client = &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		switch {
		case len(via) >= 10:
			return errors.New("redirected ten times")
		case secure && r.URL.Scheme != "https":
			return errors.New("redirected from https to http: give that address if you trust it")
		}
		return nil
	}}
	if err := d.open(); err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	return &Source{Origin: shown.String(), Reader: d, Size: d.size}, d, nil
}

// NameFor suggests a name for what is imported from a file or URL: its own without the endings of formats.
func NameFor(origin string) string {
	name := path.Base(filepath.ToSlash(origin))
	for {
		ext := path.Ext(name)
		switch strings.ToLower(ext) {
		case ".raw", ".img", ".iso", ".qcow2", ".vmdk", ".ova", ".gz", ".xz", ".zst", ".bz2", ".bin":
			name = strings.TrimSuffix(name, ext)
			continue
		}
		break
	}
	b := []byte(name)
	for i := range b {
		if !isName("a" + string(b[i:i+1])) {
			b[i] = '-'
		}
	}
	name = strings.TrimLeft(string(b[:min(len(b), maxName)]), "-_.")
	if name == "" {
		return "image"
	}
	return name
}

// download reads a file from a server, over more than one connection if need be.
type download struct {
	ctx       context.Context // of the import: there is no other for a Read
	address   string
	shown     string // in messages
	client    *http.Client
	transport *http.Transport
	pause     time.Duration

	body   io.ReadCloser
	cancel context.CancelCauseFunc // of the body's request
	stall  *time.Timer
	off    int64 // that is read next
	size   int64 // 0: not known
	tag    string
	tries  int // since the last byte
}

// open makes a request for what has not been read yet.
func (d *download) open() error {
	ctx, cancel := context.WithCancelCause(d.ctx)
	d.cancel = cancel
	d.stall = time.AfterFunc(httpStall, func() { cancel(fmt.Errorf("the server sent nothing for %v", httpStall)) })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.address, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", d.shown, err)
	}
	req.Header.Set("User-Agent", "lodge")
	if d.off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.off))
		req.Header.Set("If-Range", d.tag)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the address, which may have a password in it
		}
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("%s: %w", d.shown, err)
	}
	want := http.StatusOK
	if d.off > 0 {
		want = http.StatusPartialContent
	}
	if resp.StatusCode != want {
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return &final{fmt.Errorf("%s: the file has changed on the server meanwhile: import it again", d.shown)}
		}
		err := fmt.Errorf("%s: the server answers %s", d.shown, resp.Status)
		if resp.StatusCode < 500 {
			return &final{err}
		}
		return err
	}
	if d.off == 0 {
		d.size = max(resp.ContentLength, 0)
		if resp.Header.Get("Accept-Ranges") == "bytes" {
			d.tag = resp.Header.Get("ETag")
			if d.tag == "" || strings.HasPrefix(d.tag, "W/") {
				d.tag = resp.Header.Get("Last-Modified")
			}
		}
	}
	d.body = resp.Body
	return nil
}

// final is an error that another try would only repeat.
type final struct{ error }

func (f *final) Unwrap() error { return f.error }

func (d *download) Read(p []byte) (int, error) {
	for {
		var err error
		if d.body == nil {
			err = d.open()
		}
		if err == nil {
			d.stall.Reset(httpStall)
			var n int
			n, err = d.body.Read(p)
			d.off += int64(n)
			if n > 0 {
				d.tries = 0
				return n, nil
			}
			if err == io.EOF && (d.size == 0 || d.off == d.size) {
				return 0, io.EOF
			}
			if err == nil {
				continue
			}
			if cause := d.ctx.Err(); cause != nil {
				err = cause
			}
			err = fmt.Errorf("%s: after %d bytes: %w", d.shown, d.off, err)
			d.drop()
		}
		var f *final
		if d.tries++; d.ctx.Err() != nil || errors.As(err, &f) || d.tries >= httpTries || d.off > 0 && d.tag == "" {
			return 0, err
		}
		select {
		case <-time.After(d.pause << (d.tries - 1)):
		case <-d.ctx.Done():
			return 0, d.ctx.Err()
		}
	}
}

// drop ends the request.
func (d *download) drop() {
	d.stall.Stop()
	if d.body != nil {
		d.body.Close()
		d.body = nil
	}
	d.cancel(nil)
}

func (d *download) Close() error {
	if d.cancel != nil {
		d.drop()
	}
	d.transport.CloseIdleConnections()
	return nil
}
