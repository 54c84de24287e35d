package vhostuser

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func TestSuite(t *testing.T) {
	virtiotest.Suite(t, func(t testing.TB) virtio.Device { return newFake(t).device() })
}

// write and read do one request each on queue i, and fail the test unless it succeeds.
func write(r *virtiotest.Rig, i int, sector uint64, p []byte) {
	r.T.Helper()
	status := r.In(1)
	r.Queues[i].Do(r.Out(header(1, sector)), r.Out(p), status)
	if s := r.Bytes(status.Addr, 1)[0]; s != 0 {
		r.T.Fatalf("write: status %d", s)
	}
}

func read(r *virtiotest.Rig, i int, sector uint64, n int) []byte {
	r.T.Helper()
	data, status := r.In(n), r.In(1)
	r.Queues[i].Do(r.Out(header(0, sector)), data, status)
	if s := r.Bytes(status.Addr, 1)[0]; s != 0 {
		r.T.Fatalf("read: status %d", s)
	}
	return r.Bytes(data.Addr, n)
}

func TestRequests(t *testing.T) {
	for _, ack := range []uint64{0, protocolReplyAck} {
		f := newFake(t)
		f.set(func() { f.protocol = f.protocol&^protocolReplyAck | ack })
		r := virtiotest.New(t, f.device(), 0)
		for i := range r.Queues {
			want := pattern(4096, byte(i+1))
			write(r, i, uint64(8*i), want)
			if got := read(r, i, uint64(8*i), 4096); !bytes.Equal(got, want) {
				t.Errorf("queue %d: read %x..., wrote %x", i, got[:8], want[0])
			}
			select {
			case <-r.Queues[i].Interrupts:
			case <-time.After(10 * time.Second):
				t.Errorf("queue %d: no interrupt", i)
			}
		}
		var capacity [8]byte
		r.Device.ReadConfig(0, capacity[:])
		if n := binary.LittleEndian.Uint64(capacity[:]); n != diskSize/512 {
			t.Errorf("capacity %d", n)
		}
	}
}

// A stop leaves the rings where the back end was, and a start goes on from there.
func TestStopStart(t *testing.T) {
	f := newFake(t)
	r := virtiotest.New(t, f.device(), 0)
	for i := range 300 { // more than a ring's length
		if i%50 == 0 {
			r.Stop()
			r.Start()
		}
		at := r.Alloc(1)
		write(r, 0, uint64(i), pattern(512, byte(i)))
		if got := read(r, 0, uint64(i), 512); got[0] != byte(i) {
			t.Fatalf("%d: read %#x", i, got[0])
		}
		r.Free(at)
	}
	r.Stop()
	if p := r.Env.Queues[0].Position(); p != 600 {
		t.Errorf("stopped at %d", p)
	}
	if n := countOf(f.asked(), setMemTable); n != 1 {
		t.Errorf("the memory was shared %d times", n)
	}
}

func countOf(rs []request, r request) (n int) {
	for _, x := range rs {
		if x == r {
			n++
		}
	}
	return n
}

