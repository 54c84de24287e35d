package definition

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of a definition.
const (
	MaxCPUs   = 16
	MinMemory = 2 << 20
	MaxMemory = 512 << 30
	maxDisks  = 16
	maxNICs   = 8
)

// IsName reports whether s can name a guest or a device: up to 64 letters, digits, '-', '_' and '.', the first of them a
// letter or digit. (Compiled expressions would be half of what this program does before it reads its definition.)
func IsName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && strings.IndexByte("-_.", c) >= 0:
		default:
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// isUUID reports whether s is a UUID as RFC 9562 §4 writes it.
func isUUID(s string) bool {
	parts := strings.Split(s, "-")
	if len(parts) != 5 {
		return false
	}
	for i, n := range [5]int{8, 4, 4, 4, 12} {
		if _, err := hex.DecodeString(parts[i]); err != nil || len(parts[i]) != n {
			return false
		}
	}
	return true
}

// checker collects what is wrong.
type checker struct {
	file  string
	lines map[string]int
	errs  []error

	networks bool // a card may name a network
}

// fail reports msg at key.
func (c *checker) fail(key, format string, args ...any) {
	c.errs = append(c.errs, &Error{c.file, c.line(key), fmt.Sprintf(format, args...)})
}

// line returns the line of key, or of the nearest key or table above it that the file has: "disk[1].path" may be missing, or
// written within "disk".
func (c *checker) line(key string) int {
	line, ok := c.lines[key]
	for !ok && key != "" {
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
		line, ok = c.lines[key]
	}
	return line
}

func (c *checker) definition(d *Definition) {
	if !IsName(d.Name) {
		c.fail("name", "name %q: give the guest a name of up to 64 letters, digits, '-', '_' and '.'", d.Name)
	}
	if d.UUID != "" && !isUUID(d.UUID) {
		c.fail("uuid", "uuid %q: write it as 8-4-4-4-12 hexadecimal digits, or leave it out", d.UUID)
	}
	if _, given := c.lines["cpus"]; d.CPUs < 0 || d.CPUs > MaxCPUs || d.CPUs == 0 && given {
		c.fail("cpus", "cpus = %d: 1 to %d are possible", d.CPUs, MaxCPUs)
	}
	if _, given := c.lines["memory"]; !given {
		c.fail("memory", "no memory: set it to a size such as \"512M\"")
	} else if d.Memory < MinMemory || d.Memory > MaxMemory || d.Memory%4096 != 0 {
		c.fail("memory", "memory = %q: from %v to %v in whole pages are possible", d.Memory, Size(MinMemory), Size(MaxMemory))
	}
	c.boot(&d.Boot)
	c.disks(d.Disks)
	c.nics(d.NICs)
	c.others(d)
}

func (c *checker) boot(b *Boot) {
	switch {
	case b.Kernel == "" && b.Firmware == "":
		c.fail("boot", "nothing to boot: set kernel or firmware in [boot]")
	case b.Kernel != "" && b.Firmware != "":
		c.fail("boot.firmware", "both a kernel and firmware: remove one of them")
	case b.Kernel == "" && (b.Initrd != "" || b.Cmdline != "" || b.Protocol != ""):
		c.fail("boot", "initrd, cmdline and protocol belong to a kernel: firmware gets them from the guest's boot loader")
	}
	if p := []string{"", "auto", "pvh", "linux64", "linux32", "multiboot"}; !slices.Contains(p, b.Protocol) {
		c.fail("boot.protocol", "protocol %q: one of %s", b.Protocol, strings.Join(p[1:], ", "))
	}
}

