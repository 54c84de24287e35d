package textui

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"
)

// Bounds on texts of others'.
const (
	maxLine  = 4096 // bytes of a line of a log that are looked at
	tabWidth = 8
)

// Line returns s as it may stand on the screen: one line, without control and format characters (which could command the
// terminal, or reorder the line) and without combining marks (which could pile up beyond it). What is not UTF-8 becomes U+FFFD;
// tabs become spaces. Of the sequences that command terminals (ECMA-48) nothing is left, their letters neither.
func Line(s string) string { return strings.TrimRight(clean(s), " ") }

// clean does what Line does, save for spaces at the end.
func clean(s string) string {
	s = s[:min(len(s), maxLine)]
	if i := strings.LastIndexByte(strings.TrimRight(s, "\r\n"), '\r'); i >= 0 {
		s = s[i+1:] // a terminal would have written this over what is before
	}
	var b strings.Builder
	column := 0
	for s != "" {
		if n := sequence(s); n > 0 {
			s = s[n:]
			continue
		}
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		switch {
		case r == '\t':
			for column++; column%tabWidth != 0; column++ {
				b.WriteByte(' ')
			}
			r = ' '
		case r == '\n':
			r = ' '
			column++
		case r != utf8.RuneError && (unicode.In(r, unicode.M, unicode.C) || !unicode.IsGraphic(r)):
			continue
		case unicode.IsSpace(r):
			r = ' '
			column++
		default:
			column += width(string(r))
		}
		b.WriteRune(r)
	}
	return b.String()
}

// sequence returns the length of the control sequence or control string that s begins with (ECMA-48 §5.4, §5.6), in the 7-bit
// form; 0 if there is none. One that does not end is the rest of s.
func sequence(s string) int {
	if len(s) < 2 || s[0] != 0x1b {
		return 0
	}
	switch c := s[1]; {
	case c == '[':
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
			if s[i] < 0x20 || s[i] > 0x3f {
				return i // no byte of a sequence: it is broken off
			}
		}
		return len(s)
	case strings.IndexByte("]PX^_", c) >= 0: // OSC, DCS, SOS, PM, APC
		for i := 2; i < len(s); i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b {
				if i+1 < len(s) && s[i+1] == '\\' {
					return i + 2
				}
				return i
			}
		}
		return len(s)
	case c >= 0x20 && c <= 0x2f: // nF escape sequences: intermediate bytes and a final one
		for i := 2; i < len(s); i++ {
			if s[i] < 0x20 || s[i] > 0x2f {
				return min(i+1, len(s))
			}
		}
		return len(s)
	case c >= 0x30 && c <= 0x7e:
		return 2
	}
	return 1
}

// Lines returns the lines of a log, each as Line makes it. Of a log that begins within a line, as the end of a file does, cut
// drops that part.
func Lines(log []byte, cut bool) []string {
	text := string(log)
	if cut {
		_, text, _ = strings.Cut(text, "\n")
	}
	if text = strings.TrimSuffix(text, "\n"); text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	for i, s := range lines {
		lines[i] = Line(s)
	}
	return lines
}

// width returns how many columns a cleaned text has.
func width(s string) int { return displaywidth.String(s) }

// wrap breaks a cleaned line into rows of at most columns.
func wrap(s string, columns int) []string {
	if width(s) <= columns {
		return []string{s}
	}
	var rows []string
	start, end, w := 0, 0, 0
	for g := displaywidth.StringGraphemes(s); g.Next(); {
		if w+g.Width() > columns && end > start {
			rows = append(rows, s[start:end])
			start, w = end, 0
		}
		end += len(g.Value())
		w += g.Width()
	}
	return append(rows, s[start:])
}

// fit returns s if it has at most columns, else its beginning and a mark that something is missing.
func fit(s string, columns int) string {
	if columns <= 0 {
		return ""
	}
	return displaywidth.TruncateString(s, columns, "~")
}
