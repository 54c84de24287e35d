package appliance

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/gdamore/tcell/v3"
	"golang.org/x/sys/unix"
)

// Choice is what somebody at the emergency console wants.
type Choice int

// The choices.
const (
	GoOn Choice = iota
	Retry
	ChooseReboot
	ChoosePowerOff
)

// page is what the emergency console shows.
type page struct {
	problem string
	log     func(lines int) []string
	until   time.Time // when it goes on by itself; zero: it waits for a key
}

var choices = []struct {
	key    string
	does   string
	choice Choice
}{
	{"c", "go on", GoOn}, {"t", "try again", Retry}, {"r", "reboot", ChooseReboot}, {"p", "power off", ChoosePowerOff},
}

// show shows the page on a screen until a choice is made, the time is over, or ctx is done: go on.
func (p *page) show(ctx context.Context, s tcell.Screen) Choice {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		p.draw(s)
		select {
		case <-ctx.Done():
			return GoOn
		case <-tick.C:
			if !p.until.IsZero() && !time.Now().Before(p.until) {
				return GoOn
			}
		case e, ok := <-s.EventQ():
			if !ok {
				return GoOn
			}
			switch e := e.(type) {
			case *tcell.EventResize:
				s.Sync()
			case *tcell.EventKey:
				p.until = time.Time{} // somebody is there
				for _, c := range choices {
					if strings.EqualFold(e.Str(), c.key) {
						return c.choice
					}
				}
			}
		}
	}
}

// draw draws the page: the problem, the end of the log, the keys.
func (p *page) draw(s tcell.Screen) {
	t := newSheet(s, "Lodge: something is wrong")
	t.put(boldStyle, p.problem)
	t.put(plainStyle, "")
	for _, l := range p.log(t.rest()) {
		t.put(plainStyle, cut(l, t.w))
	}
	var keys []string
	for _, c := range choices {
		keys = append(keys, c.key+" "+c.does)
	}
	if !p.until.IsZero() {
		keys = append(keys, fmt.Sprintf("(goes on in %d s)", max(0, int(time.Until(p.until).Seconds()+1))))
	}
	t.end(strings.Join(keys, "  "))
}

// consolePage returns a screen for a page, which done ends.
func consolePage() (s tcell.Screen, done func(), err error) {
	s, err = consoleScreen("/dev/console")
	if err != nil {
		return nil, nil, err
	}
	// The kernel's messages would go over the page: level 1 lets through only what is said before a crash (syslog(2)).
	const consoleOff, consoleOn = 6, 7
	_, _ = unix.Klogctl(consoleOff, nil)
	return s, func() {
		s.Fini()
		_, _ = unix.Klogctl(consoleOn, nil)
	}, nil
}

// consoleScreen returns a screen on the kernel's console.
func consoleScreen(device string) (tcell.Screen, error) {
	tty, err := tcell.NewDevTtyFromDev(device)
	if err != nil {
		return nil, fmt.Errorf("emergency console: %w", err)
	}
	s, err := tcell.NewTerminfoScreenFromTty(tty, tcell.OptTerm("linux"), tcell.OptSanitizeContent(true))
	if err == nil {
		err = s.Init()
	}
	if err != nil {
		return nil, fmt.Errorf("emergency console: %w", err)
	}
	return s, nil
}
