package headless

import (
	"bytes"
	"context"
	"encoding/binary"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/hid"
)

var _ output.Output = (*Screen)(nil)

// newScreen returns a screen that shows a pattern in which every pixel is another.
func newScreen(t testing.TB, w, h int) *Screen {
	t.Helper()
	s, err := NewScreen("TEST-1", w, h)
	if err != nil {
		t.Fatal(err)
	}
	show(t, s)
	return s
}

// show presents a new picture.
func show(t testing.TB, s *Screen) *output.Buffer {
	t.Helper()
	b, err := s.NewBuffer()
	if err != nil {
		t.Fatal(err)
	}
	for y := range b.Height {
		for x := range b.Width {
			copy(b.Pixels[y*b.Stride+4*x:], []byte{byte(x), byte(y), byte(x*y + y), 0x77})
		}
	}
	present(t, s, b)
	return b
}

func present(t testing.TB, s *Screen, b *output.Buffer, damage ...image.Rectangle) {
	t.Helper()
	if err := s.Present(b, damage); err != nil {
		t.Fatal(err)
	}
	<-s.Flips()
}

// recorder is a sink that keeps what it gets.
type recorder struct {
	mu     sync.Mutex
	events []hid.Event
	got    chan struct{}
}

func newRecorder() *recorder { return &recorder{got: make(chan struct{}, 1000)} }

func (r *recorder) Send(batch []hid.Event) {
	r.mu.Lock()
	r.events = append(r.events, batch...)
	r.mu.Unlock()
	r.got <- struct{}{}
}

// wait returns the first n events, when they have come.
func (r *recorder) wait(t *testing.T, n int) []hid.Event {
	t.Helper()
	for {
		r.mu.Lock()
		if len(r.events) >= n {
			defer r.mu.Unlock()
			return r.events
		}
		r.mu.Unlock()
		select {
		case <-r.got:
		case <-time.After(30 * time.Second):
			t.Fatalf("no more events than %v", r.events)
		}
	}
}

