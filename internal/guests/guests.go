// Package guests lists, starts and commands guests that files describe, without a manager that runs all the time: each has a
// definition (hypervisor/definition), and while it runs a process of its own, lodge-vmm, with a control socket
// (hypervisor/control). It is the System of a console (console/textui).
//
// The machines are not trusted: what they answer is bounded, they are not waited for beyond their time, and what they cost is
// asked of the kernel.
package guests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lodgehv/lodge/console/seat"
	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/internal/procstat"
	"github.com/lodgehv/lodge/internal/seatctl"
)

// answerLimit is how long a machine may take to tell its status, and a seat.
const answerLimit = time.Second

// Config says which guests there are.
type Config struct {
	Guests []Guest
	VMM    string // the program lodge-vmm; "" is the one beside this program, or else on the PATH
	Seat   string // the control socket of lodge-seat; "" is none
}

// Guest is a guest as the user knows it.
type Guest struct {
	Name       string
	Color      string
	Slot       int
	Definition string // file; "" is none: it cannot be managed then
}

// FromSeat returns the guests of a seat, and the seat's control socket.
func FromSeat(s seat.Config) Config {
	c := Config{Seat: s.Control}
	for _, k := range s.Guests {
		c.Guests = append(c.Guests, Guest{k.Name, k.Color, k.Slot, k.Definition})
	}
	return c
}

// Guests are the guests of a Config. The methods may be called by any goroutine.
type Guests struct {
	cfg     Config
	changed chan struct{}

	mu   sync.Mutex
	each map[string]*known
}

// known is what is remembered of a guest.
type known struct {
	Guest
	def    *definition.Definition // as it was when the file had this time and size
	time   time.Time
	size   int64
	ended  string // how its last machine ended, if it did so badly and we had started it
	sample sample // of the processors' time that its machine has used
}

// New returns the guests of cfg.
func New(cfg Config) *Guests {
	g := &Guests{cfg: cfg, changed: make(chan struct{}, 1), each: make(map[string]*known)}
	for _, k := range cfg.Guests {
		g.each[k.Name] = &known{Guest: k}
	}
	return g
}

var _ textui.System = (*Guests)(nil)

// Changed implements textui.System.
func (g *Guests) Changed() <-chan struct{} { return g.changed }

func (g *Guests) tell() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// Guests implements textui.System. All are asked at once.
func (g *Guests) Guests(ctx context.Context) ([]textui.Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	list := make([]textui.Guest, len(g.cfg.Guests))
	var wg sync.WaitGroup
	for i, k := range g.cfg.Guests {
		wg.Go(func() { list[i] = g.look(ctx, k.Name) })
	}
	var onSeat seatctl.Status
	if g.cfg.Seat != "" {
		wg.Go(func() { onSeat, _ = seatctl.Look(ctx, g.cfg.Seat) }) // without one, nobody is on screen
	}
	wg.Wait()
	for i := range list {
		list[i].OnScreen = list[i].Name == onSeat.Focus
		there := slices.ContainsFunc(onSeat.Guests, func(k seatctl.Guest) bool { return k.There && k.Name == list[i].Name })
		if list[i].State == textui.Unknown && there { // the seat sees what cannot be managed here
			list[i].State = textui.Running
		}
	}
	return list, nil
}

// status is the result of a machine's method "status", as far as it matters here.
type status struct {
	State   string  `json:"state"`
	CPUs    int     `json:"cpus"`
	Memory  uint64  `json:"memory"`
	Uptime  float64 `json:"uptime"`
	Reboots int     `json:"reboots"`
	Balloon *struct {
		Actual uint64 `json:"actual"`
	} `json:"balloon"`
}

// look finds out how a guest is.
func (g *Guests) look(ctx context.Context, name string) textui.Guest {
	k := g.each[name]
	t := textui.Guest{Name: k.Name, Color: k.Color, Slot: k.Slot, CPU: -1}
	def, err := g.definition(name)
	if err != nil {
		t.Note = firstLine(err.Error())
		return t
	}
	t.CPUs, t.Memory = def.CPUs, uint64(def.Memory)
	st, pid, err := ask(ctx, def.Control)
	switch {
	case err == nil:
		g.running(&t, k, st, pid)
	case errors.Is(err, errNotRunning):
		t.State = textui.Off
		if saved(k.Definition) {
			t.State = textui.Saved
		}
		g.mu.Lock()
		t.Note = k.ended
		g.mu.Unlock()
	case errors.Is(err, fs.ErrPermission):
		t.Note = fmt.Sprintf("its control socket %s is another user's: run the console as that one", def.Control)
	default:
		t.State, t.Note = textui.Hung, "its machine does not answer: wait, or stop it by force"
	}
	return t
}

