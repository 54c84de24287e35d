package kms

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Card is an open /dev/dri/card*. Its methods may be called by any goroutine.
type Card struct {
	path string
	dev  device

	importing sync.Mutex // see Import
}

// Cards returns the paths of all cards, in order. There need not be any.
func Cards() ([]string, error) {
	paths, err := filepath.Glob("/dev/dri/card[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("graphics cards: %w", err)
	}
	number := func(p string) int {
		n, err := strconv.Atoi(strings.TrimPrefix(p, "/dev/dri/card"))
		if err != nil {
			return 1 << 30
		}
		return n
	}
	slices.SortFunc(paths, func(a, b string) int { return number(a) - number(b) })
	return paths, nil
}

// Open opens a card.
func Open(path string) (*Card, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, fmt.Errorf("graphics card: %w", err)
	}
	return &Card{path: path, dev: f}, nil
}

// Close closes the card. What it shows is gone.
func (c *Card) Close() error { return c.dev.close() }

// Path returns what the card was opened by.
func (c *Card) Path() string { return c.path }

// Driver returns the name of the card's driver (DRM_IOCTL_VERSION).
func (c *Card) Driver() (string, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	name := make([]byte, 64)
	v := version{nameLen: uint64(len(name)), name: address(&pin, name)}
	if err := ioctl(c.dev, "DRM_IOCTL_VERSION", nrVersion, &v); err != nil {
		return "", err
	}
	return string(name[:min(v.nameLen, uint64(len(name)))]), nil
}

// GetCap returns a capability of the driver, 0 if it does not know it.
func (c *Card) GetCap(capa uint64) uint64 {
	v := capability{capability: capa}
	if err := ioctl(c.dev, "DRM_IOCTL_GET_CAP", nrGetCap, &v); err != nil {
		return 0
	}
	return v.value
}

// SetClientCap says that we know what a capability is about.
func (c *Card) SetClientCap(capa uint64) error {
	return ioctl(c.dev, "DRM_IOCTL_SET_CLIENT_CAP", nrSetClientCap, &capability{capa, 1})
}

// SetMaster makes us the one who says what is shown.
func (c *Card) SetMaster() error {
	return ioctl[struct{}](c.dev, "DRM_IOCTL_SET_MASTER", nrSetMaster, nil)
}

// DropMaster lets another be it.
func (c *Card) DropMaster() error {
	return ioctl[struct{}](c.dev, "DRM_IOCTL_DROP_MASTER", nrDropMaster, nil)
}

// Resources are the objects of a card, by their IDs.
type Resources struct {
	CRTCs, Connectors, Encoders              []uint32
	MinWidth, MaxWidth, MinHeight, MaxHeight uint32 // of framebuffers, in pixels
}

// maxObjects bounds what the kernel says that there is of anything.
const maxObjects = 4096

// lists reads lists whose lengths the kernel tells first: it calls ask without room, allocate, and ask with it, until
// nothing has been plugged in between.
func lists(ask func() error, grown func() bool, allocate func()) error {
	if err := ask(); err != nil {
		return err
	}
	for range 10 {
		allocate()
		if err := ask(); err != nil {
			return err
		}
		if !grown() {
			return nil
		}
	}
	return errors.New("monitors come and go too fast")
}

// Resources returns the card's objects (DRM_IOCTL_MODE_GETRESOURCES).
func (c *Card) Resources() (*Resources, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	var r Resources
	var a cardRes
	err := lists(
		func() error { return ioctl(c.dev, "DRM_IOCTL_MODE_GETRESOURCES", nrGetResources, &a) },
		func() bool {
			return int(a.countCRTCs) > len(r.CRTCs) || int(a.countConnectors) > len(r.Connectors) || int(a.countEncoders) > len(r.Encoders)
		},
		func() {
			r.CRTCs = make([]uint32, min(a.countCRTCs, maxObjects))
			r.Connectors = make([]uint32, min(a.countConnectors, maxObjects))
			r.Encoders = make([]uint32, min(a.countEncoders, maxObjects))
			a = cardRes{
				crtcIDs: address(&pin, r.CRTCs), countCRTCs: uint32(len(r.CRTCs)),
				connectorIDs: address(&pin, r.Connectors), countConnectors: uint32(len(r.Connectors)),
				encoderIDs: address(&pin, r.Encoders), countEncoders: uint32(len(r.Encoders)),
			}
		})
	if err != nil {
		return nil, err
	}
	r.CRTCs, r.Connectors, r.Encoders = r.CRTCs[:a.countCRTCs], r.Connectors[:a.countConnectors], r.Encoders[:a.countEncoders]
	r.MinWidth, r.MaxWidth, r.MinHeight, r.MaxHeight = a.minWidth, a.maxWidth, a.minHeight, a.maxHeight
	return &r, nil
}

