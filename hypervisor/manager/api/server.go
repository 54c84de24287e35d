package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/job"
	"github.com/lodgehv/lodge/hypervisor/manager/network"
	"github.com/lodgehv/lodge/hypervisor/manager/network/netctl"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/internal/ratelog"
)

// Manager is what the API is of: a *manager.Manager, whose methods these are.
type Manager interface {
	List() []manager.Guest
	Get(name string) (manager.Guest, error)
	Subscribe() *manager.Subscription
	Jobs() *job.Jobs

	Check(text []byte) error
	Define(text []byte) (string, error)
	Edit(name string, text []byte, tag string) error
	Definition(name string) (text []byte, tag string, err error)
	Versions(name string) ([]store.Version, error)
	VersionText(name string, number int) ([]byte, error)
	Reload() error
	Delete(name string) error

	ListNetworks() []manager.Network
	GetNetwork(name string) (manager.Network, error)
	CheckNetwork(text []byte) error
	DefineNetwork(text []byte) (string, error)
	EditNetwork(name string, text []byte, tag string) error
	NetworkDefinition(name string) (text []byte, tag string, err error)
	DeleteNetwork(name string) error
	AddForward(name string, f network.Forward) error
	RemoveForward(name string, f network.Forward) error
	AddRule(name string, at int, r network.Rule) error
	RemoveRule(name string, at int) error
	NetworkTraffic(ctx context.Context, name string) ([]netctl.GuestStatus, error)

	Start(name string) (job uint64, err error)
	Stop(name string) (job uint64, err error)
	StopAll(ctx context.Context) error
	Reboot(name string) (job uint64, err error)
	Kill(name string) (job uint64, err error)
	Pause(ctx context.Context, name string) error
	Resume(ctx context.Context, name string) error
	Save(name string) (job uint64, err error)
	Discard(name string) error

	Snapshot(name, snapshot string) (job uint64, err error)
	Snapshots(name string) ([]manager.Snapshot, error)
	DeleteSnapshot(name, snapshot string) error
	Restore(name, snapshot string, memory bool) (job uint64, err error)
	SnapshotPicture(name, snapshot string) ([]byte, error)
	Keys(name string) (disks []string, err error)
	GiveKey(name, disk string, key []byte) error
	SnapshotDisks(name, snapshot string) (job uint64, err error)
	CloneGuest(name, clone, snapshot string) (job uint64, err error)
	ExportGuest(name string, dst *os.File) (job uint64, err error)
	ImportGuest(poolName, name string, src manager.Source, opt pool.ImportOptions) (job uint64, err error)

	Pools() []manager.Pool
	PoolUsage(poolName string) (pool.Usage, error)
	Images(poolName string) ([]pool.Image, error)
	Image(poolName, image string) (pool.Image, error)
	CreateImage(poolName, image string, size int64) error
	GrowImage(poolName, image string, size int64) error
	DeleteImage(poolName, image string) error
	CloneImage(poolName, image, clone string) (job uint64, err error)
	SnapshotImage(poolName, image, snapshot string) (job uint64, err error)
	RevertImage(poolName, image, snapshot string) (job uint64, err error)
	ImportImage(poolName, image string, src manager.Source, opt pool.ImportOptions) (job uint64, err error)
	ExportImage(poolName, image string, dst *os.File, opt pool.ExportOptions) (job uint64, err error)

	Thumbnail(ctx context.Context, name string, side int) ([]byte, error)
	Stats(ctx context.Context, name string) ([]manager.Sample, error)
	Logs(name string) (map[string]string, error)
	Tail(name, log string, limit int) ([]byte, error)
	FollowLog(ctx context.Context, name, log string, f func(b []byte) error) error
}

// Config is what an API is made of.
type Config struct {
	Bus     string // "system", "session", or an address
	Manager Manager
	Auth    Authorizer
	Version string // of Lodge

	// Switch has the seat show a guest. nil: there is no seat that could.
	Switch func(ctx context.Context, guest string) error

	Log *slog.Logger // nil is none
}

// Limits of what callers can have under way.
const (
	maxCalls     = 256 // calls at a time
	maxUserCalls = 48  // of one user
	maxQuestions = 16  // calls that may wait for a person to type a password
	maxCallers   = 4096
	maxString    = 4 << 10 // bytes of an argument that has no limit of its own
	maxText      = 1 << 20 // of a definition

	callLimit     = time.Minute
	questionLimit = 5 * time.Minute
)

// What is logged of callers' doing: so many lines at once, and then one each.
const (
	logBurst = 100
	logEvery = time.Second
)

// How long after the loss of a bus it is looked for again.
const redial = time.Second

