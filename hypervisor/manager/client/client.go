// Package client is the manager's D-Bus API as Go has it: for the command line, the consoles, and whoever else wants to know of
// guests. The manager itself is in another process.
package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

// Errors that a caller may want to tell apart, to be used with errors.Is.
var (
	ErrNotFound      = &Error{Name: ErrorPrefix + "NotFound"}
	ErrExists        = &Error{Name: ErrorPrefix + "Exists"}
	ErrChanged       = &Error{Name: ErrorPrefix + "Changed"}
	ErrNotNow        = &Error{Name: ErrorPrefix + "NotNow"}
	ErrBusy          = &Error{Name: ErrorPrefix + "Busy"}
	ErrNotAuthorized = &Error{Name: ErrorPrefix + "NotAuthorized"}
	ErrDefinition    = &Error{Name: ErrorPrefix + "InvalidDefinition"}
	ErrNoScreen      = &Error{Name: ErrorPrefix + "NoScreen"}
	ErrKeyNeeded     = &Error{Name: ErrorPrefix + "KeyNeeded"}
	ErrNoSpace       = &Error{Name: ErrorPrefix + "NoSpace"}
)

// ErrNoManager says that nobody answers: lodged does not run, or there is no bus.
var ErrNoManager = errors.New("lodged does not answer: start it, such as by systemctl start lodged")

// Error is an error of the API.
type Error struct {
	Name    string // on the bus
	Message string // for people
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Name
	}
	return e.Message
}

// Is reports whether target is an Error of the same name.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Name == e.Name
}

// Client is a connection to the manager. Its methods may be called from any goroutine.
type Client struct {
	// Interactive says that polkit may ask the user for a password.
	Interactive bool

	conn *dbus.Conn
}