func TestScreen(t *testing.T) {
	s := newScreen(t, 40, 30)
	var b bytes.Buffer
	if err := s.WritePNG(&b); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := img.At(3, 5), (color.RGBA{20, 5, 3, 0xff}); color.RGBAModel.Convert(got) != want {
		t.Errorf("(3, 5) is %v, want %v", got, want)
	}
	if err := s.SetMode(output.Mode{Width: 20, Height: 10}); err != nil {
		t.Fatal(err)
	}
	if img := s.Image(); img.Rect.Dx() != 20 || img.RGBAAt(0, 0) != (color.RGBA{0, 0, 0, 0xff}) {
		t.Errorf("new mode: %v, %v", img.Rect, img.RGBAAt(0, 0))
	}
	old := &output.Buffer{Width: 40, Height: 30, Stride: 160, Pixels: make([]byte, 4800)}
	if err := s.Present(old, nil); err == nil {
		t.Error("a buffer of another size was taken")
	}
	for _, m := range []output.Mode{{}, {Width: 1 << 20, Height: 1}, {Width: 1, Height: -1}} {
		if err := s.SetMode(m); err == nil {
			t.Errorf("mode %v was taken", m)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := <-s.Flips(); ok {
		t.Error("a flip of a closed screen")
	}
}

// viewer is an RFB client of tests.
type viewer struct {
	t    *testing.T
	conn net.Conn
}

// serve starts a server and returns its address.
func serve(t *testing.T, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// dial connects and does the handshake of a version.
func dial(t *testing.T, addr, version string) *viewer {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	v := &viewer{t, conn}
	v.expect([]byte("RFB 003.008\n"))
	v.write([]byte(version + "\n"))
	switch version {
	case "RFB 003.003", "RFB 003.006":
		v.expect([]byte{0, 0, 0, 1})
	case "RFB 003.007":
		v.expect([]byte{1, 1})
		v.write([]byte{1})
	default:
		v.expect([]byte{1, 1})
		v.write([]byte{1})
		v.expect([]byte{0, 0, 0, 0})
	}
	v.write([]byte{1})
	return v
}

func (v *viewer) write(b []byte) {
	v.t.Helper()
	if _, err := v.conn.Write(b); err != nil {
		v.t.Fatal(err)
	}
}

func (v *viewer) read(n int) []byte {
	v.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(v.conn, b); err != nil {
		v.t.Fatal(err)
	}
	return b
}

func (v *viewer) expect(want []byte) {
	v.t.Helper()
	if got := v.read(len(want)); !bytes.Equal(got, want) {
		v.t.Fatalf("server says %x, want %x", got, want)
	}
}

// init reads ServerInit.
func (v *viewer) init(w, h int, name string) {
	v.t.Helper()
	b := []byte{byte(w >> 8), byte(w), byte(h >> 8), byte(h), 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	v.expect(append(b, name...))
}

func (v *viewer) request(incremental byte, r image.Rectangle) {
	v.t.Helper()
	b := []byte{msgUpdateRequest, incremental}
	for _, k := range []int{r.Min.X, r.Min.Y, r.Dx(), r.Dy()} {
		b = binary.BigEndian.AppendUint16(b, uint16(k))
	}
	v.write(b)
}

// rect is a rectangle of an update.
type rect struct {
	r        image.Rectangle
	encoding int32
	data     []byte
}

// update reads an update of pixels of the given size in bytes.
func (v *viewer) update(size int) (rects []rect) {
	v.t.Helper()
	h := v.read(4)
	if h[0] != 0 {
		v.t.Fatalf("message %d", h[0])
	}
	for range binary.BigEndian.Uint16(h[2:]) {
		b := v.read(12)
		at := image.Pt(int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:])))
		k := rect{encoding: int32(binary.BigEndian.Uint32(b[8:]))}
		k.r = image.Rectangle{at, at.Add(image.Pt(int(binary.BigEndian.Uint16(b[4:])), int(binary.BigEndian.Uint16(b[6:]))))}
		if k.encoding == encodingRaw {
			k.data = v.read(size * k.r.Dx() * k.r.Dy())
		}
		rects = append(rects, k)
	}
	return rects
}

// TestRFB is a client's visit, in each version.
func TestRFB(t *testing.T) {
	for _, version := range []string{"RFB 003.003", "RFB 003.006", "RFB 003.007", "RFB 003.008"} {
		t.Run(version, func(t *testing.T) {
			s := newScreen(t, 400, 300)
			v := dial(t, serve(t, &Server{Screen: s, Name: "Lodge"}), version)
			v.init(400, 300, "Lodge")
			v.write([]byte{msgSetEncodings, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x21})
			v.write([]byte{msgClientCutText, 0, 0, 0, 0, 0, 0, 3, 'a', 'b', 'c'})

			// Everything.
			all := image.Rect(0, 0, 400, 300)
			v.request(0, all)
			got := v.update(4)
			if len(got) != 1 || got[0].r != all {
				t.Fatalf("%d rectangles, the first %v", len(got), got[0].r)
			}
			for i := 0; i < len(got[0].data); i += 4 {
				x, y := i/4%400, i/4/400
				if d := got[0].data[i:]; d[0] != byte(x) || d[1] != byte(y) || d[2] != byte(x*y+y) {
					t.Fatalf("(%d, %d) is %v", x, y, d[:3])
				}
			}

			// What changes, when it changes.
			v.request(1, all)
			b := show(t, s)
			v.update(4)
			present(t, s, b, image.Rect(10, 20, 12, 21), image.Rect(300, 200, 301, 201))
			v.request(1, image.Rect(0, 0, 100, 100))
			got = v.update(4)
			if len(got) != 1 || got[0].r != image.Rect(10, 20, 12, 21) {
				t.Errorf("changed: %v", got)
			}
			v.request(1, all)
			if got = v.update(4); len(got) != 1 || got[0].r != image.Rect(300, 200, 301, 201) {
				t.Errorf("changed where nothing was asked for: %v", got)
			}

			// Another format: 16 bits, big-endian, 5-6-5.
			v.write([]byte{msgSetPixelFormat, 0, 0, 0, 16, 16, 1, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0})
			v.request(0, image.Rect(3, 5, 4, 6))
			got = v.update(2)
			if want := []byte{2 << 3, 1 << 5}; !bytes.Equal(got[0].data, want) { // 20, 5, 3 of 255
				t.Errorf("(3, 5) is %x, want %x", got[0].data, want)
			}

			// Another size.
			v.request(1, all)
			if err := s.SetMode(output.Mode{Width: 20, Height: 10}); err != nil {
				t.Fatal(err)
			}
			got = v.update(2)
			if len(got) != 1 || got[0].r != image.Rect(0, 0, 20, 10) || got[0].encoding != encodingDesktopSize {
				t.Errorf("another size: %v", got)
			}
			show(t, s)
			v.request(1, all)
			if got = v.update(2); len(got) != 1 || got[0].r != image.Rect(0, 0, 20, 10) {
				t.Errorf("after another size: %v", got)
			}
		})
	}
}

// TestBands asks for more than goes at once.
func TestBands(t *testing.T) {
	s := newScreen(t, 1920, 1080)
	v := dial(t, serve(t, &Server{Screen: s}), "RFB 003.008")
	v.init(1920, 1080, "")
	v.request(0, image.Rect(0, 0, 65535, 65535))
	y := 0
	for _, k := range v.update(4) {
		if k.r.Min != image.Pt(0, y) || k.r.Max.X != 1920 || len(k.data) > maxBand {
			t.Fatalf("band %v", k.r)
		}
		y = k.r.Max.Y
	}
	if y != 1080 {
		t.Errorf("bands end at %d", y)
	}
}

func keyMsg(down byte, sym uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{msgKeyEvent, down, 0, 0}, sym)
}

