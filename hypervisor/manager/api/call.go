package api

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// The interfaces that D-Bus itself defines.
const (
	propertiesInterface   = "org.freedesktop.DBus.Properties"
	introspectInterface   = "org.freedesktop.DBus.Introspectable"
	allowInteractiveFlag  = dbus.FlagAllowInteractiveAuthorization
	unknownMethodError    = "UnknownMethod"
	unknownObjectError    = "UnknownObject"
	unknownInterfaceError = "UnknownInterface"
	unknownPropertyError  = "UnknownProperty"
	invalidArgsError      = "InvalidArgs"
)

// request is a call.
type request struct {
	*server
	sender      string
	uid         uint32
	interactive bool
	object      client.Object
	path        dbus.ObjectPath
	iface       string
	args        []any
	files       []*os.File // descriptors that came along; what is nil was taken
}

func (r *request) uint64(n int) uint64 { return r.args[n].(uint64) }
func (r *request) str(n int) string    { return r.args[n].(string) }
func (r *request) uint32(n int) uint32 { return r.args[n].(uint32) }
func (r *request) bool(n int) bool     { return r.args[n].(bool) }

// A call goes through the D-Bus library by these three types. Whether the object and the method exist is only looked at in
// invoke, after it is known that the caller may know.

// LookupObject implements dbus.Handler.
func (s *server) LookupObject(path dbus.ObjectPath) (dbus.ServerObject, bool) {
	return target{server: s, path: path}, true
}

type target struct {
	*server
	path                dbus.ObjectPath
	ifaceName, methName string
}

// LookupInterface implements dbus.ServerObject.
func (t target) LookupInterface(name string) (dbus.Interface, bool) {
	t.ifaceName = name
	return t, true
}

// LookupMethod implements dbus.Interface.
func (t target) LookupMethod(name string) (dbus.Method, bool) {
	t.methName = name
	return t, true
}

// DecodeArguments implements dbus.ArgumentDecoder.
func (t target) DecodeArguments(_ *dbus.Conn, sender string, msg *dbus.Message, _ []any) ([]any, error) {
	return []any{sender, msg}, nil
}

// Call implements dbus.Method.
func (t target) Call(args ...any) ([]any, error) {
	out, err := t.invoke(args[0].(string), args[1].(*dbus.Message))
	if err != nil {
		return nil, busError(err)
	}
	return out, nil
}

// NumArguments implements dbus.Method, as do the next three; nobody calls them of a method that decodes its own arguments.
func (t target) NumArguments() int { return 0 }

// NumReturns implements dbus.Method.
func (t target) NumReturns() int { return 0 }

// ArgumentValue implements dbus.Method.
func (t target) ArgumentValue(int) any { return nil }

// ReturnValue implements dbus.Method.
func (t target) ReturnValue(int) any { return nil }

// invoke carries out a call.
func (t target) invoke(sender string, msg *dbus.Message) ([]any, error) {
	files := t.guard.take(callID{sender, msg.Serial()})
	defer func() {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.ctx, questionLimit+callLimit)
	defer cancel()
	uid, err := t.user(ctx, sender)
	if err != nil {
		return nil, err
	}
	if err := t.enter(uid); err != nil {
		t.log.Warn("call refused", "uid", uid, "method", t.methName, "err", err)
		return nil, err
	}
	defer t.leave(uid)
	r := &request{server: t.server, sender: sender, uid: uid, interactive: msg.Flags&allowInteractiveFlag != 0, path: t.path,
		iface: t.ifaceName, args: msg.Body, files: files}
	var known bool
	r.object, known = client.ParsePath(t.path)
	if t.ifaceName == introspectInterface && t.methName == "Introspect" {
		return r.introspect(ctx, known)
	}
	m := t.find()
	action := View
	if m != nil {
		action = m.action
		if err := checkArgs(m, msg); err != nil {
			return nil, err
		}
	}
	if err := t.allow(ctx, r, action); err != nil {
		t.log.Info("call refused", "uid", uid, "method", t.methName, "err", err)
		return nil, err
	}
	switch {
	case !known || r.object.Guest != "" && !definition.IsName(r.object.Guest) || r.object.Pool != "" && !definition.IsName(r.object.Pool):
		return nil, standard(unknownObjectError, fmt.Sprintf("there is no object %.200s", t.path))
	case m == nil:
		return nil, standard(unknownMethodError, fmt.Sprintf("%.200s has no method %.200s.%.200s", t.path, t.ifaceName, t.methName))
	case t.ifaceName != propertiesInterface && t.ifaceName != "" && t.ifaceName != r.kind():
		return nil, standard(unknownInterfaceError, fmt.Sprintf("%.200s is no %.200s", t.path, t.ifaceName))
	}
	ctx, cancelCall := context.WithTimeout(ctx, callLimit)
	defer cancelCall()
	out, err := m.call(ctx, r)
	if err == nil && action != View {
		t.done.Info("call", "uid", uid, "method", t.methName, "object", string(t.path))
	}
	return out, err
}