// Dial connects to the manager on a bus: "system", "session", or an address. Close it.
func Dial(ctx context.Context, bus string) (*Client, error) {
	var conn *dbus.Conn
	var err error
	switch bus {
	case "system":
		conn, err = dbus.ConnectSystemBus()
	case "session":
		conn, err = dbus.ConnectSessionBus()
	default:
		conn, err = dbus.Connect(bus)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (bus %s: %w)", ErrNoManager, bus, err)
	}
	c := &Client{conn: conn}
	if _, err := c.Version(ctx); err != nil && !errors.Is(err, ErrNotAuthorized) {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// call calls a method and stores what it returns.
func (c *Client) call(ctx context.Context, path dbus.ObjectPath, iface, method string, args []any, out ...any) error {
	var flags dbus.Flags
	if c.Interactive {
		flags = dbus.FlagAllowInteractiveAuthorization
	}
	call := c.conn.Object(BusName, path).CallWithContext(ctx, iface+"."+method, flags|dbus.FlagNoAutoStart, args...)
	if call.Err != nil {
		return apiError(call.Err)
	}
	if err := call.Store(out...); err != nil {
		return fmt.Errorf("%s: answer: %w: use programs of one version", method, err)
	}
	return nil
}

func apiError(err error) error {
	var e dbus.Error
	if !errors.As(err, &e) {
		if errors.Is(err, dbus.ErrClosed) {
			return fmt.Errorf("%w: %w", ErrNoManager, err)
		}
		return err
	}
	switch e.Name {
	case "org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner",
		"org.freedesktop.DBus.Error.NoReply":
		return fmt.Errorf("%w (%w)", ErrNoManager, e)
	case "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired":
		return &Error{ErrNotAuthorized.Name, e.Error()}
	}
	return &Error{e.Name, e.Error()}
}

// Guest is a guest as it was when it was asked for. The fields are those of docs/api.
type Guest struct {
	Name, Label, Color, Icon string
	Slot                     uint32
	UUID                     string
	CPUs                     uint32
	Memory                   uint64
	Autostart, Disposable    bool
	Depends                  []string
	Fault                    string
	DefinitionTag            string
	State                    string
	Since                    time.Time
	Note, Reason             string
	Ready, Stale             bool
	PID                      uint32
	Began                    time.Time
	Reboots, Restarts        uint32
	RestartAt, SavedAt       time.Time

	DisplaySocket, SerialSocket, ConsoleSocket, VsockSocket string
}

// Job is long work as it was when it was asked for.
type Job struct {
	ID              uint64
	Kind, Object    string
	State           string // running, done, failed or cancelled
	Done, Total     uint64
	Err             error // of a job that has failed
	Began, Finished time.Time
}

// Snapshot is a snapshot of a guest.
type Snapshot struct {
	Name    string
	Created time.Time
	Memory  bool
	Disks   []string
	Size    uint64
	Picture bool
}

// properties are those of an object.
type properties map[string]dbus.Variant

// value returns a property, or the zero value if it is not there, as it may be with a manager of another version.
func value[T any](p properties, name string) T {
	v, _ := p[name].Value().(T)
	return v
}

func (p properties) time(name string) time.Time { return moment(value[uint64](p, name)) }

// moment is a time as the API has it, in microseconds since 1970; 0 is none.
func moment(micros uint64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(min(micros, 1<<62)))
}

func (p properties) guest() Guest {
	str := func(name string) string { return value[string](p, name) }
	return Guest{
		Name: str("Name"), Label: str("Label"), Color: str("Color"), Icon: str("Icon"), Slot: value[uint32](p, "Slot"),
		UUID: str("UUID"), CPUs: value[uint32](p, "CPUs"), Memory: value[uint64](p, "Memory"),
		Autostart: value[bool](p, "Autostart"), Disposable: value[bool](p, "Disposable"), Depends: value[[]string](p, "Depends"),
		Fault: str("Fault"), DefinitionTag: str("DefinitionTag"), State: str("State"), Since: p.time("Since"), Note: str("Note"), Reason: str("Reason"),
		Ready: value[bool](p, "Ready"), Stale: value[bool](p, "Stale"), PID: value[uint32](p, "PID"), Began: p.time("Began"),
		Reboots: value[uint32](p, "Reboots"), Restarts: value[uint32](p, "Restarts"), RestartAt: p.time("RestartAt"),
		SavedAt: p.time("SavedAt"), DisplaySocket: str("DisplaySocket"), SerialSocket: str("SerialSocket"),
		ConsoleSocket: str("ConsoleSocket"), VsockSocket: str("VsockSocket"),
	}
}

func (p properties) job() Job {
	j := Job{ID: value[uint64](p, "ID"), Kind: value[string](p, "Kind"), Object: value[string](p, "Object"),
		State: value[string](p, "State"), Done: value[uint64](p, "Done"), Total: value[uint64](p, "Total"),
		Began: p.time("Began"), Finished: p.time("Finished")}
	if name := value[string](p, "Error"); name != "" {
		j.Err = &Error{name, value[string](p, "Message")}
	}
	return j
}

func (p properties) snapshot() Snapshot {
	return Snapshot{Name: value[string](p, "Name"), Created: p.time("Created"), Memory: value[bool](p, "Memory"),
		Disks: value[[]string](p, "Disks"), Size: value[uint64](p, "Size"), Picture: value[bool](p, "Picture")}
}

type entry struct {
	Path       dbus.ObjectPath
	Properties properties
}

// Version returns the manager's version.
func (c *Client) Version(ctx context.Context) (string, error) {
	var v dbus.Variant
	err := c.call(ctx, ManagerPath, "org.freedesktop.DBus.Properties", "Get", []any{ManagerInterface, "Version"}, &v)
	s, _ := v.Value().(string)
	return s, err
}

// Row is a guest as ListGuests has it: its path and its properties, in their order. (As names and variants, a hundred guests
// would take three times as long.)
type Row struct {
	Path                     dbus.ObjectPath
	Name, Label, Color, Icon string
	Slot                     uint32
	UUID                     string
	CPUs                     uint32
	Memory                   uint64
	Autostart, Disposable    bool
	Depends                  []string
	Fault, DefinitionTag     string
	State                    string
	Since                    uint64
	Note, Reason             string
	Ready, Stale             bool
	PID                      uint32
	Began                    uint64
	Reboots, Restarts        uint32
	RestartAt, SavedAt       uint64
	Display, Serial          string
	Console, Vsock           string
}

func (r *Row) guest() Guest {
	return Guest{
		Name: r.Name, Label: r.Label, Color: r.Color, Icon: r.Icon, Slot: r.Slot, UUID: r.UUID, CPUs: r.CPUs, Memory: r.Memory,
		Autostart: r.Autostart, Disposable: r.Disposable, Depends: r.Depends, Fault: r.Fault, DefinitionTag: r.DefinitionTag,
		State: r.State, Since: moment(r.Since), Note: r.Note, Reason: r.Reason, Ready: r.Ready, Stale: r.Stale, PID: r.PID, Began: moment(r.Began),
		Reboots: r.Reboots, Restarts: r.Restarts, RestartAt: moment(r.RestartAt), SavedAt: moment(r.SavedAt),
		DisplaySocket: r.Display, SerialSocket: r.Serial, ConsoleSocket: r.Console, VsockSocket: r.Vsock,
	}
}

// Guests returns all guests by name.
func (c *Client) Guests(ctx context.Context) ([]Guest, error) {
	var rows []Row
	if err := c.call(ctx, ManagerPath, ManagerInterface, "ListGuests", nil, &rows); err != nil {
		return nil, err
	}
	guests := make([]Guest, len(rows))
	for n := range rows {
		guests[n] = rows[n].guest()
	}
	return guests, nil
}

func (c *Client) all(ctx context.Context, path dbus.ObjectPath, iface string) (p properties, err error) {
	return p, c.call(ctx, path, "org.freedesktop.DBus.Properties", "GetAll", []any{iface}, &p)
}

// Guest returns a guest.
func (c *Client) Guest(ctx context.Context, name string) (Guest, error) {
	var path dbus.ObjectPath // the manager says what is wrong with a name
	if err := c.call(ctx, ManagerPath, ManagerInterface, "GetGuest", []any{name}, &path); err != nil {
		return Guest{}, err
	}
	p, err := c.all(ctx, path, GuestInterface)
	return p.guest(), err
}

// guestCall calls a method of a guest.
func (c *Client) guestCall(ctx context.Context, guest, method string, args []any, out ...any) error {
	if err := checkName("a guest", guest); err != nil {
		return err
	}
	return c.call(ctx, GuestPath(guest), GuestInterface, method, args, out...)
}

// begin calls a method of a guest that begins a job.
func (c *Client) begin(ctx context.Context, guest, method string, args ...any) (id uint64, err error) {
	var path dbus.ObjectPath
	if err := c.guestCall(ctx, guest, method, args, &path); err != nil {
		return 0, err
	}
	return jobID(path)
}

func jobID(path dbus.ObjectPath) (uint64, error) {
	o, ok := ParsePath(path)
	if !ok || o.Job == 0 {
		return 0, fmt.Errorf("%s is no job: use programs of one version", path)
	}
	return o.Job, nil
}

// Start begins to start a guest, from its saved state if there is one, and returns the job. So do the next four.
func (c *Client) Start(ctx context.Context, guest string) (job uint64, err error) {
	return c.begin(ctx, guest, "Start")
}

// Keys returns the names of a guest's encrypted disks whose keys are needed before it can be started.
func (c *Client) Keys(ctx context.Context, guest string) (disks []string, err error) {
	return disks, c.guestCall(ctx, guest, "ListKeys", nil, &disks)
}

// GiveKey gives the key of an encrypted disk, for the next start.
func (c *Client) GiveKey(ctx context.Context, guest, disk string, key []byte) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	if len(key) > maxKey { // more than a pipe takes at once, perhaps
		err = fmt.Errorf("disk %s: a key of %d bytes: at most %d are possible", disk, len(key), maxKey)
	} else {
		_, err = w.Write(key)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	return c.guestCall(ctx, guest, "GiveKey", []any{disk, dbus.UnixFD(r.Fd())})
}

// maxKey bounds a key, in bytes.
const maxKey = 4096

// Stop presses its power button, and switches it off if it has not ended in time.
func (c *Client) Stop(ctx context.Context, guest string) (job uint64, err error) {
	return c.begin(ctx, guest, "Stop")
}

// Reboot stops it and starts it again.
func (c *Client) Reboot(ctx context.Context, guest string) (job uint64, err error) {
	return c.begin(ctx, guest, "Reboot")
}

// Kill switches it off, as by pulling the plug.
func (c *Client) Kill(ctx context.Context, guest string) (job uint64, err error) {
	return c.begin(ctx, guest, "Kill")
}

// Save saves it with its memory and ends it.
func (c *Client) Save(ctx context.Context, guest string) (job uint64, err error) {
	return c.begin(ctx, guest, "Save")
}

// Pause stops a guest where it is.
func (c *Client) Pause(ctx context.Context, guest string) error {
	return c.guestCall(ctx, guest, "Pause", nil)
}

// Resume lets it run on.
func (c *Client) Resume(ctx context.Context, guest string) error {
	return c.guestCall(ctx, guest, "Resume", nil)
}

// Discard drops what is said of its crash, or else its saved state.
func (c *Client) Discard(ctx context.Context, guest string) error {
	return c.guestCall(ctx, guest, "Discard", nil)
}

// Switch has the seat show it.
func (c *Client) Switch(ctx context.Context, guest string) error {
	return c.guestCall(ctx, guest, "Switch", nil)
}

// Check validates a definition and saves nothing.
func (c *Client) Check(ctx context.Context, definition string) error {
	return c.call(ctx, ManagerPath, ManagerInterface, "Check", []any{definition})
}

// Define adds a guest and returns its name.
func (c *Client) Define(ctx context.Context, definition string) (guest string, err error) {
	var path dbus.ObjectPath
	if err := c.call(ctx, ManagerPath, ManagerInterface, "DefineGuest", []any{definition}, &path); err != nil {
		return "", err
	}
	o, _ := ParsePath(path)
	return o.Guest, nil
}

// Definition returns a guest's definition and its tag.
func (c *Client) Definition(ctx context.Context, guest string) (text, tag string, err error) {
	return text, tag, c.guestCall(ctx, guest, "GetDefinition", nil, &text, &tag)
}

// SetDefinition replaces a guest's definition if it is still the one that tag belongs to, else it is ErrChanged; "" replaces any.
func (c *Client) SetDefinition(ctx context.Context, guest, text, tag string) error {
	return c.guestCall(ctx, guest, "SetDefinition", []any{text, tag})
}

// Delete removes a guest with all but its disks.
func (c *Client) Delete(ctx context.Context, guest string) error {
	return c.guestCall(ctx, guest, "Delete", nil)
}

// Picture returns a guest's screen as PNG, no side longer than side pixels.
func (c *Client) Picture(ctx context.Context, guest string, side uint32) (png []byte, err error) {
	return png, c.guestCall(ctx, guest, "GetPicture", []any{side}, &png)
}

// Sample is what a guest used at one moment. All but Time and Memory count from its start.
type Sample struct {
	Time                  time.Time
	CPU                   time.Duration
	Memory                uint64
	DiskRead, DiskWritten uint64
	NetReceived, NetSent  uint64
	Exits                 uint64
}

// Statistics returns what a guest used in the last ten minutes while somebody looked, the oldest first.
func (c *Client) Statistics(ctx context.Context, guest string) ([]Sample, error) {
	var raw []struct{ Time, CPU, Memory, DiskRead, DiskWritten, NetReceived, NetSent, Exits uint64 }
	if err := c.guestCall(ctx, guest, "GetStatistics", nil, &raw); err != nil {
		return nil, err
	}
	list := make([]Sample, len(raw))
	for n, s := range raw {
		list[n] = Sample{moment(s.Time), time.Duration(min(s.CPU, 1<<62)), s.Memory, s.DiskRead, s.DiskWritten,
			s.NetReceived, s.NetSent, s.Exits}
	}
	return list, nil
}

// Logs returns the names of a guest's logs.
func (c *Client) Logs(ctx context.Context, guest string) (names []string, err error) {
	return names, c.guestCall(ctx, guest, "ListLogs", nil, &names)
}

// ReadLog returns the last bytes of a log, at most limit and 1 MiB.
func (c *Client) ReadLog(ctx context.Context, guest, log string, limit uint32) (b []byte, err error) {
	return b, c.guestCall(ctx, guest, "ReadLog", []any{log, limit}, &b)
}

// Snapshots returns a guest's snapshots, the oldest first.
func (c *Client) Snapshots(ctx context.Context, guest string) ([]Snapshot, error) {
	if err := checkName("a guest", guest); err != nil {
		return nil, err
	}
	return list(ctx, c, GuestPath(guest), GuestInterface, "ListSnapshots", properties.snapshot)
}

// Snapshot begins to make a snapshot of a guest and returns the job.
func (c *Client) Snapshot(ctx context.Context, guest, snapshot string) (job uint64, err error) {
	return c.begin(ctx, guest, "Snapshot", snapshot)
}

// RestoreSnapshot begins to put a snapshot back and returns the job.
func (c *Client) RestoreSnapshot(ctx context.Context, guest, snapshot string, memory bool) (job uint64, err error) {
	var path dbus.ObjectPath
	if err := c.call(ctx, SnapshotPath(guest, snapshot), SnapshotInterface, "Restore", []any{memory}, &path); err != nil {
		return 0, err
	}
	return jobID(path)
}

// DeleteSnapshot removes a snapshot.
func (c *Client) DeleteSnapshot(ctx context.Context, guest, snapshot string) error {
	return c.call(ctx, SnapshotPath(guest, snapshot), SnapshotInterface, "Delete", nil)
}

// Jobs returns all jobs that run, and the newest of those that have ended.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) {
	return list(ctx, c, ManagerPath, ManagerInterface, "ListJobs", properties.job)
}

// Job returns a job.
func (c *Client) Job(ctx context.Context, id uint64) (Job, error) {
	p, err := c.all(ctx, JobPath(id), JobInterface)
	return p.job(), err
}

// Cancel asks a job to stop.
func (c *Client) Cancel(ctx context.Context, id uint64) error {
	return c.call(ctx, JobPath(id), JobInterface, "Cancel", nil)
}

// StopAll begins to stop all guests and returns the job.
func (c *Client) StopAll(ctx context.Context) (job uint64, err error) {
	var path dbus.ObjectPath
	if err := c.call(ctx, ManagerPath, ManagerInterface, "StopAll", nil, &path); err != nil {
		return 0, err
	}
	return jobID(path)
}
