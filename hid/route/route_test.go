package route

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hid"
)

// seat is a router whose targets and callbacks write into one log.
type seat struct {
	t   *testing.T
	r   *Router
	log []string
	at  time.Duration
}

// player is a target's sink, which logs.
type player struct {
	s    *seat
	name string
}

func (p player) Send(batch []hid.Event) {
	words := []string{p.name}
	for _, e := range batch {
		words = append(words, show(e))
	}
	p.s.log = append(p.s.log, strings.Join(words, " "))
}

// choosy is a player that has an opinion on motion.
type choosy struct {
	player
	abs bool
}

func (c choosy) WantsAbsolute() bool { return c.abs }

// show writes an event: +a, -a and *a are a key's press, release and repeat; axes have names and values.
func show(e hid.Event) string {
	switch e.Type {
	case hid.EVKey:
		return string("-+*"[e.Value]) + hid.KeyName(e.Code)
	case hid.EVRel, hid.EVAbs:
		for name, a := range axes {
			if a.typ == e.Type && a.code == e.Code {
				return fmt.Sprintf("%s=%d", name, e.Value)
			}
		}
	}
	return fmt.Sprint(e)
}

var axes = map[string]struct{ typ, code uint16 }{
	"dx": {hid.EVRel, hid.RelX}, "dy": {hid.EVRel, hid.RelY}, "wheel": {hid.EVRel, hid.RelWheel},
	"x": {hid.EVAbs, hid.AbsX}, "y": {hid.EVAbs, hid.AbsY},
	"slot": {hid.EVAbs, hid.AbsMTSlot}, "id": {hid.EVAbs, hid.AbsMTTrackingID},
	"mtx": {hid.EVAbs, hid.AbsMTPositionX}, "scan": {hid.EVMsc, hid.MscScan},
}

func event(t *testing.T, word string) hid.Event {
	t.Helper()
	if i := strings.IndexByte("-+*", word[0]); i >= 0 {
		code, ok := hid.KeyByName(word[1:])
		if !ok {
			t.Fatalf("no key %q", word)
		}
		return hid.Event{Type: hid.EVKey, Code: code, Value: int32(i)}
	}
	name, value, _ := strings.Cut(word, "=")
	a, ok := axes[name]
	v, err := strconv.Atoi(value)
	if !ok || err != nil {
		t.Fatalf("no event %q", word)
	}
	return hid.Event{Type: a.typ, Code: a.code, Value: int32(v)}
}

// newSeat returns a seat with guests a, b and c in the slots 1, 2 and 4, of which a has the focus. d has no slot. m and n
// take only absolute and only relative motion; they join with "join".
func newSeat(t *testing.T, cfg Config) *seat {
	s := &seat{t: t}
	cfg.Console = player{s, "console"}
	cfg.OnFocus = func(c Change) { s.logf("focus %s→%s %v", c.Old, c.New, c.Why) }
	cfg.OnPointer = func(old, now string) { s.logf("pointer %s→%s", old, now) }
	cfg.OnAttention = func(time.Duration) { s.logf("attention") }
	cfg.OnLEDs = func(l hid.LEDs) { s.logf("leds %b", l) }
	cfg.OnAbsent = func(slot int, name string) { s.logf("absent %d %q", slot, name) }
	var err error
	if s.r, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b", "c", "d"} {
		s.must(s.r.Add(name, []int{1, 2, 4, 0}[i], player{s, name}))
	}
	s.must(s.r.SetFocus("a"))
	s.log = nil
	return s
}

func (s *seat) logf(format string, args ...any) { s.log = append(s.log, fmt.Sprintf(format, args...)) }

func (s *seat) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// play runs a script. A line is a command, or "DEVICE: EVENTS" of which each is a report of its own, unless commas join
// them.
func (s *seat) play(script string) {
	s.t.Helper()
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if dev, ok := strings.CutSuffix(words[0], ":"); ok {
			for _, report := range words[1:] {
				var batch []hid.Event
				for w := range strings.SplitSeq(report, ",") {
					batch = append(batch, event(s.t, w))
				}
				s.at += time.Millisecond
				s.r.Input(devices[dev], s.at, batch)
			}
			continue
		}
		s.command(words[0], append(words[1:], "", "", "")[:3])
	}
}

