package main

import (
	"context"
	"errors"
	"image"
	"net"
	"os"
	"path/filepath"
	"time"

	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/laptop"
)

// flashDir is where the notebook's disk and the tour's pictures are.
const flashDir = "out/laptop"

// fromFlash switches a notebook on that has Lodge in its flash: in a window, if there is a display to have one on, else as a tour, which
// presses the keys itself.
func fromFlash(ctx context.Context, bin string) (err error) {
	b, err := lodgeimage.NewBuilder(progress{})
	if err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(flashDir), os.MkdirAll(flashDir, 0o755)); err != nil {
		return err
	}
	dir, err := filepath.Abs(flashDir)
	if err != nil {
		return err
	}
	say("building what the notebook starts from: its flash, and a disk with Lodge's programs and a guest that has a browser and a mail program")
	l, err := laptop.New(ctx, b, dir, laptop.Config{Bin: bin})
	if err != nil {
		return err
	}
	if st, err := os.Stat(filepath.Join(l.Image, "lodge.efi")); err == nil {
		say("Lodge takes %.1f MiB in the flash", float64(st.Size())/(1<<20))
	}
	window := os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != ""
	if window {
		l.Display = "sdl,grab-mod=rctrl" // what QEMU does itself with Ctrl+Alt is in the way of our chords
	}
	t := &traveller{Laptop: l}
	if window {
		return t.play(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Minute, errors.New("the tour takes longer than 20 minutes"))
	defer cancel()
	return t.tour(ctx)
}

// traveller goes through the tour.
type traveller struct {
	*laptop.Laptop
	*laptop.Machine
}

// power switches the notebook on.
func (t *traveller) power(ctx context.Context) (err error) {
	say("the notebook is switched on, with Lodge in its flash")
	t.Machine, err = t.FromFlash(ctx, t.Disk, t.Main)
	return err
}

// play lets the user play until the notebook is off.
func (t *traveller) play(ctx context.Context) error {
	if err := t.power(ctx); err != nil {
		return err
	}
	defer t.Close()
	say("the notebook's window is yours: Ctrl+Alt+1 and 2 go to the guests, Ctrl+Alt+Esc to Lodge's console, where s starts a guest")
	say("the first time, the browser takes a minute; switch off by closing the window, and it will be there at once the next time: Ctrl-C here ends")
	select {
	case <-t.Done():
	case <-ctx.Done():
	}
	return nil
}

// sees waits until something is on the screen, and says after what time since from that was.
func (t *traveller) sees(ctx context.Context, shot, what string, from time.Time, ok func(image.Image) bool) (float64, error) {
	_, err := t.Sees(ctx, filepath.Join(flashDir, shot+".png"), what, ok)
	if err != nil {
		return 0, err
	}
	took := time.Since(from).Seconds()
	say("%s: %.1f s", what, took)
	return took, nil
}

// press presses chords, one after the other, as somebody does who looks at what comes of them.
func (t *traveller) press(ctx context.Context, chords ...[]string) error {
	for _, c := range chords {
		if err := t.Press(ctx, c...); err != nil {
			return err
		}
		time.Sleep(time.Second)
	}
	return nil
}

// tour switches the notebook on twice, and presses the keys that a user would.
func (t *traveller) tour(ctx context.Context) error {
	first, err := t.firstBoot(ctx)
	if err != nil {
		return err
	}
	if err := t.power(ctx); err != nil {
		return err
	}
	defer t.Close()
	second, err := t.sees(ctx, "browser", "from the switch to the browser", t.On, laptop.Shows(laptop.White))
	if err != nil {
		return err
	}
	say("that is %.1f times as fast as the boot before", first/second)
	if err := t.page(ctx); err != nil {
		return err
	}
	if err := t.main(ctx); err != nil {
		return err
	}
	say("pressing the notebook's power button")
	if err := t.PowerButton(ctx); err != nil {
		return err
	}
	say("the notebook is off; pictures of its screen are in %s", flashDir)
	return nil
}

// firstBoot starts the notebook for the first time: the guest boots, and a template is made of it.
func (t *traveller) firstBoot(ctx context.Context) (seconds float64, err error) {
	if err := t.power(ctx); err != nil {
		return 0, err
	}
	defer t.Close()
	seconds, err = t.sees(ctx, "first", "from the switch to the browser, the first time", t.On, laptop.Shows(laptop.White))
	if err != nil {
		return 0, err
	}
	if err := t.Await(ctx, "a template was made of it"); err != nil {
		return 0, err
	}
	say("a template was made of the guest, which later starts go on from; the power button")
	return seconds, t.PowerButton(ctx)
}

// page has the browser show a page of this machine's.
func (t *traveller) page(ctx context.Context) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	address := servePage(listener)
	say("typing an address: Ctrl+L, %s", address)
	if err := t.press(ctx, []string{"ctrl", "l"}); err != nil {
		return err
	}
	begin := time.Now()
	if err := t.Type(ctx, address+"\n"); err != nil {
		return err
	}
	_, err = t.sees(ctx, "page", "from the first letter to the page", begin, laptop.Shows(pageColor))
	return err
}

// main starts the main guest from Lodge's console, goes on with the other meanwhile, and to the main guest when the bar says that it is ready.
func (t *traveller) main(ctx context.Context) error {
	say("Ctrl+Alt+Esc: Lodge's console; its keys Down and s start the main guest, a Debian with a desktop")
	if err := t.press(ctx, []string{"ctrl", "alt", "esc"}, []string{"down"}, []string{"s"}); err != nil {
		return err
	}
	begin := time.Now()
	if _, err := t.Shoot(ctx, filepath.Join(flashDir, "console.png")); err != nil {
		return err
	}
	say("Ctrl+Alt+1: back to the browser, behind which it boots")
	if err := t.press(ctx, []string{"ctrl", "alt", "1"}); err != nil {
		return err
	}
	if _, err := t.sees(ctx, "ready", "until the bar says that it is ready", begin, laptop.TellsOfWork); err != nil {
		return err
	}
	say("Ctrl+Alt+2: to the main guest")
	begin = time.Now()
	if err := t.press(ctx, []string{"ctrl", "alt", "2"}); err != nil {
		return err
	}
	if _, err := t.sees(ctx, "main", "from the chord to its desktop, with a second's rest", begin, laptop.ShowsDesktop(laptop.Work)); err != nil {
		return err
	}
	say("Ctrl+Alt+1: and back")
	begin = time.Now()
	if err := t.press(ctx, []string{"ctrl", "alt", "1"}); err != nil {
		return err
	}
	_, err := t.sees(ctx, "back", "from the chord to the page, with a second's rest", begin, laptop.Shows(pageColor))
	return err
}
