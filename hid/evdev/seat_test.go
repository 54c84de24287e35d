package evdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hid"
)

// bench is a seat with a directory of nodes and uevents of ours.
type bench struct {
	t       *testing.T
	seat    *Seat
	dir     string
	uevents chan uevent
	log     chan string
	text    *logText
	ended   chan error
	stop    context.CancelFunc

	mu      sync.Mutex
	devices map[string]*fake // by the name of the node
	denied  map[string]int   // how often opening fails before it does not
}

// logText is what the seat logs.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// quitter is a fake that can be unplugged: the end of its pipe is ENODEV.
type quitter struct{ *fake }

func (q quitter) Read(p []byte) (int, error) {
	n, err := q.fake.Read(p)
	if err == io.EOF {
		err = unix.ENODEV
	}
	return n, err
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, dir: t.TempDir(), uevents: make(chan uevent), log: make(chan string, 100), text: &logText{},
		ended: make(chan error, 1), devices: make(map[string]*fake), denied: make(map[string]int)}
	b.seat = NewSeat(Config{
		Plugged:   func(id int, d *Device) { b.log <- fmt.Sprintf("%d plugged: %v", id, d.Info().Kind()) },
		Unplugged: func(id int) { b.log <- fmt.Sprintf("%d unplugged", id) },
		Input:     func(id int, at time.Duration, batch []hid.Event) { b.log <- fmt.Sprintf("%d %s", id, words(batch)) },
		Raw:       func(id int, r Report) { b.log <- fmt.Sprintf("%d raw %s", id, words(r.Events)) },
		Log:       slog.New(slog.NewTextHandler(b.text, nil)),
		dir:       b.dir,
		open:      b.open,
	})
	return b
}

func (b *bench) open(path string) (*Device, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	name := filepath.Base(path)
	f := b.devices[name]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	if b.denied[name]--; b.denied[name] >= 0 {
		return nil, fs.ErrPermission
	}
	return open(quitter{f}, path)
}

