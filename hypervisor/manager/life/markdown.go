package life

import (
	"fmt"
	"strings"
)

// Markdown returns the table as docs/manager.md has it.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| in | on | then | and the manager |\n| --- | --- | --- | --- |\n")
	for _, r := range Table() {
		var from []string
		for _, s := range r.From {
			from = append(from, string(s))
		}
		on := "`" + string(r.Event) + "`"
		if r.When != "" {
			on += ", " + r.When
		}
		action := ""
		if r.Action != None {
			action = "`" + string(r.Action) + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", strings.Join(from, ", "), on, r.To, action)
	}
	return b.String()
}
