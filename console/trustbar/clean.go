package trustbar

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxRunes is how much of a text is looked at; no screen is that wide.
const maxRunes = 256

// Clean returns s as it may stand in the bar: one line, without control and format characters (which could reorder it),
// without combining marks (which could pile up beyond it) and without space that pushes the rest away. What is not
// UTF-8 becomes U+FFFD.
func Clean(s string) string {
	var b strings.Builder
	space, n := false, 0
	for _, r := range s {
		if n++; n > maxRunes {
			break
		}
		switch {
		case unicode.IsSpace(r):
			space = true
			continue
		case r == utf8.RuneError:
		case unicode.In(r, unicode.M, unicode.C) || !unicode.IsGraphic(r):
			continue
		}
		if space && b.Len() > 0 {
			b.WriteByte(' ')
		}
		space = false
		b.WriteRune(r)
	}
	return b.String()
}

// ellipsis is what stands for the rest of a text that is too long.
const ellipsis = "…"