func TestInput(t *testing.T) {
	press := func(code uint16) hid.Event { return hid.Event{Type: hid.EVKey, Code: code, Value: 1} }
	release := func(code uint16) hid.Event { return hid.Event{Type: hid.EVKey, Code: code} }
	at := func(x, y int32) []hid.Event {
		return []hid.Event{{Type: hid.EVAbs, Code: hid.AbsX, Value: x}, {Type: hid.EVAbs, Code: hid.AbsY, Value: y}}
	}
	for name, tt := range map[string]struct {
		send [][]byte
		want []hid.Event
	}{
		"letter": {[][]byte{keyMsg(1, 'a'), keyMsg(0, 'a')}, []hid.Event{press(30), release(30)}},
		"repeat": {[][]byte{keyMsg(1, 'a'), keyMsg(1, 'a'), keyMsg(0, 'a')}, []hid.Event{press(30), {Type: hid.EVKey, Code: 30, Value: 2}, release(30)}},
		"Shift, as here": {
			[][]byte{keyMsg(1, symShiftL), keyMsg(1, '!'), keyMsg(0, '!'), keyMsg(0, symShiftL)},
			[]hid.Event{press(42), press(2), release(2), release(42)},
		},
		"Shift let go first": {
			[][]byte{keyMsg(1, symShiftL), keyMsg(1, '!'), keyMsg(0, symShiftL), keyMsg(0, '1')},
			[]hid.Event{press(42), press(2), release(42), release(2)},
		},
		"no Shift there": {[][]byte{keyMsg(1, '@'), keyMsg(0, '@')}, []hid.Event{press(42), press(3), release(42), release(3)}},
		"Shift only there": {
			[][]byte{keyMsg(1, symShiftR), keyMsg(1, '/'), keyMsg(0, '/'), keyMsg(0, symShiftR)},
			[]hid.Event{press(54), release(54), press(53), press(54), release(53), release(54)},
		},
		"chord": {
			[][]byte{keyMsg(1, 0xffe3), keyMsg(1, 0xffe9), keyMsg(1, '!'), keyMsg(0, '!'), keyMsg(0, 0xffe9), keyMsg(0, 0xffe3)},
			[]hid.Event{press(29), press(56), press(2), release(2), release(56), release(29)},
		},
		"unknown":           {[][]byte{keyMsg(1, 0x12345), keyMsg(1, 0), keyMsg(1, 'x')}, []hid.Event{press(45)}},
		"never pressed":     {[][]byte{keyMsg(0, 'x'), keyMsg(1, 'y')}, []hid.Event{press(21)}},
		"middle of nowhere": {[][]byte{{msgPointerEvent, 0, 0xff, 0xff, 0xff, 0xff}}, at(hid.AbsMax, hid.AbsMax)},
		"click": {
			[][]byte{{msgPointerEvent, 1, 0, 0, 0, 0}, {msgPointerEvent, 0, 0, 99, 0, 50}},
			append(append(at(0, 0), press(hid.BtnLeft)), append(at(hid.AbsMax*99/199, hid.AbsMax*50/99), release(hid.BtnLeft))...),
		},
		"wheel": {
			[][]byte{{msgPointerEvent, 1 << 4, 0, 0, 0, 0}, {msgPointerEvent, 0, 0, 0, 0, 0}, {msgPointerEvent, 1 << 3, 0, 0, 0, 0}},
			append(append(append(append(at(0, 0), hid.Event{Type: hid.EVRel, Code: hid.RelWheel, Value: -1}), at(0, 0)...), at(0, 0)...),
				hid.Event{Type: hid.EVRel, Code: hid.RelWheel, Value: 1}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			rec := newRecorder()
			v := dial(t, serve(t, &Server{Screen: newScreen(t, 200, 100), Input: rec}), "RFB 003.008")
			v.init(200, 100, "")
			for _, m := range tt.send {
				v.write(m)
			}
			if diff := cmp.Diff(tt.want, rec.wait(t, len(tt.want))); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

// TestLeave has a client go away while it holds keys and a button.
func TestLeave(t *testing.T) {
	rec := newRecorder()
	v := dial(t, serve(t, &Server{Screen: newScreen(t, 200, 100), Input: rec}), "RFB 003.008")
	v.init(200, 100, "")
	v.write(keyMsg(1, 0xffe3))
	v.write(keyMsg(1, 'a'))
	v.write([]byte{msgPointerEvent, 1, 0, 0, 0, 0})
	rec.wait(t, 5)
	v.conn.Close()
	down := make(map[uint16]bool)
	for _, e := range rec.wait(t, 8) {
		if e.Type == hid.EVKey {
			down[e.Code] = e.Value != 0
		}
	}
	if diff := cmp.Diff(map[uint16]bool{29: false, 30: false, hid.BtnLeft: false}, down); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
}

// TestKeysyms looks whether each character of ASCII has a key, and none has two.
func TestKeysyms(t *testing.T) {
	type place struct {
		code uint16
		s    shift
	}
	seen := make(map[place]rune)
	for r := ' '; r <= '~'; r++ {
		code, s := lookup(uint32(r))
		if code == 0 {
			t.Errorf("%q has no key", r)
		}
		if r >= 'A' && r <= 'Z' { // on the key of its small letter
			if low, _ := lookup(uint32(r - 'A' + 'a')); low != code {
				t.Errorf("%q is on key %d, its small letter on %d", r, code, low)
			}
			continue
		}
		if other, ok := seen[place{code, s}]; ok {
			t.Errorf("%q and %q are on the same key", r, other)
		}
		seen[place{code, s}] = r
	}
	for sym, want := range map[uint32]uint16{0xff0d: 28, 0xff1b: 1, 0xffbe: 59, 0xffc7: 68, 0xffc8: 87, 0xffff: 111, 0xffe9: 56, 0xff51: 105} {
		if got, _ := lookup(sym); got != want {
			t.Errorf("keysym %#x is on key %d, want %d", sym, got, want)
		}
	}
}

// TestHostile has clients that break the rules: they are thrown out.
func TestHostile(t *testing.T) {
	hello := "RFB 003.008\n\x01\x01"
	for name, send := range map[string]string{
		"version":        "RFB 004.000\n",
		"HTTP":           "GET / HTTP/1.1\r\n\r\n",
		"security":       "RFB 003.008\n\x02",
		"message":        hello + "\xff",
		"colour map":     hello + "\x00\x00\x00\x00\x08\x08\x00\x00\x00\x07\x00\x07\x00\x03\x00\x03\x06\x00\x00\x00",
		"24 bits":        hello + "\x00\x00\x00\x00\x18\x18\x00\x01\x00\xff\x00\xff\x00\xff\x10\x08\x00\x00\x00\x00",
		"shift":          hello + "\x00\x00\x00\x00\x20\x18\x00\x01\x00\xff\x00\xff\x00\xff\xff\x08\x00\x00\x00\x00",
		"maximum":        hello + "\x00\x00\x00\x00\x20\x18\x00\x01\x00\xfe\x00\xff\x00\xff\x10\x08\x00\x00\x00\x00",
		"huge clipboard": hello + "\x06\x00\x00\x00\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", serve(t, &Server{Screen: newScreen(t, 20, 10)}))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.WriteString(conn, send); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Errorf("not thrown out: %v", err)
			}
		})
	}
}

