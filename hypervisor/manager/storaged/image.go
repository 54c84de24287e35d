package storaged

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Formats of an image.
const (
	Raw   = "raw"
	QCOW2 = "qcow2"
	LUKS  = "luks" // a raw disk, encrypted
)

// ErrInUse says that another guest, or another daemon, has the image.
var ErrInUse = errors.New("in use by another guest")

// Image is what a disk's content is in. One of Path and URL is set.
type Image struct {
	Path   string // a file or block device; absolute
	URL    string // an NBD export: nbd://host:port/export or nbd+unix:///export?socket=path
	Format string // Raw, QCOW2 or LUKS
	Secret []byte // the passphrase of an encrypted image (LUKS, or QCOW2 that is encrypted by LUKS), in UTF-8

	// Backing says that a qcow2 image may name files that it builds on. The daemon opens them, whatever they are.
	Backing bool
}

// object is a JSON object in the daemon's command line.
type object map[string]any

// String returns o as JSON.
func (o object) String() string {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err) // strings, numbers and booleans only
	}
	return string(b)
}

// node is a block device of the daemon's: one holds the bytes, another understands them.
type node object

const (
	topNode  = "disk"
	fileNode = "file"
	secretID = "key"
)

// nodes returns what the daemon is to make of the image.
func (i *Image) nodes(readOnly bool) ([]node, error) {
	file, err := i.file()
	if err != nil {
		return nil, err
	}
	top := node{"driver": i.Format, "node-name": topNode, "file": fileNode, "discard": "unmap"}
	switch i.Format {
	case Raw:
		if len(i.Secret) > 0 {
			return nil, errors.New("a secret is of no use to a raw image: its format is luks, if it is encrypted")
		}
	case LUKS:
		if len(i.Secret) == 0 {
			return nil, errors.New("an encrypted image needs its secret")
		}
		top["key-secret"] = secretID
	case QCOW2:
		if i.Path != "" {
			if err := i.checkQCOW2(); err != nil {
				return nil, err
			}
		}
		if !i.Backing {
			top["backing"] = nil
		}
		if len(i.Secret) > 0 {
			top["encrypt"] = object{"format": "luks", "key-secret": secretID}
		}
	default:
		return nil, fmt.Errorf("format %q: one of %s, %s, %s", i.Format, Raw, QCOW2, LUKS)
	}
	for _, n := range []node{file, top} {
		n["read-only"] = readOnly
	}
	return []node{file, top}, nil
}

// lock opens the image's file with the lock that guests have on disks, exclusive unless they only read. Of an NBD export, which
// its server guards, it is a file of no meaning.
func (i *Image) lock(readOnly bool) (*os.File, error) {
	if i.Path == "" {
		return os.Open(os.DevNull)
	}
	f, err := os.OpenFile(i.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if readOnly {
		how = unix.LOCK_SH
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is %w: stop that one, or make the disk read-only in both", i.Path, ErrInUse)
		}
		return nil, fmt.Errorf("lock %s: %w", i.Path, err)
	}
	return f, nil
}

// Encrypted reports whether the image needs a Secret.
func (i *Image) Encrypted() (bool, error) {
	if i.Format != QCOW2 || i.Path == "" {
		return i.Format == LUKS, nil
	}
	h, err := i.header()
	return binary.BigEndian.Uint32(h[qcow2Crypt:]) != 0, err
}

// reconnectDelay is for how long requests wait for an NBD server that went away, in seconds, before they fail.
const reconnectDelay = 60

// file returns the node that holds the bytes.
func (i *Image) file() (node, error) {
	if (i.Path == "") == (i.URL == "") {
		return nil, errors.New("an image is at a path or at a URL")
	}
	if i.URL != "" {
		server, export, err := parseNBD(i.URL)
		if err != nil {
			return nil, err
		}
		return node{"driver": "nbd", "node-name": fileNode, "server": server, "export": export, "reconnect-delay": reconnectDelay}, nil
	}
	st, err := os.Stat(i.Path)
	if err != nil {
		return nil, err
	}
	driver := "file"
	switch st.Mode().Type() {
	case 0:
	case os.ModeDevice:
		driver = "host_device"
	default:
		return nil, fmt.Errorf("%s is neither a file nor a block device", i.Path)
	}
	return node{"driver": driver, "node-name": fileNode, "filename": i.Path, "discard": "unmap"}, nil
}

// parseNBD takes a URL apart, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md.
func parseNBD(raw string) (server object, export string, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, "", err
	}
	export = strings.TrimPrefix(u.Path, "/")
	socket := u.Query().Get("socket")
	switch {
	case u.Scheme == "nbd" && u.Hostname() != "" && socket == "":
		port := u.Port()
		if port == "" {
			port = "10809"
		}
		return object{"type": "inet", "host": u.Hostname(), "port": port}, export, nil
	case u.Scheme == "nbd+unix" && u.Host == "" && socket != "":
		return object{"type": "unix", "path": socket}, export, nil
	}
	return nil, "", fmt.Errorf("URL %q: write nbd://host:port/export or nbd+unix:///export?socket=path", raw)
}

// The header of a qcow2 image, QEMU's docs/interop/qcow2.txt; all integers big-endian.
const (
	qcow2Magic         = "QFI\xfb"
	qcow2Backing       = 8  // offset of the backing file's name, or 0
	qcow2Crypt         = 32 // 0: not encrypted
	qcow2Incompatible  = 72 // feature bits of version 3
	qcow2HeaderSize    = 80
	qcow2ExternalData  = 1 << 2
	qcow2FirstVersion3 = 3
)

// header returns the begin of a qcow2 image.
func (i *Image) header() (h [qcow2HeaderSize]byte, err error) {
	f, err := os.OpenFile(i.Path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return h, err
	}
	defer f.Close()
	if _, err := io.ReadFull(f, h[:]); err != nil || string(h[:4]) != qcow2Magic {
		return h, fmt.Errorf("%s is not a qcow2 image: correct its format", i.Path)
	}
	return h, nil
}

// checkQCOW2 refuses an image that names other files, unless that is expected.
func (i *Image) checkQCOW2() error {
	h, err := i.header()
	if err != nil {
		return err
	}
	be := binary.BigEndian
	if be.Uint64(h[qcow2Backing:]) != 0 && !i.Backing {
		return fmt.Errorf("%s builds on another file, which is not expected: flatten it with 'qemu-img rebase -b \"\" %s'", i.Path, i.Path)
	}
	if be.Uint32(h[4:]) >= qcow2FirstVersion3 && be.Uint64(h[qcow2Incompatible:])&qcow2ExternalData != 0 {
		return fmt.Errorf("%s has its data in another file, which is not supported: convert it with 'qemu-img convert'", i.Path)
	}
	return nil
}
