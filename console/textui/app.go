package textui

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gdamore/tcell/v3"
)

// Screen is what a console draws on and where its keys come from: the part of tcell.Screen that it needs.
type Screen interface {
	// Size returns the width and height in characters.
	Size() (width, height int)
	// Put writes the first grapheme of s at a place and returns the rest, and how many columns it took.
	Put(x, y int, s string, style tcell.Style) (rest string, columns int)
	// Fill writes r everywhere.
	Fill(r rune, style tcell.Style)
	// Show makes all that was written visible; Sync does so though it may be visible already.
	Show()
	Sync()
	// EventQ gives the keys, and *tcell.EventResize when the size is another. When it is closed, so is the screen.
	EventQ() chan tcell.Event
}

// Options are how a console differs from place to place. The zero value is good for none: Quit or Back is how to leave it.
type Options struct {
	Quit  bool             // q ends it
	Back  func()           // what Esc at the list does, and how the user calls it; it does not wait
	Every time.Duration    // between two looks at the guests while they can be seen; 0 is 1.5 s
	Now   func() time.Time // nil is time.Now
}

// App is a console. Run does everything; SetVisible may be called by any goroutine.
type App struct {
	sys System
	scr Screen
	opt Options

	hidden  atomic.Bool
	poke    chan struct{} // hidden has changed
	updates chan func()   // what goroutines have found out, for Run

	// These are Run's.
	ctx      context.Context
	wg       sync.WaitGroup // of goroutines that Run has started
	dirty    bool           // what is on the screen is old
	ended    bool
	loading  bool // a look at the guests is under way
	loaded   bool // there was one
	stale    bool // nobody has seen the console since: what guests do now is not known
	failed   string
	wanted   int // the slot whose digit was pressed before that, if no key was since; 0: none
	guests   []Guest
	selected string // name of a guest
	list     listView
	views    []view // on top of the list
	dialog   *dialog
	jobs     map[string]*job // by guest
	messages []message
	said     string // the last one, if it was good news and no key was pressed since
	unread   int    // bad ones that were not in the view of messages
}

// job is a command that is being carried out.
type job struct {
	command  Command
	progress Progress
	cancel   context.CancelFunc
}

// message is something that the console had to say.
type message struct {
	at   time.Time
	text string
	bad  bool
}

// maxMessages is how many messages are kept.
const maxMessages = 200

// view is a screen below the title and above the help.
type view interface {
	title(a *App) string
	draw(a *App, r area)
	key(a *App, key string) bool // whether the key is one of the view's
	hints(a *App) []hint
	refresh(a *App) // asks the System for what is shown, without waiting
}

// hint is a key and what it does.
type hint struct{ key, does string }

// New returns a console, which is visible.
func New(sys System, scr Screen, opt Options) *App {
	if opt.Every <= 0 {
		opt.Every = 1500 * time.Millisecond
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	return &App{sys: sys, scr: scr, opt: opt, poke: make(chan struct{}, 1), updates: make(chan func()), jobs: make(map[string]*job)}
}

// SetVisible says whether anybody can see the console. While nobody can, it does not look at the guests.
func (a *App) SetVisible(visible bool) {
	if a.hidden.Swap(!visible) != !visible {
		select {
		case a.poke <- struct{}{}:
		default:
		}
	}
}

// Run shows the console until ctx is done, the screen is closed or the user ends it. Commands that are under way end with it. The
// error is the screen's.
func (a *App) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	a.ctx = ctx
	defer a.wg.Wait()
	defer cancel()
	tick := time.NewTicker(a.opt.Every)
	defer tick.Stop()
	a.look()
	for a.dirty = true; !a.ended; {
		if a.dirty && !a.hidden.Load() {
			a.show()
		}
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-a.scr.EventQ():
			if !ok {
				return nil
			}
			switch ev := ev.(type) {
			case *tcell.EventKey:
				a.key(keyOf(ev))
			case *tcell.EventResize:
				a.dirty = true
			case *tcell.EventError:
				return fmt.Errorf("terminal: %w", ev)
			}
		case f := <-a.updates:
			f()
		case <-tick.C:
			a.look()
		case <-a.sys.Changed():
			a.look()
		case <-a.poke:
			if a.hidden.Load() {
				tick.Stop()
				a.stale = true
				a.show() // it is seen first when the console comes back
			} else {
				tick.Reset(a.opt.Every)
				a.stale, a.dirty = true, true
				a.look()
			}
		}
	}
	return nil
}

// show draws the console as it is now.
func (a *App) show() {
	a.draw()
	a.scr.Show()
	a.dirty = false
}