func TestLoopbackOnly(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Server{Screen: newScreen(t, 20, 10)}).Serve(t.Context(), l); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("served on %v: %v", l.Addr(), err)
	}
}

// TestClients has more clients than there may be.
func TestClients(t *testing.T) {
	addr := serve(t, &Server{Screen: newScreen(t, 20, 10)})
	for range maxClients {
		dial(t, addr, "RFB 003.008").init(20, 10, "")
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if b, err := io.ReadAll(conn); len(b) > 0 {
		t.Errorf("one too many is greeted with %q, %v", b, err)
	}
}

// TestViewer lets a viewer that is not ours take a picture (gvnccapture of GTK-VNC).
func TestViewer(t *testing.T) {
	s := newScreen(t, 640, 480)
	host, port, err := net.SplitHostPort(serve(t, &Server{Screen: s, Name: "Lodge"}))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "screen.png")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "gvnccapture", net.JoinHostPort(host, strconv.Itoa(n-5900)), file)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gvnccapture (Debian's gvncviewer): %v\n%s", err, out)
	}
	out, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := png.Decode(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	want := s.Image()
	if got.Bounds() != want.Rect {
		t.Fatalf("picture of %v, want %v", got.Bounds(), want.Rect)
	}
	for y := range 480 {
		for x := range 640 {
			if c := color.RGBAModel.Convert(got.At(x, y)); c != want.At(x, y) {
				t.Fatalf("(%d, %d) is %v, want %v", x, y, c, want.At(x, y))
			}
		}
	}
}

