package seat

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/hid/route"
)

// Config is what a seat shows, as people write it. Paths are absolute after Load.
type Config struct {
	Control  string            `toml:"control,omitempty"` // Unix socket to make, for who commands the seat; "" is none
	Guests   []Guest           `toml:"guest"`
	Chords   Chords            `toml:"chords,omitempty"`
	Mouse    Mouse             `toml:"mouse,omitempty"`
	Monitors Monitors          `toml:"monitors,omitempty"`
	Monitor  []compose.Monitor `toml:"monitor,omitempty"` // those that always show the same guest, or have a mode of their own
}

// Guest is a guest that can be on the screen.
type Guest struct {
	Name       string `toml:"name"`                 // as the bar shows it
	Label      string `toml:"label,omitempty"`      // a few words about it
	Color      string `toml:"color"`                // see trustbar.ColorNames
	Slot       int    `toml:"slot"`                 // 1 to 9, for the chord; 0 is none
	Display    string `toml:"display"`              // Unix socket of its VMM
	Definition string `toml:"definition,omitempty"` // its file for lodge-vmm: the console can start and command it then
}

// Chords are the chords that differ from the router's defaults: "ctrl+alt+esc".
type Chords struct {
	Attention route.Chord `toml:"attention,omitempty"`
	Left      route.Chord `toml:"left,omitempty"`
	Right     route.Chord `toml:"right,omitempty"`
	Last      route.Chord `toml:"last,omitempty"`
}

// chords returns the router's, with the defaults for those that c leaves out.
func (c Chords) chords() route.Chords {
	all := route.DefaultChords()
	for _, k := range []struct{ to, from *route.Chord }{
		{&all.Attention, &c.Attention}, {&all.Left, &c.Left}, {&all.Right, &c.Right}, {&all.Last, &c.Last},
	} {
		if *k.from != (route.Chord{}) {
			*k.to = *k.from
		}
	}
	return all
}

// Mouse says whether the mouse goes to the neighbour through the left and the right edge of the screen.
type Mouse struct {
	Edge            int   `toml:"edge,omitempty"`             // pixels that it has to be pushed beyond, within half a second; 0: there is no way
	KeyboardFollows *bool `toml:"keyboard_follows,omitempty"` // else only with the next click; true if it is missing
}

// maxEdge is more than anybody pushes a mouse, in pixels.
const maxEdge = 10000

func (m Mouse) check(show string) error {
	switch {
	case m.Edge < 0 || m.Edge > maxEdge:
		return fmt.Errorf("mouse: edge = %d: 0 to %d pixels are possible", m.Edge, maxEdge)
	case m.KeyboardFollows != nil && !*m.KeyboardFollows && show != showOneEach:
		return fmt.Errorf("mouse: keyboard_follows = false: the mouse would be where nobody sees it, unless monitors show = %q", showOneEach)
	}
	return nil
}

// maxFile is more than any configuration that people write, in bytes.
const maxFile = 1 << 20

// Load reads the configuration at path. The error names the file and, if it is about one, the line.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("seat: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return Config{}, fmt.Errorf("seat: %w", err)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return Config{}, fmt.Errorf("seat: %w", err)
	}
	return Parse(path, dir, string(b))
}

// Parse reads a configuration. name is what errors call it, and dir what its paths are relative to.
func Parse(name, dir, text string) (Config, error) {
	var c Config
	if err := toml.NewDecoder(strings.NewReader(text)).DisallowUnknownFields().Decode(&c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) {
			row, _ := strict.Errors[0].Position()
			return Config{}, fmt.Errorf("%s:%d: unknown key %q: see lodge-seat --help for those that exist", name, row, strings.Join(strict.Errors[0].Key(), "."))
		}
		var dec *toml.DecodeError
		if errors.As(err, &dec) {
			row, _ := dec.Position()
			return Config{}, fmt.Errorf("%s:%d: %s", name, row, strings.TrimPrefix(dec.Error(), "toml: "))
		}
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	if err := c.check(dir); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// maxSocketPath is how many bytes the path of a Unix socket has at most (unix(7), less the final NUL).
const maxSocketPath = 107

func (c *Config) check(dir string) error {
	abs := func(path *string) {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
	if abs(&c.Control); len(c.Control) > maxSocketPath {
		return fmt.Errorf("control: %s: the path has %d bytes: the kernel takes at most %d", c.Control, len(c.Control), maxSocketPath)
	}
	names, slots := make(map[string]bool), make(map[int]string)
	for i := range c.Guests {
		g := &c.Guests[i]
		switch _, known := trustbar.ParseColor(g.Color); {
		case g.Name == "" || trustbar.Clean(g.Name) != g.Name || g.Name == ownName:
			return fmt.Errorf("guest %q: give it a name of one line that is not %q", g.Name, ownName)
		case names[g.Name]:
			return fmt.Errorf("two guests are called %q: rename one", g.Name)
		case !known:
			return fmt.Errorf("guest %q: color %q: one of %s", g.Name, g.Color, strings.Join(trustbar.ColorNames(), ", "))
		case g.Slot < 0 || g.Slot > 9:
			return fmt.Errorf("guest %q: slot %d: 1 to 9 are possible, and 0 for none", g.Name, g.Slot)
		case g.Slot > 0 && slots[g.Slot] != "":
			return fmt.Errorf("guest %q: slot %d is also guest %q's", g.Name, g.Slot, slots[g.Slot])
		case g.Display == "":
			return fmt.Errorf("guest %q: set display to the socket of its machine", g.Name)
		}
		names[g.Name], slots[g.Slot] = true, g.Name
		abs(&g.Display)
		abs(&g.Definition)
	}
	if f := &c.Monitors.File; *f != "" && !filepath.IsAbs(*f) {
		*f = filepath.Join(dir, *f)
	}
	return errors.Join(c.checkMonitors(names), c.Mouse.check(c.Monitors.Show))
}
