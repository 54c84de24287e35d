package appliance

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lodgehv/lodge/e2e/desk"
	lodgeimage "github.com/lodgehv/lodge/e2e/image"
	"github.com/lodgehv/lodge/e2e/laptop"
	"github.com/lodgehv/lodge/e2e/webmail"
)

// green is the colour of the page that the test serves.
var green = color.RGBA{0xd0, 0xff, 0xd0, 255}

// stick is a notebook with nothing but a disk that lodge-image has made, or the flash.
type stick struct {
	*laptop.Laptop
	update    string       // the UKI of another release
	web, mail net.Listener // servers of the network that it is connected to
	served    *record      // what was asked of them
}

// newStick makes what it starts from, with the instant-on guest and the main guest.
func newStick(t *testing.T) *stick {
	t.Helper()
	b, err := lodgeimage.NewBuilder(t.Output())
	check(t, err)
	s := &stick{served: &record{}}
	for _, l := range []*net.Listener{&s.web, &s.mail} {
		*l, err = net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		t.Cleanup(func() { (*l).Close() })
	}
	go webmail.Serve(s.web, s.mail, s.served) //nolint:errcheck // it ends with the listeners
	s.Laptop, err = laptop.New(t.Context(), b, t.TempDir(), laptop.Config{Account: fmt.Sprintf("username@%s:%d", laptop.Host, port(s.mail))})
	check(t, err)
	said, err := s.Build(t.Context(), filepath.Join(s.Dir, "new"), "2", "--media=uki")
	check(t, err)
	t.Log(said)
	s.update = filepath.Join(s.Dir, "new", "lodge.efi")
	return s
}

// run runs lodge-image, and returns what it says.
func (s *stick) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.Run(t.Context(), args...)
	check(t, err)
	return out
}

// switchOn switches the notebook on. It starts from the disk; there may be others.
func (s *stick) switchOn(t *testing.T, others ...string) *machine {
	t.Helper()
	m, err := s.FromDisk(t.Context(), others...)
	return started(t, m, err)
}

// switchOnFlash switches on a notebook that has Lodge in its flash.
func (s *stick) switchOnFlash(t *testing.T, disks ...string) *machine {
	t.Helper()
	m, err := s.FromFlash(t.Context(), disks...)
	return started(t, m, err)
}

// slots wants the disk, which nobody uses, to have slots.
func (s *stick) slots(t *testing.T, want string) {
	t.Helper()
	if got := s.run(t, "status", s.Disk); got != want {
		t.Errorf("the slots are\n%swant\n%s", got, want)
	}
}

// state has debugfs do something with the state partition.
func (s *stick) state(t *testing.T, command string) string {
	t.Helper()
	out, err := s.State(t.Context(), command)
	check(t, err)
	return out
}

// damage changes a page of the template's memory.
func (s *stick) damage(t *testing.T) {
	t.Helper()
	const page = 4096 // a block of the state, too
	for at := 96 << 20 / page; ; at++ {
		block, err := strconv.ParseInt(strings.TrimSpace(s.state(t, fmt.Sprintf("bmap %smemory/ram %d", laptop.TemplateDir, at))), 10, 64)
		check(t, err)
		if block == 0 {
			continue // a hole
		}
		f, err := os.OpenFile(s.Disk, os.O_RDWR, 0)
		check(t, err)
		defer f.Close()
		b := make([]byte, page)
		begin, err := s.StateAt()
		check(t, err)
		where := begin + block*page
		_, err = f.ReadAt(b, where)
		check(t, err)
		b[page/2] ^= 0x10
		_, err = f.WriteAt(b, where)
		check(t, err)
		return
	}
}