// FuzzRFBClient is a client that says anything, before or after the handshake.
func FuzzRFBClient(f *testing.F) {
	f.Add([]byte("RFB 003.008\n\x01\x01\x03\x00\x00\x00\x00\x00\x00\x14\x00\x0a"))
	f.Add([]byte("RFB 003.003\n\x01\x02\x00\x00\x01\xff\xff\xff\x21\x03\x01\x00\x00\x00\x00\xff\xff\xff\xff"))
	f.Add([]byte("RFB 003.007\n\x01\x00\x04\x01\x00\x00\x00\x00\x00\x61\x05\x1f\x00\x01\x00\x01\x06\x00\x00\x00\x00\x00\x00\x01x"))
	f.Add([]byte("RFB 003.008\n\x01\x01\x00\x00\x00\x00\x08\x08\x00\x01\x00\x07\x00\x07\x00\x03\x00\x03\x06\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x14\x00\x0a"))
	screen := newScreen(f, 20, 10)
	f.Fuzz(func(t *testing.T, data []byte) {
		held := make(map[uint16]bool)
		s := &Server{Screen: screen, Name: "x", Input: sinkFunc(func(batch []hid.Event) {
			for _, e := range batch {
				switch {
				case e.Type == hid.EVKey:
					held[e.Code] = e.Value != 0
				case e.Type == hid.EVAbs && (e.Value < 0 || e.Value > hid.AbsMax):
					t.Errorf("absolute position %d", e.Value)
				}
			}
		})}
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = s.client(context.Background(), ours)
		}()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		_, _ = theirs.Write(data)
		_ = theirs.Close()
		<-done
		for code, down := range held {
			if down {
				t.Errorf("key %d is still held after the client has left", code)
			}
		}
		if n := len(screen.watchers); n > 0 {
			t.Errorf("%d watchers are left", n)
		}
	})
}

type sinkFunc func([]hid.Event)

func (f sinkFunc) Send(batch []hid.Event) { f(batch) }

func BenchmarkRaw(b *testing.B) {
	s := newScreen(b, 1920, 1080)
	for name, format := range map[string][16]byte{
		"32": {32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0},
		"16": {16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0},
	} {
		b.Run(name, func(b *testing.B) {
			f, err := parseFormat(&format)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				buf = s.pixels(buf[:0], image.Rect(0, 0, 1920, 1080), f)
			}
		})
	}
}
