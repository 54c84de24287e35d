package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// errCancelled says that the user has cancelled a job.
var errCancelled = errors.New("cancelled")

// await begins a job and waits for its end. What is done is told on out. Ctrl-C cancels.
func await(ctx context.Context, c *client.Client, out io.Writer, begin func(ctx context.Context) (uint64, error)) error {
	_, err := awaitJob(ctx, c, out, begin)
	return err
}

// awaitJob is await, and returns the job as it has ended.
func awaitJob(
	ctx context.Context, c *client.Client, out io.Writer, begin func(ctx context.Context) (uint64, error),
) (client.Job, error) {
	b := newBar(out)
	j, err := c.Do(ctx, begin, b.set, b.say)
	b.end()
	if errors.Is(err, context.Canceled) {
		err = errCancelled
	}
	return j, err
}

// bar shows how far a job is: on a terminal as a line that is written over, elsewhere as a line for each tenth.
type bar struct {
	out      io.Writer
	terminal bool
	shown    int // percent, or tenths
	width    int // of the line that is there
}

func newBar(out io.Writer) *bar {
	b := &bar{out: out, shown: -1}
	if f, ok := out.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		b.terminal = err == nil
	}
	return b
}

// barCells is how wide the bar itself is, in characters.
const barCells = 30

func (b *bar) set(j client.Job) {
	if j.Total == 0 && !b.terminal || j.Done == 0 && j.Total == 0 {
		return
	}
	if j.Total == 0 { // as of what comes through a pipe
		b.write(fmt.Sprintf("%s %s: %s", j.Kind, printable(j.Object), size(j.Done)))
		return
	}
	percent := int(min(float64(j.Done)/float64(j.Total), 1) * 100)
	switch {
	case b.terminal && percent != b.shown:
		b.shown = percent
		full := barCells * percent / 100
		b.write(fmt.Sprintf("%s %s [%s%s] %3d %% of %s", j.Kind, printable(j.Object), strings.Repeat("#", full), strings.Repeat(".", barCells-full),
			percent, size(j.Total)))
	case !b.terminal && percent/10 > b.shown:
		b.shown = percent / 10
		fmt.Fprintf(b.out, "%s %s: %d %%\n", j.Kind, printable(j.Object), percent)
	}
}

// write puts a line in the place of the one before.
func (b *bar) write(line string) {
	fmt.Fprintf(b.out, "\r%-*s", b.width, line)
	b.width = len(line)
}

// say prints a line of its own.
func (b *bar) say(text string) {
	b.end()
	fmt.Fprintln(b.out, printable(text))
}

// end leaves the line of the bar.
func (b *bar) end() {
	if b.width > 0 {
		fmt.Fprintln(b.out)
	}
	b.width, b.shown = 0, max(b.shown, 0)
}