func (c *checker) disks(disks []Disk) {
	if len(disks) > maxDisks {
		c.fail(fmt.Sprintf("disk[%d]", maxDisks), "%d disks: at most %d are possible", len(disks), maxDisks)
	}
	names := make(map[string]bool)
	for i, k := range disks {
		at := fmt.Sprintf("disk[%d]", i)
		c.name(at, "disk", k.Name, names)
		switch {
		case k.Path == "" && k.Socket == "":
			c.fail(at+".path", "disk %q: set path to a raw image or a block device, or socket to a storage daemon's", k.Name)
		case k.Path != "" && k.Socket != "":
			c.fail(at+".socket", "disk %q: both a path and a socket: remove one of them", k.Name)
		case k.Socket != "" && k.Direct:
			c.fail(at+".direct", "disk %q: direct belongs to a path: the storage daemon opens the image", k.Name)
		case k.Socket != "" && k.Serial != "":
			c.fail(at+".serial", "disk %q: serial belongs to a path: the storage daemon says what the guest sees", k.Name)
		case k.Path != "" && k.Reconnect:
			c.fail(at+".reconnect", "disk %q: reconnect belongs to a socket", k.Name)
		}
		if len(k.Serial) > 20 {
			c.fail(at+".serial", "disk %q: serial %q has %d bytes: at most 20 are possible", k.Name, k.Serial, len(k.Serial))
		}
		if strings.ContainsFunc(k.Serial, func(r rune) bool { return r < ' ' || r > '~' }) {
			c.fail(at+".serial", "disk %q: serial %q: use printable ASCII characters", k.Name, k.Serial)
		}
	}
}

func (c *checker) nics(nics []NIC) {
	if len(nics) > maxNICs {
		c.fail(fmt.Sprintf("nic[%d]", maxNICs), "%d network cards: at most %d are possible", len(nics), maxNICs)
	}
	names := make(map[string]bool)
	macs := make(map[string]string)
	for i, n := range nics {
		at := fmt.Sprintf("nic[%d]", i)
		c.name(at, "nic", n.Name, names)
		c.backend(at, &n)
		if len(n.Tap) > 15 {
			c.fail(at+".tap", "nic %q: tap %q: a device name has at most 15 bytes", n.Name, n.Tap)
		}
		if n.MAC == "" {
			continue
		}
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || [6]byte(mac) == [6]byte{} {
			c.fail(at+".mac", "nic %q: mac %q: write a unicast address such as 52:54:00:12:34:56, or leave it out", n.Name, n.MAC)
		} else if other, taken := macs[mac.String()]; taken {
			c.fail(at+".mac", "nic %q: mac %s is also nic %q's: give each card its own", n.Name, n.MAC, other)
		} else {
			macs[mac.String()] = n.Name
		}
	}
}

// backend checks what a card is connected to.
func (c *checker) backend(at string, n *NIC) {
	set := 0
	for _, s := range []string{n.Tap, n.Socket, n.Network} {
		if s != "" {
			set++
		}
	}
	switch {
	case n.Network != "" && !c.networks:
		c.fail(at+".network", "nic %q: networks are lodged's: set tap or socket, or have lodged run the guest", n.Name)
	case set != 1 && c.networks:
		c.fail(at, "nic %q: set exactly one of network, tap and socket", n.Name)
	case set != 1:
		c.fail(at, "nic %q: set exactly one of tap and socket", n.Name)
	}
}

func (c *checker) others(d *Definition) {
	c.serial("serial", d.Serial, "stdio", "socket", "file", "none")
	c.serial("serial2", d.Serial2, "socket", "file", "none")
	if d.Console != nil && d.Console.Path == "" {
		c.fail("console", "console: set path to the socket to make")
	}
	c.display(d.Display)
	if v := d.Vsock; v != nil {
		if v.CID < 3 || v.CID == 1<<32-1 {
			c.fail("vsock.cid", "vsock: cid = %d: from 3 up to 4294967294", v.CID)
		}
		if v.Path == "" {
			c.fail("vsock", "vsock: set path to the socket to make")
		}
	}
}

// Limits of a screen, in pixels, and the BIOS that a VGA card has if the definition names none.
const (
	minScreen     = 320
	maxScreen     = 8192
	defaultVGAROM = "/usr/share/seabios/vgabios-stdvga.bin"
)

