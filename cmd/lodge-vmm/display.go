package main

import (
	"context"
	"fmt"
	"image"
	"io"
	"log/slog"
	"os"

	"github.com/lodgehv/lodge/console/qdisplay"
	guestinput "github.com/lodgehv/lodge/hid/guest"
	"github.com/lodgehv/lodge/hid/virtioinput"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/machine"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/vgpu/display"
	"github.com/lodgehv/lodge/vgpu/dmabuf"
	"github.com/lodgehv/lodge/vgpu/edid"
	"github.com/lodgehv/lodge/vgpu/vga"
	"github.com/lodgehv/lodge/vgpu/virtiogpu"
)

// maxROM is the largest BIOS of a VGA card that is read, in bytes: what its window below 1 MiB and a few more hold.
const maxROM = 256 << 10

// display gives the guest a screen, a keyboard and a pointer, and serves them on a socket. Screen and input outlive the
// guest's reboots, as who shows them does.
func (r *resources) display(def *definition.Definition, log *slog.Logger) error {
	d := def.Display
	if d == nil {
		return nil
	}
	screen := display.NewScreen(display.Monitor{Connected: true, Width: d.Width, Height: d.Height, Name: "Lodge"})
	if err := r.card(d, screen, log); err != nil {
		return fmt.Errorf("display: %w", err)
	}
	in := new(guestinput.Input)
	screen.Follow(sizer{in})
	r.add("input.keyboard", in.Virtio(virtioinput.Keyboard))
	r.add("input.mouse", in.Virtio(virtioinput.Mouse))
	r.add("input.tablet", in.Virtio(virtioinput.Tablet))
	r.add("input.touch", in.Virtio(virtioinput.Touch))
	r.config.PS2 = [2]func(func()) machine.PS2Device{
		func(ready func()) machine.PS2Device { return in.PS2Keyboard(ready) },
		func(ready func()) machine.PS2Device { return in.PS2Mouse(ready) },
	}
	l, err := r.handed.listen("display", d.Path)
	if err != nil {
		return fmt.Errorf("display: %w", err)
	}
	r.opened(l)
	server := qdisplay.NewServer(qdisplay.Config{Name: def.Name, UUID: def.UUID, Screens: []*display.Screen{screen}, Input: in, Log: log})
	r.serve = append(r.serve, func(ctx context.Context, _ *guest) error {
		defer context.AfterFunc(ctx, func() { _ = server.Close() })()
		err := server.Serve(l)
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	return nil
}

// card adds the graphics card.
func (r *resources) card(d *definition.Display, screen *display.Screen, log *slog.Logger) error {
	if d.Card == definition.CardVirtio {
		cfg := virtiogpu.Config{Screens: []*display.Screen{screen}, Blob: d.Blob, Log: log}
		if d.Blob {
			// What the guest sees is the same without: its saved state goes on wherever it is restored.
			if maker, err := dmabuf.Open(); err == nil {
				r.opened(maker)
				cfg.Share = maker.Make
			} else {
				log.Warn("display: pictures are copied: load a kernel with CONFIG_UDMABUF, or let lodge-vmm use /dev/udmabuf", "err", err)
			}
		}
		r.add("gpu", func() (virtio.Device, error) { return virtiogpu.New(cfg) })
		return nil
	}
	rom, err := r.readROM(d.ROM)
	if err != nil {
		return err
	}
	r.config.Slots = append(r.config.Slots, machine.Slot{Name: "vga", New: func(b machine.Board) (machine.Card, error) {
		return vga.New(vga.Config{Name: b.Name, Screen: screen, EDID: edid.Encode, ROM: rom, Mapper: b.Mapper, Log: b.Log})
	}})
	return nil
}

func (r *resources) readROM(path string) ([]byte, error) {
	f, err := r.handed.open("vgarom", func() (*os.File, error) { return os.Open(path) })
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxROM+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxROM {
		return nil, fmt.Errorf("%s: more than %d KiB are no VGA BIOS", path, maxROM>>10)
	}
	return b, nil
}

// sizer is the sink that tells the input devices how large the screen is.
type sizer struct{ in *guestinput.Input }

func (s sizer) Scanout(f *display.Surface) {
	if f != nil {
		s.in.SetSize(f.Width, f.Height)
	}
}

func (sizer) Update(image.Rectangle) {}
func (sizer) Cursor(*display.Cursor) {}
func (sizer) MoveCursor(image.Point) {}