// Whatever the back end answers, we have an error that names what was asked, and no harm is done: with one that behaves
// the same device works.
func TestHostileAnswers(t *testing.T) {
	asked := []request{getFeatures, getProtocolFeatures, setOwner, getQueueNum, setBackendReqFD, getConfig, setFeatures,
		setConfig, setMemTable, getInflightFD, setInflightFD, setVringNum, setVringBase, setVringAddr, setVringCall,
		setVringKick, setVringEnable}
	for name, answer := range map[string]func(m message, s *served){
		"empty":     func(m message, s *served) { s.answer(m, nil) },
		"refusal":   func(m message, s *served) { s.answer(m, u64(1)) },
		"too long":  func(m message, s *served) { s.answer(m, make([]byte, maxPayload)) },
		"huge":      func(m message, s *served) { s.answer(m, make([]byte, maxPayload+1)) },
		"not asked": func(m message, s *served) { s.answer(message{request: 99}, u64(0)) },
		"no answer": func(m message, s *served) { a := message{request: m.request, payload: u64(0)}; _ = a.write(s.sock) },
		"bad version": func(m message, s *served) {
			a := message{request: m.request, flags: 2, payload: u64(0)}
			_ = a.write(s.sock)
		},
		"half": func(m message, s *served) {
			a := message{request: m.request, flags: flagReply, payload: u64(0)}
			_, _ = s.sock.Write(a.encode()[:headerSize+3])
			s.sock.CloseWrite()
		},
		"descriptors": func(m message, s *served) {
			fds := slices.Repeat([]int{int(s.f.disk.Fd())}, maxFDs+2)
			s.answer(m, u64(0), fds...)
		},
		"death": func(m message, s *served) { s.sock.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			for _, at := range asked {
				if name == "refusal" && at < 3 || name == "refusal" && (at == getProtocolFeatures || at == getQueueNum) {
					continue // a number like others
				}
				f := newFake(t)
				f.set(func() {
					f.protocol |= protocolInflight
					f.hook = func(m message, s *served) bool {
						if m.request == at {
							answer(m, s)
							m.close()
						}
						return m.request == at
					}
				})
				failed := false
				b, err := Open(t.Context(), f.config())
				if err != nil {
					failed = strings.Contains(err.Error(), at.String()) && strings.Contains(err.Error(), "disk root")
					f.set(func() { f.hook = nil })
					b = f.open()
				}
				defer b.Close()
				d, err2 := New(b, Options{})
				if err2 != nil {
					t.Fatal(err2)
				}
				if err == nil {
					env := idle(t, d)
					err = d.Start(env)
					failed = err != nil && strings.Contains(err.Error(), at.String())
				}
				if !failed {
					t.Errorf("%v: %v", at, err)
				}
				f.set(func() { f.hook = nil })
				d.Reset()
				r := virtiotest.New(t, d, 0)
				write(r, 0, 1, pattern(512, 7))
			}
		})
	}
}

// idle returns what a device starts with, without a driver.
func idle(t *testing.T, d *Device) *virtio.Env {
	r := virtiotest.New(t, &nothing{d}, 0)
	r.Stop()
	return r.Env
}

// nothing is a Remote device that does nothing.
type nothing struct{ *Device }

func (*nothing) Start(*virtio.Env) error { return nil }
func (*nothing) Stop()                   {}
func (*nothing) Reset()                  {}

