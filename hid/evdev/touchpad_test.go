package evdev

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hid"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestTouchpad plays testdata/touchpad. A script's lines are
//
//	pad WIDTH HEIGHT [buttonpad]    millimetres
//	options [natural] [notap] [speed=F]
//	MILLISECONDS FINGER...          a report
//
// where a finger is SLOT@X,Y (millimetres; it touches if it did not), SLOT- (it leaves), SLOT^SIZE or SLOT!palm; +left and
// -left are the pad's button, dropped is what the pad counts but does not follow ("count=3"). What follows "---" is what comes
// of it.
func TestTouchpad(t *testing.T) {
	files, err := filepath.Glob("testdata/touchpad/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			script, want, _ := strings.Cut(string(text), "---\n")
			got := playPad(t, script)
			if *update {
				if err := os.WriteFile(file, []byte(script+"---\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// perMM is the resolution of the pads of the tests.
const perMM = 40

// script is a touchpad that a script plays on.
type script struct {
	t      testing.TB
	info   Info
	o      Options
	down   map[int]bool
	count  int // what the pad counts, if it is more than it follows
	next   int32
	events []hid.Event
}

func playPad(t *testing.T, text string) string {
	s := &script{t: t, down: make(map[int]bool)}
	var tr *Translator
	var out strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch words[0] {
		case "pad":
			s.pad(words[1:])
		case "options":
			s.options(words[1:])
		default:
			if tr == nil {
				tr = NewTranslator(&s.info, s.o)
			}
			ms, err := strconv.Atoi(words[0])
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			r := Report{time.Duration(ms) * time.Millisecond, s.report(words[1:])}
			tr.Translate(r, func(at time.Duration, batch []hid.Event) {
				fmt.Fprintf(&out, "%d%s\n", at.Milliseconds(), showAll(batch))
			})
		}
	}
	return out.String()
}

func showAll(batch []hid.Event) (text string) {
	names := map[uint16]string{hid.RelX: "x", hid.RelY: "y", hid.RelWheel: "wheel", hid.RelHWheel: "hwheel",
		hid.RelWheelHiRes: "wheel/120", hid.RelHWheelHiRes: "hwheel/120"}
	for _, e := range batch {
		if e.Type == hid.EVKey {
			text += " " + string("-+"[e.Value]) + hid.KeyName(e.Code)
		} else {
			text += fmt.Sprintf(" %s %d", names[e.Code], e.Value)
		}
	}
	return text
}

func (s *script) number(text string) float64 {
	s.t.Helper()
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

func (s *script) pad(words []string) {
	x := Axis{Max: int32(s.number(words[0]) * perMM), Resolution: perMM}
	y := Axis{Max: int32(s.number(words[1]) * perMM), Resolution: perMM}
	s.info = complete(Info{
		Keys: bitsOf(hid.EVKey, hid.BtnLeft, hid.BtnRight, hid.BtnTouch, hid.BtnToolFinger, hid.BtnToolDoubleTap, hid.BtnToolTripleTap,
			hid.BtnToolQuadTap, hid.BtnToolQuintTap),
		Axes: map[uint16]Axis{hid.AbsX: x, hid.AbsY: y, hid.AbsMTPositionX: x, hid.AbsMTPositionY: y, hid.AbsMTSlot: {Max: 4},
			hid.AbsMTTrackingID: {Max: 65535}, hid.AbsMTTouchMajor: {Max: 2000}},
	})
	if len(words) > 2 {
		s.info.Props = bitsOf(0, hid.PropPointer, hid.PropButtonPad)
	}
}

func (s *script) options(words []string) {
	for _, w := range words {
		switch name, value, _ := strings.Cut(w, "="); name {
		case "natural":
			s.o.NaturalScroll = true
		case "notap":
			s.o.NoTap = true
		case "speed":
			s.o.PointerSpeed = s.number(value)
		default:
			s.t.Fatalf("no option %q", w)
		}
	}
}

func (s *script) add(typ, code uint16, v int32) {
	s.events = append(s.events, hid.Event{Type: typ, Code: code, Value: v})
}

// report returns the events of a report, with those of the keys that count fingers.
func (s *script) report(words []string) []hid.Event {
	s.t.Helper()
	s.events = nil
	before := s.fingers()
	for _, w := range words {
		i := strings.IndexAny(w, "@-^!+=")
		if i < 0 {
			s.t.Fatalf("no event %q", w)
		}
		slot, err := strconv.Atoi(w[:i])
		if err == nil {
			s.add(hid.EVAbs, hid.AbsMTSlot, int32(slot))
		}
		switch arg := w[i+1:]; {
		case w[i] == '=':
			s.count = int(s.number(arg))
		case i == 0:
			code, ok := hid.KeyByName("btn_" + arg)
			if !ok {
				s.t.Fatalf("no button %q", w)
			}
			s.add(hid.EVKey, code, bit(w[i] == '+'))
		case w[i] == '@':
			if !s.down[slot] {
				s.down[slot] = true
				s.next++
				s.add(hid.EVAbs, hid.AbsMTTrackingID, s.next)
			}
			x, y, _ := strings.Cut(arg, ",")
			s.add(hid.EVAbs, hid.AbsMTPositionX, int32(s.number(x)*perMM))
			s.add(hid.EVAbs, hid.AbsMTPositionY, int32(s.number(y)*perMM))
		case w[i] == '-':
			delete(s.down, slot)
			s.add(hid.EVAbs, hid.AbsMTTrackingID, -1)
		case w[i] == '^':
			s.add(hid.EVAbs, hid.AbsMTTouchMajor, int32(s.number(arg)*perMM))
		case w[i] == '!':
			s.add(hid.EVAbs, hid.AbsMTToolType, mtToolPalm)
		}
	}
	if now := s.fingers(); now != before {
		tools := []uint16{0, hid.BtnToolFinger, hid.BtnToolDoubleTap, hid.BtnToolTripleTap, hid.BtnToolQuadTap, hid.BtnToolQuintTap}
		if before > 0 {
			s.add(hid.EVKey, tools[before], 0)
		} else {
			s.add(hid.EVKey, hid.BtnTouch, 1)
		}
		if now > 0 {
			s.add(hid.EVKey, tools[now], 1)
		} else {
			s.add(hid.EVKey, hid.BtnTouch, 0)
		}
	}
	return s.events
}

func (s *script) fingers() int { return max(len(s.down), min(s.count, 5)) }
