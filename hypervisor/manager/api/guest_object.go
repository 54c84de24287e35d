package api

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// job is what the methods return that begin one.
func jobResult() []arg { return []arg{{"job", "o", 0}} }

// guestJob makes a method of one of the manager's that begin a job.
func guestJob(f func(m Manager, name string) (uint64, error)) func(context.Context, *request) ([]any, error) {
	return func(_ context.Context, r *request) ([]any, error) { return jobPath(f(r.Manager, r.object.Guest)) }
}

// guestCall makes a method of one of the manager's that returns nothing.
func guestCall(f func(ctx context.Context, m Manager, name string) error) func(context.Context, *request) ([]any, error) {
	return func(ctx context.Context, r *request) ([]any, error) { return nil, f(ctx, r.Manager, r.object.Guest) }
}

func guestInterface() *iface {
	return &iface{
		name: client.GuestInterface,
		doc:  "A guest, at " + string(client.GuestsPath) + "/NAME; in NAME all but letters and digits is _ and two hexadecimal digits.",
		methods: slices.Concat(guestLife(), guestDefinition(), guestSight(), []method{
			{name: "Snapshot", action: Define, in: []arg{{"name", "s", 0}}, out: jobResult(), call: makeSnapshot,
				doc: "Makes a snapshot of its disks, and of its memory if it runs: it is paused meanwhile."},
			{name: "SnapshotDisks", action: Define, in: []arg{{"name", "s", 0}}, out: jobResult(), call: snapshotDisks,
				doc: "The same without memory: it is paused for as long as its disks are copied, at once where the file system has reflinks."},
			{name: "Clone", action: Define, in: []arg{{"name", "s", 0}, {"snapshot", "s", 0}}, out: jobResult(), call: cloneGuest,
				doc: "Makes a guest of that name like it, which is off, or like it was at a snapshot: the disks that it writes to are copied to " +
					"images, and UUID, MACs and vsock CID are others. It gets no slot and no memory. To cancel the job leaves nothing."},
			{name: "Export", action: Define, in: []arg{{"file", "h", 0}}, out: jobResult(), call: exportGuest,
				doc: "Writes it, which is off, with all its disks as an OVA to an empty file. After an error the file is empty."},
			{name: "ListSnapshots", action: View, out: []arg{{"snapshots", listSignature, 0}}, call: listSnapshots,
				doc: "Its snapshots, the oldest first."},
		}),
		signals: []signal{
			{name: "StateChanged", args: []arg{{"state", "s", 0}, {"note", "s", 0}},
				doc: "It has come into another state. The note says why, for people, if there is a reason to be told."},
			{name: "Step", args: []arg{{"text", "s", 0}}, doc: "Something is done to it, for people."},
			{name: "SnapshotsChanged", doc: "Its snapshots are others."},
			{name: "Log", args: []arg{{"log", "s", 0}, {"data", "ay", 0}}, doc: "A log that FollowLog follows has grown."},
		},
		properties: guestProperties(),
		values: func(r *request) (props, error) {
			g, err := r.Manager.Get(r.object.Guest)
			if err != nil {
				return nil, err
			}
			return r.guestProps(&g), nil
		},
	}
}

func guestLife() []method {
	return []method{
		{name: "Start", action: Control, out: jobResult(), call: guestJob(Manager.Start),
			doc: "Starts it, after what it depends on, from its saved state if there is one. To cancel the job stops it while it waits."},
		{name: "Stop", action: Control, out: jobResult(), call: guestJob(Manager.Stop),
			doc: "Presses its power button, and switches it off if it has not ended in time. To cancel the job lets it run on."},
		{name: "Reboot", action: Control, out: jobResult(), call: guestJob(Manager.Reboot), doc: "Stops it and starts it again."},
		{name: "Kill", action: Control, out: jobResult(), call: guestJob(Manager.Kill),
			doc: "Switches it off, as by pulling the plug."},
		{name: "Pause", action: Control, doc: "Stops it where it is.",
			call: guestCall(func(ctx context.Context, m Manager, name string) error { return m.Pause(ctx, name) })},
		{name: "Resume", action: Control, doc: "Lets it run on.",
			call: guestCall(func(ctx context.Context, m Manager, name string) error { return m.Resume(ctx, name) })},
		{name: "Save", action: Control, out: jobResult(), call: guestJob(Manager.Save),
			doc: "Saves it with its memory and ends it; the next start goes on from there. To cancel the job lets it run on."},
		{name: "Discard", action: Control, doc: "Drops what is said of its crash, or else its saved state.",
			call: guestCall(func(_ context.Context, m Manager, name string) error { return m.Discard(name) })},
		{name: "ListKeys", action: View, out: []arg{{"disks", "as", 0}}, call: listKeys,
			doc: "The names of its encrypted disks whose keys are needed before it can be started."},
		{name: "GiveKey", action: Control, in: []arg{{"disk", "s", 0}, {"key", "h", 0}}, call: giveKey,
			doc: "Gives the key of an encrypted disk: up to 4096 bytes that a pipe or a file holds. It is kept in memory until the guest " +
				"is off the next time."},
		{name: "Switch", action: Switch, doc: "Has the seat show it.", call: switchTo},
	}
}

