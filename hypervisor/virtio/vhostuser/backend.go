// Package vhostuser is a virtio block device (virtio 1.2 §5.2) whose requests another process serves, such as
// qemu-storage-daemon: the front end of the vhost-user protocol (QEMU, docs/interop/vhost-user.rst, whose sections comments
// name).
//
// The back end maps the guest's memory, waits for the driver's kicks itself and interrupts the guest by eventfds that KVM
// listens to: this process sets that up and takes it down again, and sees no request. It trusts a back end with the guest's
// memory, as it must, and with nothing else: an answer that cannot be, or none in time, ends the connection, and the device
// needs a reset. A back end that goes away is waited for if nothing is lost with it (Config.Reconnect), and if its requests in
// flight are where its successor finds them ("Inflight I/O tracking").
package vhostuser

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// Feature bits of block devices, virtio 1.2 §5.2.3.
const (
	featureSizeMax     = 1 << 1
	featureSegMax      = 1 << 2
	featureGeometry    = 1 << 4
	featureRO          = 1 << 5
	featureBlkSize     = 1 << 6
	featureFlush       = 1 << 9
	featureTopology    = 1 << 10
	featureConfigWCE   = 1 << 11
	featureMQ          = 1 << 12
	featureDiscard     = 1 << 13
	featureWriteZeroes = 1 << 14

	// featureProtocol (VHOST_USER_F_PROTOCOL_FEATURES) says that there are protocol features to negotiate.
	featureProtocol = 1 << 30

	// passed are the features that a driver may have if the back end offers them. CONFIG_WCE is for us, see begin.
	passed = featureSizeMax | featureSegMax | featureGeometry | featureRO | featureBlkSize | featureFlush | featureTopology |
		featureMQ | featureDiscard | featureWriteZeroes
	// needed are those without which a back end is of no use: what the transport offers any driver.
	needed = virtio.CoreFeatures | featureProtocol
)

// struct virtio_blk_config, virtio 1.2 §5.2.4.
const (
	configSize      = 60
	configWriteback = 32
	configNumQueues = 34
)

// userBase is what a guest-physical address is in user addresses: they are keys, by which the back end finds a vring's place in
// the table of regions. Those of this process are none of its business, and would change with each machine.
const userBase = 1 << 46

// defaultTimeout is for how long a back end may think about one thing: far more than any needs.
const defaultTimeout = 5 * time.Second

// Config says where a back end is.
type Config struct {
	Name    string                                       // of the disk, for messages
	Dial    func(context.Context) (*net.UnixConn, error) // connects to it, first of all and when it has gone away
	Timeout time.Duration                                // how long it may take to answer; 0 is 5 s

	// Reconnect says that the back end keeps nothing to itself that it has told the guest is written, as with a raw image: if
	// it dies, another may take its place while the guest runs. One that keeps what the guest has not flushed (QEMU keeps
	// tables of a qcow2 image) would lose that, and the guest go on as if it had not. A disk that cannot be written to needs
	// no such word.
	Reconnect bool

	Log *slog.Logger // nil is slog.Default
}

// DialPath returns a Dial for the Unix socket at path.
func DialPath(path string) func(context.Context) (*net.UnixConn, error) {
	return func(ctx context.Context) (*net.UnixConn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return c.(*net.UnixConn), nil
	}
}

// Backend is a back end that we are connected to. It outlives the machines of a guest: each has a Device of its own on it, one
// after the other.
type Backend struct {
	cfg    Config
	config atomic.Pointer[[configSize]byte] // struct virtio_blk_config as last read

	mu       sync.Mutex  // held while there is something to say to the back end, which takes until it has answered
	conn     *conn       // nil before the first connection
	protocol uint64      // protocol features of conn
	table    *mem.Memory // that conn has been given
	features uint64      // of the device
	queues   int         // that the back end can serve
	dev      *Device     // that a driver uses
	closed   bool
}

// Open connects to a back end and asks what disk it has. The caller closes it after the machines.
func Open(ctx context.Context, cfg Config) (*Backend, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	b := &Backend{cfg: cfg}
	b.mu.Lock()
	defer b.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	if err := b.connect(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// Close ends the connection. No device may be started.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.conn.fail(net.ErrClosed)
	return nil
}

// Capacity returns the disk's size in bytes, as the back end told last.
func (b *Backend) Capacity() uint64 { return binary.LittleEndian.Uint64(b.config.Load()[:]) * 512 }

// ReadOnly reports whether the back end does not let anybody write.
func (b *Backend) ReadOnly() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.features&featureRO != 0
}