var devices = map[string]Device{"kbd": 1, "kbd2": 2, "mouse": 3, "tablet": 4, "touch": 5, "touch2": 6}

func (s *seat) command(verb string, args []string) {
	s.t.Helper()
	name := args[0]
	switch verb {
	case "wait":
		d, err := time.ParseDuration(name)
		s.must(err)
		s.at += d
	case "unplug":
		s.r.Unplug(devices[name])
	case "down":
		s.must(s.r.Down(name, Reason(slices.Index(reasons[:], args[1]))))
	case "up":
		s.must(s.r.Up(name, nil))
	case "remove":
		s.must(s.r.Remove(name))
	case "join":
		s.must(s.r.Add(name, 0, choosy{player{s, name}, name == "m"}))
	case "focus":
		if err := s.r.SetFocus(name); err != nil {
			s.logf("error: %v", err)
		}
	case "leave":
		s.r.LeaveConsole()
	case "lock":
		s.r.Lock()
	case "unlock":
		s.r.Unlock()
	case "leds":
		n, err := strconv.Atoi(args[1])
		s.must(err)
		s.must(s.r.SetLEDs(name, hid.LEDs(n)))
	case "size":
		w, _ := strconv.Atoi(args[1])
		h, _ := strconv.Atoi(args[2])
		s.must(s.r.SetSize(name, w, h))
	default:
		s.t.Fatalf("no command %q", verb)
	}
}

