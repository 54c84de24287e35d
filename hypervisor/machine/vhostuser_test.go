package machine

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/manager/storaged"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/vhostuser"
)

// storage is a storage daemon with a qcow2 image, and the connection of a VMM to it.
type storage struct {
	*vhostuser.Backend
	daemon *storaged.Daemon
	cfg    storaged.Config

	reconnect bool      // for the next open
	log       io.Writer // of the next connection, if it has one
}

// newStorage converts raw, the path of a raw image, to qcow2, and serves that.
func newStorage(t testing.TB, raw string) *storage {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk.qcow2")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-q", "-O", "qcow2", raw, image).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	s := &storage{cfg: storaged.Config{Name: "disk", Socket: filepath.Join(t.TempDir(), "s"),
		Image: storaged.Image{Path: image, Format: storaged.QCOW2}}}
	s.start(t)
	t.Cleanup(func() { s.stop(t) })
	s.open(t)
	return s
}

func (s *storage) start(t testing.TB) {
	t.Helper()
	d, err := storaged.Start(t.Context(), s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.daemon = d
}

func (s *storage) stop(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := s.daemon.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// open connects, as the next process with the guest does, once the one before has gone.
func (s *storage) open(t testing.TB) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	if s.log != nil {
		log = slog.New(slog.NewTextHandler(s.log, nil))
	}
	b, err := vhostuser.Open(t.Context(), vhostuser.Config{Name: "disk", Dial: vhostuser.DialPath(s.cfg.Socket), Reconnect: s.reconnect, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	s.Backend = b
}

// on gives cfg the disk in place of the one that it has.
func (s *storage) on(cfg Config) Config {
	cfg.SharedMemory = true
	cfg.Slots = append([]Slot{Virtio("disk", func() (virtio.Device, error) { return vhostuser.New(s.Backend, vhostuser.Options{}) })},
		cfg.Slots[min(1, len(cfg.Slots)):]...)
	return cfg
}

// findRemote looks for a disk that another process serves. QEMU interrupts when it is told of an eventfd to do it by.
func findRemote(g *guest) *driver {
	d := find(g, virtio.IDBlock)
	d.lenient = true
	return d
}

// A guest uses a disk that another process serves, by either kind of interrupt: the daemon hears of its kicks, and it of the
// daemon's interrupts. When it reboots, the same daemon serves it on.
func TestVhostUser(t *testing.T) {
	for name, intx := range map[string]bool{"MSI-X": false, "INTx": true} {
		t.Run(name, func(t *testing.T) {
			s := newStorage(t, rawDisk(t, 1<<20).Name())
			cfg := s.on(fullBoard(t, kvmtest.RemoteProgram(), nil))
			content := bytes.Repeat([]byte("qcow2 in place! "), 256)
			for life := range 2 {
				g := newGuest(t, cfg)
				d := findRemote(g)
				if c := g.Load32(d.device); c != 1<<20/512 {
					t.Errorf("capacity of %d sectors", c)
				}
				d.start(intx, featureFlush)
				if life == 0 {
					for i := range 20 {
						g.put(diskData, content)
						d.disk(blkOut, uint64(64*i), len(content))
					}
					d.disk(blkFlush, 0, 0)
				}
				for i := range 20 {
					g.put(diskData, make([]byte, len(content)))
					d.disk(blkIn, uint64(64*i), len(content))
					if got := g.bytes(diskData, len(content)); !bytes.Equal(got, content) {
						t.Fatalf("life %d: read %.16q", life, got)
					}
				}
				if err := g.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The driver moves its interrupt while the other process has its eventfd.
func TestVhostUserMoves(t *testing.T) {
	s := newStorage(t, rawDisk(t, 1<<20).Name())
	g := newGuest(t, s.on(fullBoard(t, kvmtest.RemoteProgram(), nil)))
	d := findRemote(g)
	d.start(false, featureFlush)
	for i := range 10 {
		vector := []byte{configVector, queueVector}[i%2]
		g.Store16(d.common+26, uint16(i%2))
		d.settle()
		d.offer(d.request(blkIn, 0, 512)...)
		d.kick()
		for done := false; !done; g.EndOfInterrupt() {
			g.expect(vector)
			done = g.Load16(queueUsed+2) == d.next
		}
	}
}

// settle ends the interrupts without a reason that are on their way.
func (d *driver) settle() {
	for {
		for range 20 {
			d.g.In8(0x80)
		}
		if d.g.Interrupt(0) == 0 {
			return
		}
		if d.intx {
			d.g.Load8(d.isr)
		}
		d.g.EndOfInterrupt()
	}
}

// As TestSaveInFlight, with another process that the saved guest finds again.
func TestVhostUserSave(t *testing.T) {
	for name, intx := range map[string]bool{"MSI-X": false, "INTx": true} {
		t.Run(name, func(t *testing.T) {
			s := newStorage(t, rawDisk(t, 1<<20).Name())
			cfg := s.on(fullBoard(t, kvmtest.RemoteProgram(), nil))
			g := newGuest(t, cfg)
			d := findRemote(g)
			d.start(intx, featureFlush)
			g.put(diskData, []byte("before"))
			d.disk(blkOut, 0, 512)

			d.settle()
			g.Cli()
			g.put(diskData, []byte("waiting"))
			d.offer(d.request(blkOut, 1, 512)...)
			d.kick()
			for deadline := time.Now().Add(limit); g.Load16(queueUsed+2) != d.next; {
				if time.Now().After(deadline) {
					t.Fatal("not served")
				}
			}
			waiting := save(t, g.Machine, "")
			g.Sti()
			d.finish()

			d.settle()
			d.offer(d.request(blkIn, 1, 512)...) // without a kick: the save has it served
			unserved := save(t, g.Machine, "")
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}

			s.open(t)
			d.g = attach(t, restore(t, cfg, waiting, RestoreOptions{}))
			done := d.next
			d.next--
			d.g.Sti()
			d.finish()
			d.disk(blkIn, 0, 512)
			if got := string(d.g.bytes(diskData, 6)); got != "before" {
				t.Errorf("read %q", got)
			}
			if err := d.g.Close(); err != nil {
				t.Fatal(err)
			}

			d.g, d.next = attach(t, restore(t, cfg, unserved, RestoreOptions{})), done
			d.finish()
			if got := string(d.g.bytes(diskData, 7)); got != "waiting" {
				t.Errorf("read %q", got)
			}
			d.disk(blkFlush, 0, 0)
		})
	}
}

// lines are the lines of a log.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// await waits for a line that has text.
func (l lines) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.After(limit); ; {
		select {
		case line := <-l:
			if strings.Contains(line, text) {
				return
			}
		case <-deadline:
			t.Fatalf("no line of the log has %q", text)
		}
	}
}

// The daemon is killed and started again under a running guest, which notices nothing but the time: it has flushed.
func TestVhostUserDaemonDies(t *testing.T) {
	s := newStorage(t, rawDisk(t, 1<<20).Name())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	waits := make(lines, 16)
	s.reconnect, s.log = true, waits
	s.open(t)
	g := newGuest(t, s.on(fullBoard(t, kvmtest.RemoteProgram(), nil)))
	d := findRemote(g)
	d.start(false, featureFlush)
	for i := range 3 {
		g.put(diskData, []byte{byte(i + 1)})
		d.disk(blkOut, 5, 512)
		d.disk(blkFlush, 0, 0) // else the image's own tables are lost with the daemon
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // kills it
		if err := s.daemon.Stop(ctx); err == nil {
			t.Fatal("it ended by itself")
		}
		waits.await(t, "disk waits for its back end") // a request made before that may be one that the daemon had begun
		g.put(diskData, []byte{0xff})
		d.offer(d.request(blkIn, 5, 512)...)
		d.kick()
		s.start(t)
		d.finish()
		if got := g.bytes(diskData, 1)[0]; got != byte(i+1) {
			t.Errorf("read %#x", got)
		}
	}
}

// Private memory is of no use to another process: that is said before the guest runs.
func TestVhostUserNeedsSharedMemory(t *testing.T) {
	s := newStorage(t, rawDisk(t, 1<<20).Name())
	cfg := s.on(fullBoard(t, kvmtest.RemoteProgram(), nil))
	cfg.SharedMemory = false
	m, err := New(cfg)
	if err == nil {
		m.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "disk: another process serves it, which needs a machine with SharedMemory") {
		t.Errorf("%v", err)
	}
}