// put makes a node.
func (b *bench) put(name string, info Info) *fake {
	b.t.Helper()
	f := newFake(b.t, info)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.devices[name] = f
	if err := os.WriteFile(filepath.Join(b.dir, name), nil, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return f
}

// pull removes a node, and then the device behind it.
func (b *bench) pull(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	os.Remove(filepath.Join(b.dir, name))
	b.devices[name].feed.Close()
	delete(b.devices, name)
}

func (b *bench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	stopped := make(chan struct{})
	next := func() (uevent, error) {
		select {
		case u := <-b.uevents:
			if u.action == "overrun" {
				return uevent{}, errOverrun
			}
			return u, nil
		case <-stopped:
			return uevent{}, os.ErrClosed
		}
	}
	go func() { b.ended <- b.seat.run(ctx, next, func() { close(stopped) }) }()
	b.t.Cleanup(b.end)
}

// end stops the seat, which must have nothing to say any more.
func (b *bench) end() {
	b.stop()
	select {
	case err := <-b.ended:
		b.ended <- err
		if err != nil {
			b.t.Error(err)
		}
	case <-time.After(time.Minute):
		b.t.Fatal("the seat does not end")
	}
}

func (b *bench) event(action, name string) {
	b.uevents <- uevent{action: action, subsystem: "input", devname: "input/" + name}
}

func (b *bench) want(lines ...string) {
	b.t.Helper()
	for _, want := range lines {
		select {
		case got := <-b.log:
			if got != want {
				b.t.Fatalf("%s; want %s", got, want)
			}
		case <-time.After(time.Minute):
			b.t.Fatalf("waited in vain for %s", want)
		}
	}
}

var lid = Info{Name: "Lid Switch", SW: bitsOf(hid.EVSW, 0)}

func TestSeat(t *testing.T) {
	b := newBench(t)
	kbd := b.put("event0", keyboard)
	b.put("event1", Info{Name: "PC Speaker"})
	b.put("mouse0", keyboard)
	b.seat.SetLEDs(hid.LEDCaps)
	b.run()
	b.want("1 plugged: keyboard")
	kbd.send(t, stream(0, "key 30=1", "syn"))
	b.want("1 raw key 30=1", "1 key 30=1")

	// The lights that were set before and those that are set now.
	b.seat.SetLEDs(hid.LEDNum)
	want := append(stream(0, "led 0=0", "led 1=1", "syn"), stream(0, "led 0=1", "led 1=0", "syn")...)
	if !bytes.Equal(kbd.written, want) {
		t.Errorf("lights % x", kbd.written)
	}
	if fmt.Sprint(kbd.grabs) != "[1]" {
		t.Errorf("grabs: %v", kbd.grabs)
	}

	// Plugged in, unplugged, and another one of the same name.
	sw := b.put("event2", lid)
	b.event("add", "event2")
	b.want("2 plugged: switches")
	sw.send(t, stream(0, "sw 0=1", "syn"))
	b.want("2 raw sw 0=1")
	b.pull("event0")
	b.want("1 unplugged")
	b.event("remove", "event0")
	b.put("event0", keyboard)
	b.event("add", "event0")
	b.want("3 plugged: keyboard")

	b.end()
	for range 2 {
		if got := <-b.log; got != "2 unplugged" && got != "3 unplugged" {
			t.Error(got)
		}
	}
}

// The power button and the lid are the host's: no guest hears of them, and where nobody asks for them they stay with whoever
// has them.
func TestSeatPower(t *testing.T) {
	power := Info{Name: "Power Button", Keys: bitsOf(hid.EVKey, hid.KeyPower)}
	b := newBench(t)
	f := b.put("event0", power)
	b.run()
	b.want("1 plugged: power button")
	f.send(t, stream(0, fmt.Sprintf("key %d=1", hid.KeyPower), "syn", fmt.Sprintf("key %d=0", hid.KeyPower), "syn"))
	b.want("1 raw key 116=1", "1 raw key 116=0")

	b = newBench(t)
	cfg := b.seat.cfg
	cfg.Raw, cfg.Use = nil, nil
	b.seat = NewSeat(cfg)
	b.put("event0", power)
	b.put("event1", lid)
	b.run()
	b.event("add", "event1")
	b.put("event2", keyboard)
	b.event("add", "event2")
	b.want("1 plugged: keyboard")
}

// A node that cannot be opened yet, or is grabbed by another program, is tried again.
func TestSeatRetries(t *testing.T) {
	b := newBench(t)
	b.denied["event0"] = 3
	f := b.put("event0", keyboard)
	f.busy = true
	b.run()
	for {
		b.mu.Lock()
		tries := b.denied["event0"]
		b.mu.Unlock()
		if tries < -2 { // denied thrice, and then busy
			break
		}
		time.Sleep(time.Millisecond)
	}
	f.mu.Lock()
	f.busy = false
	f.mu.Unlock()
	// The seat has closed the fake each time, and with it the pipe: a new one takes its place.
	b.put("event0", keyboard)
	b.want("1 plugged: keyboard")
}

// A node that is removed while it is tried is forgotten, and the next one of its name is not kept waiting.
func TestSeatRemovedWhileTried(t *testing.T) {
	b := newBench(t)
	b.denied["event0"] = 1 << 30
	b.put("event0", keyboard)
	b.run()
	b.event("remove", "event0")
	b.mu.Lock()
	b.denied["event0"] = 0
	b.mu.Unlock()
	b.event("add", "event0")
	b.want("1 plugged: keyboard")
}

func TestSeatOverrun(t *testing.T) {
	b := newBench(t)
	b.put("event0", keyboard)
	b.run()
	b.want("1 plugged: keyboard")
	b.put("event1", lid)
	b.event("overrun", "")
	b.want("2 plugged: switches")
	// The name is another device's before anybody has said so.
	b.mu.Lock()
	old := b.devices["event0"]
	b.mu.Unlock()
	b.put("event0", lid)
	old.feed.Close()
	b.want("1 unplugged", "3 plugged: switches")
}

func TestSeatFails(t *testing.T) {
	b := newBench(t)
	f := b.put("event0", keyboard)
	b.run()
	b.want("1 plugged: keyboard")
	f.File.Close() // an error that nobody expects
	b.want("1 unplugged")
	for deadline := time.Now().Add(time.Minute); !strings.Contains(b.text.String(), "level=WARN"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("log: %s", b.text)
		}
	}

	want := errors.New("broken")
	s := NewSeat(Config{dir: "/nowhere"})
	if err := s.run(context.Background(), func() (uevent, error) { return uevent{}, want }, func() {}); err != want {
		t.Errorf("a broken monitor: %v", err)
	}
}
