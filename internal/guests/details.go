package guests

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/lodgehv/lodge/console/textui"
	"github.com/lodgehv/lodge/hypervisor/definition"
)

// log is one of a guest's logs.
type log struct{ name, path string }

// logs returns the logs that a guest has.
func logs(file string, def *definition.Definition) []log {
	list := []log{{"machine", logFile(file)}}
	for _, p := range []struct {
		name string
		port definition.Serial
	}{{"serial port", def.Serial}, {"second serial port", def.Serial2}} {
		if p.port.Mode == "file" {
			list = append(list, log{p.name, p.port.Path})
		}
	}
	if def.Debug != "" {
		list = append(list, log{"debug console", def.Debug})
	}
	return list
}

// Log implements textui.System. A log that nobody has written to yet is empty.
func (g *Guests) Log(_ context.Context, name, which string, limit int) ([]byte, error) {
	def, err := g.definition(name)
	if err != nil {
		return nil, err
	}
	for _, l := range logs(g.each[name].Definition, def) {
		if l.name == which {
			b, err := tail(l.path, 0, limit)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, nil
			}
			return b, err
		}
	}
	return nil, fmt.Errorf("no log %q", which)
}

// Details implements textui.System.
func (g *Guests) Details(ctx context.Context, name string) (textui.Details, error) {
	def, err := g.definition(name)
	if err != nil {
		return textui.Details{}, err
	}
	file := g.each[name].Definition
	d := textui.Details{Sections: []textui.Section{
		{Title: "Machine", Facts: g.machine(ctx, def)},
		{Title: "Devices", Facts: devices(def)},
		{Title: "Files", Facts: []textui.Fact{
			{Name: "definition", Text: file}, {Name: "control", Text: def.Control}, {Name: "saved state", Text: savedText(file)},
		}},
	}}
	for _, l := range logs(file, def) {
		d.Logs = append(d.Logs, l.name)
		d.Sections[2].Facts = append(d.Sections[2].Facts, textui.Fact{Name: "log", Text: l.path + " (" + l.name + ")"})
	}
	return d, nil
}

func savedText(file string) string {
	if saved(file) {
		return savedDir(file)
	}
	return "none"
}

// machine tells of the board, and of the process if there is one.
func (g *Guests) machine(ctx context.Context, def *definition.Definition) []textui.Fact {
	facts := []textui.Fact{
		{Name: "name", Text: def.Name}, {Name: "uuid", Text: def.UUID},
		{Name: "CPUs", Text: fmt.Sprint(def.CPUs)}, {Name: "memory", Text: def.Memory.String()},
	}
	switch b := def.Boot; {
	case b.Firmware != "":
		facts = append(facts, textui.Fact{Name: "firmware", Text: b.Firmware})
	default:
		facts = append(facts, textui.Fact{Name: "kernel", Text: strings.TrimSpace(b.Kernel + " " + b.Cmdline)})
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	st, pid, err := ask(ctx, def.Control)
	if err != nil {
		return facts
	}
	facts = append(facts, textui.Fact{Name: "process", Text: fmt.Sprint(pid)}, textui.Fact{Name: "reboots", Text: fmt.Sprint(st.Reboots)})
	if st.Balloon != nil {
		facts = append(facts, textui.Fact{Name: "balloon", Text: fmt.Sprintf("the guest has given up %d MiB", st.Balloon.Actual>>20)})
	}
	return facts
}

// devices tells of what is in the machine.
func devices(def *definition.Definition) (facts []textui.Fact) {
	add := func(name, format string, args ...any) {
		facts = append(facts, textui.Fact{Name: name, Text: fmt.Sprintf(format, args...)})
	}
	for _, k := range def.Disks {
		text := k.Path
		if st, err := os.Stat(k.Path); err != nil {
			text += ", which is not there"
		} else if st.Mode().IsRegular() {
			text += fmt.Sprintf(", %d MiB", (st.Size()+1<<20-1)>>20)
		}
		if k.ReadOnly {
			text += ", read-only"
		}
		if k.Direct {
			text += ", past the page cache"
		}
		add("disk "+k.Name, "%s", text)
	}
	for _, n := range def.NICs {
		if n.Tap != "" {
			add("nic "+n.Name, "%s, tap %s", n.MAC, n.Tap)
		} else {
			add("nic "+n.Name, "%s, socket %s", n.MAC, n.Socket)
		}
	}
	if d := def.Display; d != nil {
		add("display", "%s, %d×%d at first, %s", d.Card, d.Width, d.Height, d.Path)
	}
	serial := func(name string, s definition.Serial) {
		switch s.Mode {
		case "none":
		case "stdio":
			add(name, "nowhere if it is started here: mode = \"file\" or \"socket\" keeps it")
		default:
			add(name, "%s %s", s.Mode, s.Path)
		}
	}
	serial("serial port", def.Serial)
	serial("serial port 2", def.Serial2)
	if def.Console != nil {
		add("console", "%s", def.Console.Path)
	}
	if def.Vsock != nil {
		add("vsock", "CID %d, %s", def.Vsock.CID, def.Vsock.Path)
	}
	if def.Balloon {
		add("balloon", "yes")
	}
	return facts
}
