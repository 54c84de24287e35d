package network

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/lodgehv/lodge/hypervisor/definition"
)

// Changes of a definition that leave the rest of its text, and its comments, as they are.

// AddForward returns text with another forward.
func AddForward(text []byte, f Forward) ([]byte, error) {
	return edit(text, "forward", func(n *Network) { n.Forwards = append(n.Forwards, f) }, func(e *tables) error {
		return e.insert(len(e.spans), struct {
			Forwards []Forward `toml:"forward"`
		}{[]Forward{f}})
	})
}

// RemoveForward returns text without a forward.
func RemoveForward(text []byte, f Forward) ([]byte, error) {
	n, err := Parse("definition", text)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(n.Forwards, func(g Forward) bool { return g.Protocol == f.Protocol && g.Listen == f.Listen })
	if i < 0 {
		return nil, fmt.Errorf("%w: %s %v", ErrNoForward, f.Protocol, f.Listen)
	}
	return edit(text, "forward", func(n *Network) { n.Forwards = slices.Delete(n.Forwards, i, i+1) }, func(e *tables) error { return e.remove(i) })
}

// AddRule returns text with another rule, before the one that is at a position, which counts from 0; or behind the last.
func AddRule(text []byte, at int, r Rule) ([]byte, error) {
	if err := checkPosition(text, at, 1); err != nil {
		return nil, err
	}
	return edit(text, "rule", func(n *Network) { n.Rules = slices.Insert(n.Rules, at, r) }, func(e *tables) error {
		return e.insert(at, struct {
			Rules []Rule `toml:"rule"`
		}{[]Rule{r}})
	})
}

// RemoveRule returns text without the rule at a position.
func RemoveRule(text []byte, at int) ([]byte, error) {
	if err := checkPosition(text, at, 0); err != nil {
		return nil, err
	}
	return edit(text, "rule", func(n *Network) { n.Rules = slices.Delete(n.Rules, at, at+1) }, func(e *tables) error { return e.remove(at) })
}

// Errors that a caller may want to tell apart.
var (
	ErrNoForward = errors.New("there is no such forward")
	ErrNoRule    = errors.New("there is no such rule")
)

func checkPosition(text []byte, at, more int) error {
	n, err := Parse("definition", text)
	if err == nil && (at < 0 || at >= len(n.Rules)+more) {
		err = fmt.Errorf("%w: position %d of %d", ErrNoRule, at, len(n.Rules))
	}
	return err
}

// edit changes the tables of an array in a text. That must have the effect which change has.
func edit(text []byte, array string, change func(*Network), do func(*tables) error) ([]byte, error) {
	want, err := Parse("definition", text)
	if err != nil {
		return nil, err
	}
	change(want)
	if err := want.Validate(); err != nil {
		return nil, &definition.Error{File: "definition", Msg: err.Error()}
	}
	e := findTables(text, array)
	if err := do(e); err != nil {
		return nil, err
	}
	edited := []byte(strings.Join(e.lines, "\n"))
	got, err := Parse("definition", edited)
	if err == nil {
		a, err1 := toml.Marshal(want)
		b, err2 := toml.Marshal(got)
		if err1 == nil && err2 == nil && string(a) == string(b) {
			return edited, nil
		}
	}
	return nil, fmt.Errorf("network %q: its definition is not written with [[%s]] tables: edit it by hand", want.Name, array)
}

// tables are the tables of an array in a text.
type tables struct {
	lines []string
	spans [][2]int // first line, and the one behind the last
}

// findTables finds the lines of each: from its header to the last line that is neither empty nor a comment.
func findTables(text []byte, array string) *tables {
	e := &tables{lines: strings.Split(strings.TrimRight(string(text), "\n")+"\n", "\n")}
	header := regexp.MustCompile(`^\s*\[\[\s*` + array + `\s*\]\]`)
	for i := 0; i < len(e.lines); i++ {
		if !header.MatchString(e.lines[i]) {
			continue
		}
		end := i + 1
		for j := i + 1; j < len(e.lines); j++ {
			line := strings.TrimSpace(e.lines[j])
			if strings.HasPrefix(line, "[") {
				break
			}
			if line != "" && !strings.HasPrefix(line, "#") {
				end = j + 1
			}
		}
		e.spans = append(e.spans, [2]int{i, end})
	}
	return e
}

// insert puts v before the table at a position, or behind the last.
func (e *tables) insert(at int, v any) error {
	b, err := toml.Marshal(v)
	if err != nil {
		return err
	}
	block := strings.Split(strings.TrimSpace(string(b)), "\n")
	switch {
	case at < len(e.spans):
		e.lines = slices.Insert(e.lines, e.spans[at][0], append(block, "")...)
	case at > 0 && at == len(e.spans):
		e.lines = slices.Insert(e.lines, e.spans[at-1][1], append([]string{""}, block...)...)
	default: // the last line is empty: it ends the text
		e.lines = slices.Insert(e.lines, len(e.lines)-1, append([]string{""}, block...)...)
	}
	return nil
}

func (e *tables) remove(at int) error {
	if at >= len(e.spans) {
		return nil // it is written in another way, which edit tells
	}
	from, to := e.spans[at][0], e.spans[at][1]
	if from > 0 && strings.TrimSpace(e.lines[from-1]) == "" {
		from--
	}
	e.lines = slices.Delete(e.lines, from, to)
	return nil
}
