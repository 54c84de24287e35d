package appliance

import (
	"image"
	"path/filepath"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/laptop"
)

// machine is a machine of a test's: what goes wrong ends the test.
type machine struct {
	*laptop.Machine
	t *testing.T
}

// started returns a machine that was switched on, or not for err, until the test's end.
func started(t *testing.T, m *laptop.Machine, err error) *machine {
	t.Helper()
	check(t, err)
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("console:\n%s", m.Said())
		}
	})
	return &machine{m, t}
}

// boot starts a machine that boots a kernel directly, with a disk, unless that is "".
func boot(t *testing.T, kernel, initramfs, disk, diskOptions string) *machine {
	t.Helper()
	args := []string{"-display", "none", "-m", "768", "-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 panic=-1"}
	if disk != "" {
		args = append(args, "-drive", "if=none,id=d,format=raw,file="+disk+diskOptions, "-device", "virtio-blk-pci,drive=d")
	}
	m, err := laptop.Start(t.Context(), args...)
	return started(t, m, err)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits until all of some texts are on the console.
func (m *machine) await(texts ...string) {
	m.t.Helper()
	began := time.Now()
	check(m.t, m.Await(m.t.Context(), texts...))
	m.t.Logf("%q after %s", texts, time.Since(began).Round(time.Millisecond))
}

// key types on the console.
func (m *machine) key(k string) {
	m.t.Helper()
	check(m.t, m.Key(k))
}

// button presses the power button, and waits for the end.
func (m *machine) button() {
	m.t.Helper()
	began := time.Now()
	check(m.t, m.PowerButton(m.t.Context()))
	m.t.Logf("off after %s", time.Since(began).Round(time.Millisecond))
}

// sees waits until the screen is as ok wants it, and leaves the last look at it among the tests' pictures.
func (m *machine) sees(name, what string, ok func(img image.Image) bool) image.Image {
	m.t.Helper()
	img, err := m.Sees(m.t.Context(), filepath.Join("../../out/instant", name+".png"), what, ok)
	check(m.t, err)
	return img
}