// A back end that hangs is given up, wherever it does.
func TestHang(t *testing.T) {
	for _, at := range []request{getFeatures, getConfig, setMemTable, setVringEnable, getVringBase} {
		f := newFake(t)
		f.set(func() {
			f.hook = func(m message, _ *served) bool { return m.request == at }
		})
		cfg := f.config()
		cfg.Timeout = 300 * time.Millisecond
		b, err := Open(t.Context(), cfg)
		if at == getFeatures || at == getConfig {
			if err == nil || !strings.Contains(err.Error(), at.String()) {
				t.Errorf("%v: %v", at, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		d, err := New(b, Options{})
		if err != nil {
			t.Fatal(err)
		}
		env := idle(t, d)
		err = d.Start(env)
		if at != getVringBase {
			if err == nil || !strings.Contains(err.Error(), at.String()) {
				t.Errorf("%v: %v", at, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		d.Stop()
		c := snap.NewEncoder(1)
		if d.State(c); c.Err() == nil || !strings.Contains(c.Err().Error(), "GET_VRING_BASE") {
			t.Errorf("a guest is saved whose disk did not stop: %v", c.Err())
		}
	}
}

// hold keeps the vrings of f from being served. release serves those of the connection that there is then.
func hold(f *fake) (release func()) {
	held := make(map[*served][]int)
	f.set(func() {
		f.hook = func(m message, s *served) bool {
			if m.request != setVringEnable {
				return false
			}
			f.set(func() { held[s] = append(held[s], int(m.payload[0])) })
			s.answer(m, u64(0))
			return true
		}
	})
	return func() {
		f.with(func(s *served) {
			f.set(func() {
				for _, i := range held[s] {
					if !s.ended {
						s.start(i)
					}
				}
				delete(held, s)
			})
		})
	}
}

// A stop waits for the requests that the driver has made.
func TestStopWaits(t *testing.T) {
	f := newFake(t)
	release := hold(f)
	d := f.device()
	r := virtiotest.New(t, d, 0)
	data, status := r.In(512), r.In(1)
	r.Queues[0].Send(r.Out(header(0, 0)), data, status)
	stopped := make(chan struct{})
	go func() { r.Stop(); close(stopped) }()
	select {
	case <-stopped:
		t.Fatal("stopped with a request in flight")
	case <-time.After(50 * time.Millisecond):
	}
	release()
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Fatal("does not stop")
	}
	if p := r.Env.Queues[0].Position(); p != 1 || r.Queues[0].Used() != 1 {
		t.Errorf("stopped at %d with %d used", p, r.Queues[0].Used())
	}
	c := snap.NewEncoder(1)
	if d.State(c); c.Err() != nil {
		t.Error(c.Err())
	}
	r.Start()
}

// A back end that dies is waited for: what the driver asks meanwhile its successor does.
func TestComesBack(t *testing.T) {
	for name, protocol := range map[string]uint64{"with a buffer": protocolInflight, "idle": 0} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.set(func() { f.protocol |= protocol })
			d := f.device()
			r := virtiotest.New(t, d, 0)
			write(r, 0, 3, pattern(512, 9))
			f.kill()
			eventually(t, "that no request was lost is seen", func() bool {
				d.b.mu.Lock()
				defer d.b.mu.Unlock()
				q := r.Env.Queues[0]
				return q.Position() == q.UsedIndex()
			})
			data, status := r.In(512), r.In(1)
			r.Queues[0].Send(r.Out(header(0, 3)), data, status)
			f.listen()
			r.Queues[0].Wait()
			if got := r.Bytes(data.Addr, 512)[0]; got != 9 {
				t.Errorf("read %#x", got)
			}
			select {
			case err := <-r.Broken:
				t.Error(err)
			default:
			}
		})
	}
}

// Without a buffer for them, requests in flight are lost, and the driver has to know.
func TestLost(t *testing.T) {
	f := newFake(t)
	d := f.device()
	r := virtiotest.New(t, d, 0)
	write(r, 0, 3, pattern(512, 9))
	f.with(func(s *served) { // it takes nothing any more
		for i := range s.vrings {
			if v := &s.vrings[i]; v.env != nil {
				v.env.Stop(v.dev)
				v.env = nil
			}
		}
	})
	r.Queues[0].Send(r.Out(header(0, 3)), r.In(512), r.In(1))
	f.kill()
	select {
	case err := <-r.Broken:
		if !strings.Contains(err.Error(), "disk root: requests of queue 0 are lost") {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the driver is not told")
	}
	// It resets the device, and goes on with a new back end.
	r.Stop()
	d.Reset()
	f.listen()
	virtiotest.New(t, d, 0)
}

// A back end that keeps writes to itself takes them with it: the driver has to know that too, whether it runs or is paused, and
// may start anew.
func TestUnflushed(t *testing.T) {
	f := newFake(t)
	cfg := f.config()
	cfg.Reconnect = false
	b, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	d, err := New(b, Options{})
	if err != nil {
		t.Fatal(err)
	}
	const want = "what the guest had not flushed may be lost"
	r := virtiotest.New(t, d, 0)
	write(r, 0, 3, pattern(512, 9))
	f.kill()
	select {
	case err := <-r.Broken:
		if !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the driver is not told")
	}
	f.listen()
	r.Stop()
	if err := d.Start(r.Env); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("started again: %v", err)
	}
	d.Reset()
	r = virtiotest.New(t, d, 0)
	if got := read(r, 0, 3, 512)[0]; got != 9 {
		t.Errorf("read %#x", got)
	}
	r.Stop()
	f.kill()
	eventually(t, "death is seen", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return !b.conn.alive() })
	f.listen()
	if err := d.Start(r.Env); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("resumed: %v", err)
	}
}

// A guest is not saved while requests wait for a back end that is away, and goes on when it is back.
func TestPausedWhileAway(t *testing.T) {
	f := newFake(t)
	f.set(func() { f.protocol |= protocolInflight })
	release := hold(f)
	d := f.device()
	r := virtiotest.New(t, d, 0)
	data, status := r.In(512), r.In(1)
	r.Queues[0].Send(r.Out(header(0, 0)), data, status)
	f.kill()
	r.Stop()
	c := snap.NewEncoder(1)
	if d.State(c); c.Err() == nil || !strings.Contains(c.Err().Error(), "away") {
		t.Errorf("saved: %v", c.Err())
	}
	r.Start()
	f.listen()
	eventually(t, "served again", func() bool { release(); return r.Queues[0].Used() == 1 })
	f.set(func() { f.hook = nil })
	r.Stop()
	c = snap.NewEncoder(1)
	if d.State(c); c.Err() != nil {
		t.Error(c.Err())
	}
}

