package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/desk"
	lodgeimage "github.com/lodgehv/lodge/e2e/image"
)

// Colours of the screen: the browser's first page, and the one that the test serves.
var (
	white = color.RGBA{255, 255, 255, 255}
	green = color.RGBA{0xd0, 0xff, 0xd0, 255}
)

// lookLimit is how long something may take until it is on the screen: the guest's first boot, and the firmware before it.
const lookLimit = 5 * time.Minute

// stick is a notebook with nothing but a disk that lodge-image has made.
type stick struct {
	dir, disk, vars string
	page            net.Listener // a web server's, for the page that is green
	asked           chan string
}

// newStick makes the disk, with the instant-on guest on it.
func newStick(t *testing.T) *stick {
	t.Helper()
	b, err := lodgeimage.NewBuilder(t.Output())
	check(t, err)
	guest, _, err := b.Instant(t.Context())
	check(t, err)
	s := &stick{dir: t.TempDir(), asked: make(chan string, 64)}
	bin := filepath.Join(s.dir, "bin")
	check(t, os.Mkdir(bin, 0o755))
	for _, p := range []string{"lodged", "lodge-vmm", "lodge-net", "lodge-seat", "lodge", "lodge-image"} {
		path, _, err := b.GoProgram(t.Context(), "./cmd/"+p, "amd64")
		check(t, err)
		check(t, os.Symlink(path, filepath.Join(bin, p)))
	}
	out := filepath.Join(s.dir, "out")
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "lodge-image"), "build", out, "--programs="+bin, "--guest="+guest,
		"--without=i915,amdgpu,nouveau", "--media=disk", "--cmdline=console=tty0 console=ttyS0 panic=-1")
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	t.Logf("%s", said)
	s.disk, s.vars = filepath.Join(out, "lodge.img"), filepath.Join(s.dir, "vars")
	const size = 8 << 30 // of the stick
	check(t, os.Truncate(s.disk, size))
	vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	check(t, err)
	check(t, os.WriteFile(s.vars, vars, 0o600))

	s.page, err = net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case s.asked <- r.URL.Path:
		default:
		}
		fmt.Fprint(w, `<html><title>There</title><body bgcolor="#d0ffd0"><h1>You are there.</h1></body></html>`)
	})}
	go server.Serve(s.page) //nolint:errcheck // it ends with Close
	t.Cleanup(func() { server.Close() })
	return s
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// power is the notebook switched on.
type power struct {
	*machine
	desk.Hands
	on    time.Time
	shots string
}

// switchOn switches the notebook on.
func (s *stick) switchOn(t *testing.T) *power {
	t.Helper()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0") // a port that is free
	check(t, err)
	port := udp.LocalAddr().(*net.UDPAddr).Port
	check(t, udp.Close())
	p := &power{on: time.Now(), shots: filepath.Join("../../out/instant")}
	p.machine = start(t, "-m", "2048", "-smp", "1",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd", "-drive", "if=pflash,format=raw,unit=1,file="+s.vars,
		"-drive", "if=none,id=d,format=raw,file="+s.disk, "-device", "virtio-blk-pci,drive=d",
		"-device", "virtio-vga,xres=1024,yres=768", "-device", "virtio-keyboard-pci", "-device", "virtio-tablet-pci",
		"-netdev", fmt.Sprintf("user,id=n,hostfwd=udp:127.0.0.1:%d-:9", port), "-device", "virtio-net-pci,netdev=n")
	p.Hands = desk.Hands{QMP: func(ctx context.Context, command string, args any) (json.RawMessage, error) {
		return p.qmp.Do(ctx, command, args)
	}}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go keepAwake(ctx, port)
	return p
}

// keepAwake sends the notebook a packet each second, to a port where nobody listens: see keepAwake of package notebook.
func keepAwake(ctx context.Context, port int) {
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return
	}
	defer c.Close()
	for ctx.Err() == nil {
		_, _ = c.Write([]byte("awake"))
		time.Sleep(time.Second)
	}
}

