// Command lodge-image makes what a notebook starts Lodge from, and keeps it up to date: images for a disk, a USB stick and the
// flash of the firmware.
package main

import (
	"context"
	_ "embed"
	"os"
	"os/signal"
	"syscall"

	"github.com/lodgehv/lodge/internal/cmdline"
)

// cli is the command line.
type cli struct {
	Build      buildCommand       `cmd:"" help:"Make images: a UKI, a disk image, a flash image, and what they were made of."`
	Install    installCommand     `cmd:"" help:"Put Lodge on an ESP, or make a whole disk Lodge's."`
	Update     updateCommand      `cmd:"" help:"Put a new UKI beside the one that is known to start."`
	Rollback   rollbackCommand    `cmd:"" help:"Start the other slot from now on."`
	Good       goodCommand        `cmd:"" help:"Say that the slot that runs has come up, so that it stays."`
	Status     statusCommand      `cmd:"" help:"List the slots, the one that starts next first."`
	Guest      guestCommand       `cmd:"" help:"Make a guest's system."`
	Completion cmdline.Completion `cmd:"" help:"Print shell completion."`
	Man        cmdline.Man        `cmd:"" help:"Print the manual page."`
}

//go:embed manual.tmpl
var manual string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := cmdline.Program{
		Name: "lodge-image", Description: "Makes the images that a notebook starts Lodge from.", Commands: &cli{}, Manual: manual,
	}
	status := p.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}
