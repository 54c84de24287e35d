package virtionet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Offloads of a tap, TUNSETOFFLOAD.
const (
	tunCSUM = 1 << iota
	tunTSO4
	tunTSO6
	tunTSOECN
)

// Tap is a Backend over a tap device: packets go between the guest's memory and the host's network stack, which computes
// checksums and cuts segments, or hands both on to another guest untouched.
type Tap struct {
	file *os.File
	conn syscall.RawConn
	name string
	gone atomic.Bool // somebody has deleted the device

	// Between Start and Stop.
	changed func()
	ctx     context.Context // ends at Stop
	cancel  context.CancelFunc
	rx, tx  transfer
}

// transfer is a readv or writev that may have to wait. One function value serves all of them: a new one for each would be
// an allocation per packet.
type transfer struct {
	trap  uintptr
	iov   []unix.Iovec
	idle  func() // called before waiting, or nil
	n     int
	errno unix.Errno
	try   func(fd uintptr) bool
}

func (t *transfer) init(trap uintptr) {
	t.trap = trap
	t.try = func(fd uintptr) bool {
		t.n, t.errno = vectored(t.trap, fd, t.iov)
		if t.errno != unix.EAGAIN {
			return true
		}
		if t.idle != nil {
			t.idle()
		}
		return false
	}
}

// OpenTap opens the tap device name, or makes it if the caller may. An empty name lets the kernel choose one.
func OpenTap(name string) (*Tap, error) {
	fd, err := attachTap(name)
	if err != nil {
		return nil, err
	}
	return newTap(fd)
}

// AttachTap is OpenTap for a descriptor to hand to another process, which calls NewTap.
func AttachTap(name string) (*os.File, error) {
	fd, err := attachTap(name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func attachTap(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("tap %s: open /dev/net/tun: %w", name, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		// Before the descriptor is polled: until it has a device, a poll reports an error once and for all.
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("tap %s: attach to the device: %w (it has to be a tap that this user owns, and free)", name, err)
	}
	return fd, nil
}

// NewTap returns a backend over an open tap device, such as one that was inherited. It takes f over. The device must have
// been attached with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
func NewTap(f *os.File) (*Tap, error) {
	// A descriptor of our own: f may be a blocking one, which Go's poller does not take.
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", f.Name(), err)
	}
	fd := -1
	ctlErr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(ctlErr, err, f.Close()); err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("tap %s: %w", f.Name(), err)
	}
	return newTap(fd)
}

// newTap takes over fd, which is closed on error.
func newTap(fd int) (*Tap, error) {
	name, err := setUpTap(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	conn, err := file.SyscallConn()
	if err == nil {
		err = file.SetDeadline(time.Time{}) // it can be polled: Stop depends on that
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	t := &Tap{file: file, conn: conn, name: name}
	t.rx.init(unix.SYS_READV)
	t.tx.init(unix.SYS_WRITEV)
	return t, nil
}

// setUpTap checks that fd is a tap in the mode that the device needs, and returns the interface's name.
func setUpTap(fd int) (name string, err error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return "", fmt.Errorf("not an attached tap device: %w", err)
	}
	const need = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	if flags := req.Uint16(); flags&need != need {
		return req.Name(), fmt.Errorf("attached with flags %#x: attach it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR (%#x)", flags, need)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, HeaderSize); err != nil {
		return req.Name(), fmt.Errorf("set the header size: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return req.Name(), fmt.Errorf("make it non-blocking: %w", err)
	}
	return req.Name(), nil
}

// Name returns the name of the network interface.
func (t *Tap) Name() string { return t.name }

// Close closes the tap. The device must be stopped.
func (t *Tap) Close() error { return t.file.Close() }

// Features implements Backend.
func (t *Tap) Features() uint64 { return Offloads }

// Link implements Backend. Whether the host has the interface up is not the guest's cable.
func (t *Tap) Link() bool { return !t.gone.Load() }

// Start implements Backend.
func (t *Tap) Start(features uint64, linkChanged func()) error {
	has := func(f uint64) bool { return features&f != 0 }
	offload := 0
	if has(FeatureGuestCSUM) {
		offload = tunCSUM
		if has(FeatureGuestTSO4) {
			offload |= tunTSO4
		}
		if has(FeatureGuestTSO6) {
			offload |= tunTSO6
		}
		if has(FeatureGuestECN) && offload != tunCSUM {
			offload |= tunTSOECN
		}
	}
	var errno error
	err := t.conn.Control(func(fd uintptr) { errno = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, offload) })
	if err := errors.Join(err, errno); err != nil && !errors.Is(err, unix.EBADFD) { // EBADFD: deleted, and seen by Receive
		return fmt.Errorf("tap %s: set offloads %#x: %w", t.name, offload, err)
	}
	t.changed = linkChanged
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t.file.SetDeadline(time.Time{})
}

// Stop implements Backend.
func (t *Tap) Stop() {
	if t.cancel == nil { // it never started
		return
	}
	t.cancel()
	_ = t.file.SetDeadline(time.Unix(1, 0)) // in the past: whoever waits returns
}

// Receive implements Backend.
func (t *Tap) Receive(packet []unix.Iovec, idle func()) (int, error) {
	t.rx.iov, t.rx.idle = packet, idle
	if !t.gone.Load() {
		if t.conn.Read(t.rx.try) != nil {
			return 0, ErrStopped
		}
		if t.rx.errno == 0 {
			return t.rx.n, nil
		}
		// The only errors of a tap say that there is no device behind it any more (EBADFD), for good.
		t.gone.Store(true)
		t.changed()
	}
	idle()
	<-t.ctx.Done()
	return 0, ErrStopped
}

// Send implements Backend. What the kernel refuses (the interface is down, the frame is malformed) is dropped.
func (t *Tap) Send(packet []unix.Iovec) error {
	t.tx.iov = packet
	if t.conn.Write(t.tx.try) != nil {
		return ErrStopped
	}
	return nil
}

// Flush implements Backend: nothing is gathered.
func (t *Tap) Flush() error { return nil }
