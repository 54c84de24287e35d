package trustbar

import (
	"fmt"
	"image"
	"strings"
)

// Placard is a few words in the middle of a screen, in place of a guest's picture or over it.
type Placard struct {
	Title string
	Text  string // lines, ended by \n
	Color Color
}

// NoGuest is shown where no guest is.
func NoGuest(hint string) Placard {
	return Placard{"No guest here", "Press " + hint + " to open Lodge and start one.", Lodge()}
}

// Starting is shown until a guest has a picture.
func Starting(g Guest) Placard {
	return Placard{name(g) + " is starting", "Its screen will be here in a moment.", g.Color}
}

// Off is shown while a guest has turned its screen off.
func Off(g Guest) Placard {
	return Placard{name(g) + " has turned its screen off", "Press a key, or move the mouse, to wake it.", g.Color}
}

// NotResponding is shown over the last picture of a guest whose machine does not answer.
func NotResponding(g Guest, hint string) Placard {
	return Placard{name(g) + " does not respond", "This is the last picture that it has drawn.\n" +
		"Wait, or press " + hint + " to open Lodge.", g.Color}
}

// Crashed is shown when a guest's machine has ended by itself.
func Crashed(g Guest, reason, hint string) Placard {
	return Placard{name(g) + " has crashed", reason + "\nPress " + hint + " to open Lodge and start it again.", g.Color}
}

// Stopped is shown when a guest has shut down.
func Stopped(g Guest, hint string) Placard {
	return Placard{name(g) + " is switched off", "Press " + hint + " to open Lodge and start it.", g.Color}
}

// name returns a guest's name for a sentence.
func name(g Guest) string {
	if s := Clean(g.Name); s != "" {
		return s
	}
	return "The guest"
}

// maxLines is how many lines of text a placard has at most.
const maxLines = 4

// Draw draws the placard for a screen of the given size. The picture is smaller than that: it belongs into the middle.
func (p Placard) Draw(screen image.Point) (*Picture, error) {
	f, err := newFonts(float64(Height(screen)) * 0.57)
	if err != nil {
		return nil, fmt.Errorf("placard %q: %w", p.Title, err)
	}
	h := f.regular.ascent
	pad := 3 * h
	room := max(screen.X*4/5-2*pad, 1)
	title := f.title.fit(Clean(p.Title), room)
	width := f.title.width(title)
	lines := strings.SplitN(strings.TrimRight(p.Text, "\n"), "\n", maxLines+1)
	lines = lines[:min(len(lines), maxLines)]
	for i, s := range lines {
		lines[i] = f.regular.fit(Clean(s), room)
		width = max(width, f.regular.width(lines[i]))
	}
	leading := h * 2
	strip := max(h/2, 3)
	size := image.Pt(min(width+2*pad, screen.X), min(2*pad+f.title.ascent+leading/2+leading*len(lines), screen.Y))
	if size.X <= 0 || size.Y <= 0 {
		return newPicture(0, 0), nil
	}

	img := image.NewRGBA(image.Rectangle{Max: size})
	th := p.Color.theme()
	fill(img, img.Rect, line)
	fill(img, img.Rect.Inset(1), raised)
	fill(img, image.Rect(0, 0, strip, size.Y), th.field)
	y := pad + f.title.ascent
	f.title.draw(img, pad, y, title, text)
	y += leading / 2
	for _, s := range lines {
		y += leading
		f.regular.draw(img, pad, y, s, quiet)
	}
	pic := newPicture(size.X, size.Y)
	pic.take(img)
	return pic, nil
}

// Background returns the colour behind placards, as a word of XRGB8888.
func Background() uint32 {
	return uint32(night.R)<<16 | uint32(night.G)<<8 | uint32(night.B) | 0xff<<24
}
