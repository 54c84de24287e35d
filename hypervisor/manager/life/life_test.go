package life

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The table in the documentation is this one. (Copy what the test prints.)
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../../docs/manager.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "\n"+Markdown()+"\n") {
		t.Errorf("docs/manager.md lacks this table:\n%s", Markdown())
	}
}

// Every row of the table can be reached: none is hidden behind an earlier one.
func TestNoRowIsHidden(t *testing.T) {
	all := []Facts{{}, {Saved: true}, {Restart: true}, {Again: true}, {Afresh: true}, {Saved: true, Restart: true}, {Saved: true, Again: true}}
	for i, r := range Table() {
		for _, s := range r.From {
			if !slices.ContainsFunc(all, func(f Facts) bool {
				for j, o := range Table() {
					if o.Event == r.Event && slices.Contains(o.From, s) && (o.holds == nil || o.holds(f)) {
						return i == j
					}
				}
				return false
			}) {
				t.Errorf("row %d (%s in %s) never counts", i, r.Event, s)
			}
		}
	}
}

// Commands that do not fit are refused with a reason; occurrences never are.
func TestEverywhere(t *testing.T) {
	for _, s := range States() {
		for _, e := range append(Commands(), Occurrences()...) {
			to, action, err := Next(s, e, Facts{})
			switch {
			case !slices.Contains(States(), to):
				t.Errorf("%s in %s leads to %q, which is no state", e, s, to)
			case err == nil:
			case !slices.Contains(Commands(), e):
				t.Errorf("the occurrence %s in %s: %v", e, s, err)
			case !errors.Is(err, ErrNotNow) || to != s || action != None || !strings.Contains(err.Error(), ": the guest is"):
				t.Errorf("%s in %s: %s, %q, %v", e, s, to, action, err)
			}
		}
	}
}

func TestLives(t *testing.T) {
	type step struct {
		event Event
		facts Facts
		want  State
	}
	for name, steps := range map[string][]step{
		"start and power off": {{Start, Facts{}, Waiting}, {DepsReady, Facts{}, Starting}, {IsRunning, Facts{}, Running}, {Ended, Facts{}, Defined}},
		"saved and back": {
			{Start, Facts{}, Waiting}, {DepsReady, Facts{}, Starting}, {IsRunning, Facts{}, Running}, {Save, Facts{}, Saving},
			{Ended, Facts{Saved: true}, Saved}, {Start, Facts{Saved: true}, Waiting}, {DepsReady, Facts{Saved: true}, Starting},
			{IsRunning, Facts{}, Running},
		},
		"crash, restart": {
			{Start, Facts{}, Waiting}, {DepsReady, Facts{}, Starting}, {IsRunning, Facts{}, Running}, {Died, Facts{Restart: true}, Restarting},
			{Due, Facts{}, Waiting}, {DepsReady, Facts{}, Starting}, {IsRunning, Facts{}, Running}, {Died, Facts{}, Crashed},
			{Discard, Facts{}, Defined},
		},
		"reboot": {
			{Start, Facts{}, Waiting}, {DepsReady, Facts{}, Starting}, {IsRunning, Facts{}, Running}, {Reboot, Facts{}, Stopping},
			{Ended, Facts{Again: true}, Waiting},
		},
		"killed while it is saved": {
			{Start, Facts{}, Waiting}, {DepsReady, Facts{}, Starting}, {IsPaused, Facts{}, Paused}, {Save, Facts{}, Saving},
			{Kill, Facts{}, Stopping}, {IsRunning, Facts{}, Stopping}, {Died, Facts{}, Defined},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := Defined
			for _, p := range steps {
				to, _, err := Next(s, p.event, p.facts)
				if err != nil || to != p.want {
					t.Fatalf("%s in %s leads to %s (%v), want %s", p.event, s, to, err, p.want)
				}
				s = to
			}
		})
	}
}

// world is what the state machine is about: a process that is there or not, a saved state that is there or not.
type world struct {
	process  bool // there is one
	starting bool // the manager is about to start one
	saved    bool
	policy   bool // restart after a crash
	again    bool
}

// Whatever is commanded and happens, in any order: there are never two processes; a state says truly whether one is there; and
// none is left without a state from which a command ends it.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, w := Defined, world{policy: rapid.Bool().Draw(t, "policy")}
		var trace []string
		fail := func(why string) { t.Fatalf("%s\n%s", why, strings.Join(trace, "\n")) }
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			e := rapid.SampledFrom(w.possible(s)).Draw(t, "event")
			f := Facts{Saved: w.saved, Restart: w.policy && (e == Died || e == Ended), Again: w.again}
			if e == Ended || e == Died {
				w.process = false
			}
			to, action, err := Next(s, e, f)
			trace = append(trace, string(s)+" "+string(e)+" "+string(to)+" "+string(action))
			if err != nil && to != s {
				fail("a refused command changes the state")
			}
			if err == nil && e == Reboot {
				w.again = true
			}
			switch action {
			case Launch:
				if w.process || w.starting {
					fail("a second process is started")
				}
				w.starting = true
			case Clear, Schedule, ClearAwait:
				if w.process {
					fail("cleared away under a process")
				}
				w.starting, w.again = false, false
			case Drop:
				w.saved = false
			}
			if e == StartFailed {
				w.starting = false
			}
			s = to
			if e == GaveUp {
				w.again = false
			}
			if (w.process || w.starting) != s.Alive() {
				fail("the state is not true of the process")
			}
			if s == Saved && !w.saved {
				fail("saved, without a saved state")
			}
			if s.Alive() && s != Stopping {
				if _, _, err := Next(s, Kill, f); err != nil {
					fail("a process that cannot be ended")
				}
			}
			// What happens of itself between two steps.
			if w.starting && rapid.Bool().Draw(t, "process appears") {
				w.starting, w.process = false, true
			}
			if w.process && s == Saving && rapid.Bool().Draw(t, "saved state appears") {
				w.saved = true
			}
			if w.process && s == Running {
				w.saved = false // was used
			}
		}
	})
}

// possible are the events that can come: any command, and what the world has to say.
func (w world) possible(s State) []Event {
	e := Commands()
	if w.process {
		e = append(e, IsRunning, IsPaused, Ended, Died)
	}
	if w.starting {
		e = append(e, StartFailed)
	}
	switch s {
	case Waiting:
		e = append(e, DepsReady, StartFailed)
	case Restarting:
		e = append(e, Due)
	case Stopping:
		if w.process {
			e = append(e, GaveUp)
		}
	}
	return e
}

func TestMarkdown(t *testing.T) {
	want := "| defined, saved, crashed | `start` | waiting | `await` |"
	if got := strings.Split(Markdown(), "\n")[2]; got != want {
		t.Error(cmp.Diff(want, got))
	}
}