// running fills in what a machine says of itself, and the kernel of its process.
func (g *Guests) running(t *textui.Guest, k *known, st status, pid int) {
	t.State = map[string]textui.State{
		"starting": textui.Starting, "running": textui.Running, "paused": textui.Paused, "saving": textui.Saving,
	}[st.State]
	if t.State == textui.Unknown {
		t.Note = "its machine is in a state that this program does not know: use programs of one version"
	}
	if st.Uptime > 0 && st.Uptime < math.MaxInt32 {
		t.Uptime = time.Duration(st.Uptime * float64(time.Second))
	}
	if st.Balloon != nil && st.Balloon.Actual < t.Memory {
		t.Memory -= st.Balloon.Actual
	}
	use, err := procstat.Of(pid)
	if err != nil {
		return // it has just ended
	}
	t.Resident = use.Resident
	g.mu.Lock()
	defer g.mu.Unlock()
	now := sample{pid, use.Started, use.CPU, time.Now(), -1}
	if k.sample.soon(now) {
		now = k.sample
	} else {
		now.share = now.since(k.sample)
	}
	t.CPU, k.sample = now.share, now
}

// errNotRunning says that nobody serves a control socket.
var errNotRunning = errors.New("it is not running")

// dial connects to a control socket.
func dial(ctx context.Context, path string) (*control.Client, error) {
	c, err := control.Dial(ctx, path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, errNotRunning
	}
	return c, err
}

// ask returns a machine's status, and its process.
func ask(ctx context.Context, path string) (st status, pid int, err error) {
	c, err := dial(ctx, path)
	if err != nil {
		return st, 0, err
	}
	defer c.Close()
	if pid, err = c.Peer(); err != nil {
		return st, 0, err
	}
	return st, pid, c.Call(ctx, "status", nil, &st, nil)
}

// definition returns a guest's definition, which is read anew when the file has changed.
func (g *Guests) definition(name string) (*definition.Definition, error) {
	k, ok := g.each[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("no guest %q", name)
	case k.Definition == "":
		return nil, errors.New("set definition = \"GUEST.toml\" for it in the seat's file, to manage it here")
	}
	st, err := os.Stat(k.Definition)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file: correct definition in the seat's file", k.Definition)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if k.def == nil || !k.time.Equal(st.ModTime()) || k.size != st.Size() {
		def, err := definition.Load(k.Definition)
		if err != nil {
			return nil, err
		}
		if def.Control == "" {
			return nil, fmt.Errorf("%s: set control = \"%s.sock\" in it, so that the guest can be commanded", k.Definition, def.Name)
		}
		k.def, k.time, k.size = def, st.ModTime(), st.Size()
	}
	return k.def, nil
}

// savedDir is where the console saves a guest: beside its definition.
func savedDir(definition string) string { return strings.TrimSuffix(definition, ".toml") + ".saved" }

// logFile is where the machine of a guest that is started here writes its log.
func logFile(definition string) string { return strings.TrimSuffix(definition, ".toml") + ".log" }

// saved reports whether there is a saved state.
func saved(definition string) bool {
	_, err := os.Stat(filepath.Join(savedDir(definition), snap.StateName))
	return err == nil
}

// discard removes a saved state. What else is in its directory stays, and is an error.
func discard(definition string) error {
	dir := savedDir(definition)
	for _, name := range []string{snap.StateName, snap.RAMName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Remove(dir)
}

// firstLine returns the first line of a text, and says if there are more.
func firstLine(s string) string {
	first, rest, more := strings.Cut(s, "\n")
	if more {
		first += fmt.Sprintf(" (and %d more)", 1+strings.Count(rest, "\n"))
	}
	return first
}