// fill leaves no room on the state but what the file system keeps for root: VMMs, which fill it, are others.
func (s *stick) fill(t *testing.T) {
	t.Helper()
	stats := s.state(t, "stats -h")
	blocks := func(which string) int {
		m := regexp.MustCompile(which + `:\s+(\d+)`).FindStringSubmatch(stats)
		if m == nil {
			t.Fatalf("debugfs does not say how many %s there are:\n%s", which, stats)
		}
		n, err := strconv.Atoi(m[1])
		check(t, err)
		return n
	}
	s.state(t, "write /dev/null /lib/full")
	s.state(t, fmt.Sprintf("fallocate /lib/full 0 %d", blocks("Free blocks")-blocks("Reserved block count")))
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
		p.sees("on-first", "the browser", laptop.Shows(laptop.White))
		first = time.Since(p.On)
		p.await("state partition is made", "guests come along", "msg=connected link=", "a template was made of it")
		p.button()
	})
	step("second", func(t *testing.T) { // of an update, which has come up when the manager and the seat have been there for a while
		s.run(t, "update", s.Disk, s.update)
		p := s.switchOn(t, s.Main)
		before := p.sees("on-second", "the browser", laptop.Shows(laptop.White))
		second = time.Since(p.On)
		t.Logf("power to browser: %.1f s the first time, %.1f s now", first.Seconds(), second.Seconds())
		if second > first*2/3 {
			t.Errorf("it takes %s, as if it had booted: %s", second, first)
		}
		check(t, p.Press(t.Context(), "ctrl", "l"))
		p.sees("on-key", "an answer to a key", func(img image.Image) bool { return !bytes.Equal(pixels(img), pixels(before)) })
		check(t, p.Type(t.Context(), fmt.Sprintf("%s:%d/\n", laptop.Host, port(s.web))))
		p.sees("on-page", "the page", laptop.Shows(green))
		if said := s.served.since(0); !strings.Contains(said, "GET / by NetSurf") {
			t.Errorf("there is a page, and nobody has asked for one: %s", said)
		}
		s.readMail(p, true)
		read := time.Now()
		s.mainGuest(p)
		p.await("the slot that runs has come up")
		time.Sleep(time.Until(read.Add(settle)))
		check(t, p.Cut())
		s.slots(t, "slot 2: has come up\nslot 1: has come up\n")
	})
	step("after a power cut, from the flash", func(t *testing.T) {
		p := s.switchOnFlash(t, s.Disk)
		p.sees("on-third", "the browser", laptop.Shows(laptop.White))
		t.Logf("power to browser: %.1f s", time.Since(p.On).Seconds())
		s.readMail(p, false)
		p.await("guest is running")
		p.button()
		if set := s.state(t, "cat "+laptop.TemplateDir+"working-set.json"); !strings.Contains(set, `"off":`) {
			t.Errorf("what the guest uses first is not known for the next time: %.100q", set)
		}
	})
	step("again and again", func(t *testing.T) { // with the three before and the three after that have a disk, 20 starts in a row
		const more = 14
		var took []string
		for i := range more {
			var p *machine
			switch i % 3 {
			case 0:
				p = s.switchOn(t)
			case 1:
				p = s.switchOnFlash(t, s.Disk)
			case 2:
				s.Stick = true
				p = s.switchOn(t)
				s.Stick = false
			}
			before := p.sees("on-again", "the browser", laptop.Shows(laptop.White))
			d := time.Since(p.On)
			took = append(took, fmt.Sprintf("%.1f", d.Seconds()))
			if d > (first+second)/2 {
				t.Errorf("start %d takes %s, as if it had booted: %s", i, d, first)
			}
			check(t, p.Press(t.Context(), "ctrl", "l"))
			p.sees("on-again", "an answer to a key", func(img image.Image) bool { return !bytes.Equal(pixels(img), pixels(before)) })
			if i == more-1 {
				p.button()
				break
			}
			time.Sleep(rand.N(1500 * time.Millisecond))
			check(t, p.Cut())
		}
		t.Logf("power to browser, from disk, flash and stick in turn: %s s", strings.Join(took, " "))
	})
	step("damaged template", func(t *testing.T) {
		s.damage(t)
		p := s.switchOn(t)
		p.sees("on-damaged", "the browser", laptop.Shows(laptop.White))
		p.await("its template is not what was written: it is switched off and boots afresh")
		p.await("a template was made of it")
		p.sees("on-mended", "the browser", laptop.Shows(laptop.White))
		p.button()
	})
	step("read-only", func(t *testing.T) {
		s.Options = ",readonly=on"
		defer func() { s.Options = "" }()
		p := s.switchOn(t)
		p.await("something is wrong", "cannot be written to", "c go on")
		p.key("c")
		p.sees("on-read-only", "the browser", laptop.Shows(laptop.White))
		p.button()
	})
	step("full", func(t *testing.T) {
		s.fill(t)
		p := s.switchOn(t)
		p.sees("on-full", "the browser", laptop.Shows(laptop.White))
		p.button()
	})
	step("nothing but the flash", func(t *testing.T) {
		p := s.switchOnFlash(t)
		p.await("something is wrong", "no disk has the system", "p power off")
		p.sees("on-no-disk", "the page that says what is wrong", func(img image.Image) bool { return dark(img, img.Bounds()) < img.Bounds().Dx()*img.Bounds().Dy() })
		p.key("p")
		check(t, p.Ends(t.Context()))
	})
	step("damaged system", func(t *testing.T) {
		broken := filepath.Join(s.Dir, "broken")
		b, err := os.ReadFile(filepath.Join(s.Image, "lodge.img"))
		check(t, err)
		magic := bytes.Index(b, []byte("hsqs")) // where squashfs begins
		b[magic+0x100] ^= 1
		check(t, os.WriteFile(broken, b, 0o600))
		p := s.switchOnFlash(t, broken)
		p.await("something is wrong", "it is damaged", "p power off")
		p.key("p")
		check(t, p.Ends(t.Context()))
	})
}