// kind returns the interface of ours that the object has.
func (r *request) kind() string {
	switch {
	case r.object.Snapshot != "":
		return client.SnapshotInterface
	case r.object.Guest != "":
		return client.GuestInterface
	case r.object.Image != "":
		return client.ImageInterface
	case r.object.Pool != "":
		return client.PoolInterface
	case r.object.Job != 0:
		return client.JobInterface
	case r.object.Network != "":
		return client.NetworkInterface
	}
	return client.ManagerInterface
}

// find returns the method that is called, or nil.
func (t target) find() *method {
	if t.ifaceName == propertiesInterface {
		return propertiesMethods.method(t.methName)
	}
	if i := t.tree[t.ifaceName]; i != nil {
		return i.method(t.methName)
	}
	if t.ifaceName == "" { // the caller leaves it to us
		o, _ := client.ParsePath(t.path)
		return t.tree[(&request{object: o}).kind()].method(t.methName)
	}
	return nil
}

// checkArgs checks the types of a call's arguments and how long they are.
func checkArgs(m *method, msg *dbus.Message) error {
	var got string
	if sig, ok := msg.Headers[dbus.FieldSignature].Value().(dbus.Signature); ok {
		got = sig.String()
	}
	if want := signature(m.in); got != want || len(msg.Body) != len(m.in) {
		return standard(invalidArgsError, fmt.Sprintf("%s: the arguments are of types %.40q, must be %q, and no more than %d bytes",
			m.name, got, want, maxMessage))
	}
	for n, a := range m.in {
		s, ok := msg.Body[n].(string)
		if limit := max(a.max, maxString); ok && (a.max == 0 && len(s) > maxString || len(s) > limit) {
			return standard(invalidArgsError, fmt.Sprintf("%s: %s has %d bytes: at most %d are possible", m.name, a.name, len(s), limit))
		}
	}
	return nil
}

// guestName checks a name before it is given to the manager.
func guestName(name string) error {
	if !definition.IsName(name) {
		return fmt.Errorf("%w: %.80q", store.ErrName, name)
	}
	return nil
}

// propertiesMethods are those of org.freedesktop.DBus.Properties.
var propertiesMethods = iface{
	name: propertiesInterface,
	methods: []method{
		{name: "Get", action: View, in: []arg{{"interface", "s", 0}, {"name", "s", 0}}, call: getProperty},
		{name: "GetAll", action: View, in: []arg{{"interface", "s", 0}}, call: getProperties},
		{name: "Set", action: View, in: []arg{{"interface", "s", 0}, {"name", "s", 0}, {"value", "v", 0}}, call: setProperty},
	},
}

// values returns the properties of r's object.
func (r *request) values(name string) (props, error) {
	if name != "" && name != r.kind() {
		if name == propertiesInterface || name == introspectInterface {
			return props{}, nil
		}
		return nil, standard(unknownInterfaceError, fmt.Sprintf("%s is no %.200s", r.path, name))
	}
	return r.tree[r.kind()].values(r)
}

func getProperties(_ context.Context, r *request) ([]any, error) {
	p, err := r.values(r.str(0))
	return []any{p}, err
}

func getProperty(_ context.Context, r *request) ([]any, error) {
	p, err := r.values(r.str(0))
	if err != nil {
		return nil, err
	}
	v, ok := p[r.str(1)]
	if !ok {
		return nil, standard(unknownPropertyError, fmt.Sprintf("no property %.200s", r.str(1)))
	}
	return []any{v}, nil
}