func guestDefinition() []method {
	return []method{
		{name: "GetDefinition", action: View, out: []arg{{"definition", "s", 0}, {"tag", "s", 0}}, call: getDefinition,
			doc: "The text of its file, and the tag that SetDefinition takes."},
		{name: "SetDefinition", action: Define, in: []arg{{"definition", "s", maxText}, {"tag", "s", 0}}, call: setDefinition,
			doc: "Replaces its definition if it is still the one that the tag belongs to; an empty tag replaces any. " +
				"While it runs, this is for its next start."},
		{name: "ListVersions", action: View, out: []arg{{"versions", "a(utt)", 0}}, call: listVersions,
			doc: "Its earlier definitions, the newest first: number, time at which it was replaced in microseconds since 1970, bytes."},
		{name: "GetVersion", action: View, in: []arg{{"number", "u", 0}}, out: []arg{{"definition", "s", 0}}, call: getVersion,
			doc: "An earlier definition."},
		{name: "Delete", action: Define, doc: "Removes it with its saved state, snapshots and logs. Its disks stay.",
			call: guestCall(func(_ context.Context, m Manager, name string) error { return m.Delete(name) })},
	}
}

func guestSight() []method {
	return []method{
		{name: "GetPicture", action: View, in: []arg{{"side", "u", 0}}, out: []arg{{"png", "ay", 0}}, call: thumbnail,
			doc: "Its screen as PNG, no side longer than that many pixels, 1 to 1024. It is looked at twice a second at most."},
		{name: "GetStatistics", action: View, out: []arg{{"samples", "a(tttttttt)", 0}}, call: statistics,
			doc: "What it used, a sample for each second that somebody looks, the oldest first, for ten minutes: time in microseconds " +
				"since 1970; processor time in nanoseconds; resident memory in bytes; bytes read from and written to disks; bytes " +
				"received from and sent to networks; exits. All but time and memory count from its start."},
		{name: "ListLogs", action: Control, out: []arg{{"logs", "as", 0}}, call: listLogs, doc: "The names of its logs."},
		{name: "ReadLog", action: Control, in: []arg{{"log", "s", 0}, {"limit", "u", 0}}, out: []arg{{"data", "ay", 0}}, call: readLog,
			doc: "The last bytes of a log, at most limit and 1 MiB."},
		{name: "FollowLog", action: Control, in: []arg{{"log", "s", 0}}, call: followLog,
			doc: "Has what is written to a log sent to the caller from now on by the signal Log, until Unsubscribe."},
	}
}

func guestProperties() []property {
	return []property{
		{"Name", "s", true, "Its name."},
		{"Label", "s", false, "A few words about it."},
		{"Color", "s", false, "The name of its colour."},
		{"Icon", "s", false, "The name of its icon."},
		{"Slot", "u", false, "1 to 9 for the key that switches to it, or 0."},
		{"UUID", "s", false, "Its UUID."},
		{"CPUs", "u", false, "How many virtual processors it has."},
		{"Memory", "t", false, "Its memory in bytes."},
		{"Autostart", "b", false, "It is started with the host."},
		{"Disposable", "b", false, "What it writes to its disks is dropped when it stops."},
		{"Depends", "as", false, "The names of the guests that are started before it."},
		{"Fault", "s", false, "What is wrong with its definition: it cannot be started."},
		{"DefinitionTag", "s", false, "Another one whenever its definition is another."},
		{"State", "s", false, "defined, saved, crashed, waiting, restarting, starting, running, paused, saving or stopping."},
		{"Since", "t", false, "When it came into this state, in microseconds since 1970."},
		{"Note", "s", false, "What people should know: why it crashed, why it is paused."},
		{"Reason", "s", false, "Why its machine has paused it, for programs: disk-full, or empty if it has not."},
		{"Ready", "b", false, "It runs and serves others."},
		{"Stale", "b", false, "It runs with an older definition."},
		{"PID", "u", false, "The process of its machine, or 0."},
		{"Began", "t", false, "When its machine was started, in microseconds since 1970."},
		{"Reboots", "u", false, "How often it has rebooted since then."},
		{"Restarts", "u", false, "How often it was started again after a crash, one after the other."},
		{"RestartAt", "t", false, "When it is started again, in microseconds since 1970, or 0."},
		{"SavedAt", "t", false, "When the saved state was made that a start goes on from, or 0."},
		{"DisplaySocket", "s", false, "The socket of its screen, for programs that may open it."},
		{"SerialSocket", "s", false, "The same of its first serial port."},
		{"ConsoleSocket", "s", false, "The same of its virtio console."},
		{"VsockSocket", "s", false, "The same of its vsock device."},
	}
}

