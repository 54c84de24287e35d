package api

import (
	"context"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/job"
)

// Limits of subscribers.
const (
	maxSubscribers     = 128
	maxUserSubscribers = 16
	maxFollows         = 8        // logs that one subscriber follows at a time
	logChunk           = 32 << 10 // bytes of a log in one signal
	logPause           = 50 * time.Millisecond
	recheckPause       = time.Second
)

// subscribers are the callers that signals are sent to. Broadcasts would reach everybody on the bus, so each gets its own copy.
type subscribers struct {
	s  *server
	wg sync.WaitGroup

	mu       sync.Mutex
	list     map[string]*subscriber // by unique name
	endPump  context.CancelFunc     // nil while nobody listens to the manager
	shutdown bool
}

type subscriber struct {
	uid     uint32
	all     bool // Subscribe was called, and not only FollowLog
	ctx     context.Context
	cancel  context.CancelFunc
	follows int
}

// start begins to watch who leaves the bus, and who may not see guests any more.
func (l *subscribers) start(s *server, recheck <-chan struct{}) {
	l.s, l.list = s, make(map[string]*subscriber)
	signals := make(chan *dbus.Signal, 64)
	s.conn.Signal(signals)
	l.wg.Go(func() {
		defer s.conn.RemoveSignal(signals)
		for {
			select {
			case sig, ok := <-signals:
				if !ok {
					return
				}
				l.heard(sig)
			case <-s.ctx.Done():
				return
			}
		}
	})
	l.wg.Go(func() {
		for {
			select {
			case <-recheck:
				l.recheck()
			case <-s.ctx.Done():
				return
			}
			select {
			case <-time.After(recheckPause): // whoever causes it all the time costs no more than that
			case <-s.ctx.Done():
				return
			}
		}
	})
}

// wait ends all that was begun. The server's context has ended.
func (l *subscribers) wait() {
	l.mu.Lock()
	l.shutdown = true
	names := slices.Collect(maps.Keys(l.list))
	l.mu.Unlock()
	for _, name := range names {
		l.drop(name)
	}
	l.wg.Wait()
}

// heard removes a subscriber that has left the bus.
func (l *subscribers) heard(sig *dbus.Signal) {
	if sig.Sender != "org.freedesktop.DBus" || sig.Name != "org.freedesktop.DBus.NameOwnerChanged" || len(sig.Body) != 3 {
		return
	}
	name, _ := sig.Body[0].(string)
	if owner, _ := sig.Body[2].(string); owner == "" {
		l.remove(name)
	}
}

func watchName(name string) []dbus.MatchOption {
	return []dbus.MatchOption{dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
		dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name)}
}

// get returns the subscriber of that name, which it makes if need be.
func (l *subscribers) get(ctx context.Context, name string, uid uint32) (*subscriber, error) {
	l.mu.Lock()
	sub := l.list[name]
	if sub != nil {
		l.mu.Unlock()
		return sub, nil
	}
	ofUser := 0
	for _, o := range l.list {
		if o.uid == uid {
			ofUser++
		}
	}
	if len(l.list) >= maxSubscribers || ofUser >= maxUserSubscribers || l.shutdown {
		l.mu.Unlock()
		return nil, errTooMany
	}
	sub = &subscriber{uid: uid}
	sub.ctx, sub.cancel = context.WithCancel(l.s.ctx)
	l.list[name] = sub
	l.mu.Unlock()
	err := l.s.conn.AddMatchSignalContext(ctx, watchName(name)...)
	var there bool
	if err == nil { // it may have left before
		err = l.s.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&there)
	}
	if err != nil || !there {
		l.remove(name)
		return nil, errDenied
	}
	return sub, nil
}

// add has signals sent to a caller.
func (l *subscribers) add(ctx context.Context, name string, uid uint32) error {
	sub, err := l.get(ctx, name, uid)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.list[name] != sub {
		return errDenied
	}
	sub.all = true
	if l.endPump == nil && !l.shutdown {
		pump, cancel := context.WithCancel(l.s.ctx)
		l.endPump = cancel
		events := l.s.Manager.Subscribe()
		p := newPump(l.s)
		l.wg.Go(func() {
			defer events.Close()
			p.run(pump, events)
		})
	}
	return nil
}