// The disk grows: the back end says so, and the driver is told.
func TestConfigChange(t *testing.T) {
	f := newFake(t)
	r := virtiotest.New(t, f.device(), 0)
	f.set(func() { f.capacity *= 2 })
	ask := func(req request, want uint64) {
		t.Helper()
		var channel *net.UnixConn
		f.with(func(s *served) { channel = s.channel })
		m := message{request: req, flags: flagNeedReply}
		if err := m.write(channel); err != nil {
			t.Fatal(err)
		}
		m, err := readMessage(channel)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := parseU64(m.payload); v != want || err != nil || m.flags != flagReply|version {
			t.Errorf("request %d: answer %d, flags %#x, %v", req, v, m.flags, err)
		}
	}
	ask(3, 1) // HOST_NOTIFIER_MSG, which nobody offered
	ask(backendConfigChange, 0)
	select {
	case <-r.Changed:
	case <-time.After(20 * time.Second):
		t.Fatal("the driver is not told")
	}
	var capacity [8]byte
	if r.Device.ReadConfig(0, capacity[:]); binary.LittleEndian.Uint64(capacity[:]) != 2*diskSize/512 {
		t.Errorf("capacity %x", capacity)
	}
}

func TestSetCall(t *testing.T) {
	f := newFake(t)
	d := f.device()
	r := virtiotest.New(t, d, 0)
	moved := make(chan struct{}, 1)
	d.SetCall(0, virtiotest.NewCall(t, func() {
		select {
		case moved <- struct{}{}:
		default:
		}
	}))
	write(r, 0, 0, pattern(512, 1))
	select {
	case <-moved:
	case <-time.After(20 * time.Second):
		t.Error("no interrupt where it was moved to")
	}
	r.Stop() // before the eventfd is closed
}

func TestRefuses(t *testing.T) {
	f := newFake(t)
	open := func() error {
		b, err := Open(t.Context(), f.config())
		if err == nil {
			b.Close()
		}
		return err
	}
	for want, change := range map[string]func(){
		"lacks the features 0x20000000": func() { f.features = virtio.FeatureEventIdx },
		"no configuration space":        func() { f.protocol &^= protocolConfig },
		"serves 0 queues":               func() { f.queues = 0 },
	} {
		f.set(func() {
			f.protocol, f.features, f.queues = protocolMQ|protocolConfig, 0, 1
			change()
		})
		if err := open(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	f.set(func() { f.protocol, f.features, f.queues = protocolConfig, 0, 1 })
	b := f.open()
	if _, err := New(b, Options{ReadOnly: true}); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("read-only: %v", err)
	}
	d, err := New(b, Options{Queues: 16})
	if err != nil || len(d.QueueSizes()) != 1 || d.Features()&featureMQ != 0 {
		t.Errorf("queues %v, features %#x, %v", d.QueueSizes(), d.Features(), err)
	}
	f.kill()
	if err := open(); err == nil || !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "storage daemon") {
		t.Errorf("nobody there: %v", err)
	}
	// Memory that nobody else can map.
	private := virtiotest.New(t, &virtiotest.Func{Sizes: []uint16{256}}, 0)
	eventually(t, "death is seen", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return !b.conn.alive() })
	f.listen()
	if err := d.Start(private.Env); err == nil || !strings.Contains(err.Error(), "shared memory") {
		t.Errorf("private memory: %v", err)
	}
}

// FuzzMessages has a back end say anything at all.
func FuzzMessages(f *testing.F) {
	good := message{request: getFeatures, flags: flagReply, payload: u64(needed)}
	f.Add(good.encode())
	for _, p := range [][]byte{inflight{}.payload(), vringState(1, 2), configRange(0, make([]byte, configSize))} {
		m := message{request: getConfig, flags: flagReply, payload: p}
		f.Add(append(good.encode(), m.encode()...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := fileConn(t, fds[0]), fileConn(t, fds[1])
		go func() {
			_, _ = theirs.Write(data)
			theirs.CloseWrite()
		}()
		defer theirs.Close()
		b, err := Open(t.Context(), Config{Name: "fuzz", Timeout: 2 * time.Second,
			Dial: func(context.Context) (*net.UnixConn, error) { return ours, nil }})
		if err == nil {
			b.Close()
		}
		_, _ = parseBase(data, 0)
		_, _ = parseConfig(data, configSize)
		_, _ = parseInflight(data)
	})
}

func fileConn(t *testing.T, fd int) *net.UnixConn {
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}
