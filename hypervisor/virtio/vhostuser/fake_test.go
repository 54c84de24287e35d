package vhostuser

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/blk"
)

const diskSize = 1 << 20

// fake is a back end: our own block device behind the other half of the protocol. It serves one connection at a time.
type fake struct {
	t    testing.TB
	path string
	disk *os.File

	mu       sync.Mutex
	l        *net.UnixListener
	protocol uint64                          // features
	features uint64                          // less than all
	queues   uint64                          // that it says it has
	hook     func(m message, s *served) bool // takes a message itself, if it returns true
	requests []request                       // of all connections
	current  *served
	capacity uint64 // in sectors
	sessions sync.WaitGroup
}

// served is one connection of a fake.
type served struct {
	f    *fake
	sock *net.UnixConn

	mu      sync.Mutex // held while a message is handled
	ended   bool
	mem     *mem.Memory
	maps    [][]byte
	vrings  [4]vring
	feature uint64
	channel *net.UnixConn
}

type vring struct {
	cfg    virtio.Config
	base   uint16
	kick   *os.File
	call   int
	callMu sync.Mutex
	env    *virtio.Env
	dev    *blk.Device
}

func newFake(t testing.TB) *fake {
	t.Helper()
	disk, err := os.CreateTemp(t.TempDir(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, path: filepath.Join(t.TempDir(), "s"), disk: disk, queues: 2, capacity: diskSize / 512,
		protocol: protocolMQ | protocolReplyAck | protocolBackendReq | protocolConfig}
	f.listen()
	t.Cleanup(func() { f.kill(); disk.Close() })
	return f
}

// listen begins to take connections, at first and after kill.
func (f *fake) listen() {
	f.t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: f.path, Net: "unix"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.l = l
	f.mu.Unlock()
	f.sessions.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			s := &served{f: f, sock: c}
			f.mu.Lock()
			f.current = s
			f.mu.Unlock()
			s.run()
		}
	})
}

// kill ends the fake, as if its process had died.
func (f *fake) kill() {
	f.mu.Lock()
	f.l.Close()
	if f.current != nil {
		f.current.sock.Close()
	}
	f.mu.Unlock()
	f.sessions.Wait()
}

// with gives do the connection between two messages.
func (f *fake) with(do func(s *served)) {
	f.mu.Lock()
	s := f.current
	f.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s)
}

// set changes f while it runs.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fake) asked() []request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]request(nil), f.requests...)
}

func (s *served) run() {
	defer s.close()
	for {
		m, err := readMessage(s.sock)
		if err != nil {
			return
		}
		s.f.mu.Lock()
		s.f.requests = append(s.f.requests, m.request)
		hook := s.f.hook
		s.f.mu.Unlock()
		if hook != nil && hook(m, s) {
			continue
		}
		s.mu.Lock()
		s.handle(m)
		s.mu.Unlock()
	}
}

func (s *served) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for i := range s.vrings {
		s.stop(i)
	}
	if s.channel != nil {
		s.channel.Close()
	}
	for _, b := range s.maps {
		_ = unix.Munmap(b)
	}
	s.sock.Close()
}

// answer sends an answer to m.
func (s *served) answer(m message, payload []byte, fds ...int) {
	a := message{request: m.request, flags: flagReply, payload: payload, fds: fds}
	_ = a.write(s.sock)
}