// remove ends what a caller has subscribed to.
func (l *subscribers) remove(name string) {
	if l.drop(name) {
		l.wg.Go(func() { _ = l.s.conn.RemoveMatchSignalContext(l.s.ctx, watchName(name)...) }) // the bus drops it with us
	}
}

func (l *subscribers) drop(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	sub := l.list[name]
	if sub == nil {
		return false
	}
	sub.cancel()
	delete(l.list, name)
	for _, o := range l.list {
		if o.all {
			return true
		}
	}
	if l.endPump != nil {
		l.endPump()
		l.endPump = nil
	}
	return true
}

// recheck drops the subscribers that may not see guests any more.
func (l *subscribers) recheck() {
	l.mu.Lock()
	list := maps.Clone(l.list)
	l.mu.Unlock()
	for name, sub := range list {
		l.mu.Lock()
		a := View
		if sub.follows > 0 {
			a = Control
		}
		l.mu.Unlock()
		r := &request{server: l.s, sender: name, uid: sub.uid}
		if err := l.s.allow(l.s.ctx, r, a); err != nil && l.s.ctx.Err() == nil {
			l.send(name, client.ManagerPath, client.ManagerInterface, "Unsubscribed", busError(err).Error())
			l.remove(name)
		}
	}
}

// send sends a signal to one caller.
func (l *subscribers) send(to string, path dbus.ObjectPath, iface, member string, body ...any) {
	msg := &dbus.Message{
		Type:  dbus.TypeSignal,
		Flags: dbus.FlagNoReplyExpected,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(to),
			dbus.FieldPath:        dbus.MakeVariant(path),
			dbus.FieldInterface:   dbus.MakeVariant(iface),
			dbus.FieldMember:      dbus.MakeVariant(member),
		},
		Body: body,
	}
	if len(body) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	l.s.conn.Send(msg, nil) // a connection that has failed ends the server
}

// sendAll sends a signal to all that have subscribed.
func (l *subscribers) sendAll(path dbus.ObjectPath, iface, member string, body ...any) {
	l.mu.Lock()
	var names []string
	for name, sub := range l.list {
		if sub.all {
			names = append(names, name)
		}
	}
	l.mu.Unlock()
	for _, name := range names {
		l.send(name, path, iface, member, body...)
	}
}

