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
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/lodgehv/lodge/e2e/desk"
	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/webmail"
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
	small           string // another, without room for the state
	options         string // of the drive
	lodgeImage      string
	web, mail       net.Listener // servers of the network that it is connected to
	served          *record      // what was asked of them
}

// newStick makes the disk, with the instant-on guest on it.
func newStick(t *testing.T) *stick {
	t.Helper()
	b, err := lodgeimage.NewBuilder(t.Output())
	check(t, err)
	guest, err := b.Instant(t.Context())
	check(t, err)
	s := &stick{dir: t.TempDir(), served: &record{}}
	for _, l := range []*net.Listener{&s.web, &s.mail} {
		*l, err = net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		t.Cleanup(func() { (*l).Close() })
	}
	go webmail.Serve(s.web, s.mail, s.served) //nolint:errcheck // it ends with the listeners
	guest = s.withAccount(t, guest)
	bin := filepath.Join(s.dir, "bin")
	check(t, os.Mkdir(bin, 0o755))
	for _, p := range []string{"lodged", "lodge-vmm", "lodge-net", "lodge-seat", "lodge", "lodge-image"} {
		path, _, err := b.GoProgram(t.Context(), "./cmd/"+p, "amd64")
		check(t, err)
		check(t, os.Symlink(path, filepath.Join(bin, p)))
	}
	s.lodgeImage = filepath.Join(bin, "lodge-image")
	build := func(out, release string, args ...string) {
		t.Helper()
		t.Log(s.run(t, append([]string{"build", filepath.Join(s.dir, out), "--release=" + release, "--programs=" + bin, "--without=i915,amdgpu,nouveau",
			"--cmdline=console=tty0 console=ttyS0 panic=-1"}, args...)...))
	}
	build("out", "1", "--guest="+guest, "--media=disk")
	build("new", "2", "--media=uki")
	out := filepath.Join(s.dir, "out")
	s.disk, s.vars = filepath.Join(out, "lodge.img"), filepath.Join(s.dir, "vars")
	s.small = filepath.Join(s.dir, "small")
	if out, err := exec.CommandContext(t.Context(), "cp", "--reflink=auto", "--sparse=always", s.disk, s.small).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const size = 8 << 30 // of the stick
	check(t, os.Truncate(s.disk, size))
	vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	check(t, err)
	check(t, os.WriteFile(s.vars, vars, 0o600))

	return s
}

// run runs lodge-image, and returns what it says.
func (s *stick) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), s.lodgeImage, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("lodge-image %s: %v\n%s", args[0], err, out)
	}
	return string(out)
}

// slots wants the disk, which nobody uses, to have slots.
func (s *stick) slots(t *testing.T, want string) {
	t.Helper()
	if got := s.run(t, "status", s.disk); got != want {
		t.Errorf("the slots are\n%swant\n%s", got, want)
	}
}

// templateDir is where the state has the guest's template.
const templateDir = "/lib/guests/instant/template/"

// state has debugfs do something with the state partition, while nobody uses the disk.
func (s *stick) state(t *testing.T, command string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/sbin/debugfs", "-w", "-R", command, fmt.Sprintf("%s?offset=%d", s.disk, s.stateAt(t)))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	return string(out)
}

// stateAt returns where the state partition is on the disk, in bytes.
func (s *stick) stateAt(t *testing.T) int64 {
	t.Helper()
	f, err := os.Open(s.disk)
	check(t, err)
	defer f.Close()
	table, err := gpt.Read(file.New(f, true), 512, 512)
	check(t, err)
	for _, p := range table.Partitions {
		if p.Name == "Lodge state" {
			return int64(p.Start) * 512
		}
	}
	t.Fatalf("the disk has no state: %v", table.Partitions)
	return 0
}

// damage changes a page of the template's memory.
func (s *stick) damage(t *testing.T) {
	t.Helper()
	const page = 4096 // a block of the state, too
	for at := 96 << 20 / page; ; at++ {
		block, err := strconv.ParseInt(strings.TrimSpace(s.state(t, fmt.Sprintf("bmap %smemory/ram %d", templateDir, at))), 10, 64)
		check(t, err)
		if block == 0 {
			continue // a hole
		}
		f, err := os.OpenFile(s.disk, os.O_RDWR, 0)
		check(t, err)
		defer f.Close()
		b := make([]byte, page)
		where := s.stateAt(t) + block*page
		_, err = f.ReadAt(b, where)
		check(t, err)
		b[page/2] ^= 0x10
		_, err = f.WriteAt(b, where)
		check(t, err)
		return
	}
}

