package main

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// progress is a line on a terminal that says how far a long command has come. Elsewhere it says nothing.
type progress struct {
	w    io.Writer
	what string
	last int
	on   bool
}

func newProgress(w io.Writer, what string) *progress {
	p := &progress{w: w, what: what, last: -1}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.on = err == nil
	}
	return p
}

func (p *progress) set(done, total uint64) {
	if !p.on || total == 0 {
		return
	}
	if percent := int(done * 100 / total); percent != p.last {
		p.last = percent
		fmt.Fprintf(p.w, "\r%s %3d %% of %d MiB", p.what, percent, total>>20)
	}
}

func (p *progress) end() {
	if p.last >= 0 {
		fmt.Fprintln(p.w)
	}
}