// connect makes sure that there is a connection, with b locked.
func (b *Backend) connect(ctx context.Context) error {
	if b.closed {
		return net.ErrClosed
	}
	if b.conn.alive() {
		return nil
	}
	sock, err := b.cfg.Dial(ctx)
	if err != nil {
		return fmt.Errorf("disk %s: %w: is its storage daemon running?", b.cfg.Name, err)
	}
	c := newConn(sock)
	if err := b.negotiate(ctx, c); err != nil {
		c.fail(err)
		return fmt.Errorf("disk %s: %w", b.cfg.Name, err)
	}
	b.conn, b.table = c, nil
	return nil
}

// negotiate begins a conversation.
func (b *Backend) negotiate(ctx context.Context, c *conn) error {
	features, err := c.getU64(ctx, getFeatures)
	if err != nil {
		return err
	}
	if lacks := needed &^ features; lacks != 0 {
		return fmt.Errorf("the back end lacks the features %#x: it is too old", lacks)
	}
	if lacks := b.features &^ features & passed; lacks != 0 {
		return fmt.Errorf("the back end came back without the features %#x: start it as it was", lacks)
	}
	offered, err := c.getU64(ctx, getProtocolFeatures)
	if err != nil {
		return err
	}
	if offered&protocolConfig == 0 {
		return errors.New("the back end has no configuration space: it is no block device")
	}
	protocol := offered & protocolWanted
	if err := c.set(ctx, setProtocolFeatures, u64(protocol)); err != nil {
		return err
	}
	c.ack = protocol&protocolReplyAck != 0
	if err := c.set(ctx, setOwner, nil); err != nil {
		return err
	}
	queues := uint64(1)
	if protocol&protocolMQ != 0 {
		if queues, err = c.getU64(ctx, getQueueNum); err != nil {
			return err
		}
	}
	if queues == 0 || b.dev != nil && queues < uint64(b.dev.queues) {
		return fmt.Errorf("the back end serves %d queues only: start it as it was", queues)
	}
	if protocol&protocolBackendReq != 0 {
		if err := b.openChannel(ctx, c); err != nil {
			return err
		}
	}
	config, err := readConfig(ctx, c)
	if err != nil {
		return err
	}
	b.protocol, b.features, b.queues = protocol, features, int(min(queues, maxQueues))
	b.setConfig(config)
	return nil
}

func readConfig(ctx context.Context, c *conn) (config [configSize]byte, err error) {
	err = c.get(ctx, getConfig, configRange(0, config[:]), func(p []byte) error {
		b, err := parseConfig(p, configSize)
		copy(config[:], b)
		return err
	})
	return config, err
}

// setConfig takes over config, and tells the driver if there is one and something has changed.
func (b *Backend) setConfig(config [configSize]byte) {
	old := b.config.Swap(&config)
	if old != nil && !bytes.Equal(old[:], config[:]) && b.dev != nil {
		b.dev.env.ConfigChanged()
	}
}

// openChannel gives the back end a socket for requests of its own.
func (b *Backend) openChannel(ctx context.Context, c *conn) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("vhost-user: socket pair: %w", err)
	}
	defer unix.Close(fds[1])
	f := os.NewFile(uintptr(fds[0]), "vhost-user back end channel")
	defer f.Close()
	sock, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("vhost-user: socket pair: %w", err)
	}
	channel := sock.(*net.UnixConn)
	go func() {
		<-c.gone
		channel.Close()
	}()
	go serve(channel, b.cfg.Timeout, func() { b.refresh(c) })
	return c.set(ctx, setBackendReqFD, nil, fds[1])
}

// refresh reads the configuration space of c again, if that is the connection still.
func (b *Backend) refresh(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != c {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.cfg.Timeout)
	defer cancel()
	if config, err := readConfig(ctx, c); err == nil { // else the connection is over, which is found elsewhere
		b.setConfig(config)
	}
}

// share gives the back end the guest's memory, unless it has it.
func (b *Backend) share(ctx context.Context, m *mem.Memory) error {
	if b.table == m {
		return nil
	}
	var regions []region
	var fds []int
	for _, r := range m.Regions() {
		if r.File == nil {
			return errors.New("the guest's memory is this process's alone: build the machine with shared memory")
		}
		regions = append(regions, region{uint64(r.Base), uint64(len(r.Bytes)), uint64(r.Base) + userBase, uint64(r.Off)})
		fds = append(fds, int(r.File.Fd()))
	}
	if len(regions) > maxFDs {
		return fmt.Errorf("the guest's memory has %d regions: at most %d can be shared", len(regions), maxFDs)
	}
	if err := b.conn.set(ctx, setMemTable, memTable(regions), fds...); err != nil {
		return err
	}
	b.table = m
	return nil
}