// fill leaves no room on the state.
func (s *stick) fill(t *testing.T) {
	t.Helper()
	free := regexp.MustCompile(`Free blocks:\s+(\d+)`).FindStringSubmatch(s.state(t, "stats -h"))
	if free == nil {
		t.Fatal("debugfs does not say how many blocks are free")
	}
	blocks, err := strconv.Atoi(free[1])
	check(t, err)
	s.state(t, "write /dev/null /lib/full")
	s.state(t, fmt.Sprintf("fallocate /lib/full 0 %d", blocks))
	t.Log(s.state(t, "stats -h"))
}

// host is this machine, for the notebook: QEMU's network calls it so.
const host = "10.0.2.2"

// withAccount returns a directory with the same guest, whose mail is on the test's server.
func (s *stick) withAccount(t *testing.T, guest string) string {
	t.Helper()
	dir := filepath.Join(s.dir, "guest")
	check(t, os.Mkdir(dir, 0o755))
	files, err := os.ReadDir(guest)
	check(t, err)
	for _, f := range files {
		check(t, os.Symlink(filepath.Join(guest, f.Name()), filepath.Join(dir, f.Name())))
	}
	name := filepath.Join(dir, "instant.toml")
	text, err := os.ReadFile(name)
	check(t, err)
	changed := strings.Replace(string(text), `cmdline = "`, fmt.Sprintf(`cmdline = "instant.mail=username@%s:%d instant.mail-tls=no `, host, port(s.mail)), 1)
	check(t, os.Remove(name))
	check(t, os.WriteFile(name, []byte(changed), 0o644))
	return dir
}

