package main

import (
	"bytes"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// A bar on a terminal is one line that is written over; elsewhere there is a line for each tenth, and none for what is not known.
func TestBar(t *testing.T) {
	jobs := []client.Job{{Kind: "import", Object: "a"}, {Kind: "import", Object: "a", Done: 1 << 20}, {Kind: "import", Object: "a", Done: 1 << 20, Total: 4 << 20},
		{Kind: "import", Object: "a", Done: 1<<20 + 1, Total: 4 << 20}, {Kind: "import", Object: "a", Done: 5 << 20, Total: 4 << 20}}
	for terminal, want := range map[bool]string{
		false: "import a: 25 %\nstep\nimport a: 100 %\n",
		true: "\rimport a: 1.0 MiB\rimport a [#######.......................]  25 % of 4.0 MiB\nstep\n" +
			"\rimport a [##############################] 100 % of 4.0 MiB\n",
	} {
		var out bytes.Buffer
		b := newBar(&out)
		b.terminal = terminal
		for n, j := range jobs {
			if n == 4 {
				b.say("step")
			}
			b.set(j)
		}
		b.end()
		if got := out.String(); got != want {
			t.Errorf("terminal %t:\n%q, want\n%q", terminal, got, want)
		}
	}
}
