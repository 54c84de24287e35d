package machine

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/boot"
	"github.com/lodgehv/lodge/hypervisor/kvm"
)

const seabios = "/usr/share/seabios/bios-256k.bin"

// openKVM skips the test on a machine without KVM.
func openKVM(t testing.TB) *kvm.System {
	t.Helper()
	k, err := kvm.Open("/dev/kvm")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		t.Skipf("needs /dev/kvm: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// openImage skips the test where the firmware is not installed.
func openImage(t testing.TB, path string) *boot.Image {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("needs seabios: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	img, err := boot.FileImage(f)
	if err != nil {
		t.Fatal(err)
	}
	return &img
}

// screen collects what a guest writes, and lets a test wait for a text in it.
type screen struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func newScreen() *screen { return &screen{changed: make(chan struct{}, 1)} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await returns when text is on the screen.
func (s *screen) await(t testing.TB, m *Machine, text string, limit time.Duration) {
	t.Helper()
	timeout := time.After(limit)
	for !bytes.Contains([]byte(s.String()), []byte(text)) {
		select {
		case <-s.changed:
		case <-m.over:
			t.Fatalf("the machine ended (%+v) before %q:\n%s", m.outcome, text, s)
		case <-timeout:
			t.Fatalf("no %q within %v:\n%s", text, limit, s)
		}
	}
}

// SeaBIOS finds the board it expects: it reaches its prompt, and says that there is nothing to boot. Saved and restored,
// it waits on: its timer interrupts.
func TestSeaBIOS(t *testing.T) {
	com1, debug := newScreen(), newScreen()
	cfg := Config{Name: "bios", KVM: openKVM(t), CPUs: 1, Memory: 256 << 20,
		Boot: Boot{Firmware: openImage(t, seabios)}, DebugConsole: debug}.withSerial(com1)
	t.Parallel()
	m := newMachine(t, cfg)
	start(t, m)
	com1.await(t, m, "No bootable device", 60*time.Second)
	ticking(t, m)
	dir := save(t, m, "")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, opt := range ways {
		m := restore(t, cfg, dir, opt)
		start(t, m)
		ticking(t, m)
	}
	t.Log(debug.String())
}

// ticking returns when the BIOS has counted another tick of its timer.
func ticking(t testing.TB, m *Machine) {
	t.Helper()
	ticks, err := m.Memory().Slice(0x46c, 1) // BIOS data area
	if err != nil {
		t.Fatal(err)
	}
	from := ticks[0]
	for deadline := time.Now().Add(limit); ticks[0] == from; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the timer stands still: %+v", m.outcome)
		}
	}
}

func (c Config) withSerial(s *screen) Config {
	c.Serial[0] = s
	return c
}
