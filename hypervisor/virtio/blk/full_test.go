package blk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

const smallFS = 256 << 10

// fullDisk returns a disk on a file system that holds a quarter of it, and a function that grows that.
func fullDisk(t *testing.T, cfg Config) (d *Device, f *os.File, grow func()) {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("lodge-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", smallFS))
	if errors.Is(err, fs.ErrPermission) {
		t.Skip("needs root: mounts a small tmpfs")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	f, err = os.Create(filepath.Join(dir, "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	cfg.Name, cfg.File, cfg.Log = "test", f, slog.New(slog.DiscardHandler)
	if d, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return d, f, func() {
		t.Helper()
		if err := unix.Mount("", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", 4*diskSize)); err != nil {
			t.Fatal(err)
		}
	}
}

// What does not fit waits until the device was stopped and started, and the guest hears of no error: neither when it was
// started too early, nor when the state went to another device meanwhile.
func TestFull(t *testing.T) {
	for _, c := range []struct {
		name     string
		slow     bool // in goroutines of their own, and synced
		restored bool
	}{{"quick", false, false}, {"slow", true, false}, {"restored", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			told := make(chan error, 1)
			cfg := Config{Full: func(err error) { told <- err }, IgnoreChanges: true}
			d, f, grow := fullDisk(t, cfg)
			var without uint64
			if c.slow {
				without = featureFlush
			}
			r := virtiotest.New(t, d, without)
			q := r.Queues[0]
			const size, n = 32 << 10, diskSize / (32 << 10)
			pages := make([][]byte, n)
			statuses := make([]virtiotest.Desc, n)
			for i := range n {
				pages[i] = bytes.Repeat([]byte{byte(i + 1)}, size)
				statuses[i] = r.In(1)
				r.Bytes(statuses[i].Addr, 1)[0] = 0xee
				q.Send(r.Out(header(typeOut, uint64(i*size/SectorSize))), r.Out(pages[i]), statuses[i])
			}
			err := <-told
			if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "disk test: "+f.Name()) {
				t.Errorf("told of %v", err)
			}
			done := q.Used()
			if done == 0 || done > smallFS/size {
				t.Errorf("%d requests are done", done)
			}
			r.Stop()
			if len(d.parked) == 0 || len(d.parked) > maxInFlight || len(d.again) != 0 {
				t.Errorf("%d and %d requests wait", len(d.parked), len(d.again))
			}
			r.Start() // there is no space yet
			if err := <-told; !errors.Is(err, unix.ENOSPC) {
				t.Errorf("told of %v", err)
			}
			r.Stop()
			if c.restored {
				enc := snap.NewEncoder(d.StateVersion())
				d.State(enc)
				waiting := len(d.parked)
				d.Reset()
				dec := snap.NewDecoder(enc.Data(), d.StateVersion())
				d.State(dec)
				dec.Done()
				if err := dec.Err(); err != nil || len(d.parked) != waiting {
					t.Fatalf("%d requests wait in the state, %d did: %v", len(d.parked), waiting, err)
				}
			}
			grow()
			r.Start()
			for range n {
				if _, _, ok := q.TryWait(10 * time.Second); !ok {
					t.Fatal("a request was never done")
				}
			}
			for i, s := range statuses {
				if got := r.Bytes(s.Addr, 1)[0]; got != statusOK {
					t.Errorf("request %d: status %d", i, got)
				}
			}
			if !bytes.Equal(contents(t, f), bytes.Join(pages, nil)) {
				t.Error("the file differs from what was written")
			}
			select {
			case err := <-told:
				t.Errorf("told of %v with space", err)
			default:
			}
		})
	}
}

// A driver that resets the device gets none of its old requests back.
func TestResetWhileFull(t *testing.T) {
	told := make(chan error, 1)
	d, _, grow := fullDisk(t, Config{Full: func(err error) { told <- err }})
	r := virtiotest.New(t, d, 0)
	page := r.Out(make([]byte, smallFS+4096))
	r.Queues[0].Send(r.Out(header(typeOut, 0)), page, r.In(1))
	<-told
	r.Stop()
	d.Reset()
	grow()
	r.Start()
	if _, _, ok := r.Queues[0].TryWait(50 * time.Millisecond); ok {
		t.Error("a request from before the reset was done")
	}
}

// Without somebody to tell, the guest gets an error.
func TestFullUntold(t *testing.T) {
	d, _, _ := fullDisk(t, Config{})
	r := virtiotest.New(t, d, 0)
	if s, _ := do(r, typeOut, 0, r.Out(make([]byte, smallFS+4096))); s != statusIOError {
		t.Errorf("status %d", s)
	}
}