func setProperty(_ context.Context, r *request) ([]any, error) {
	p, err := r.values(r.str(0))
	if err != nil {
		return nil, err
	}
	if _, ok := p[r.str(1)]; !ok {
		return nil, standard(unknownPropertyError, fmt.Sprintf("no property %.200s", r.str(1)))
	}
	return nil, standard("PropertyReadOnly", fmt.Sprintf("%s is read-only: guests and networks are changed by SetDefinition", r.str(1)))
}

// standardXML describes the interfaces that all objects have.
const standardXML = ` <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId">
   <arg name="id" type="s" direction="out"/>
  </method>
 </interface>
 <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect">
   <arg name="xml" type="s" direction="out"/>
  </method>
 </interface>
 <interface name="org.freedesktop.DBus.Properties">
  <method name="Get">
   <arg name="interface" type="s" direction="in"/>
   <arg name="name" type="s" direction="in"/>
   <arg name="value" type="v" direction="out"/>
  </method>
  <method name="GetAll">
   <arg name="interface" type="s" direction="in"/>
   <arg name="properties" type="a{sv}" direction="out"/>
  </method>
  <method name="Set">
   <arg name="interface" type="s" direction="in"/>
   <arg name="name" type="s" direction="in"/>
   <arg name="value" type="v" direction="in"/>
  </method>
  <signal name="PropertiesChanged">
   <arg name="interface" type="s"/>
   <arg name="changed" type="a{sv}"/>
   <arg name="invalidated" type="as"/>
  </signal>
 </interface>
`

// introspect describes the object. What is below it, such as names of guests, is told to those only who may see guests.
func (r *request) introspect(ctx context.Context, known bool) ([]any, error) {
	var b strings.Builder
	b.WriteString(doctype + "<node>\n")
	if known {
		b.WriteString(standardXML)
		b.WriteString(r.tree[r.kind()].describe(false))
	}
	r.interactive = false
	if r.allow(ctx, r, View) == nil {
		for _, child := range r.children() {
			fmt.Fprintf(&b, " <node name=%q/>\n", child)
		}
	}
	b.WriteString("</node>\n")
	return []any{b.String()}, nil
}

// children returns the elements of paths that follow r's.
func (r *request) children() (list []string) {
	below := func(path dbus.ObjectPath) {
		prefix := string(r.path) + "/"
		if r.path == "/" {
			prefix = "/"
		}
		if rest, ok := strings.CutPrefix(string(path), prefix); ok {
			rest, _, _ = strings.Cut(rest, "/")
			if len(list) == 0 || list[len(list)-1] != rest {
				list = append(list, rest)
			}
		}
	}
	below(client.GuestsPath)
	below(client.NetworksPath)
	if r.path == client.NetworksPath {
		for _, n := range r.Manager.ListNetworks() {
			below(client.NetworkPath(n.Name))
		}
	}
	if r.path == client.ManagerPath || r.path == client.JobsPath {
		below(client.JobsPath)
		for _, j := range r.Manager.Jobs().List() {
			below(client.JobPath(j.ID))
		}
	}
	if r.path == client.ManagerPath || r.path == client.PoolsPath {
		below(client.PoolsPath)
		for _, p := range r.Manager.Pools() {
			below(client.PoolPath(p.Name))
		}
	}
	if r.object.Pool != "" && r.object.Image == "" || strings.HasSuffix(string(r.path), "/images") {
		o, _ := client.ParsePath(dbus.ObjectPath(strings.TrimSuffix(string(r.path), "/images")))
		images, _ := r.Manager.Images(o.Pool) // of a pool that is not there there are none
		for _, n := range images {
			below(client.ImagePath(o.Pool, n.Name))
		}
	}
	if r.path == client.GuestsPath {
		for _, g := range r.Manager.List() {
			below(client.GuestPath(g.Name))
		}
	}
	if r.object.Guest != "" && r.object.Snapshot == "" || strings.HasSuffix(string(r.path), "/snapshots") {
		o, _ := client.ParsePath(dbus.ObjectPath(strings.TrimSuffix(string(r.path), "/snapshots")))
		snapshots, _ := r.Manager.Snapshots(o.Guest) // of a guest that is not there there are none
		for _, n := range snapshots {
			below(client.SnapshotPath(o.Guest, n.Name))
		}
	}
	return list
}