func run(t *testing.T, cfg Config, tests []scene) {
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSeat(t, cfg)
			s.play(tt.script)
			var want []string
			for line := range strings.Lines(tt.want) {
				if line = strings.TrimSpace(line); line != "" {
					want = append(want, line)
				}
			}
			if diff := cmp.Diff(want, s.log); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// scene is a script and what it leads to, in order.
type scene struct{ name, script, want string }

func TestKeys(t *testing.T) {
	run(t, Config{}, []scene{
		{"typing", "kbd: +h *h -h", "a +h\n a *h\n a -h"},
		{"a report is a batch", "kbd: +h,+i -h,-i", "a +h +i\n a -h -i"},
		{"two keyboards, one key", "kbd: +h \n kbd2: +h \n kbd: -h +x \n kbd2: -h", "a +h\n a +x\n a -h"},
		{"repeats of a key on the other keyboard", "kbd: +h \n kbd2: *h -h \n kbd: *h -h", "a +h\n a *h\n a -h"},
		{"said twice", "kbd: +h +h -h -h", "a +h\n a -h"},
		{"never pressed", "kbd: -h *h", ""},
		{"unplugged", "kbd: +h +leftshift \n unplug kbd \n kbd2: +x", "a +h\n a +leftshift\n a -h -leftshift\n a +x"},
		{"unplugged, the key held elsewhere", "kbd: +h \n kbd2: +h \n unplug kbd \n kbd2: -h", "a +h\n a -h"},
		{"unplugged, plugged, released", "kbd: +h \n unplug kbd \n kbd: -h", "a +h\n a -h"},
		{"scan codes give nothing away", "kbd: scan=30,+a scan=30", "a +a"},
		{"modifiers alone", "kbd: +leftalt -leftalt +leftctrl +leftalt -leftctrl -leftalt",
			"a +leftalt\n a -leftalt\n a +leftctrl\n a +leftalt\n a -leftctrl\n a -leftalt"},
	})
}

func TestChords(t *testing.T) {
	run(t, Config{}, []scene{
		{"to a slot and on", `
			kbd: +leftctrl +leftalt +2 *2 -2 *leftalt -leftalt -leftctrl +x -x`, `
			a +leftctrl
			a +leftalt
			a -leftalt -leftctrl
			focus a→b chord
			b +x
			b -x`},
		{"twice with the modifiers held", `
			kbd: +leftctrl +leftalt +2 -2 +4 -4 -leftalt -leftctrl`, `
			a +leftctrl
			a +leftalt
			a -leftalt -leftctrl
			focus a→b chord
			focus b→c chord`},
		{"the right modifiers", "kbd: +rightctrl +rightalt +2", `
			a +rightctrl
			a +rightalt
			a -rightalt -rightctrl
			focus a→b chord`},
		{"one of each side, on two keyboards", "kbd: +leftctrl \n kbd2: +rightalt \n kbd: +2 -2 -leftctrl \n kbd2: -rightalt", `
			a +leftctrl
			a +rightalt
			a -rightalt -leftctrl
			focus a→b chord`},
		{"in one report", "kbd: +leftctrl,+leftalt,+2,+x", `
			a +leftctrl +leftalt
			a -leftalt -leftctrl
			focus a→b chord
			b +x`},
		{"a modifier too many", "kbd: +leftctrl +leftalt +leftshift +2", `
			a +leftctrl
			a +leftalt
			a +leftshift
			a +2`},
		{"a modifier too few", "kbd: +leftctrl +2", "a +leftctrl\n a +2"},
		{"the trigger first", "kbd: +2 +leftctrl +leftalt *2", "a +2\n a +leftctrl\n a +leftalt\n a *2"},
		{"the trigger on a second keyboard", "kbd: +2 +leftctrl +leftalt \n kbd2: +2 -2 \n kbd: -2 +2", `
			a +2
			a +leftctrl
			a +leftalt
			a -2
			a -leftalt -leftctrl
			focus a→b chord`},
		{"what is held is released, and stays nobody's", `
			kbd: +x
			mouse: +btn_left
			kbd: +leftctrl +leftalt +2 -2 *x
			mouse: -btn_left
			kbd: -x -leftalt +y`, `
			a +x
			a +btn_left
			a +leftctrl
			a +leftalt
			a -x -btn_left -leftalt -leftctrl
			focus a→b chord
			b +y`},
		{"to where the focus is", "kbd: +leftctrl +leftalt +1 -1 -leftalt -leftctrl +x", `
			a +leftctrl
			a +leftalt
			a -leftalt -leftctrl
			a +x`},
		{"to an empty slot", "kbd: +leftctrl +leftalt +3 -3", `
			a +leftctrl
			a +leftalt
			a -leftalt -leftctrl
			absent 3 ""`},
		{"to who is away", "down b slept \n kbd: +leftctrl +leftalt +2 -2", `
			a +leftctrl
			a +leftalt
			a -leftalt -leftctrl
			absent 2 "b"`},
		{"neighbours, round", "kbd: +leftctrl +leftalt +left -left +left -left +right -right +right -right", `
			a +leftctrl
			a +leftalt
			a -leftalt -leftctrl
			focus a→d chord
			focus d→c chord
			focus c→d chord
			focus d→a chord`},
		{"neighbours of the console", "focus (console) \n kbd: +leftctrl +leftalt +left \n focus (console) \n kbd: +right", `
			focus a→(console) request
			console +leftctrl
			console +leftalt
			console -leftalt -leftctrl
			focus (console)→d chord
			focus d→(console) request
			focus (console)→a chord`},
		{"a neighbour that is away", "down b died \n kbd: +leftctrl,+leftalt,+right", `
			a +leftctrl +leftalt
			a -leftalt -leftctrl
			focus a→c chord`},
		{"no neighbour", "remove b \n remove c \n remove d \n kbd: +leftctrl,+leftalt,+right +left,+tab", `
			a +leftctrl +leftalt
			a -leftalt -leftctrl`},
		{"the last one, to and fro", "focus c \n kbd: +leftctrl +leftalt +tab -tab +tab -tab", `
			focus a→c request
			c +leftctrl
			c +leftalt
			c -leftalt -leftctrl
			focus c→a chord
			focus a→c chord`},
		{"the last one, past the console", "kbd: +leftctrl,+leftalt,+esc,-esc,+tab", `
			a +leftctrl +leftalt
			a -leftalt -leftctrl
			focus a→(console) attention
			attention
			focus (console)→a chord`},
		{"no trigger is held back when the focus moves by itself", `
			kbd: +leftctrl,+leftalt,+2
			focus c
			kbd: -2 -leftalt -leftctrl +2`, `
			a +leftctrl +leftalt
			a -leftalt -leftctrl
			focus a→b chord
			focus b→c request
			c +2`},
	})
}

func TestAttention(t *testing.T) {
	run(t, Config{}, []scene{
		{"from a guest", "kbd: +leftctrl +leftalt +esc -esc -leftalt -leftctrl +x -x \n leave \n kbd: +y", `
			a +leftctrl
			a +leftalt
			a -leftalt -leftctrl
			focus a→(console) attention
			attention
			console +x
			console -x
			focus (console)→a request
			a +y`},
		{"from the console", "focus (console) \n kbd: +leftctrl,+leftalt,+esc", `
			focus a→(console) request
			console +leftctrl +leftalt
			console -leftalt -leftctrl
			attention`},
		{"locked", "lock \n kbd: +leftctrl,+leftalt,+esc -esc,-leftctrl,-leftalt \n unlock", `
			focus a→(console) locked
			console +leftctrl +leftalt
			console -leftalt -leftctrl
			attention
			focus (console)→a unlocked`},
		{"another keyboard's key is stuck", "kbd2: +esc \n kbd: +leftctrl,+leftalt,+esc -esc \n kbd2: *esc -esc", `
			a +esc
			a +leftctrl +leftalt
			a -esc -leftalt -leftctrl
			focus a→(console) attention
			attention`},
		{"a modifier is stuck", "kbd2: +rightshift \n kbd: +leftctrl,+leftalt,+esc,-esc,+2", `
			a +rightshift
			a +leftctrl +leftalt
			a -rightshift -leftalt -leftctrl
			focus a→(console) attention
			attention
			console +2`},
		{"no guest", "remove a \n remove b \n remove c \n remove d \n kbd: +leftctrl,+leftalt,+esc", `
			focus a→(console) died
			console +leftctrl +leftalt
			console -leftalt -leftctrl
			attention`},
	})
}

// A guest that is offered gets the focus when nobody wants it elsewhere.
func TestOffer(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		taken  bool
	}{
		"nobody has it":       {"", true},
		"a modifier":          {"kbd: +leftshift -leftshift", true},
		"typing":              {"kbd: +x -x", false},
		"the console":         {"kbd: +leftctrl,+leftalt,+esc", false},
		"locked":              {"lock", false},
		"it is down":          {"down b died", false},
		"another guest":       {"focus c", false},
		"another one, before": {"focus c \n down c died", true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSeat(t, Config{})
			s.must(s.r.Remove("a")) // which has the focus
			s.play(tt.script)
			s.must(s.r.Offer("b"))
			if got := s.r.Focus() == "b"; got != tt.taken {
				t.Errorf("the focus is with %s", s.r.Focus())
			}
		})
	}
	if newSeat(t, Config{}).r.Offer("nobody") == nil {
		t.Error("an unknown guest is taken")
	}
}

