package aml

import "strings"

// Path is a name as ASL writes it: segments of one to four of A–Z, 0–9 and _, not beginning with a digit, with dots
// between them; a backslash before them starts at the root, each ^ one level up. Shorter segments are padded with _.
// As a Term it is a reference to the object of that name, or a call of a method without arguments.
type Path string

// Prefixes of a NameString (ACPI 6.5 §20.2.2).
const (
	nullName        = 0x00
	dualNamePrefix  = 0x2E
	multiNamePrefix = 0x2F
)

func (p Path) encode(e *encoder) {
	s := string(p)
	if rest, ok := strings.CutPrefix(s, `\`); ok {
		e.buf = append(e.buf, '\\')
		s = rest
	} else {
		for strings.HasPrefix(s, "^") {
			e.buf = append(e.buf, '^')
			s = s[1:]
		}
	}
	if s == "" {
		if p == "" {
			e.fail("empty name")
		}
		e.buf = append(e.buf, nullName)
		return
	}
	segs := strings.Split(s, ".")
	switch {
	case len(segs) > 255:
		e.fail("name %q: more than 255 segments", p)
	case len(segs) == 2:
		e.buf = append(e.buf, dualNamePrefix)
	case len(segs) > 2:
		e.buf = append(e.buf, multiNamePrefix, byte(len(segs)))
	}
	for _, s := range segs {
		nameSeg(s).encode(e)
	}
}

// nameSeg is a name of one segment, as a field's is.
type nameSeg string

func (s nameSeg) encode(e *encoder) {
	ok := len(s) >= 1 && len(s) <= 4 && !(s[0] >= '0' && s[0] <= '9')
	for i := range len(s) {
		c := s[i]
		ok = ok && (c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_')
	}
	if !ok {
		e.fail("name segment %q: want one to four of A-Z, 0-9 and _, no digit first", string(s))
		return
	}
	e.buf = append(e.buf, (string(s) + "___")[:4]...)
}
