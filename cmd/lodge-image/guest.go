package main

import (
	"context"
	"io"

	"github.com/lodgehv/lodge/guest/instant"
)

// guestCommand is the command "guest".
type guestCommand struct {
	Instant instantCommand `cmd:"" help:"A browser and a mail program, on screen within moments. Needs mmdebstrap and squashfs-tools, not root."`
}

type instantCommand struct {
	Out  string `arg:"" help:"Directory for it. Files of another build in it are replaced."`
	Full bool   `help:"Firefox in place of NetSurf: for all of today's pages, in four times the memory."`
}

// Run makes it.
func (c *instantCommand) Run(ctx context.Context, out io.Writer) error {
	v := instant.Light()
	if c.Full {
		v = instant.Full()
	}
	return instant.Build(ctx, c.Out, instant.Options{Variant: v, Log: out})
}
