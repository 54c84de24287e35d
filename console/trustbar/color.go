package trustbar

import (
	"image/color"
	"slices"
)

// Color marks a guest, and is one of those that definitions can name. Its zero value is grey.
type Color struct{ i uint8 }

// theme is a colour's two tones: the field, and the ink that is read on it, with a contrast of 4.5 to 1 at least
// (WCAG 2.2 §1.4.3).
type theme struct {
	name       string
	field, ink color.RGBA
}

var (
	white = color.RGBA{0xff, 0xff, 0xff, 0xff}
	black = color.RGBA{0x10, 0x12, 0x14, 0xff}
)

// themes returns all themes. The first is for guests without a colour, the last is not for guests: it is Lodge's own.
func themes() []theme {
	return []theme{
		{"grey", color.RGBA{0x6b, 0x72, 0x7a, 0xff}, white},
		{"red", color.RGBA{0xc6, 0x28, 0x28, 0xff}, white},
		{"orange", color.RGBA{0xf5, 0x7c, 0x00, 0xff}, black},
		{"yellow", color.RGBA{0xfd, 0xd8, 0x35, 0xff}, black},
		{"green", color.RGBA{0x2e, 0x7d, 0x32, 0xff}, white},
		{"blue", color.RGBA{0x1e, 0x63, 0xc8, 0xff}, white},
		{"purple", color.RGBA{0x8a, 0x2b, 0xb4, 0xff}, white},
		{"black", color.RGBA{0x00, 0x00, 0x00, 0xff}, white},
		{"", white, black},
	}
}

// Lodge is the colour of Lodge's own console. No guest can have it.
func Lodge() Color { return Color{uint8(len(themes()) - 1)} }

// ParseColor returns the colour of a name.
func ParseColor(name string) (c Color, ok bool) {
	i := slices.IndexFunc(themes(), func(t theme) bool { return t.name == name })
	if i < 0 || name == "" {
		return Color{}, false
	}
	return Color{uint8(i)}, true
}

// ColorNames returns the names that ParseColor knows.
func ColorNames() (names []string) {
	for _, t := range themes() {
		if t.name != "" {
			names = append(names, t.name)
		}
	}
	return names
}

// String returns the name.
func (c Color) String() string { return themes()[c.i].name }

func (c Color) theme() theme { return themes()[c.i] }

// The bar's and the placards' own colours.
var (
	ground = color.RGBA{0x20, 0x23, 0x28, 0xff} // of the bar
	raised = color.RGBA{0x2d, 0x31, 0x38, 0xff} // of what stands out on it
	text   = color.RGBA{0xf1, 0xf3, 0xf5, 0xff}
	quiet  = color.RGBA{0xa9, 0xb0, 0xb9, 0xff} // less important text
	line   = color.RGBA{0x46, 0x4c, 0x55, 0xff}
	alert  = color.RGBA{0xff, 0xb3, 0x00, 0xff} // with black on it
	low    = color.RGBA{0xff, 0x5a, 0x4f, 0xff} // a battery that is nearly empty
	full   = color.RGBA{0x6f, 0xcf, 0x7a, 0xff} // one that is charging
	night  = color.RGBA{0x12, 0x14, 0x17, 0xff} // behind placards
)
