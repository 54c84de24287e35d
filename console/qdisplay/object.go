package qdisplay

import (
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lodgehv/lodge/console/qdisplay/peer"
)

// object is what can be called at a path. The tables are the truth of which methods there are: what is introspected is made
// from them.
type object struct {
	path   string
	ifaces []iface
}

type iface struct {
	name       string
	methods    []method
	properties []property
}

// method is one that has no result. An error that is no *failure is one of the arguments.
type method struct {
	name string
	args []arg
	call func(m *peer.Message, args *peer.Decoder) error

	sig string // of the arguments
}

type arg struct{ name, sig string }

// property is read by encoding its value, without a signature before it.
type property struct {
	name, sig string
	get       func(*peer.Encoder)
}

// failure is an error with D-Bus's name for it.
type failure struct{ name, text string }

func (f *failure) Error() string { return f.text }

func failf(name, format string, args ...any) error {
	return &failure{name, fmt.Sprintf(format, args...)}
}

// objects are those of a connection, for which they answer calls.
type objects struct {
	conn    *peer.Conn
	list    []object
	args    peer.Decoder // of the call that is handled
	scratch peer.Encoder
}

// newObjects makes objects; conn must be set before it serves.
func newObjects(list []object) *objects {
	for _, obj := range list {
		for _, i := range obj.ifaces {
			for k := range i.methods {
				for _, a := range i.methods[k].args {
					i.methods[k].sig += a.sig
				}
			}
		}
	}
	return &objects{list: list}
}

// handle answers a call. Signals mean nothing here.
func (o *objects) handle(m *peer.Message) {
	if m.Type != peer.MethodCall {
		return
	}
	var err error
	switch m.Interface {
	case ifaceIntrospectable, ifaceObjectManager, ifaceProperties:
		err = o.standard(m)
	default:
		if err = o.call(m); err == nil {
			o.conn.Reply(m, "", nil)
		}
	}
	if err == nil {
		return
	}
	name := peer.ErrInvalidArgs
	var f *failure
	if errors.As(err, &f) {
		name = f.name
	}
	o.conn.Fail(m, name, err.Error())
}

func (o *objects) call(m *peer.Message) error {
	i, err := o.iface(m.Path, m.Interface)
	if err != nil {
		return err
	}
	for k := range i.methods {
		method := &i.methods[k]
		if method.name != m.Member {
			continue
		}
		if o.args, err = m.Args(method.sig); err != nil {
			return err
		}
		return method.call(m, &o.args)
	}
	return failf(peer.ErrUnknownMethod, "%s has no method %s", i.name, m.Member)
}

func (o *objects) iface(path, name string) (*iface, error) {
	for k := range o.list {
		if o.list[k].path != path {
			continue
		}
		ifaces := o.list[k].ifaces
		for n := range ifaces {
			if ifaces[n].name == name {
				return &ifaces[n], nil
			}
		}
		return nil, failf(peer.ErrUnknownInterface, "%s has no interface %q", path, name)
	}
	return nil, failf(peer.ErrUnknownObject, "there is no object %s", path)
}

// standard answers the calls of the interfaces that all objects have.
func (o *objects) standard(m *peer.Message) error {
	e := &o.scratch
	e.Reset()
	switch m.Interface + "." + m.Member {
	case ifaceIntrospectable + ".Introspect":
		text := o.introspect(m.Path)
		if text == "" {
			return failf(peer.ErrUnknownObject, "there is no object %s", m.Path)
		}
		e.Str(text)
		o.conn.Reply(m, "s", e.Bytes())
		return nil

	case ifaceProperties + ".Get":
		d, err := m.Args("ss")
		name, prop := d.Str(), d.Str()
		if err = errors.Join(err, d.End()); err != nil {
			return err
		}
		i, err := o.iface(m.Path, name)
		if err != nil {
			return err
		}
		for _, p := range i.properties {
			if p.name == prop {
				e.Sig(p.sig)
				p.get(e)
				o.conn.Reply(m, "v", e.Bytes())
				return nil
			}
		}
		return failf(peer.ErrUnknownProperty, "%s has no property %s", name, prop)

	case ifaceProperties + ".GetAll":
		d, err := m.Args("s")
		name := d.Str()
		if err = errors.Join(err, d.End()); err != nil {
			return err
		}
		i, err := o.iface(m.Path, name)
		if err != nil {
			return err
		}
		i.encode(e)
		o.conn.Reply(m, "a{sv}", e.Bytes())
		return nil

	case ifaceProperties + ".Set":
		return failf(peer.ErrPropertyReadOnly, "the properties of %s cannot be set", m.Path)

	case ifaceObjectManager + ".GetManagedObjects":
		if m.Path != pathRoot {
			return failf(peer.ErrUnknownInterface, "%s manages no objects: %s does", m.Path, pathRoot)
		}
		list := e.Array(8)
		for _, obj := range o.list {
			e.Align(8)
			e.Str(obj.path)
			ifaces := e.Array(8)
			for k := range obj.ifaces {
				e.Align(8)
				e.Str(obj.ifaces[k].name)
				obj.ifaces[k].encode(e)
			}
			e.EndArray(ifaces, 8)
		}
		e.EndArray(list, 8)
		o.conn.Reply(m, "a{oa{sa{sv}}}", e.Bytes())
		return nil
	}
	return failf(peer.ErrUnknownMethod, "%s has no method %s", m.Interface, m.Member)
}

