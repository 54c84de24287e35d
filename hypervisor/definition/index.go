package definition

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// index maps the path of each key and table of b, such as "boot.kernel" or "disk[1].path", to its line. It is asked only
// about what the decoder has accepted, so that errors found later can say where they are.
func index(b []byte) map[string]int {
	lines := make(map[string]int)
	count := make(map[string]int)
	prefix := ""
	p := unstable.Parser{}
	p.Reset(b)
	for p.NextExpression() {
		e := p.Expression()
		path, line := key(&p, e)
		switch e.Kind {
		case unstable.Table:
			prefix = path + "."
			lines[path] = line
		case unstable.ArrayTable:
			n := count[path]
			count[path]++
			path = fmt.Sprintf("%s[%d]", path, n)
			prefix = path + "."
			lines[path] = line
		case unstable.KeyValue:
			lines[prefix+path] = line
		}
	}
	return lines
}

// key returns the dotted key of an expression and its line.
func key(p *unstable.Parser, e *unstable.Node) (path string, line int) {
	for it := e.Key(); it.Next(); {
		n := it.Node()
		if path != "" {
			path += "."
		} else {
			line = p.Shape(n.Raw).Start.Line
		}
		path += strings.ToLower(string(n.Data)) // the decoder takes either case
	}
	return path, line
}