func port(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

// record is what a program has said.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

// since returns what was said after the first n bytes.
func (r *record) since(n int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()[n:]
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
		"-drive", "if=none,id=d,format=raw,file="+s.disk+s.options, "-device", "virtio-blk-pci,drive=d",
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
// a template of, later it is there at once, also after an update of Lodge, and when the power was cut.
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
	step("second", func(t *testing.T) { // of an update, which has come up when the manager and the seat have been there for a while
		s.run(t, "update", s.disk, filepath.Join(s.dir, "new", "lodge.efi"))
		p := s.switchOn(t)
		before := p.sees("on-second", "the browser", shows(white))
		second = time.Since(p.on)
		t.Logf("power to browser: %.1f s the first time, %.1f s now", first.Seconds(), second.Seconds())
		if second > first*2/3 {
			t.Errorf("it takes %s, as if it had booted: %s", second, first)
		}
		check(t, p.Press(t.Context(), "ctrl", "l"))
		p.sees("on-key", "an answer to a key", func(img image.Image) bool { return !bytes.Equal(pixels(img), pixels(before)) })
		check(t, p.Type(t.Context(), fmt.Sprintf("%s:%d/\n", host, port(s.web))))
		p.sees("on-page", "the page", shows(green))
		if said := s.served.since(0); !strings.Contains(said, "GET / by NetSurf") {
			t.Errorf("there is a page, and nobody has asked for one: %s", said)
		}
		check(t, p.Press(t.Context(), "ctrl", "alt", "esc"))
		p.sees("on-console", "Lodge's console", func(img image.Image) bool { return !shows(green)(img) && !shows(white)(img) })
		check(t, p.Press(t.Context(), "ctrl", "alt", "1"))
		p.sees("on-back", "the page", shows(green))
		s.readMail(p, true)
		p.await("the slot that runs has come up")
		time.Sleep(settle)
		p.cut()
		if set := s.state(t, "cat "+templateDir+"working-set.json"); !strings.Contains(set, `"off":`) {
			t.Errorf("what the guest uses first is not known for the next time: %.100q", set)
		}
		s.slots(t, "slot 2: has come up\nslot 1: has come up\n")
	})
	step("after a power cut", func(t *testing.T) {
		p := s.switchOn(t)
		p.sees("on-third", "the browser", shows(white))
		t.Logf("power to browser: %.1f s", time.Since(p.on).Seconds())
		s.readMail(p, false)
		p.await("guest is running")
		p.button()
	})
	step("damaged template", func(t *testing.T) {
		s.damage(t)
		p := s.switchOn(t)
		p.sees("on-damaged", "the browser", shows(white))
		p.await("its template is not what was written")
		p.await("a template was made of it")
		p.sees("on-mended", "the browser", shows(white))
		p.button()
	})
	step("read-only", func(t *testing.T) {
		s.options = ",readonly=on"
		defer func() { s.options = "" }()
		p := s.switchOn(t)
		p.await("something is wrong", "cannot be written to")
		p.sees("on-read-only", "the browser", shows(white))
		p.button()
	})
	step("full", func(t *testing.T) {
		s.fill(t)
		p := s.switchOn(t)
		p.sees("on-full", "the browser", shows(white))
		p.button()
	})
	step("missing", func(t *testing.T) {
		s.disk = s.small
		p := s.switchOn(t)
		p.await("something is wrong", "kept in RAM")
		p.sees("on-missing", "the browser", shows(white))
		p.button()
	})
}

// settle is how long a guest may take to bring to its disk what nobody waits for: Linux does so after 30 seconds.
const settle = 40 * time.Second

// readMail opens the disk with what belongs to the user, which the first time is empty, and reads the mail.
func (s *stick) readMail(p *power, first bool) {
	t, ctx := p.t, p.t.Context()
	t.Helper()
	said := len(s.served.since(0))
	begin := time.Now()
	check(t, p.Click(ctx, 53, 43)) // the letter
	// Where cryptsetup's prompts leave the cursor: it drops what is typed before.
	prompts := []image.Point{{31, 3}}
	if first {
		prompts = []image.Point{{31, 4}, {19, 5}, {31, 7}}
	}
	for i, at := range prompts {
		p.sees("on-passphrase", fmt.Sprintf("prompt %d of %d for the passphrase", i+1, len(prompts)), func(img image.Image) bool {
			got, ok := cursor(img)
			return ok && got == at
		})
		check(t, p.Type(ctx, "correct horse\n"))
	}
	entry := color.RGBA{0x35, 0x84, 0xe4, 255} // around what is typed into
	p.sees("on-password", "the question for the account's password", func(img image.Image) bool {
		return strings.Contains(s.served.since(said), "IMAP4rev1 Service Ready") && count(img, image.Rect(0, 170, desk.Width, desk.Height), entry) > 400 // below the browser's address
	})
	t.Logf("the disk is open and the mail program is there after %.1f s", time.Since(begin).Seconds())
	check(t, p.Type(ctx, "password\n"))
	p.sees("on-mail", "the mail program", func(img image.Image) bool {
		return desk.Share(img, image.Rect(280, 420, 980, 760), white) > 0.9 && strings.Contains(s.served.since(said), "UID FETCH")
	})
	check(t, p.Click(ctx, 79, 264)) // INBOX
	selected := image.Rect(300, 224, 1000, 236)
	p.sees("on-inbox", "the message in the list", func(img image.Image) bool { return dark(img, selected) > 100 })
	check(t, p.Click(ctx, 430, 229))
	p.sees("on-message", "the message", func(img image.Image) bool { return dark(img, image.Rect(276, 414, 980, 510)) > 300 })
	if said := s.served.since(said); !strings.Contains(said, "LOGIN") || first && !strings.Contains(said, "Hi there :)") {
		t.Errorf("the server was asked for no mail:\n%s", said)
	}
}

// cursor returns where the cursor of Weston's terminal is, in columns and rows.
func cursor(img image.Image) (image.Point, bool) {
	const cellWidth, cellHeight, margin = 9, 16, 5
	black, grey := color.RGBA{0, 0, 0, 255}, color.RGBA{0xa8, 0xa8, 0xa8, 255}
	is := func(x, y int, c color.RGBA) bool { return color.RGBAModel.Convert(img.At(x, y)) == c }
	origin, found := image.Point{}, false
	for y := desk.Bar; y < img.Bounds().Dy() && !found; y++ { // a long black line is the terminal's upper edge
		for x, run := 0, 0; x < img.Bounds().Dx() && !found; x++ {
			if run++; !is(x, y, black) {
				run = 0
			}
			origin, found = image.Pt(x-run+1, y), run >= 700
		}
	}
	if !found {
		return image.Point{}, false
	}
	for row := range 24 {
		for col := range 80 {
			at := origin.Add(image.Pt(margin+col*cellWidth, margin+row*cellHeight))
			if is(at.X, at.Y, grey) && is(at.X+cellWidth-1, at.Y, grey) && is(at.X, at.Y+cellHeight-1, grey) && is(at.X+4, at.Y+8, grey) {
				return image.Pt(col, row), true
			}
		}
	}
	return image.Point{}, false
}

// count returns how many pixels of a part have a colour.
func count(img image.Image, r image.Rectangle, c color.RGBA) (n int) {
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			if color.RGBAModel.Convert(img.At(x, y)) == c {
				n++
			}
		}
	}
	return n
}

// dark returns how many pixels of a part are dark: text.
func dark(img image.Image, r image.Rectangle) (n int) {
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			if color.GrayModel.Convert(img.At(x, y)).(color.Gray).Y < 0x60 {
				n++
			}
		}
	}
	return n
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
