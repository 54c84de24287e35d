// Package definition is the description of a guest that people write: a TOML file, read strictly. Whatever is wrong in it
// is an error that names the file, the line and what to do; all of them are reported at once.
package definition

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Definition is one guest. Paths are absolute after Load.
type Definition struct {
	Name   string `toml:"name"`           // letters, digits, '-', '_' and '.'
	UUID   string `toml:"uuid,omitempty"` // made from the name if it is missing
	CPUs   int    `toml:"cpus"`           // 1 to 16; 1 if it is missing
	Memory Size   `toml:"memory"`         // such as "512M" or "2G"

	Boot    Boot     `toml:"boot"`
	Disks   []Disk   `toml:"disk,omitempty"`
	NICs    []NIC    `toml:"nic,omitempty"`
	Serial  Serial   `toml:"serial"`                  // first serial port; on standard input and output if it is missing
	Serial2 Serial   `toml:"serial2,omitempty"`       // second serial port; none if it is missing
	Debug   string   `toml:"debug_console,omitempty"` // file for what the guest writes to port 0x402
	Console *Socket  `toml:"console,omitempty"`       // virtio console
	Vsock   *Vsock   `toml:"vsock,omitempty"`
	Display *Display `toml:"display,omitempty"` // screen, keyboard and pointer; none if it is missing
	Balloon bool     `toml:"balloon,omitempty"` // memory balloon
	RNG     *bool    `toml:"rng,omitempty"`     // entropy device; on if it is missing
	Control string   `toml:"control,omitempty"`

	lines map[string]int // of the file that it was read from, see index
}

// Boot says what the guest starts with: a kernel or firmware.
type Boot struct {
	Kernel   string `toml:"kernel,omitempty"`
	Initrd   string `toml:"initrd,omitempty"`
	Cmdline  string `toml:"cmdline,omitempty"`
	Protocol string `toml:"protocol,omitempty"` // auto, pvh, linux64, linux32 or multiboot
	Firmware string `toml:"firmware,omitempty"`
}

// Disk is a virtio block device over a raw file or a block device, or one that another process serves (vhost-user).
type Disk struct {
	Name      string `toml:"name"`
	Path      string `toml:"path,omitempty"`
	Socket    string `toml:"socket,omitempty"` // of the other process; in place of a path
	ReadOnly  bool   `toml:"readonly,omitempty"`
	Direct    bool   `toml:"direct,omitempty"`    // O_DIRECT: past the host's page cache; with a path
	Serial    string `toml:"serial,omitempty"`    // up to 20 bytes; the name if it is missing; with a path
	Reconnect bool   `toml:"reconnect,omitempty"` // the other process loses nothing when it dies; with a socket
}

// SharesMemory reports whether the guest's memory has to be one that other processes can map.
func (d *Definition) SharesMemory() bool {
	return d.Display != nil && d.Display.Blob || slices.ContainsFunc(d.Disks, func(k Disk) bool { return k.Socket != "" })
}

// NIC is a virtio network device over a tap or a stream socket.
type NIC struct {
	Name    string `toml:"name"`
	MAC     string `toml:"mac,omitempty"`     // made from the guest's and the card's name if it is missing
	Tap     string `toml:"tap,omitempty"`     // name of a tap device
	Socket  string `toml:"socket,omitempty"`  // Unix socket of passt or gvproxy (QEMU's stream framing)
	Network string `toml:"network,omitempty"` // one of the manager's, which makes a tap or a socket of it (Extension.Networks)
}

// Serial says where a serial port goes.
type Serial struct {
	Mode string `toml:"mode,omitempty"` // stdio (of the first port only), socket, file or none
	Path string `toml:"path,omitempty"` // of the socket or file; a full file is renamed to PATH.1
	Log  string `toml:"log,omitempty"`  // of a socket: a file that gets what the guest prints too; a full one is renamed to LOG.1
}

// Socket is a Unix socket that the VMM listens on.
type Socket struct {
	Path string `toml:"path"`
}

// Vsock is a virtio socket device.
type Vsock struct {
	CID  uint32 `toml:"cid"`  // 3 and up, unique on the host
	Path string `toml:"path"` // Unix socket for connections to the guest; those from it go to PATH_PORT
}

// The graphics cards that a Display can have.
const (
	CardVirtio = "virtio" // virtio-gpu, for systems with its driver
	CardVGA    = "vga"    // a VGA with the Bochs extensions, for firmware and everything else
)

// Display is a screen with a keyboard and a pointer.
type Display struct {
	Path   string `toml:"path"`            // Unix socket for who shows it (org.qemu.Display1)
	Card   string `toml:"card,omitempty"`  // virtio or vga; virtio if it is missing
	Width  int    `toml:"width,omitempty"` // pixels of the first mode; 1024×768 if both are missing
	Height int    `toml:"height,omitempty"`
	ROM    string `toml:"rom,omitempty"` // the VGA card's BIOS; Debian's if it is missing
	// Blob lets a virtio card show pictures where the guest draws them, without a copy: the guest's memory is one that can be
	// shared then. It needs /dev/udmabuf; without that, pictures are copied as ever.
	Blob bool `toml:"blob,omitempty"`
}