// shoot returns what is on the screen, which stays among the tests' pictures.
func (p *power) shoot(name string) (image.Image, error) {
	if err := os.MkdirAll(p.shots, 0o755); err != nil {
		return nil, err
	}
	file, err := filepath.Abs(filepath.Join(p.shots, name+".png"))
	if err != nil {
		return nil, err
	}
	if _, err := p.qmp.Do(p.t.Context(), "screendump", map[string]any{"filename": file, "format": "png"}); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return png.Decode(bytes.NewReader(b))
}

// sees waits until the screen is as ok wants it.
func (p *power) sees(name, what string, ok func(img image.Image) bool) image.Image {
	p.t.Helper()
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		img, err := p.shoot(name)
		if err != nil {
			p.t.Fatal(err)
		}
		if ok(img) {
			return img
		}
		if time.Since(begin) > lookLimit {
			p.t.Fatalf("%s is not on the screen after %s: see %s.png", what, lookLimit, name)
		}
	}
}

// shows returns whether at least half of the screen has a colour.
func shows(c color.RGBA) func(image.Image) bool {
	return func(img image.Image) bool { return desk.Share(img, img.Bounds(), c) >= 0.4 }
}

// TestInstantOn switches a notebook on that has nothing but the disk which lodge-image makes: the first time its guest boots and is made
// a template of, later it is there at once, also when the power was cut.
func TestInstantOn(t *testing.T) {
	s := newStick(t)
	step := func(name string, do func(t *testing.T)) {
		if !t.Run(name, do) {
			t.FailNow() // what follows builds upon it
		}
	}
	var first, second time.Duration
	step("first", func(t *testing.T) {
		p := s.switchOn(t)
		p.sees("on-first", "the browser", shows(white))
		first = time.Since(p.on)
		p.await("state partition is made", "guests come along", "msg=connected link=", "a template was made of it")
		p.button()
	})
	step("second", func(t *testing.T) {
		p := s.switchOn(t)
		before := p.sees("on-second", "the browser", shows(white))
		second = time.Since(p.on)
		t.Logf("power to browser: %.1f s the first time, %.1f s now", first.Seconds(), second.Seconds())
		if second > first*2/3 {
			t.Errorf("it takes %s, as if it had booted: %s", second, first)
		}
		check(t, p.Press(t.Context(), "ctrl", "l"))
		p.sees("on-key", "an answer to a key", func(img image.Image) bool { return !bytes.Equal(pixels(img), pixels(before)) })
		_, port, err := net.SplitHostPort(s.page.Addr().String())
		check(t, err)
		check(t, p.Type(t.Context(), "10.0.2.2:"+port+"/\n")) // QEMU's name for this machine
		p.sees("on-page", "the page", shows(green))
		select {
		case path := <-s.asked:
			t.Logf("asked for %s", path)
		default:
			t.Error("there is a page, and nobody has asked for one")
		}
		check(t, p.Press(t.Context(), "ctrl", "alt", "esc"))
		p.sees("on-console", "Lodge's console", func(img image.Image) bool { return !shows(green)(img) && !shows(white)(img) })
		check(t, p.Press(t.Context(), "ctrl", "alt", "1"))
		p.sees("on-back", "the page", shows(green))
		p.cut()
	})
	step("after a power cut", func(t *testing.T) {
		p := s.switchOn(t)
		p.sees("on-third", "the browser", shows(white))
		t.Logf("power to browser: %.1f s", time.Since(p.on).Seconds())
		p.await("guest is running")
		p.button()
	})
}

// pixels returns the address bar of a picture of the browser, as its colours.
func pixels(img image.Image) []byte {
	var b []byte
	for y := desk.Bar + 32; y < desk.Bar+160; y++ {
		for x := range desk.Width {
			r, g, bl, _ := img.At(x, y).RGBA()
			b = append(b, byte(r>>8), byte(g>>8), byte(bl>>8))
		}
	}
	return b
}

// cut takes the power away.
func (p *power) cut() {
	p.t.Helper()
	p.kill()
	select {
	case <-p.done:
	case <-time.After(endLimit):
		p.t.Fatal("QEMU does not end")
	}
}