// encode writes all properties as an a{sv}.
func (i *iface) encode(e *peer.Encoder) {
	dict := e.Array(8)
	for _, p := range i.properties {
		e.Align(8)
		e.Str(p.name)
		e.Sig(p.sig)
		p.get(e)
	}
	e.EndArray(dict, 8)
}

// changed sends the signal that some properties of an object have new values.
func changed(conn *peer.Conn, path, name string, e *peer.Encoder, values ...property) error {
	e.Reset()
	e.Str(name)
	(&iface{properties: values}).encode(e)
	e.Strs(nil)
	return conn.Send(&peer.Header{
		Type: peer.Signal, Flags: peer.NoReplyExpected, Path: path, Interface: ifaceProperties, Member: "PropertiesChanged",
		Signature: "sa{sv}as",
	}, e.Bytes())
}

// introspect returns the description of an object or of the nodes below, "" if there are none.
func (o *objects) introspect(path string) string {
	type xmlArg struct {
		Name      string `xml:"name,attr,omitempty"`
		Type      string `xml:"type,attr"`
		Direction string `xml:"direction,attr,omitempty"`
	}
	type xmlMethod struct {
		Name string   `xml:"name,attr"`
		Args []xmlArg `xml:"arg"`
	}
	type xmlProperty struct {
		Name   string `xml:"name,attr"`
		Type   string `xml:"type,attr"`
		Access string `xml:"access,attr"`
	}
	type xmlInterface struct {
		Name       string        `xml:"name,attr"`
		Methods    []xmlMethod   `xml:"method"`
		Signals    []xmlMethod   `xml:"signal"`
		Properties []xmlProperty `xml:"property"`
	}
	type xmlChild struct {
		Name string `xml:"name,attr"`
	}
	var node struct {
		XMLName    xml.Name       `xml:"node"`
		Interfaces []xmlInterface `xml:"interface"`
		Children   []xmlChild     `xml:"node"`
	}
	in := func(name, sig string) xmlArg { return xmlArg{name, sig, "in"} }
	out := func(name, sig string) xmlArg { return xmlArg{name, sig, "out"} }
	below := strings.TrimSuffix(path, "/") + "/"
	for _, obj := range o.list {
		if rest, ok := strings.CutPrefix(obj.path, below); ok {
			child, _, _ := strings.Cut(rest, "/")
			if !slices.Contains(node.Children, xmlChild{child}) {
				node.Children = append(node.Children, xmlChild{child})
			}
		}
		if obj.path != path {
			continue
		}
		for _, i := range obj.ifaces {
			x := xmlInterface{Name: i.name}
			for _, m := range i.methods {
				xm := xmlMethod{Name: m.name}
				for _, a := range m.args {
					xm.Args = append(xm.Args, in(a.name, a.sig))
				}
				x.Methods = append(x.Methods, xm)
			}
			for _, p := range i.properties {
				x.Properties = append(x.Properties, xmlProperty{p.name, p.sig, "read"})
			}
			node.Interfaces = append(node.Interfaces, x)
		}
		node.Interfaces = append(node.Interfaces, xmlInterface{
			Name: ifaceProperties,
			Methods: []xmlMethod{
				{"Get", []xmlArg{in("interface", "s"), in("property", "s"), out("value", "v")}},
				{"GetAll", []xmlArg{in("interface", "s"), out("properties", "a{sv}")}},
				{"Set", []xmlArg{in("interface", "s"), in("property", "s"), in("value", "v")}},
			},
			Signals: []xmlMethod{{"PropertiesChanged", []xmlArg{
				{"interface", "s", ""}, {"changed", "a{sv}", ""}, {"invalidated", "as", ""}}}},
		})
	}
	if node.Interfaces == nil && node.Children == nil {
		return ""
	}
	if path == pathRoot {
		node.Interfaces = append(node.Interfaces, xmlInterface{
			Name:    ifaceObjectManager,
			Methods: []xmlMethod{{"GetManagedObjects", []xmlArg{out("objects", "a{oa{sa{sv}}}")}}},
		})
	}
	node.Interfaces = append(node.Interfaces,
		xmlInterface{Name: ifaceIntrospectable, Methods: []xmlMethod{{"Introspect", []xmlArg{out("xml", "s")}}}},
		xmlInterface{Name: "org.freedesktop.DBus.Peer", Methods: []xmlMethod{{Name: "Ping"}}})
	text, err := xml.MarshalIndent(node, "", "  ")
	if err != nil {
		return ""
	}
	return `<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN" ` +
		`"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">` + "\n" + string(text) + "\n"
}
