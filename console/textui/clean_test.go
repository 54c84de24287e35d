package textui

import (
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                               "plain",
		"a\tb":                                "a       b",
		"\t|":                                 "        |",
		"1234567\t|":                          "1234567 |",
		"世\t|":                                "世      |",
		"\x1b[1;32mgreen\x1b[0m":              "green",
		"\x1b]0;title\x07after":               "after",
		"\x1b]8;;http://x\x1b\\link":          "link",
		"\x1bPq#0\x1b\\sixel":                 "sixel",
		"\x1b(0lqk":                           "lqk",
		"\x1b#8x":                             "x",
		"\x1b7x\x1b8":                         "x",
		"\x1b":                                "",
		"\x1b[":                               "",
		"\x1b[12":                             "",
		"\x1b[1\x1b[2Jx":                      "x",
		"\x1b]never ends":                     "",
		"10%\r20%\r30%":                       "30%",
		"done\r\n":                            "done",
		"a\nb":                                "a b",
		"a\x00\x01\x7f\u0085\u009bb":          "ab",
		"\u202eevil\u2066":                    "evil",
		"e\u0301":                             "e",
		"\xff\xfeok":                          "\ufffd\ufffdok",
		"trailing   ":                         "trailing",
		"   leading":                          "   leading",
		strings.Repeat("x", maxLine) + "tail": strings.Repeat("x", maxLine),
	} {
		if got := Line(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestLines(t *testing.T) {
	got := Lines([]byte("half a line\n\none\ntwo\n"), true)
	if strings.Join(got, "|") != "|one|two" {
		t.Errorf("%q", got)
	}
	if got := Lines([]byte("no end"), false); strings.Join(got, "|") != "no end" {
		t.Errorf("%q", got)
	}
	if got := Lines([]byte("no line at all"), true); got != nil {
		t.Errorf("%q", got)
	}
}

func TestWrapAndFit(t *testing.T) {
	if got := wrap("abcdefgh", 3); strings.Join(got, "|") != "abc|def|gh" {
		t.Errorf("%q", got)
	}
	if got := wrap("a世世b", 2); strings.Join(got, "|") != "a|世|世|b" {
		t.Errorf("%q", got)
	}
	for _, c := range []struct {
		s    string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "ab~"}, {"世世", 3, "世~"}, {"ab", 1, "~"}, {"ab", 0, ""}} {
		if got := fit(c.s, c.n); got != c.want {
			t.Errorf("%q in %d: %q, want %q", c.s, c.n, got, c.want)
		}
	}
}

func TestFigures(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 999: "999B", 1000: "1.0K", 1 << 10: "1K", 1536: "1.5K", 10<<10 + 1: "10K", 1 << 20: "1M",
		512 << 20: "512M", 1000 << 20: "1.0G", 3 << 29: "1.5G", 1<<64 - 1: "16E"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "", time.Second: "1s", time.Minute: "1m", 125 * time.Minute: "2h05m", 76 * time.Hour: "3d04h", 5000 * time.Hour: "208d"} {
		if got := duration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
	for p, want := range map[Progress]int{{0, 0}: -1, {1, 2}: 50, {3, 2}: 100, {1<<64 - 1, 1<<64 - 1}: 100} {
		if got := p.percent(); got != want {
			t.Errorf("%v: %d, want %d", p, got, want)
		}
	}
}

// Whatever is logged, what comes out is text, fits where it is put, and does not change when it is cleaned again.
func FuzzLine(f *testing.F) {
	for _, s := range []string{"plain", "\x1b[1m\tx\r\n", "\x1b]0;t\x07", "世e\u0301\u202e\xff", "a\rb"} {
		f.Add([]byte(s), 7)
	}
	f.Fuzz(func(t *testing.T, b []byte, columns int) {
		columns = 2 + int(uint(columns)%200)
		for _, s := range Lines(b, len(b)%2 == 0) {
			if !utf8.ValidString(s) {
				t.Fatalf("%q is not UTF-8", s)
			}
			for _, r := range s {
				if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.M) {
					t.Fatalf("%q of %q", r, s)
				}
			}
			if again := Line(s); again != s && len(s) <= maxLine {
				t.Fatalf("%q, and cleaned again %q", s, again)
			}
			rows := wrap(s, columns)
			if strings.Join(rows, "") != s {
				t.Fatalf("%q is wrapped to %q", s, rows)
			}
			for _, k := range append(rows, fit(s, columns)) {
				if width(k) > columns {
					t.Fatalf("%q has %d columns, of %d", k, width(k), columns)
				}
			}
		}
	})
}