// start runs f, and then what f returns on Run's goroutine.
func (a *App) start(f func(ctx context.Context) func()) {
	ctx := a.ctx
	a.wg.Go(func() { a.post(ctx, f(ctx)) })
}

// post has Run call f, unless it has ended.
func (a *App) post(ctx context.Context, f func()) {
	select {
	case a.updates <- f:
	case <-ctx.Done():
	}
}

// answerLimit is how long a System may take to tell something.
const answerLimit = 10 * time.Second

// look asks the System for what is shown.
func (a *App) look() {
	if a.hidden.Load() || a.loading {
		return
	}
	a.loading = true
	a.start(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		guests, err := a.sys.Guests(ctx)
		return func() {
			a.loading = false
			a.have(guests, err)
		}
	})
	for _, v := range a.views {
		v.refresh(a)
	}
}

// have takes the guests as they are now.
func (a *App) have(guests []Guest, err error) {
	failed := ""
	if err != nil {
		failed = Line(err.Error())
		guests = a.guests // better old than none
	}
	if a.loaded && !a.stale && failed == a.failed && reflect.DeepEqual(guests, a.guests) {
		return
	}
	a.loaded, a.stale, a.failed, a.guests, a.dirty = true, false, failed, guests, true
	if a.guest() == nil && len(guests) > 0 {
		a.selected = guests[min(max(a.list.at, 0), len(guests)-1)].Name
	}
	if slot := a.wanted; slot != 0 {
		a.wanted = 0
		a.toSlot(slot)
	}
}

// guest returns the selected guest, nil if there is none.
func (a *App) guest() *Guest { return a.named(a.selected) }

func (a *App) named(name string) *Guest {
	for i := range a.guests {
		if a.guests[i].Name == name {
			return &a.guests[i]
		}
	}
	return nil
}

// say shows a message, and keeps it.
func (a *App) say(bad bool, format string, args ...any) {
	text := Line(strings.ReplaceAll(strings.TrimSpace(fmt.Sprintf(format, args...)), "\n", "; "))
	a.messages = append(a.messages, message{a.opt.Now(), text, bad})
	a.messages = a.messages[max(0, len(a.messages)-maxMessages):]
	if a.said = text; bad {
		a.said = ""
		a.unread = min(a.unread+1, len(a.messages))
	}
	a.dirty = true
}

// do carries out a command.
func (a *App) do(guest string, c Command) {
	// Force helps where another command does not come to an end.
	if j := a.jobs[guest]; j != nil && (c != ForceOff || j.command == ForceOff) {
		a.say(true, "%s: %s is under way: wait for it", guest, j.command)
		return
	} else if j != nil {
		j.cancel()
	}
	ctx, cancel := context.WithCancel(a.ctx)
	j := &job{command: c, cancel: cancel}
	a.jobs[guest] = j
	a.dirty = true
	a.start(func(context.Context) func() {
		defer cancel()
		tell := newTeller(func(p Progress) {
			a.post(ctx, func() { a.dirty = a.dirty || p.percent() != j.progress.percent(); j.progress = p })
		})
		err := a.sys.Do(ctx, guest, c, tell.put)
		tell.end()
		overruled := ctx.Err() != nil
		return func() {
			if a.jobs[guest] == j {
				delete(a.jobs, guest)
			}
			switch {
			case overruled: // by another one, which is what the user wants to know of
			case err != nil:
				a.say(true, "%s: %s: %v", guest, c, err)
			case c == PowerButton:
				a.say(false, "%s: its power button is pressed; x again, if it does not shut down", guest)
			case c == Save:
				a.say(false, "%s: saved; s goes on from there", guest)
			}
			a.dirty = true
			a.look()
		}
	})
}

// switchTo gives screen and keyboard to a guest.
func (a *App) switchTo(guest string) {
	a.start(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		err := a.sys.Switch(ctx, guest)
		return func() {
			if err != nil {
				a.say(true, "%v", err)
			} else {
				a.look()
			}
		}
	})
}

// teller hands on the newest progress, from a goroutine of its own: who makes it does not wait for the screen.
type teller struct {
	newest chan Progress // capacity 1
	done   chan struct{}
}

func newTeller(to func(Progress)) *teller {
	t := &teller{make(chan Progress, 1), make(chan struct{})}
	go func() {
		defer close(t.done)
		for p := range t.newest {
			to(p)
		}
	}()
	return t
}

// put is called by one goroutine at a time.
func (t *teller) put(p Progress) {
	select {
	case <-t.newest:
	default:
	}
	t.newest <- p // there is room: nobody else puts
}

// end returns when no more is handed on.
func (t *teller) end() {
	close(t.newest)
	<-t.done
}