// Connector is where a monitor can be plugged in.
type Connector struct {
	ID                uint32
	Type, TypeID      uint32 // Name makes a name of them
	Connection        uint32 // Connected, or another value
	WidthMM, HeightMM uint32
	Encoder           uint32 // that is in use; 0: none
	Encoders          []uint32
	Modes             []ModeInfo
	Props             map[string]uint64 // see ObjectProps
	PropIDs           map[string]uint32
}

// Connector returns a connector with the modes of its monitor (DRM_IOCTL_MODE_GETCONNECTOR). The kernel asks the monitor
// for them, which may take a while.
func (c *Card) Connector(id uint32) (*Connector, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	k := &Connector{ID: id}
	a := getConnector{id: id}
	err := lists(
		func() error { return ioctl(c.dev, "DRM_IOCTL_MODE_GETCONNECTOR", nrGetConnector, &a) },
		func() bool { return int(a.countModes) > len(k.Modes) || int(a.countEncoders) > len(k.Encoders) },
		func() {
			// Modes that are not asked for are probed anew: one is, at least.
			k.Modes = make([]ModeInfo, max(min(a.countModes, maxObjects), 1))
			k.Encoders = make([]uint32, min(a.countEncoders, maxObjects))
			a = getConnector{
				id: id, modes: address(&pin, k.Modes), countModes: uint32(len(k.Modes)),
				encoders: address(&pin, k.Encoders), countEncoders: uint32(len(k.Encoders)),
			}
		})
	if err != nil {
		return nil, fmt.Errorf("connector %d: %w", id, err)
	}
	k.Modes, k.Encoders = k.Modes[:a.countModes], k.Encoders[:a.countEncoders]
	k.Type, k.TypeID, k.Connection, k.Encoder = a.kind, a.kindID, a.connection, a.encoderID
	k.WidthMM, k.HeightMM = a.mmWidth, a.mmHeight
	k.Props, k.PropIDs, err = c.ObjectProps(id, ObjectConnector)
	if err != nil {
		return nil, fmt.Errorf("connector %d: %w", id, err)
	}
	return k, nil
}

// connectorEncoder returns the encoder that a connector uses, 0 for none, without asking the monitor anything.
func (c *Card) connectorEncoder(id uint32) (uint32, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	modes := make([]ModeInfo, 1) // without room for one they would be probed
	a := getConnector{id: id, modes: address(&pin, modes), countModes: 1}
	if err := ioctl(c.dev, "DRM_IOCTL_MODE_GETCONNECTOR", nrGetConnector, &a); err != nil {
		return 0, fmt.Errorf("connector %d: %w", id, err)
	}
	return a.encoderID, nil
}

// Name returns the connector's name, as the kernel has it in sysfs: "eDP-1".
func (k *Connector) Name() string {
	names := [...]string{"Unknown", "VGA", "DVI-I", "DVI-D", "DVI-A", "Composite", "SVIDEO", "LVDS", "Component", "DIN", "DP",
		"HDMI-A", "HDMI-B", "TV", "eDP", "Virtual", "DSI", "DPI", "Writeback", "SPI", "USB"}
	name := names[0]
	if k.Type < uint32(len(names)) {
		name = names[k.Type]
	}
	return fmt.Sprintf("%s-%d", name, k.TypeID)
}

// Internal reports whether the connector is one that notebooks' panels are at: LVDS, eDP, DSI.
func (k *Connector) Internal() bool { return k.Type == 7 || k.Type == 14 || k.Type == 16 }

// Encoder returns an encoder (DRM_IOCTL_MODE_GETENCODER).
func (c *Card) Encoder(id uint32) (*Encoder, error) {
	e := &Encoder{ID: id}
	if err := ioctl(c.dev, "DRM_IOCTL_MODE_GETENCODER", nrGetEncoder, e); err != nil {
		return nil, fmt.Errorf("encoder %d: %w", id, err)
	}
	return e, nil
}

// GetCRTC returns what a CRTC shows (DRM_IOCTL_MODE_GETCRTC).
func (c *Card) GetCRTC(id uint32) (*CRTC, error) {
	k := &CRTC{ID: id}
	if err := ioctl(c.dev, "DRM_IOCTL_MODE_GETCRTC", nrGetCRTC, k); err != nil {
		return nil, fmt.Errorf("CRTC %d: %w", id, err)
	}
	return k, nil
}

// SetCRTC shows k.FB with k.Mode on the given connectors (DRM_IOCTL_MODE_SETCRTC); without a mode it is turned off.
func (c *Card) SetCRTC(k CRTC, connectors ...uint32) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	k.connectors, k.countConnectors = address(&pin, connectors), uint32(len(connectors))
	if err := ioctl(c.dev, "DRM_IOCTL_MODE_SETCRTC", nrSetCRTC, &k); err != nil {
		return fmt.Errorf("CRTC %d: %w", k.ID, err)
	}
	return nil
}

