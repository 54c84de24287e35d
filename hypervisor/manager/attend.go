package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/lodgehv/lodge/hypervisor/control"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// How long a machine may take, and how often one is asked that misbehaves.
const (
	answerLimit  = 5 * time.Second  // to answer
	commandLimit = 30 * time.Second // to pause or resume: a device may have to wait for a disk
	firstRetry   = 5 * time.Millisecond
	lastRetry    = time.Second
	watchPause   = 20 * time.Millisecond // after each news: one that has news all the time costs no more than that
	silentAfter  = 30 * time.Second      // after which people are told that it does not answer
)

// vmmStatus is the result of a VMM's method "status", as far as it matters here (docs/control.md).
type vmmStatus struct {
	State   string `json:"state"`
	Reason  string `json:"reason"` // why it is paused, if nobody asked for that
	Reboots int    `json:"reboots"`
	Change  uint64 `json:"change"`
}

// control returns the path of the VMM's control socket.
func (g *guest) control() string { return g.m.sockets(g.name).Run + "/control.sock" }

// call calls a method of the VMM.
func (g *guest) call(ctx context.Context, limit time.Duration, method string, params, result any, progress func(control.Progress)) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("its machine does not answer within %v", limit))
		defer cancel()
	}
	c, err := control.Dial(ctx, g.control())
	if err == nil {
		defer c.Close()
		err = c.Call(ctx, method, params, result, progress)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

func (g *guest) status(ctx context.Context) (st vmmStatus, err error) {
	return st, g.call(ctx, answerLimit, "status", nil, &st, nil)
}

// attend hears from now on what becomes of the VMM. asks is the broker's end that it was started with, or nil.
func (g *guest) attend(asks *net.UnixConn) {
	p, def := g.proc, g.running.def
	ctx, cancel := context.WithCancel(g.m.ctx)
	g.running.end = cancel
	if asks != nil {
		g.spawn(func() { g.serveBroker(ctx, asks, def) })
	}
	g.spawn(func() {
		how, err := p.wait(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			g.log.Error("VMM cannot be waited for", "err", err)
			return
		}
		g.do(func() { g.ended(p, how) })
	})
	g.spawn(func() { g.watch(ctx, p, def, asks != nil) })
	g.attendDaemons(ctx, p)
	if g.rec.Template {
		g.spawn(func() { g.mindTemplate(ctx, p) })
	}
}

// watch asks the VMM for news until ctx ends. brokered is whether it has a broker.
func (g *guest) watch(ctx context.Context, p *process, def *store.Guest, brokered bool) {
	retry := firstRetry
	last := time.Now() // when it answered
	silent := false
	for ctx.Err() == nil {
		err := g.watchConn(ctx, p, func(c *control.Client) {
			if !brokered {
				brokered = true
				g.offerBroker(ctx, c, def)
			}
			retry, last = firstRetry, time.Now()
			if silent {
				silent = false
				g.do(func() {
					if g.proc == p {
						g.note = ""
					}
				})
			}
		})
		var refused *control.Error
		if errors.As(err, &refused) && refused.Code == control.CodeNotFound {
			return // a VMM from before there was such a method: its end is noticed all the same
		}
		if !silent && time.Since(last) > silentAfter {
			silent = true
			g.do(func() {
				if g.proc == p {
					g.note = fmt.Sprintf("its machine does not answer (%v): wait, or kill it", err)
					g.publish()
				}
			})
		}
		select {
		case <-time.After(retry):
			retry = min(2*retry, lastRetry)
		case <-ctx.Done():
		}
	}
}

// watchConn hears of changes over one connection. answered is called at each.
func (g *guest) watchConn(ctx context.Context, p *process, answered func(c *control.Client)) error {
	c, err := control.Dial(ctx, g.control())
	if err != nil {
		return err
	}
	defer c.Close()
	var st vmmStatus
	first, cancel := context.WithTimeout(ctx, answerLimit)
	err = c.Call(first, "status", nil, &st, nil)
	cancel()
	for {
		if err != nil {
			return err
		}
		answered(c)
		g.do(func() {
			if g.proc == p && g.state != life.Saving {
				g.seen(st)
			}
		})
		select {
		case <-time.After(watchPause):
		case <-ctx.Done():
			return ctx.Err()
		}
		after := struct {
			After uint64 `json:"after"`
		}{st.Change}
		st = vmmStatus{}
		err = c.Call(ctx, "watch", after, &st, nil)
	}
}

// seen takes the steps that follow from what the VMM says of itself. What is older than what is known already is left out.
func (g *guest) seen(st vmmStatus) {
	if st.Change < g.change {
		return
	}
	g.change, g.reboots, g.reason = st.Change, st.Reboots, st.Reason
	switch st.State {
	case "running":
		if g.state == life.Starting {
			g.note = ""
		}
		g.noteWhy("")
		g.up()
		_ = g.step(life.IsRunning) // an occurrence, as the next one
	case "paused":
		switch st.Reason {
		case "":
			g.noteWhy("")
		case "disk-full":
			g.noteWhy("the host's disk is full: make space, then resume it")
		default:
			g.noteWhy(fmt.Sprintf("its machine has paused it: %.200q", st.Reason))
		}
		g.up()
		_ = g.step(life.IsPaused)
	case "starting", "saving":
		g.publish() // the reboots may be others
	default:
		g.note = fmt.Sprintf("its machine is in a state %.40q that this manager does not know: use programs of one version", st.State)
		g.publish()
	}
}

// noteWhy notes why the machine has paused the guest; "" takes that away, and leaves what else is noted.
func (g *guest) noteWhy(why string) {
	if why != "" || g.note == g.pausedFor {
		g.note = why
	}
	g.pausedFor = why
}

// up notes that the machine runs: its saved state is used up, and it gets ready.
func (g *guest) up() {
	g.useUp()
	if g.state == life.Starting {
		g.getReady()
	}
}

// useUp drops the saved state that the machine, which has run, went on from: its disks have moved on.
func (g *guest) useUp() {
	if g.rec.Restored {
		g.dropSaved()
		g.rec.Restored = false
	}
}

// getReady finds out when the guest is ready.
func (g *guest) getReady() {
	def, p := g.running.def, g.proc
	if def == nil || def.Ready.IsZero() || g.rec.Template {
		g.ready, g.rec.Ready = true, true
		return
	}
	from := g.rec.SerialFrom
	ctx, cancel := context.WithTimeout(g.m.ctx, time.Duration(def.Ready.Timeout))
	end := g.running.end
	g.running.end = func() { cancel(); end() }
	g.spawn(func() {
		defer cancel()
		err := probe(ctx, def, from)
		g.do(func() {
			if g.proc != p {
				return
			}
			if g.ready = err == nil; g.ready {
				g.rec.Ready = true
				g.save()
				g.report("is ready")
				g.takeTemplate()
			} else if g.m.ctx.Err() == nil {
				g.note = fmt.Sprintf("is not ready after %v: %v", time.Duration(def.Ready.Timeout), err)
				g.log.Warn(g.note)
			}
			g.publish()
		})
	})
}

// outcomeName is the file in a guest's directory that its VMM tells how it ended.
const outcomeName = "outcome.json"

// maxOutcome bounds what is read of it, in bytes.
const maxOutcome = 16 << 10

// outcome is its content.
type outcome struct {
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

// readOutcome returns how the VMM says that it ended: nil if it says nothing.
func readOutcome(path string) *outcome {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	o := &outcome{}
	if json.NewDecoder(io.LimitReader(f, maxOutcome)).Decode(o) != nil || o.Reason == "" {
		return nil
	}
	return o
}

// ended notes that the VMM has ended. how is what the kernel says of that.
func (g *guest) ended(p *process, how string) {
	if g.proc != p {
		return
	}
	policy := store.Never
	if g.def != nil {
		policy = g.def.Restart
	} else if g.running.def != nil {
		policy = g.running.def.Restart
	}
	if time.Since(g.rec.Began) > steadyAfter {
		g.rec.Restarts = 0
	}
	o := readOutcome(filepath.Join(g.dir(), outcomeName))
	if o != nil {
		g.useUp()
	}
	f := g.facts()
	g.note = ""
	switch {
	case o != nil && o.Reason == "closed": // somebody's wish
		_ = g.stepWith(life.Ended, f) // an occurrence, as the next ones
	case o != nil && o.Reason != "crashed":
		f.Restart = policy == store.Always
		_ = g.stepWith(life.Ended, f)
	default:
		if g.state != life.Stopping && (g.state != life.Saving || !f.Saved) {
			g.note = g.obituary(o, how)
			g.failed = errors.New(g.note)
		}
		f.Restart = policy != store.Never
		note := g.note
		if g.rec.Template && g.state != life.Stopping { // it may be the template's fault. One that was to end has no room to say how, perhaps
			g.dropTemplate()
			f.Afresh = g.state == life.Starting
		}
		_ = g.stepWith(life.Died, f)
		if f.Afresh {
			g.fresh("cannot be used: " + note)
		}
	}
}

// obituary tells people why the machine ended.
func (g *guest) obituary(o *outcome, how string) string {
	if o != nil {
		return "crashed: " + plain(o.Detail)
	}
	text := "its VMM has ended"
	if how != "" {
		text += ": " + how
	}
	if line := lastLine(filepath.Join(g.m.logDir(g.name), vmmLog), g.rec.Began); line != "" {
		text += ": " + line
	}
	return text
}

// lastLine returns the last line of a log, unless nobody has written to it since then.
func lastLine(path string, since time.Time) string {
	st, err := os.Stat(path)
	if err != nil || st.ModTime().Before(since.Add(-time.Second)) {
		return ""
	}
	b, err := tail(path, 4096)
	if err != nil {
		return ""
	}
	b = bytes.TrimSpace(b)
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	return plain(string(b))
}

// maxNote bounds what is told people of a VMM's own words, in bytes.
const maxNote = 400

// plain returns the begin of a text of a VMM without what would not be text on a terminal.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s[:min(len(s), maxNote)])
}

// command has the VMM pause or resume, and answers who asked for that.
func (g *guest) command(method string) {
	answer, p := g.answer, g.proc
	g.answer = nil
	g.spawn(func() {
		err := g.call(g.m.ctx, commandLimit, method, nil, nil, nil)
		st, e := g.status(g.m.ctx)
		g.do(func() {
			if g.proc == p && e == nil && g.state != life.Saving {
				g.seen(st)
			}
		})
		if err != nil {
			err = fmt.Errorf("guest %s: %s: %w", g.name, method, err)
		}
		if answer != nil {
			answer <- err
		}
	})
}
