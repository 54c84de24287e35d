package api

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// Action is a class of operations, which polkit allows or not (data/polkit-1).
type Action string

// The actions.
const (
	View    Action = client.BusName + ".view"    // see guests, jobs, statistics and pictures of screens
	Switch  Action = client.BusName + ".switch"  // choose which guest the seat shows
	Control Action = client.BusName + ".control" // start, stop, pause, save; read what guests print
	Define  Action = client.BusName + ".define"  // add, change, delete, copy, import and export guests, snapshots and images
	Host    Action = client.BusName + ".host"    // all guests at once, and what concerns the machine itself
)

// Actions are all actions.
func Actions() []Action { return []Action{View, Switch, Control, Define, Host} }

// arg is an argument of a method or a signal.
type arg struct {
	name, sig string
	max       int // bytes of a string; maxString if 0
}

// method is a method of an interface.
type method struct {
	name    string
	action  Action
	in, out []arg
	doc     string
	call    func(ctx context.Context, r *request) ([]any, error)
}

// signature returns the types of all arguments.
func signature(args []arg) string {
	var s strings.Builder
	for _, a := range args {
		s.WriteString(a.sig)
	}
	return s.String()
}

// property is a property of an interface, which can be read. What cannot change has const in place of a signal.
type property struct {
	name, sig string
	constant  bool
	doc       string
}

type signal struct {
	name string
	args []arg
	doc  string
}

// iface is an interface of ours.
type iface struct {
	name       string
	doc        string
	methods    []method
	properties []property
	signals    []signal
	// values returns the properties of the object that r is about.
	values func(r *request) (props, error)
}

// props are values of properties, by name.
type props = map[string]dbus.Variant

func (i *iface) method(name string) *method {
	if n := slices.IndexFunc(i.methods, func(m method) bool { return m.name == name }); n >= 0 {
		return &i.methods[n]
	}
	return nil
}

// Documents returns the descriptions of all interfaces by file name, as docs/api has them.
func Documents() map[string][]byte {
	files := make(map[string][]byte)
	for _, i := range interfaces() {
		files[i.name+".xml"] = []byte(doctype + "<node>\n" + i.describe(true) + "</node>\n")
	}
	return files
}

const doctype = `<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
`

// interfaces are all of ours.
func interfaces() []*iface {
	return []*iface{managerInterface(), guestInterface(), snapshotInterface(), poolInterface(), imageInterface(), networkInterface(), jobInterface()}
}

// describe returns the XML of an interface, for people with what everything is for.
func (i *iface) describe(docs bool) string {
	var b bytes.Buffer
	text := func(indent, s string) {
		if docs {
			fmt.Fprintf(&b, "%s<!-- %s -->\n", indent, s)
		}
	}
	esc := func(s string) string {
		var e bytes.Buffer
		_ = xml.EscapeText(&e, []byte(s)) // a Buffer takes everything
		return e.String()
	}
	list := func(args []arg, direction string) {
		for _, a := range args {
			fmt.Fprintf(&b, "   <arg name=%q type=%q%s/>\n", esc(a.name), esc(a.sig), direction)
		}
	}
	text(" ", i.doc)
	fmt.Fprintf(&b, " <interface name=%q>\n", i.name)
	for _, m := range i.methods {
		text("  ", fmt.Sprintf("%s (polkit: %s)", m.doc, m.action))
		fmt.Fprintf(&b, "  <method name=%q>\n", m.name)
		list(m.in, ` direction="in"`)
		list(m.out, ` direction="out"`)
		b.WriteString("  </method>\n")
	}
	for _, s := range i.signals {
		text("  ", s.doc)
		fmt.Fprintf(&b, "  <signal name=%q>\n", s.name)
		list(s.args, "")
		b.WriteString("  </signal>\n")
	}
	for _, p := range i.properties {
		text("  ", p.doc)
		emits := "true"
		if p.constant {
			emits = "const"
		}
		fmt.Fprintf(&b, "  <property name=%q type=%q access=\"read\">\n", p.name, p.sig)
		fmt.Fprintf(&b, "   <annotation name=\"org.freedesktop.DBus.Property.EmitsChangedSignal\" value=%q/>\n", emits)
		b.WriteString("  </property>\n")
	}
	b.WriteString(" </interface>\n")
	return b.String()
}