// micros is a time as D-Bus carries it.
func micros(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(max(t.UnixMicro(), 0))
}

// number is a count as D-Bus carries it.
func number(n int) uint32 { return uint32(min(max(n, 0), math.MaxInt32)) }

// guestProps are the properties of a guest.
func (s *server) guestProps(g *manager.Guest) props {
	w := s.row(g)
	return propsOf(&w)
}

// tag returns that of a guest's definition; "" if it has none any more.
func (s *server) tag(name string) string {
	_, tag, err := s.Manager.Definition(name)
	if err != nil {
		return ""
	}
	return tag
}

// jobPath is what a method returns that begins a job.
func jobPath(id uint64, err error) ([]any, error) {
	return []any{client.JobPath(id)}, err
}

func switchTo(ctx context.Context, r *request) ([]any, error) {
	if _, err := r.Manager.Get(r.object.Guest); err != nil {
		return nil, err
	}
	if r.server.Switch == nil {
		return nil, errNoSeat
	}
	return nil, r.server.Switch(ctx, r.object.Guest)
}

func getDefinition(_ context.Context, r *request) ([]any, error) {
	b, tag, err := r.Manager.Definition(r.object.Guest)
	return []any{text(string(b), maxText), tag}, err
}

func setDefinition(_ context.Context, r *request) ([]any, error) {
	return nil, r.Manager.Edit(r.object.Guest, []byte(r.str(0)), r.str(1))
}

// version is one of ListVersions.
type version struct {
	Number uint32
	Time   uint64
	Size   uint64
}

func listVersions(_ context.Context, r *request) ([]any, error) {
	versions, err := r.Manager.Versions(r.object.Guest)
	list := make([]version, 0, len(versions))
	for _, v := range versions {
		list = append(list, version{number(v.Number), micros(v.Time), uint64(max(v.Size, 0))})
	}
	return []any{list}, err
}

func getVersion(_ context.Context, r *request) ([]any, error) {
	b, err := r.Manager.VersionText(r.object.Guest, int(min(r.uint32(0), math.MaxInt32)))
	return []any{text(string(b), maxText)}, err
}

func thumbnail(ctx context.Context, r *request) ([]any, error) {
	b, err := r.Manager.Thumbnail(ctx, r.object.Guest, int(number(int(r.uint32(0)))))
	return []any{b}, err
}

// sample is one of GetStatistics.
type sample struct {
	Time, CPU, Memory, DiskRead, DiskWritten, NetReceived, NetSent, Exits uint64
}

func statistics(ctx context.Context, r *request) ([]any, error) {
	samples, err := r.Manager.Stats(ctx, r.object.Guest)
	list := make([]sample, 0, len(samples))
	for _, s := range samples {
		list = append(list, sample{micros(s.Time), uint64(max(s.CPU, 0)), s.Memory, s.DiskRead, s.DiskWritten,
			s.NetReceived, s.NetSent, s.Exits})
	}
	return []any{list}, err
}

func listLogs(_ context.Context, r *request) ([]any, error) {
	logs, err := r.Manager.Logs(r.object.Guest)
	return []any{append([]string{}, slices.Sorted(maps.Keys(logs))...)}, err
}

func readLog(_ context.Context, r *request) ([]any, error) {
	b, err := r.Manager.Tail(r.object.Guest, r.str(0), int(min(r.uint32(1), manager.MaxTail)))
	if b == nil {
		b = []byte{}
	}
	return []any{b}, err
}

func followLog(ctx context.Context, r *request) ([]any, error) {
	logs, err := r.Manager.Logs(r.object.Guest)
	if err != nil {
		return nil, err
	}
	if _, ok := logs[r.str(0)]; !ok {
		return nil, standard(invalidArgsError, fmt.Sprintf("guest %s: no log %.40q", r.object.Guest, r.str(0)))
	}
	return nil, r.subs.follow(ctx, r)
}

func makeSnapshot(_ context.Context, r *request) ([]any, error) {
	if err := guestName(r.str(0)); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return jobPath(r.Manager.Snapshot(r.object.Guest, r.str(0)))
}

func listSnapshots(_ context.Context, r *request) ([]any, error) {
	snapshots, err := r.Manager.Snapshots(r.object.Guest)
	list := make([]entry, len(snapshots))
	for n := range snapshots {
		list[n] = entry{client.SnapshotPath(r.object.Guest, snapshots[n].Name), snapshotProps(&snapshots[n])}
	}
	return []any{list}, err
}
