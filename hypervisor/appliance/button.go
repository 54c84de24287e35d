package appliance

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// struct input_event of 64-bit machines (linux/input.h): a struct timeval of 16 bytes, type, code, value.
const (
	inputEventSize = 24
	evKey          = 1
	keyPower       = 116
)

// pressed reports whether an event of an input device is the press of a power button.
func pressed(e []byte) bool {
	return binary.LittleEndian.Uint16(e[16:]) == evKey && binary.LittleEndian.Uint16(e[18:]) == keyPower && binary.LittleEndian.Uint32(e[20:]) == 1
}

// readButton calls press for each press that an input device tells of.
func readButton(r io.Reader, press func()) error {
	e := make([]byte, inputEventSize)
	for {
		if _, err := io.ReadFull(r, e); err != nil {
			return err
		}
		if pressed(e) {
			press()
		}
	}
}

// watchButtons calls press when one of the machine's power buttons is pressed, until ctx is done. The seat takes keyboards; ACPI's
// buttons are none (drivers/acpi/button.c).
func watchButtons(ctx context.Context, press func()) {
	open := make(map[string]bool)
	ended := make(chan string)
	t := time.NewTicker(time.Second) // drivers are loaded meanwhile
	defer t.Stop()
	for {
		names, _ := filepath.Glob("/sys/class/input/event*/device/name") // the pattern is a good one
		for _, n := range names {
			dev := filepath.Join("/dev/input", filepath.Base(filepath.Dir(filepath.Dir(n))))
			b, err := os.ReadFile(n)
			if err != nil || open[dev] || strings.TrimSpace(string(b)) != "Power Button" {
				continue
			}
			f, err := os.Open(dev)
			if err != nil {
				continue
			}
			open[dev] = true
			context.AfterFunc(ctx, func() { f.Close() })
			go func() {
				_ = readButton(f, press) // its error is the device's end
				f.Close()
				select {
				case ended <- dev:
				case <-ctx.Done():
				}
			}()
		}
		select {
		case <-ctx.Done():
			return
		case dev := <-ended:
			delete(open, dev)
		case <-t.C:
		}
	}
}