func (c *checker) display(d *Display) {
	if d == nil {
		return
	}
	if d.Path == "" {
		c.fail("display", "display: set path to the socket to make")
	}
	if p := []string{"", CardVirtio, CardVGA}; !slices.Contains(p, d.Card) {
		c.fail("display.card", "display: card %q: one of %s", d.Card, strings.Join(p[1:], ", "))
	}
	if d.ROM != "" && d.Card != CardVGA {
		c.fail("display.rom", "display: rom belongs to card %q", CardVGA)
	}
	if d.Blob && d.Card == CardVGA {
		c.fail("display.blob", "display: blob belongs to card %q", CardVirtio)
	}
	for _, n := range []struct {
		key   string
		value int
	}{{"width", d.Width}, {"height", d.Height}} {
		if _, given := c.lines["display."+n.key]; (given || d.Width != d.Height && (d.Width == 0 || d.Height == 0)) && (n.value < minScreen || n.value > maxScreen) {
			c.fail("display."+n.key, "display: %s = %d: from %d to %d pixels are possible; leave both out for 1024×768", n.key, n.value, minScreen, maxScreen)
		}
	}
}

// serial checks a serial port, whose mode is one of modes or missing.
func (c *checker) serial(key string, p Serial, modes ...string) {
	needsPath := p.Mode == "socket" || p.Mode == "file"
	switch {
	case p.Mode != "" && !slices.Contains(modes, p.Mode):
		c.fail(key+".mode", "%s mode %q: one of %s", key, p.Mode, strings.Join(modes, ", "))
	case needsPath && p.Path == "":
		c.fail(key, "%s: mode %s needs a path", key, p.Mode)
	case !needsPath && p.Path != "":
		c.fail(key+".path", "%s: path belongs to mode socket or file", key)
	case p.Log != "" && p.Mode != "socket":
		c.fail(key+".log", "%s: log belongs to mode socket", key)
	}
}

// maxSocketPath is how many bytes the path of a Unix socket has at most (unix(7), less the final NUL), and maxPortSuffix
// what a vsock connection appends to it.
const (
	maxSocketPath = 107
	maxPortSuffix = len("_4294967295")
)

// sockets checks the paths of sockets, which are absolute by now.
func (c *checker) sockets(d *Definition) {
	check := func(key, path string, limit int) {
		if len(path) > limit {
			c.fail(key, "socket %s: the path has %d bytes: the kernel takes at most %d", path, len(path), limit)
		}
	}
	check("control", d.Control, maxSocketPath)
	if d.Serial.Mode == "socket" {
		check("serial.path", d.Serial.Path, maxSocketPath)
	}
	if d.Serial2.Mode == "socket" {
		check("serial2.path", d.Serial2.Path, maxSocketPath)
	}
	if d.Console != nil {
		check("console.path", d.Console.Path, maxSocketPath)
	}
	if d.Display != nil {
		check("display.path", d.Display.Path, maxSocketPath)
	}
	if d.Vsock != nil {
		check("vsock.path", d.Vsock.Path, maxSocketPath-maxPortSuffix)
	}
	for i, k := range d.Disks {
		check(fmt.Sprintf("disk[%d].socket", i), k.Socket, maxSocketPath)
	}
	for i, n := range d.NICs {
		check(fmt.Sprintf("nic[%d].socket", i), n.Socket, maxSocketPath)
	}
}

// name checks a device's name. Two devices with one name would be one in a saved state.
func (c *checker) name(at, kind, name string, names map[string]bool) {
	if !IsName(name) {
		c.fail(at+".name", "%s name %q: use up to 64 letters, digits, '-', '_' and '.'", kind, name)
	} else if names[name] {
		c.fail(at+".name", "two %ss are called %q: rename one", kind, name)
	}
	names[name] = true
}

