package api

import (
	"context"
	"reflect"
	"slices"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// apiVersion grows by one when something is added that a program may want to know of.
const apiVersion uint32 = 2

// stopAllKind is the kind of StopAll's job.
const stopAllKind = "stop-all"

// entry is an object in a list: its path and its properties.
type entry struct {
	Path       dbus.ObjectPath
	Properties props
}

// listSignature is that of a list of entries.
const listSignature = "a(oa{sv})"

func managerInterface() *iface {
	return &iface{
		name: client.ManagerInterface,
		doc:  "All guests and pools of a host, at " + string(client.ManagerPath) + ".",
		methods: slices.Concat([]method{
			{name: "ListGuests", action: View, out: []arg{{"guests", rowSignature(), 0}},
				doc:  "All guests by name: the path of each one's object, and its properties in the order in which they are described.",
				call: listGuests},
			{name: "GetGuest", action: View, in: []arg{{"name", "s", 0}}, out: []arg{{"guest", "o", 0}},
				doc: "The guest of that name.", call: getGuest},
			{name: "Check", action: Define, in: []arg{{"definition", "s", maxText}},
				doc: "Validates a definition as DefineGuest or SetDefinition would, and saves nothing.", call: checkDefinition},
			{name: "DefineGuest", action: Define, in: []arg{{"definition", "s", maxText}}, out: []arg{{"guest", "o", 0}},
				doc: "Adds a guest. The definition is the text of its file, lodge-guest(5).", call: defineGuest},
			{name: "ListNetworks", action: View, out: []arg{{"networks", listSignature, 0}},
				doc: "All networks, by name.", call: listNetworks},
			{name: "GetNetwork", action: View, in: []arg{{"name", "s", 0}}, out: []arg{{"network", "o", 0}},
				doc: "The network of that name.", call: getNetwork},
			{name: "CheckNetwork", action: Define, in: []arg{{"definition", "s", maxText}},
				doc: "Validates a definition as DefineNetwork or a network's SetDefinition would, and saves nothing.", call: checkNetwork},
			{name: "DefineNetwork", action: Define, in: []arg{{"definition", "s", maxText}}, out: []arg{{"network", "o", 0}},
				doc: "Adds a network. The definition is the text of its file.", call: defineNetwork},
			{name: "Reload", action: Define, doc: "Reads the definitions of networks, pools and guests anew that people have edited by hand.", call: reload},
			{name: "ListJobs", action: View, out: []arg{{"jobs", listSignature, 0}},
				doc: "All jobs that run, and the newest of those that have ended, in the order in which they began.", call: listJobs},
			{name: "StopAll", action: Host, out: []arg{{"job", "o", 0}},
				doc:  "Stops all guests that run, those of the highest stop priority first, and others before what they depend on.",
				call: stopAll},
			{name: "Subscribe", action: View,
				doc:  "Has all signals sent to the caller from now on, until Unsubscribe, or as long as it is on the bus and may see guests.",
				call: subscribe},
			{name: "Unsubscribe", action: View, doc: "Ends what Subscribe and FollowLog began.", call: unsubscribe},
		}, poolMethodsOfManager()),
		signals: []signal{
			{name: "GuestAdded", args: []arg{{"guest", "o", 0}, {"name", "s", 0}}, doc: "There is a new guest."},
			{name: "GuestRemoved", args: []arg{{"guest", "o", 0}, {"name", "s", 0}}, doc: "A guest is gone."},
			{name: "PoolAdded", args: []arg{{"pool", "o", 0}, {"name", "s", 0}}, doc: "There is a new pool."},
			{name: "PoolRemoved", args: []arg{{"pool", "o", 0}, {"name", "s", 0}}, doc: "A pool is gone, its directory is not."},
			{name: "NetworkAdded", args: []arg{{"network", "o", 0}, {"name", "s", 0}}, doc: "There is a new network."},
			{name: "NetworkRemoved", args: []arg{{"network", "o", 0}, {"name", "s", 0}}, doc: "A network is gone."},
			{name: "JobAdded", args: []arg{{"job", "o", 0}, {"kind", "s", 0}, {"object", "s", 0}}, doc: "A job has begun."},
			{name: "Resync", doc: "Signals were lost, as there were too many: look at everything again."},
			{name: "Unsubscribed", args: []arg{{"reason", "s", 0}},
				doc: "No signals follow: the caller may not see guests any more."},
		},
		properties: []property{
			{"Version", "s", true, "The version of Lodge."},
			{"APIVersion", "u", true, "Grows by one when something is added to this API."},
		},
		values: func(r *request) (props, error) {
			return props{"Version": dbus.MakeVariant(r.Version), "APIVersion": dbus.MakeVariant(apiVersion)}, nil
		},
	}
}

func rowSignature() string { return dbus.SignatureOf([]client.Row{}).String() }

func (s *server) row(g *manager.Guest) client.Row {
	str := func(s string) string { return text(s, maxErrorText) }
	return client.Row{
		Path: client.GuestPath(g.Name), Name: g.Name, Label: str(g.Label), Color: str(g.Color), Icon: str(g.Icon), Slot: number(g.Slot),
		UUID: str(g.UUID), CPUs: number(g.CPUs), Memory: g.Memory, Autostart: g.Autostart, Disposable: g.Disposable,
		Depends: append([]string{}, g.Depends...), Fault: str(g.Fault), DefinitionTag: s.tag(g.Name), State: string(g.State),
		Since: micros(g.Since), Note: str(g.Note), Reason: str(g.Reason), Ready: g.Ready, Stale: g.Stale, PID: number(g.PID), Began: micros(g.Began),
		Reboots: number(g.Reboots), Restarts: number(g.Restarts), RestartAt: micros(g.RestartAt), SavedAt: micros(g.Saved),
		Display: str(g.Display), Serial: str(g.Serial), Console: str(g.Console), Vsock: str(g.Vsock),
	}
}

// propsOf returns the properties of a guest: the fields of its row, by the names of the table.
func propsOf(w *client.Row) props {
	p, fields := make(props), reflect.ValueOf(*w)
	for n, property := range guestProperties() {
		p[property.name] = dbus.MakeVariant(fields.Field(n + 1).Interface())
	}
	return p
}

func listGuests(_ context.Context, r *request) ([]any, error) {
	guests := r.Manager.List()
	list := make([]client.Row, len(guests))
	for n := range guests {
		list[n] = r.row(&guests[n])
	}
	return []any{list}, nil
}

func getGuest(_ context.Context, r *request) ([]any, error) {
	if err := guestName(r.str(0)); err != nil {
		return nil, err
	}
	g, err := r.Manager.Get(r.str(0))
	return []any{client.GuestPath(g.Name)}, err
}

func checkDefinition(_ context.Context, r *request) ([]any, error) {
	return nil, r.Manager.Check([]byte(r.str(0)))
}

func defineGuest(_ context.Context, r *request) ([]any, error) {
	name, err := r.Manager.Define([]byte(r.str(0)))
	return []any{client.GuestPath(name)}, err
}

func reload(_ context.Context, r *request) ([]any, error) { return nil, r.Manager.Reload() }

func listJobs(_ context.Context, r *request) ([]any, error) {
	jobs := r.Manager.Jobs().List()
	list := make([]entry, len(jobs))
	for n := range jobs {
		list[n] = entry{client.JobPath(jobs[n].ID), jobProps(&jobs[n])}
	}
	return []any{list}, nil
}

func stopAll(_ context.Context, r *request) ([]any, error) {
	m := r.Manager
	return jobPath(m.Jobs().Start(stopAllKind, "", func(ctx context.Context, _ func(done, total int64)) error {
		return m.StopAll(ctx)
	}))
}

func subscribe(ctx context.Context, r *request) ([]any, error) {
	return nil, r.subs.add(ctx, r.sender, r.uid)
}

func unsubscribe(_ context.Context, r *request) ([]any, error) {
	r.subs.remove(r.sender)
	return nil, nil
}