// server is the API on one connection.
type server struct {
	Config
	ctx   context.Context
	conn  *dbus.Conn
	guard *guard
	log   *slog.Logger // of what strangers can cause
	done  *slog.Logger // of what was done for those who may
	tree  map[string]*iface
	subs  subscribers

	mu        sync.Mutex
	calls     int
	perUser   map[uint32]int
	questions int
	callers   map[string]uint32 // unique names, which are never used again, and their users
}

// Serve offers the API until ctx ends, and calls ready whenever it is there: at first, and after the bus was gone. Without a bus
// at first it fails.
func Serve(ctx context.Context, cfg Config, ready func()) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	limited := ratelog.New(cfg.Log.Handler(), logBurst, logEvery)
	defer limited.Close(context.WithoutCancel(ctx)) //nolint:errcheck // what cannot be written is lost
	for first := true; ; first = false {
		err := serveOnce(ctx, cfg, limited, ready)
		if ctx.Err() != nil {
			return nil
		}
		if first && errors.Is(err, errNoBus) {
			return err
		}
		cfg.Log.Warn("bus is gone: it is looked for again", "bus", cfg.Bus, "err", err)
		select {
		case <-time.After(redial):
		case <-ctx.Done():
			return nil
		}
	}
}

// errNoBus says that the API could not be offered at all.
var errNoBus = errors.New("cannot be on the bus")

func serveOnce(ctx context.Context, cfg Config, log *ratelog.Handler, ready func()) error {
	fail := func(err error) error { return fmt.Errorf("%s: %w %q: %w", client.BusName, errNoBus, cfg.Bus, err) }
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{Config: cfg, ctx: ctx, log: slog.New(log), done: slog.New(log.Unlimited()),
		tree: make(map[string]*iface), perUser: make(map[uint32]int),
		callers: make(map[string]uint32)}
	for _, i := range interfaces() {
		s.tree[i.name] = i
	}
	conn, guard, err := dial(cfg.Bus, dbus.WithHandler(s))
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	s.conn, s.guard = conn, guard
	defer s.subs.wait()
	defer cancel()
	if err := conn.Auth(nil); err != nil {
		return fail(err)
	}
	if err := conn.Hello(); err != nil {
		return fail(err)
	}
	recheck := make(chan struct{}, 1)
	if err := cfg.Auth.Changed(ctx, conn, func() {
		select {
		case recheck <- struct{}{}:
		default:
		}
	}); err != nil {
		return fail(err)
	}
	s.subs.start(s, recheck)
	reply, err := conn.RequestName(client.BusName, dbus.NameFlagDoNotQueue)
	if err != nil {
		return fail(err)
	}
	if reply != dbus.RequestNameReplyPrimaryOwner {
		return fail(errors.New("another program has the name: does another lodged run already?"))
	}
	ready()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-conn.Context().Done():
		return errors.New("the connection was closed")
	}
}

// user returns the user of a caller.
func (s *server) user(ctx context.Context, sender string) (uint32, error) {
	s.mu.Lock()
	uid, ok := s.callers[sender]
	s.mu.Unlock()
	if ok {
		return uid, nil
	}
	err := s.conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixUser", 0, sender).Store(&uid)
	if err != nil {
		return 0, fmt.Errorf("%w: caller: %w", errDenied, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.callers) >= maxCallers {
		clear(s.callers)
	}
	s.callers[sender] = uid
	return uid, nil
}

// enter counts a call of a user. Each is followed by leave.
func (s *server) enter(uid uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls >= maxCalls || s.perUser[uid] >= maxUserCalls {
		return errTooMany
	}
	s.calls++
	s.perUser[uid]++
	return nil
}

func (s *server) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls--
	if s.perUser[uid]--; s.perUser[uid] == 0 {
		delete(s.perUser, uid)
	}
}

// allow asks whether the caller of r may do what belongs to a.
func (s *server) allow(ctx context.Context, r *request, a Action) error {
	c := Caller{Conn: s.conn, Name: r.sender, UID: r.uid, Interactive: r.interactive}
	limit := callLimit
	if c.Interactive {
		s.mu.Lock()
		ok := s.questions < maxQuestions
		if ok {
			s.questions++
		}
		s.mu.Unlock()
		if !ok {
			return errTooMany
		}
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.questions--
		}()
		limit = questionLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	details := map[string]string{}
	if r.object.Guest != "" {
		details["guest"] = r.object.Guest
	}
	if r.object.Pool != "" {
		details["pool"] = r.object.Pool
	}
	if r.object.Network != "" {
		details["network"] = r.object.Network
	}
	return s.Auth.Allow(ctx, c, a, details)
}