// complete fills in what was left out and makes paths absolute.
func (d *Definition) complete(dir string) {
	d.CPUs = max(d.CPUs, 1)
	if d.UUID == "" {
		d.UUID = nameUUID(d.Name)
	}
	if d.Serial.Mode == "" {
		d.Serial.Mode = "stdio"
	}
	if d.Serial2.Mode == "" {
		d.Serial2.Mode = "none"
	}
	if d.RNG == nil {
		on := true
		d.RNG = &on
	}
	paths := []*string{&d.Boot.Kernel, &d.Boot.Initrd, &d.Boot.Firmware, &d.Serial.Path, &d.Serial2.Path, &d.Serial.Log, &d.Serial2.Log, &d.Debug, &d.Control}
	for i := range d.Disks {
		k := &d.Disks[i]
		paths = append(paths, &k.Path, &k.Socket)
		if k.Serial == "" && k.Socket == "" {
			k.Serial = k.Name[:min(20, len(k.Name))]
		}
	}
	for i := range d.NICs {
		n := &d.NICs[i]
		paths = append(paths, &n.Socket)
		if mac, err := net.ParseMAC(n.MAC); err == nil {
			n.MAC = mac.String()
		} else {
			n.MAC = nameMAC(d.UUID, n.Name)
		}
	}
	if d.Console != nil {
		paths = append(paths, &d.Console.Path)
	}
	if k := d.Display; k != nil {
		if k.Card == "" {
			k.Card = CardVirtio
		}
		if k.Width == 0 && k.Height == 0 {
			k.Width, k.Height = 1024, 768
		}
		if k.Card == CardVGA && k.ROM == "" {
			k.ROM = defaultVGAROM
		}
		paths = append(paths, &k.Path, &k.ROM)
	}
	if d.Vsock != nil {
		paths = append(paths, &d.Vsock.Path)
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// nameUUID returns a UUID that is always the same for a name (version 8, RFC 9562 §5.8).
func nameUUID(name string) string {
	h := sha256.Sum256([]byte("lodge guest " + name))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	x := hex.EncodeToString(h[:16])
	return strings.Join([]string{x[:8], x[8:12], x[12:16], x[16:20], x[20:]}, "-")
}

// nameMAC returns a locally administered address that is always the same for a card of a guest.
func nameMAC(uuid, card string) string {
	h := sha256.Sum256([]byte("lodge nic " + uuid + " " + card))
	h[0] = h[0]&^1 | 2
	return net.HardwareAddr(h[:6]).String()
}

// UUIDBytes returns the UUID in the order in which it is written.
func (d *Definition) UUIDBytes() (u [16]byte) {
	b, err := hex.DecodeString(strings.ReplaceAll(d.UUID, "-", ""))
	if err == nil {
		copy(u[:], b)
	}
	return u
}

// CheckHost reports what of d this host does not have: files that are missing or cannot be used, and memory. file is what
// errors call the definition. The error is a join of *Error.
func (d *Definition) CheckHost(file string) error {
	c := checker{file: file, lines: d.lines}
	c.hostFile("boot.kernel", "kernel", d.Boot.Kernel, unix.R_OK, "correct the path")
	c.hostFile("boot.initrd", "initrd", d.Boot.Initrd, unix.R_OK, "correct the path")
	c.hostFile("boot.firmware", "firmware", d.Boot.Firmware, unix.R_OK, "correct the path, or install the package seabios")
	if d.Display != nil {
		c.hostFile("display.rom", "display: rom", d.Display.ROM, unix.R_OK, "correct the path, or install the package seabios")
	}
	for i, k := range d.Disks {
		mode := uint32(unix.R_OK | unix.W_OK)
		if k.ReadOnly {
			mode = unix.R_OK
		}
		c.hostFile(fmt.Sprintf("disk[%d].path", i), fmt.Sprintf("disk %q:", k.Name), k.Path, mode,
			fmt.Sprintf("correct the path, or make one with 'truncate -s 8G %s'", k.Path))
		c.hostFile(fmt.Sprintf("disk[%d].socket", i), fmt.Sprintf("disk %q: socket", k.Name), k.Socket, unix.R_OK|unix.W_OK,
			"correct the path, or start its storage daemon")
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		if total := Size(info.Totalram * uint64(info.Unit)); d.Memory > total {
			c.fail("memory", "memory = %q: this host has %d MiB: give the guest less", d.Memory, total>>20)
		}
	}
	return errors.Join(c.errs...)
}

// hostFile checks that the file at path is there and allows mode, a mask of access(2). advice is for when it is not there.
func (c *checker) hostFile(key, what, path string, mode uint32, advice string) {
	if path == "" {
		return
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.fail(key, "%s %s does not exist: %s", what, path, advice)
	case err != nil:
		c.fail(key, "%s %v", what, err)
	case st.IsDir():
		c.fail(key, "%s %s is a directory: name a file in it", what, path)
	case unix.Access(path, mode) == nil:
	case mode&unix.W_OK != 0 && unix.Access(path, unix.R_OK) == nil:
		c.fail(key, "%s %s cannot be written: change its permissions, or set readonly = true", what, path)
	default:
		c.fail(key, "%s %s cannot be read: change its permissions", what, path)
	}
}
