"""A client of org.qemu.Display1 by GLib's D-Bus, which is told what to do by lines on its standard input and tells what it
sees by lines of JSON. Its argument is the path of the display socket."""

import json
import mmap
import os
import socket
import sys

import gi

gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib  # noqa: E402

ROOT = "/org/qemu/Display1"
CONSOLE = ROOT + "/Console_0"

LISTENER = """
<node>
  <interface name="org.qemu.Display1.Listener">
    <method name="Scanout">
      <arg type="u"/><arg type="u"/><arg type="u"/><arg type="u"/><arg type="ay"/>
    </method>
    <method name="Update">
      <arg type="i"/><arg type="i"/><arg type="i"/><arg type="i"/><arg type="u"/><arg type="u"/><arg type="ay"/>
    </method>
    <method name="Disable"/>
    <method name="MouseSet"><arg type="i"/><arg type="i"/><arg type="i"/></method>
    <method name="CursorDefine">
      <arg type="i"/><arg type="i"/><arg type="i"/><arg type="i"/><arg type="ay"/>
    </method>
    <property name="Interfaces" type="as" access="read"/>
  </interface>
  <interface name="org.qemu.Display1.Listener.Unix.Map">
    <method name="ScanoutMap">
      <arg type="h"/><arg type="u"/><arg type="u"/><arg type="u"/><arg type="u"/><arg type="u"/>
    </method>
    <method name="UpdateMap"><arg type="i"/><arg type="i"/><arg type="i"/><arg type="i"/></method>
  </interface>
</node>
"""


def tell(**what):
    print(json.dumps(what), flush=True)


class Client:
    def __init__(self, path):
        self.conn = Gio.DBusConnection.new_for_address_sync(
            "unix:path=" + path, Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT, None, None)
        self.conn.signal_subscribe(
            None, "org.freedesktop.DBus.Properties", "PropertiesChanged", None, None, Gio.DBusSignalFlags.NONE, self.changed)
        self.listeners = []
        self.memory = None

    def changed(self, conn, sender, path, iface, name, args):
        iface, values, _ = args.unpack()
        tell(event="changed", path=path, interface=iface, values=values)

    def call(self, path, iface, name, args=None):
        reply = self.conn.call_sync(None, path, iface, name, args, None, Gio.DBusCallFlags.NONE, 60000, None)
        return reply.unpack()

    def get(self, path, iface):
        return self.call(path, "org.freedesktop.DBus.Properties", "GetAll", GLib.Variant("(s)", (iface,)))[0]

    def listen(self, maps):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        fds = Gio.UnixFDList.new()
        fds.append(theirs.fileno())
        self.conn.call_with_unix_fd_list_sync(
            None, CONSOLE, "org.qemu.Display1.Console", "RegisterListener", GLib.Variant("(h)", (0,)), None,
            Gio.DBusCallFlags.NONE, 60000, fds, None)
        theirs.close()
        stream = Gio.Socket.new_from_fd(ours.detach()).connection_factory_create_connection()
        conn = Gio.DBusConnection.new_sync(
            stream, None,
            Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.DELAY_MESSAGE_PROCESSING, None, None)
        node = Gio.DBusNodeInfo.new_for_xml(LISTENER)
        interfaces = ["org.qemu.Display1.Listener.Unix.Map"] if maps else []
        for info in node.interfaces[:1 + maps]:
            conn.register_object(
                ROOT + "/Listener", info, self.shown,
                lambda *_: GLib.Variant("as", interfaces), None)
        conn.start_message_processing()
        self.listeners.append(conn)

    def shown(self, conn, sender, path, iface, name, args, invocation):
        values = [args.get_child_value(i) for i in range(args.n_children())]
        if name in ("Scanout", "Update", "CursorDefine"):
            data = values.pop().get_data_as_bytes().get_data()
            tell(event=name, args=[v.unpack() for v in values], size=len(data), first=data[:4].hex(), last=data[-4:].hex())
        elif name == "ScanoutMap":
            fd = invocation.get_message().get_unix_fd_list().get(values[0].get_handle())
            self.memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ), values[1].unpack(), values[4].unpack()
            tell(event=name, args=[v.unpack() for v in values[1:]], pixel=self.pixel(0, 0))
        elif name == "UpdateMap":
            args = [v.unpack() for v in values]
            tell(event=name, args=args, pixel=self.pixel(args[0], args[1]))
        else:
            tell(event=name, args=[v.unpack() for v in values])
        invocation.return_value(None)

    def pixel(self, x, y):
        mem, offset, stride = self.memory
        at = offset + y * stride + 4 * x
        return mem[at:at + 4].hex()

    def command(self, word, args):
        if word == "vm":
            tell(event="vm", values=self.get(ROOT + "/VM", "org.qemu.Display1.VM"))
        elif word == "introspect":
            xml = self.call(args[0], "org.freedesktop.DBus.Introspectable", "Introspect")[0]
            info = Gio.DBusNodeInfo.new_for_xml(xml)
            tell(event="introspected", interfaces=[i.name for i in info.interfaces], nodes=[n.path for n in info.nodes])
        elif word == "objects":
            objects = self.call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")[0]
            tell(event="objects", values={p: sorted(i) for p, i in objects.items()})
        elif word == "listen":
            self.listen(args == ["map"])
        elif word in ("press", "release"):
            self.call(CONSOLE, "org.qemu.Display1.Keyboard", word.title(), GLib.Variant("(u)", (int(args[0]),)))
            tell(event=word)
        elif word == "move":
            self.call(CONSOLE, "org.qemu.Display1.Mouse", "SetAbsPosition", GLib.Variant("(uu)", (int(args[0]), int(args[1]))))
            tell(event=word)
        elif word == "bad":
            try:
                self.call(CONSOLE, "org.qemu.Display1.Keyboard", "Press", GLib.Variant("(s)", ("x",)))
            except GLib.Error as e:
                tell(event="refused", error=Gio.DBusError.get_remote_error(e))


def main():
    client = Client(sys.argv[1])
    loop = GLib.MainLoop()
    rest = b""

    def readable(fd, condition):
        nonlocal rest
        data = os.read(0, 4096)
        if not data:
            loop.quit()
            return False
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            word, *args = line.decode().split()
            client.command(word, args)
        return True

    GLib.unix_fd_add_full(GLib.PRIORITY_DEFAULT, 0, GLib.IOCondition.IN | GLib.IOCondition.HUP, readable)
    loop.run()


main()