// mainGuest starts the main guest from Lodge's console. It boots behind the other, and is gone to when the bar says that it is ready.
func (s *stick) mainGuest(p *machine) {
	t, ctx := p.t, p.t.Context()
	t.Helper()
	mail := p.sees("on-mail", "the mail program", func(img image.Image) bool { return !laptop.TellsOfWork(img) })
	keys := func(presses ...[]string) {
		t.Helper()
		for _, k := range presses {
			check(t, p.Press(ctx, k...))
			time.Sleep(time.Second)
		}
	}
	keys([]string{"ctrl", "alt", "esc"})
	p.sees("on-console", "Lodge's console", func(img image.Image) bool {
		return desk.Share(img, image.Rect(0, desk.Bar, desk.Width, desk.Height), laptop.White) < 0.05
	})
	keys([]string{"down"}, []string{"s"}, []string{"ctrl", "alt", "1"})
	begin := time.Now()
	p.sees("on-back", "the mail program", func(img image.Image) bool { return bytes.Equal(pixels(img), pixels(mail)) })
	p.sees("on-ready", "that the main guest is ready, in the bar", laptop.TellsOfWork)
	t.Logf("the main guest is ready after %.1f s", time.Since(begin).Seconds())
	keys([]string{"ctrl", "alt", "2"})
	p.sees("on-main", "the main guest", func(img image.Image) bool { return laptop.ShowsDesktop(laptop.Work)(img) && !laptop.TellsOfWork(img) })
}

// settle is how long a guest may take to bring to its disk what nobody waits for: Linux does so after 30 seconds.
const settle = 40 * time.Second

// readMail opens the disk with what belongs to the user, which the first time is empty, and reads the mail.
func (s *stick) readMail(p *machine, first bool) {
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
		return desk.Share(img, image.Rect(280, 420, 980, 760), laptop.White) > 0.9 && strings.Contains(s.served.since(said), "UID FETCH")
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