// follow sends what is written to a log to the caller of r.
func (l *subscribers) follow(ctx context.Context, r *request) error {
	sub, err := l.get(ctx, r.sender, r.uid)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if sub.follows >= maxFollows || l.shutdown {
		return errTooMany
	}
	sub.follows++
	to, path, guest, log := r.sender, r.path, r.object.Guest, r.str(0)
	l.wg.Go(func() {
		err := l.s.Manager.FollowLog(sub.ctx, guest, log, func(b []byte) error {
			for chunk := range slices.Chunk(b, logChunk) {
				l.send(to, path, client.GuestInterface, "Log", log, chunk)
				select {
				case <-time.After(logPause): // the bus keeps what a slow reader has not read
				case <-sub.ctx.Done():
					return sub.ctx.Err()
				}
			}
			return nil
		})
		if err != nil && sub.ctx.Err() == nil {
			l.s.log.Warn("log cannot be followed", "guest", guest, "log", log, "err", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		sub.follows--
	})
	return nil
}

// pump turns the manager's events into signals. It knows how everything was, and so what has changed.
type pump struct {
	s        *server
	guests   map[string]props
	pools    map[string]props
	jobs     map[uint64]props
	networks map[string]props
}

// newPump is called before it is known to subscribers that they are some: what they look at afterwards is no older.
func newPump(s *server) *pump {
	p := &pump{s: s}
	p.look()
	return p
}

func (p *pump) look() {
	p.networks = make(map[string]props)
	p.guests, p.pools, p.jobs = make(map[string]props), make(map[string]props), make(map[uint64]props)
	for _, o := range p.s.Manager.Pools() {
		p.pools[o.Name] = poolProps(&o)
	}
	for _, n := range p.s.Manager.ListNetworks() {
		p.networks[n.Name] = p.s.networkProps(&n)
	}
	for _, g := range p.s.Manager.List() {
		p.guests[g.Name] = p.s.guestProps(&g)
	}
	for _, j := range p.s.Manager.Jobs().List() {
		p.jobs[j.ID] = jobProps(&j)
	}
}

func (p *pump) run(ctx context.Context, events *manager.Subscription) {
	for {
		e, err := events.Next(ctx)
		if err != nil {
			return
		}
		p.event(&e)
	}
}

func (p *pump) event(e *manager.Event) {
	send := p.s.subs.sendAll
	switch {
	case e.Kind == manager.Lost:
		p.look()
		send(client.ManagerPath, client.ManagerInterface, "Resync")
	case e.Kind == manager.GuestChanged && e.Guest != nil:
		p.guest(e.Guest)
	case e.Kind == manager.GuestDeleted:
		delete(p.guests, e.Name)
		send(client.ManagerPath, client.ManagerInterface, "GuestRemoved", client.GuestPath(e.Name), e.Name)
	case e.Kind == manager.GuestStep:
		send(client.GuestPath(e.Name), client.GuestInterface, "Step", text(e.Text, maxErrorText))
	case e.Kind == manager.SavedChanged:
		send(client.GuestPath(e.Name), client.GuestInterface, "SnapshotsChanged")
	case e.Kind == manager.PoolChanged:
		p.pool(e.Name)
	case e.Kind == manager.ImagesChanged:
		send(client.PoolPath(e.Name), client.PoolInterface, "ImagesChanged")
	case e.Kind == manager.NetworkChanged && e.Network != nil:
		p.network(e.Network)
	case e.Kind == manager.NetworkDeleted:
		delete(p.networks, e.Name)
		send(client.ManagerPath, client.ManagerInterface, "NetworkRemoved", client.NetworkPath(e.Name), e.Name)
	case e.Kind == manager.JobChanged && e.Job != nil:
		p.job(e.Job)
	}
}

func (p *pump) guest(g *manager.Guest) {
	send, path := p.s.subs.sendAll, client.GuestPath(g.Name)
	now := p.s.guestProps(g)
	old, known := p.guests[g.Name]
	p.guests[g.Name] = now
	if !known {
		send(client.ManagerPath, client.ManagerInterface, "GuestAdded", path, g.Name)
		return
	}
	changed := difference(old, now)
	if len(changed) > 0 {
		send(path, propertiesInterface, "PropertiesChanged", client.GuestInterface, changed, []string{})
	}
	if _, ok := changed["State"]; ok {
		send(path, client.GuestInterface, "StateChanged", string(g.State), text(g.Note, maxErrorText))
	}
}

func (p *pump) network(n *manager.Network) {
	send, path := p.s.subs.sendAll, client.NetworkPath(n.Name)
	now := p.s.networkProps(n)
	old, known := p.networks[n.Name]
	p.networks[n.Name] = now
	if !known {
		send(client.ManagerPath, client.ManagerInterface, "NetworkAdded", path, n.Name)
	} else if changed := difference(old, now); len(changed) > 0 {
		send(path, propertiesInterface, "PropertiesChanged", client.NetworkInterface, changed, []string{})
	}
}

func (p *pump) job(j *job.Status) {
	send, path := p.s.subs.sendAll, client.JobPath(j.ID)
	now := jobProps(j)
	old, known := p.jobs[j.ID]
	p.jobs[j.ID] = now
	if !known {
		send(client.ManagerPath, client.ManagerInterface, "JobAdded", path, j.Kind, text(j.Object, maxErrorText))
	} else if changed := difference(old, now); len(changed) > 0 {
		send(path, propertiesInterface, "PropertiesChanged", client.JobInterface, changed, []string{})
	}
	if j.State != job.Running {
		name, message := jobError(j)
		send(path, client.JobInterface, "Ended", string(j.State), name, message)
		delete(p.jobs, j.ID)
	}
}

// difference returns what is new or other in b.
func difference(a, b props) props {
	d := make(props)
	for name, v := range b {
		if old, ok := a[name]; !ok || !reflect.DeepEqual(old.Value(), v.Value()) {
			d[name] = v
		}
	}
	return d
}