// Size is a number of bytes below 2⁶³, written with a suffix K, M, G or T (powers of 1024), which KiB or KB and so on may
// stand for.
type Size uint64

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	text, shift := string(b), 0
	for i, suffix := range []string{"K", "M", "G", "T"} {
		for _, unit := range []string{suffix + "IB", suffix + "B", suffix} {
			if n := len(text) - len(unit); shift == 0 && n > 0 && strings.EqualFold(text[n:], unit) {
				text, shift = text[:n], 10*(i+1)
			}
		}
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return fmt.Errorf("size %q: write it as a number with K, M or G, such as \"512M\"", b)
	}
	*s = Size(n << shift)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns s with the largest suffix that loses nothing.
func (s Size) String() string {
	for i, suffix := range []string{"T", "G", "M", "K"} {
		if shift := 10 * (4 - i); s != 0 && uint64(s)&(1<<shift-1) == 0 {
			return fmt.Sprintf("%d%s", uint64(s)>>shift, suffix)
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// Error is something wrong in a definition.
type Error struct {
	File string
	Line int // from 1; 0 if it is not about one
	Msg  string
}

// Error returns the position and the message in the form that editors jump to.
func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Msg)
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
}

// Fault returns an error about d at a key such as "boot.kernel" or "disk[1].path", in the file that d was read from, which it
// calls file.
func (d *Definition) Fault(file, key, format string, args ...any) *Error {
	c := checker{file: file, lines: d.lines}
	return &Error{file, c.line(key), fmt.Sprintf(format, args...)}
}

// maxFile is more than any definition that people write, in bytes.
const maxFile = 1 << 20

// Load reads and validates the file at path. The error is a join of *Error.
func Load(path string) (*Definition, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("definition: %w", err)
	}
	defer f.Close()
	return Read(f, path)
}

// Read is Load for a file that is open already. path is where it lies.
func Read(f io.Reader, path string) (*Definition, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("definition: %w", err)
	}
	if len(b) > maxFile {
		return nil, &Error{File: path, Msg: fmt.Sprintf("more than %d bytes: a definition is a text of a few lines", maxFile)}
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return Parse(path, dir, b)
}

// Parse validates b, the content of a file that errors call name. Paths in it are relative to dir. It looks at no other
// file: see CheckHost.
func Parse(name, dir string, b []byte) (*Definition, error) {
	d := &Definition{}
	if err := ParseExtended(name, dir, b, Extension{Into: d, Definition: d, Manual: "lodge-vmm(1)"}); err != nil {
		return nil, err
	}
	return d, nil
}

// Extension is what a file of definitions has beside those of a machine, such as what a manager wants to know of a guest.
type Extension struct {
	Into       any         // what is decoded: a struct that embeds a Definition
	Definition *Definition // that one
	Manual     string      // where the keys are explained, for errors
	Networks   bool        // a card may name a network in place of a tap or a socket

	// Prepare, which may be nil, gets what was decoded before it is checked, to fill in what may be missing here.
	Prepare func()
	// Check, which may be nil, reports what is wrong with the rest: at a key such as "boot.kernel" or "disk[1].path".
	Check func(fail func(key, format string, args ...any))
}

// ParseExtended is Parse for a file that has more than a definition. The error is a join of *Error.
func ParseExtended(name, dir string, b []byte, e Extension) error {
	dec := toml.NewDecoder(strings.NewReader(string(b))).DisallowUnknownFields()
	if err := dec.Decode(e.Into); err != nil {
		return decodeError(name, e.Manual, err)
	}
	d := e.Definition
	d.lines = index(b)
	c := checker{file: name, lines: d.lines, networks: e.Networks}
	if e.Prepare != nil {
		e.Prepare()
	}
	c.definition(d)
	if e.Check != nil {
		e.Check(c.fail)
	}
	if len(c.errs) == 0 {
		d.complete(dir)
		c.sockets(d)
	}
	return errors.Join(c.errs...)
}

// NameIn returns the name in a definition, valid or not: "" if it has none that can be found.
func NameIn(b []byte) string {
	var d struct {
		Name string `toml:"name"`
	}
	if err := toml.Unmarshal(b, &d); err != nil {
		return ""
	}
	return d.Name
}

// Marshal returns d as a file that Parse reads again.
func (d *Definition) Marshal() ([]byte, error) { return toml.Marshal(d) }

// decodeError turns the decoder's errors into ours.
func decodeError(file, manual string, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var errs []error
		for _, e := range strict.Errors {
			row, _ := e.Position()
			errs = append(errs, &Error{file, row, fmt.Sprintf("unknown key %q: see %s for those that exist", strings.Join(e.Key(), "."), manual)})
		}
		return errors.Join(errs...)
	}
	var dec *toml.DecodeError
	if errors.As(err, &dec) {
		row, _ := dec.Position()
		msg, key := strings.TrimPrefix(dec.Error(), "toml: "), strings.Join(dec.Key(), ".")
		// The decoder names Go's types, which mean nothing to whoever wrote the file.
		if what, mismatch := strings.CutPrefix(msg, "cannot decode TOML "); mismatch {
			what, _, _ = strings.Cut(what, " into ")
			msg = fmt.Sprintf("a value of type %s is not what belongs here: see %s", what, manual)
		}
		if key != "" {
			msg = key + ": " + msg
		}
		return &Error{file, row, msg}
	}
	return &Error{File: file, Msg: strings.TrimPrefix(err.Error(), "toml: ")}
}