func (s *served) handle(m message) {
	le := binary.LittleEndian
	f := s.f
	f.mu.Lock()
	protocol, features, queues := f.protocol, f.features, f.queues
	config := [configSize]byte{}
	le.PutUint64(config[:], f.capacity)
	f.mu.Unlock()
	var v *vring
	if len(m.payload) >= 8 {
		v = &s.vrings[m.payload[0]%4]
	}
	switch m.request {
	case getFeatures:
		s.answer(m, u64((needed|featureFlush|featureMQ|featureDiscard|featureConfigWCE)&^features))
		return
	case getProtocolFeatures:
		s.answer(m, u64(protocol))
		return
	case getQueueNum:
		s.answer(m, u64(queues))
		return
	case getConfig:
		s.answer(m, append(m.payload[:headerSize:headerSize], config[:]...))
		return
	case getInflightFD:
		fd, _ := unix.MemfdCreate("inflight", unix.MFD_CLOEXEC)
		s.answer(m, append(inflight{size: 4096}.payload(), 0, 0, 0, 0), fd)
		unix.Close(fd)
		return
	case getVringBase:
		base := s.stop(int(m.payload[0]))
		s.answer(m, vringState(int(m.payload[0]), uint32(base)))
		return
	case setFeatures:
		s.feature, _ = parseU64(m.payload)
	case setBackendReqFD:
		file := os.NewFile(uintptr(m.fds[0]), "channel")
		c, err := net.FileConn(file)
		if err != nil {
			f.t.Error(err)
		}
		file.Close()
		s.channel, m.fds = c.(*net.UnixConn), nil
	case setMemTable:
		s.mapTable(m)
	case setVringNum:
		v.cfg.Size = le.Uint16(m.payload[4:])
	case setVringBase:
		v.base = le.Uint16(m.payload[4:])
	case setVringAddr:
		for i, at := range []*mem.GPA{&v.cfg.Desc, &v.cfg.Used, &v.cfg.Avail} {
			*at = mem.GPA(le.Uint64(m.payload[8+8*i:]) - userBase)
		}
	case setVringKick:
		_ = unix.SetNonblock(m.fds[0], true)
		v.kick, m.fds = os.NewFile(uintptr(m.fds[0]), "kick"), nil
	case setVringCall:
		v.callMu.Lock()
		if v.call > 0 {
			unix.Close(v.call)
		}
		v.call, m.fds = m.fds[0], nil
		v.callMu.Unlock()
	case setVringEnable:
		s.start(int(m.payload[0]))
	}
	m.close()
	if m.flags&flagNeedReply != 0 {
		s.answer(m, u64(0))
	}
}

func (s *served) mapTable(m message) {
	le := binary.LittleEndian
	var regions []mem.Region
	for i, fd := range m.fds {
		p := m.payload[8+32*i:]
		b, err := unix.Mmap(fd, int64(le.Uint64(p[24:])), int(le.Uint64(p[8:])), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			s.f.t.Error(err)
			return
		}
		s.maps = append(s.maps, b)
		regions = append(regions, mem.Region{Base: mem.GPA(le.Uint64(p)), Bytes: b})
	}
	var err error
	if s.mem, err = mem.New(regions...); err != nil {
		s.f.t.Error(err)
	}
}

// start serves a vring by a block device of its own.
func (s *served) start(i int) {
	v := &s.vrings[i]
	q, err := virtio.NewQueue(i, s.mem, v.cfg, s.feature, v.kick, func() {
		v.callMu.Lock()
		defer v.callMu.Unlock()
		signal(v.call)
	})
	if err == nil {
		q.SetPosition(v.base)
		v.dev, err = blk.New(blk.Config{Name: "fake", File: s.f.disk, Serial: "fake"})
	}
	if err == nil {
		v.env = &virtio.Env{Mem: s.mem, Features: s.feature, Queues: []*virtio.Queue{q}, ConfigChanged: func() {},
			Broken: func(error) { s.sock.Close() }} // as QEMU does
		err = v.dev.Start(v.env)
	}
	if err != nil {
		s.f.t.Error(err)
	}
}

func (s *served) stop(i int) uint16 {
	v := &s.vrings[i]
	if v.env != nil {
		v.env.Stop(v.dev)
		v.base = v.env.Queues[0].Position()
		v.env = nil
	}
	if v.kick != nil {
		v.kick.Close()
		v.kick = nil
	}
	v.callMu.Lock()
	defer v.callMu.Unlock()
	if v.call > 0 {
		unix.Close(v.call)
		v.call = 0
	}
	return v.base
}

// config returns a Config that reaches f.
func (f *fake) config() Config {
	return Config{Name: "root", Dial: DialPath(f.path), Reconnect: true, Log: testLog(f.t)}
}

// open connects to f.
func (f *fake) open() *Backend {
	f.t.Helper()
	b, err := Open(context.Background(), f.config())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { b.Close() })
	return b
}

// device returns a device on f.
func (f *fake) device() *Device {
	f.t.Helper()
	d, err := New(f.open(), Options{Queues: 2})
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

// header is that of a request.
func header(kind uint32, sector uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	return binary.LittleEndian.AppendUint64(append(b, 0, 0, 0, 0), sector)
}

func pattern(n int, v byte) []byte { return bytes.Repeat([]byte{v}, n) }