// Keys that are held when a keyboard is plugged in belong to nobody, but to chords.
func TestPlug(t *testing.T) {
	s := newSeat(t, Config{})
	var held hid.Keys
	for _, code := range []uint16{hid.KeyLeftCtrl, hid.KeyLeftAlt, hid.KeyX} {
		held.Set(code, true)
	}
	s.r.Plug(devices["kbd"], held)
	s.play("kbd: *x -x +x -x +esc -esc -leftalt +y -leftctrl +z")
	want := []string{"a +x", "a -x", "focus a→(console) attention", "attention", "console +y", "console +z"}
	if diff := cmp.Diff(want, s.log); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// What is unplugged holds nothing, and is not plugged in twice.
	s.log = nil
	s.r.Plug(devices["kbd2"], held)
	s.r.Plug(devices["kbd2"], held)
	s.r.Unplug(devices["kbd2"])
	s.play("kbd: -y,-z +esc")
	want = []string{"console -y -z", "console +esc"}
	if diff := cmp.Diff(want, s.log); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestLives(t *testing.T) {
	run(t, Config{}, []scene{
		{"a guest dies", "focus b \n focus c \n kbd: +x \n down c died \n kbd: -x +y", `
			focus a→b request
			focus b→c request
			c +x
			c -x
			focus c→b died
			b +y`},
		{"and does not get the focus when it lives again", "focus b \n down b died \n up b", `
			focus a→b request
			focus b→a died`},
		{"a guest sleeps and wakes", "focus b \n down b slept \n up b", "focus a→b request\n focus b→a slept"},
		{"all die: guests that were never looked at stay unseen", "down a died", "focus a→(console) died"},
		{"a guest reboots", "focus b \n down b rebooting \n kbd: +leftshift \n up b \n kbd: -leftshift +y", `
			focus a→b request
			focus b→a rebooting
			a +leftshift
			a -leftshift
			focus a→b came back
			b +y`},
		{"the user types during a reboot", "focus b \n down b rebooting \n kbd: +x \n up b \n kbd: -x +y \n kbd: -y,+leftctrl,+leftalt,+tab", `
			focus a→b request
			focus b→a rebooting
			a +x
			a -x
			a +y
			a -y +leftctrl +leftalt
			a -leftalt -leftctrl
			focus a→b chord`},
		{"the user clicks during a reboot", "focus b \n down b rebooting \n mouse: +btn_left -btn_left \n up b", `
			focus a→b request
			focus b→a rebooting
			a +btn_left
			a -btn_left`},
		{"the user types to the console", "down a rebooting \n kbd: +x -x \n up a \n leave", `
			focus a→(console) rebooting
			console +x
			console -x
			focus (console)→a request`},
		{"the user types to unlock", "lock \n kbd: +x -x \n unlock", `
			focus a→(console) locked
			console +x
			console -x
			focus (console)→a unlocked`},
		{"the only guest reboots", "down a rebooting \n up a", "focus a→(console) rebooting\n focus (console)→a came back"},
		{"the user goes elsewhere during a reboot", "focus b \n down b rebooting \n kbd: +leftctrl,+leftalt,+4 \n up b", `
			focus a→b request
			focus b→a rebooting
			a +leftctrl +leftalt
			a -leftalt -leftctrl
			focus a→c chord`},
		{"the user insists on staying", "focus b \n down b rebooting \n kbd: +leftctrl,+leftalt,+1 \n up b", `
			focus a→b request
			focus b→a rebooting
			a +leftctrl +leftalt
			a -leftalt -leftctrl`},
		{"the console is called during a reboot", "down a rebooting \n focus (console) \n up a \n leave", `
			focus a→(console) rebooting
			focus (console)→a request`},
		{"two reboot", "focus b \n down b rebooting \n down a rebooting \n up a \n up b", `
			focus a→b request
			focus b→a rebooting
			focus a→(console) rebooting
			focus (console)→a came back
			focus a→b came back`},
		{"the first one comes back first", "focus b \n down b rebooting \n down a rebooting \n up b \n up a", `
			focus a→b request
			focus b→a rebooting
			focus a→(console) rebooting
			focus (console)→b came back`},
		{"a reboot that ends in death", "focus b \n down b rebooting \n down b died \n up b", `
			focus a→b request
			focus b→a rebooting`},
		{"others die", "down b died \n remove c \n down d slept", ""},
		{"removed", "focus b \n kbd: +x \n remove b", "focus a→b request\n b +x\n b -x\n focus b→a died"},
		{"new connection without a break", "kbd: +x \n up a \n kbd: -x +y", "a +x\n a -x\n a +y"},
		{"who is away cannot have it", "down b slept \n focus b", `error: guest "b": cannot have the focus: it is not running`},
	})
}

func TestLock(t *testing.T) {
	run(t, Config{}, []scene{
		{"everything goes to the console", `
			kbd: +x
			lock
			kbd: -x +leftctrl,+leftalt,+2 -2,-leftalt,-leftctrl +y -y
			mouse: dx=3
			focus b
			leave
			unlock
			kbd: +z`, `
			a +x
			a -x
			focus a→(console) locked
			console +leftctrl +leftalt
			console -leftalt -leftctrl
			console +y
			console -y
			console dx=3
			error: guest "b": cannot have the focus: the seat is locked: unlock it first
			focus (console)→a unlocked
			a +z`},
		{"the guest dies meanwhile", "focus b \n lock \n down b died \n unlock", `
			focus a→b request
			focus b→(console) locked
			focus (console)→a unlocked`},
		{"the guest reboots meanwhile", "lock \n down a rebooting \n up a \n unlock", `
			focus a→(console) locked
			focus (console)→a unlocked`},
		{"from the console", "focus (console) \n lock \n unlock", "focus a→(console) request"},
	})
}

func TestLEDs(t *testing.T) {
	run(t, Config{}, []scene{
		{"each target has its own", "leds a 2 \n leds b 1 \n leds b 3 \n focus b \n leds (console) 2 \n leds a 3 \n focus a", `
			leds 10
			focus a→b request
			leds 11
			focus b→a request`},
		{"gone with the guest", "leds a 2 \n down a rebooting \n up a", `
			leds 10
			focus a→(console) rebooting
			leds 0
			focus (console)→a came back`},
	})
}

func TestPointer(t *testing.T) {
	run(t, Config{}, []scene{
		{"passes through", "mouse: dx=3,dy=-4 wheel=1 \n tablet: x=5,y=6 y=7", "a dx=3 dy=-4\n a wheel=1\n a x=5 y=6\n a y=7"},
		{"the click is where the pointer is", "mouse: +btn_left,dx=3", "a dx=3 +btn_left"},
		{"absolute for who wants that", `
			join m
			size m 101 201
			focus m
			mouse: dx=-1,dy=-1 dx=50 dy=50 dx=1000,dy=1000,wheel=-1
			tablet: x=16384,y=0`, `
			focus a→m request
			m x=0 y=0
			m x=16384 y=0
			m x=16384 y=8192
			m wheel=-1 x=32767 y=32767
			m x=16384 y=0`},
		{"relative for who wants that", `
			join n
			size n 101 101
			focus n
			tablet: x=16384,y=32767 x=0 x=1
			mouse: dx=7`, `
			focus a→n request
			n dx=50 dy=100
			n dx=-50
			n dx=7`},
		{"a screen gets larger", `
			join m
			size m 101 101
			focus m
			mouse: dx=50,dy=100
			size m 201 201
			mouse: dx=1`, `
			focus a→m request
			m x=16384 y=32767
			m x=16547 y=32767`},
	})
}

func TestTouch(t *testing.T) {
	run(t, Config{}, []scene{
		{"fingers", "touch: id=7,mtx=1 slot=1,id=8,mtx=2 slot=0,mtx=3 id=-1 slot=1,id=-1", `
			a slot=0 id=7 mtx=1
			a slot=1 id=8 mtx=2
			a slot=0 mtx=3
			a id=-1
			a slot=1 id=-1`},
		{"a switch lifts them", "touch: id=7,mtx=1,slot=1,id=8 \n focus b \n touch: mtx=2 slot=0,mtx=3 id=-1 id=9,mtx=4", `
			a slot=0 id=7 mtx=1 slot=1 id=8
			a slot=0 id=-1 slot=1 id=-1
			focus a→b request
			b slot=0 id=9 mtx=4`},
		{"one screen at a time", "touch: id=7 \n touch2: id=8,mtx=3 \n touch: id=-1 \n touch2: mtx=4,id=-1 id=9,mtx=5", `
			a slot=0 id=7
			a id=-1
			a id=9 mtx=5`},
		{"unplugged", "touch: slot=3,id=7 \n unplug touch", "a slot=3 id=7\n a id=-1"},
	})
}

func TestEdge(t *testing.T) {
	run(t, Config{Edge: Edge{Push: 100, Within: 50 * time.Millisecond}, KeyboardFollowsMouse: true}, []scene{
		{"pushed through", `
			join m
			size m 1000 1001
			size d 500 501
			focus d
			mouse: dx=400,dy=250 dx=99 dx=60 dx=39 dx=1 dx=-10 dx=-89
			kbd: +x`, `
			focus a→d request
			d dx=400 dy=250
			d dx=99
			d dx=60
			d dx=39
			focus d→m edge
			m x=0 y=16384
			m x=0 y=16384
			m x=0 y=16384
			m +x`},
		{"and back", "mouse: dx=1023 dx=100 dx=-100", `
			a dx=1023
			focus a→b edge
			focus b→a edge`},
		{"too slow", "mouse: dx=1023 dx=60 \n wait 60ms \n mouse: dx=60", "a dx=1023\n a dx=60\n a dx=60"},
		{"away and again", "mouse: dx=1023 dx=60 dx=-1 dx=60", "a dx=1023\n a dx=60\n a dx=-1\n a dx=60"},
		{"not while a button is held", "mouse: dx=1023 +btn_left dx=200 -btn_left", "a dx=1023\n a +btn_left\n a dx=200\n a -btn_left"},
		{"not while a finger touches", "touch: id=1 \n mouse: dx=1023 dx=200", "a slot=0 id=1\n a dx=1023\n a dx=200"},
		{"no wrap", "mouse: dx=-200", ""},
		{"not from the console", "focus (console) \n mouse: dx=-200", "focus a→(console) request\n console dx=-200"},
		{"held keys", "kbd: +x \n mouse: dx=1023 dx=100 \n kbd: -x", `
			a +x
			a dx=1023
			a -x
			focus a→b edge`},
	})
	run(t, Config{Edge: Edge{Push: 100}}, []scene{
		{"keys stay until a click", `
			mouse: dx=1023 dx=100 dx=5 wheel=1
			kbd: +x
			mouse: +btn_left
			kbd: -x +y`, `
			a dx=1023
			pointer a→b
			b dx=5
			b wheel=1
			a +x
			a -x
			focus a→b click
			b +btn_left
			b +y`},
		{"a chord takes the pointer along", "mouse: dx=1023,dx=100 \n kbd: +leftctrl,+leftalt,+4 \n mouse: dx=1", `
			pointer a→b
			a +leftctrl +leftalt
			a -leftalt -leftctrl
			focus a→c chord
			pointer b→c
			c dx=1`},
		{"to where the focus is", "mouse: dx=1023,dx=100 \n kbd: +leftctrl,+leftalt,+1 \n mouse: dx=1", `
			pointer a→b
			a +leftctrl +leftalt
			a -leftalt -leftctrl
			pointer b→a
			a dx=1`},
		{"its target dies", "mouse: dx=1023,dx=100 \n down b died \n mouse: dx=1", "pointer a→b\n pointer b→a\n a dx=1"},
		{"a finger brings it back", "mouse: dx=1023,dx=100 \n touch: wheel=1,id=1", `
			pointer a→b
			b wheel=1
			pointer b→a
			a slot=0 id=1`},
	})
}

func TestAdd(t *testing.T) {
	s := newSeat(t, Config{})
	sink := player{s, "x"}
	for _, tt := range []struct {
		name string
		slot int
		sink hid.Sink
		want string
	}{
		{"a", 3, sink, `guest "a": is a target already`},
		{Console, 3, sink, `guest "(console)": is a target already`},
		{"", 3, sink, `guest "": needs a name and a sink to be a target`},
		{"x", 3, nil, `guest "x": needs a name and a sink to be a target`},
		{"x", 2, sink, `guest "x": slot 2 is taken by "b"`},
		{"x", 10, sink, `guest "x": slot 10: 1 to 9 are possible, and 0 for none`},
		{"x", -1, sink, `guest "x": slot -1: 1 to 9 are possible, and 0 for none`},
	} {
		if err := s.r.Add(tt.name, tt.slot, tt.sink); err == nil || err.Error() != tt.want {
			t.Errorf("Add(%q, %d): %v, want %s", tt.name, tt.slot, err, tt.want)
		}
	}
	const unknown = `guest "x": is no target of the seat`
	for name, err := range map[string]error{
		"Remove":   s.r.Remove("x"),
		"Down":     s.r.Down("x", Died),
		"Up":       s.r.Up("x", nil),
		"SetFocus": s.r.SetFocus("x"),
		"SetLEDs":  s.r.SetLEDs("x", 0),
		"SetSize":  s.r.SetSize("x", 1, 1),
	} {
		if err == nil || err.Error() != unknown {
			t.Errorf("%s of an unknown guest: %v", name, err)
		}
	}
	if err := s.r.Down(Console, Died); err == nil {
		t.Error("the console can go down")
	}
	if err := s.r.SetSize("a", 0, 1); err == nil {
		t.Error("a screen without a pixel is possible")
	}
}
