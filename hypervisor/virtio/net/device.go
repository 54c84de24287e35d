// Package virtionet is the virtio network device (virtio 1.2 §5.1) with one pair of queues. What is on the other side of
// the cable is a Backend: a tap, which takes over checksums and segmentation, or a stream socket in QEMU's framing, which
// passt and gvisor-tap-vsock serve without any privilege.
//
// A packet is never copied on its way through a tap: the kernel reads and writes the guest's buffers. When the guest has no
// receive buffers the packets stay where they are, in the tap or in the socket.
package virtionet

import (
	"encoding/binary"
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/internal/framing"
)

// Feature bits, virtio 1.2 §5.1.3.
const (
	FeatureCSUM      = 1 << 0  // the device takes packets with a partial checksum
	FeatureGuestCSUM = 1 << 1  // the driver does
	FeatureMTU       = 1 << 3  // config has the MTU
	FeatureMAC       = 1 << 5  // config has the MAC address
	FeatureGuestTSO4 = 1 << 7  // the driver takes TCP over IPv4 that is not cut into segments
	FeatureGuestTSO6 = 1 << 8  // the same over IPv6
	FeatureGuestECN  = 1 << 9  // the same with congestion notification
	FeatureHostTSO4  = 1 << 11 // the device does
	FeatureHostTSO6  = 1 << 12
	FeatureHostECN   = 1 << 13
	FeatureMrgRxBuf  = 1 << 15 // a received packet may span several chains
	FeatureStatus    = 1 << 16 // config has the link status
)

// Offloads are the features that a Backend may have.
const Offloads = FeatureCSUM | FeatureGuestCSUM | FeatureGuestTSO4 | FeatureGuestTSO6 | FeatureGuestECN |
	FeatureHostTSO4 | FeatureHostTSO6 | FeatureHostECN

// The queues. With multiqueue, pair i would be 2i and 2i+1.
const (
	rxQueue   = 0
	txQueue   = 1
	queueSize = 256
)

// MaxFrame is the length in bytes of the longest Ethernet frame that is carried: 64 KiB of IP that somebody else cuts into
// segments, and room for the Ethernet header with tags.
const MaxFrame = framing.MaxFrame

// minFrame is the length of an Ethernet header.
const minFrame = 14

// ErrStopped is what a Backend returns from a call that Stop has interrupted.
var ErrStopped = errors.New("network backend is stopped")

// Backend carries Ethernet frames between the device and a network. A packet is an I/O vector whose first element is the
// virtio_net_hdr of HeaderSize bytes, in the device's own memory; the rest holds the frame, most often in guest memory.
//
// Receive is called by one goroutine, Send and Flush by another; Stop and Link by any.
type Backend interface {
	// Features says which of Offloads the backend has. It never changes.
	Features() uint64
	// Link reports whether the backend is connected to anything.
	Link() bool
	// Start is called before the first packet, and again after Stop, with the negotiated features. linkChanged is to be
	// called, from any goroutine, when Link has changed.
	Start(features uint64, linkChanged func()) error
	// Stop makes Receive, Send and Flush return ErrStopped soon, until the next Start. No packet is lost by that, and
	// stopping twice does no harm.
	Stop()
	// Receive waits for a packet, puts it into the vector, which has room for MaxFrame, and returns its length with the
	// header. It calls idle before it waits. The only error is ErrStopped: whatever happens to the network, Receive
	// waits until it is back.
	Receive(packet []unix.Iovec, idle func()) (int, error)
	// Send sends a packet, or drops it if the network cannot take it at all. The only error is ErrStopped: the packet is
	// then not sent. The backend does not keep the vector.
	Send(packet []unix.Iovec) error
	// Flush sends what Send has gathered. Its error is ErrStopped; what is left then waits for the next Flush.
	Flush() error
}

// Config describes a network device.
type Config struct {
	MAC     [6]byte
	MTU     uint16 // largest frame payload in bytes that the driver should send, at least 68; 0: the driver's default
	Backend Backend
}

// Device is a virtio network device.
type Device struct {
	backend Backend
	config  [12]byte    // struct virtio_net_config up to mtu; status is filled in when it is read
	mtu     uint16      // as configured
	unplug  atomic.Bool // the user has pulled the cable
	changed atomic.Pointer[func()]

	rx receiver
	tx transmitter
}

// New returns a device described by c.
func New(c Config) *Device {
	d := &Device{backend: c.Backend, mtu: c.MTU}
	copy(d.config[:6], c.MAC[:])
	binary.LittleEndian.PutUint16(d.config[8:], 1) // max_virtqueue_pairs
	binary.LittleEndian.PutUint16(d.config[10:], c.MTU)
	d.rx.init(d)
	d.tx.init(d)
	return d
}

// ID implements virtio.Device.
func (d *Device) ID() virtio.DeviceID { return virtio.IDNet }

// Features implements virtio.Device.
func (d *Device) Features() uint64 {
	f := FeatureMAC | FeatureStatus | FeatureMrgRxBuf | d.backend.Features()&Offloads
	if d.mtu != 0 {
		f |= FeatureMTU
	}
	return f
}

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize} }

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint32, p []byte) {
	c := d.config
	if d.linkUp() {
		c[6] = 1 // status: VIRTIO_NET_S_LINK_UP
	}
	clear(p)
	if off < uint32(len(c)) {
		copy(p, c[off:])
	}
}

// WriteConfig implements virtio.Device: a modern driver may write nothing (§5.1.4.2).
func (d *Device) WriteConfig(uint32, []byte) {}

func (d *Device) linkUp() bool { return !d.unplug.Load() && d.backend.Link() }

// SetLink plugs the cable in or pulls it, from any goroutine. While it is out, packets in both directions are dropped.
func (d *Device) SetLink(up bool) {
	if d.unplug.Swap(!up) == up {
		d.configChanged()
	}
}

// configChanged tells the driver, if there is one, to look at the link status.
func (d *Device) configChanged() {
	if f := d.changed.Load(); f != nil {
		(*f)()
	}
}

// Start implements virtio.Device.
func (d *Device) Start(env *virtio.Env) error {
	d.changed.Store(&env.ConfigChanged)
	if err := d.backend.Start(env.Features, d.configChanged); err != nil {
		d.changed.Store(nil)
		return err
	}
	d.rx.start(env)
	d.tx.start(env)
	env.Serve(rxQueue, d.rx.handle)
	env.Serve(txQueue, d.tx.handle)
	return nil
}

// Stop implements virtio.Device.
func (d *Device) Stop() {
	d.backend.Stop()
	d.changed.Store(nil)
}

// Reset implements virtio.Device. The driver has configured nothing that Start does not set again.
func (d *Device) Reset() {}

// StateVersion implements virtio.Device.
func (d *Device) StateVersion() uint16 { return 1 }

// State implements virtio.Device. Address and MTU are the guest's for ever: it does not look again.
func (d *Device) State(c *snap.Codec) {
	var mac [8]byte
	copy(mac[:], d.config[:6])
	c.Match("MAC address (little-endian)", binary.LittleEndian.Uint64(mac[:]))
	c.Match("MTU", uint64(d.mtu))
	unplugged := d.unplug.Load()
	c.Bool(&unplugged)
	d.unplug.Store(unplugged)
}
