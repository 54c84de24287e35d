package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/console/output"
)

func TestLayout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "monitors.json")
	l, err := LoadLayout(file)
	if err != nil {
		t.Fatal(err)
	}
	dell := Monitor{ID: MonitorID(output.Info{Name: "DP-1", Monitor: "DEL-a0b1-12345678"}), Guest: "work", Width: 1920, Height: 1200}
	panel := Monitor{ID: MonitorID(output.Info{Name: "eDP-1"})}
	for _, m := range []Monitor{{ID: dell.ID, Guest: "personal"}, panel, dell} {
		l.Remember(m)
	}
	if err := l.Save(file); err != nil {
		t.Fatal(err)
	}
	got, err := LoadLayout(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Layout{[]Monitor{dell, panel}}, got); diff != "" {
		t.Errorf("read again (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(dell, got.Find("DEL-a0b1-12345678")); diff != "" {
		t.Errorf("known monitor (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Monitor{ID: "new"}, got.Find("new")); diff != "" {
		t.Errorf("new monitor (-want +got):\n%s", diff)
	}
	for i := range 2 * maxMonitors {
		got.Remember(Monitor{ID: fmt.Sprint(i)})
	}
	if n := len(got.Monitors); n != maxMonitors || got.Monitors[0].ID != fmt.Sprint(2*maxMonitors-1) {
		t.Errorf("%d monitors, the first %q", n, got.Monitors[0].ID)
	}
	if files, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); err != nil || len(files) > 0 {
		t.Errorf("left over: %v, %v", files, err)
	}
}

func TestLayoutDamaged(t *testing.T) {
	for name, text := range map[string]string{
		"empty":    "",
		"half":     `{"monitors": [{"id"`,
		"unknown":  `{"screens": []}`,
		"too long": strings.Repeat(" ", maxLayout) + "{}",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "monitors.json")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadLayout(file); err == nil || !strings.Contains(err.Error(), file) {
				t.Errorf("error %v does not name the file", err)
			}
		})
	}
	if err := (&Layout{}).Save(filepath.Join(t.TempDir(), "none", "monitors.json")); err == nil {
		t.Error("saved where there is no directory")
	}
}

func TestMonitorMode(t *testing.T) {
	big, small := output.Mode{Width: 1920, Height: 1200}, output.Mode{Width: 1024, Height: 768}
	for name, tt := range map[string]struct {
		m     Monitor
		modes []output.Mode
		want  output.Mode
		ok    bool
	}{
		"remembered": {Monitor{Width: 1024, Height: 768}, []output.Mode{big, small}, small, true},
		"preferred":  {Monitor{}, []output.Mode{big, small}, big, true},
		"gone":       {Monitor{Width: 1, Height: 1}, []output.Mode{big, small}, big, true},
		"no modes":   {Monitor{}, nil, output.Mode{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := tt.m.Mode(tt.modes)
			if got != tt.want || ok != tt.ok {
				t.Errorf("%v, %t; want %v, %t", got, ok, tt.want, tt.ok)
			}
		})
	}
}