// Planes returns all planes (DRM_IOCTL_MODE_GETPLANERESOURCES and GETPLANE).
func (c *Card) Planes() ([]Plane, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	var ids []uint32
	var a planeRes
	err := lists(
		func() error { return ioctl(c.dev, "DRM_IOCTL_MODE_GETPLANERESOURCES", nrGetPlaneResources, &a) },
		func() bool { return int(a.count) > len(ids) },
		func() {
			ids = make([]uint32, min(a.count, maxObjects))
			a = planeRes{ids: address(&pin, ids), count: uint32(len(ids))}
		})
	if err != nil {
		return nil, err
	}
	var planes []Plane
	for _, id := range ids[:a.count] {
		p := Plane{ID: id}
		if err := ioctl(c.dev, "DRM_IOCTL_MODE_GETPLANE", nrGetPlane, &p); err != nil {
			return nil, fmt.Errorf("plane %d: %w", id, err)
		}
		planes = append(planes, p)
	}
	return planes, nil
}

// ObjectProps returns the values and the IDs of an object's properties (DRM_IOCTL_MODE_OBJ_GETPROPERTIES, GETPROPERTY).
func (c *Card) ObjectProps(id, kind uint32) (values map[string]uint64, ids map[string]uint32, err error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	var props []uint32
	var vals []uint64
	a := objProperties{obj: id, kind: kind}
	err = lists(
		func() error { return ioctl(c.dev, "DRM_IOCTL_MODE_OBJ_GETPROPERTIES", nrObjGetProperties, &a) },
		func() bool { return int(a.count) > len(props) },
		func() {
			n := min(a.count, maxObjects)
			props, vals = make([]uint32, n), make([]uint64, n)
			a = objProperties{obj: id, kind: kind, props: address(&pin, props), values: address(&pin, vals), count: n}
		})
	if err != nil {
		return nil, nil, err
	}
	values, ids = make(map[string]uint64), make(map[string]uint32)
	for i, p := range props[:a.count] {
		k := getProperty{id: p}
		if err := ioctl(c.dev, "DRM_IOCTL_MODE_GETPROPERTY", nrGetProperty, &k); err != nil {
			return nil, nil, fmt.Errorf("property %d: %w", p, err)
		}
		name, _, _ := bytes.Cut(k.name[:], []byte{0})
		values[string(name)], ids[string(name)] = vals[i], p
	}
	return values, ids, nil
}

// maxBlob bounds a blob that is read: an EDID has up to 256 blocks of 128 bytes.
const maxBlob = 1 << 20

// Blob returns the data of a blob property (DRM_IOCTL_MODE_GETPROPBLOB).
func (c *Card) Blob(id uint32) ([]byte, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	a := getBlob{id: id}
	if err := ioctl(c.dev, "DRM_IOCTL_MODE_GETPROPBLOB", nrGetPropBlob, &a); err != nil {
		return nil, fmt.Errorf("blob %d: %w", id, err)
	}
	if a.length > maxBlob {
		return nil, fmt.Errorf("blob %d has %d bytes", id, a.length)
	}
	b := make([]byte, a.length)
	a = getBlob{id: id, length: a.length, data: address(&pin, b)}
	if err := ioctl(c.dev, "DRM_IOCTL_MODE_GETPROPBLOB", nrGetPropBlob, &a); err != nil {
		return nil, fmt.Errorf("blob %d: %w", id, err)
	}
	return b, nil
}

// CreateBlob makes a blob property (DRM_IOCTL_MODE_CREATEPROPBLOB).
func (c *Card) CreateBlob(data []byte) (uint32, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	a := createBlob{data: address(&pin, data), length: uint32(len(data))}
	err := ioctl(c.dev, "DRM_IOCTL_MODE_CREATEPROPBLOB", nrCreatePropBlob, &a)
	return a.id, err
}

// DestroyBlob removes a blob property (DRM_IOCTL_MODE_DESTROYPROPBLOB).
func (c *Card) DestroyBlob(id uint32) error {
	return ioctl(c.dev, "DRM_IOCTL_MODE_DESTROYPROPBLOB", nrDestroyPropBlob, &id)
}

// PageFlip shows another framebuffer at the next refresh, with an event that carries user (DRM_IOCTL_MODE_PAGE_FLIP).
func (c *Card) PageFlip(crtc, fb uint32, user uint64) error {
	return ioctl(c.dev, "DRM_IOCTL_MODE_PAGE_FLIP", nrPageFlip, &pageFlip{crtc: crtc, fb: fb, flags: flagFlipEvent, userData: user})
}

// dirtyFB says what has changed in a framebuffer (DRM_IOCTL_MODE_DIRTYFB); nothing is all of it.
func (c *Card) dirtyFB(fb uint32, clips []clipRect) error {
	var pin runtime.Pinner
	defer pin.Unpin()
	return ioctl(c.dev, "DRM_IOCTL_MODE_DIRTYFB", nrDirtyFB, &fbDirty{id: fb, numClips: uint32(len(clips)), clips: address(&pin, clips)})
}

// isMissing reports whether an ioctl failed since the driver does not have it.
func isMissing(err error) bool {
	return errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENXIO)
}

// isDenied reports whether an ioctl failed since we are not the card's master.
func isDenied(err error) bool { return errors.Is(err, os.ErrPermission) }
