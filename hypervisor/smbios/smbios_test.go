package smbios

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/mem"
)

func machine() Config {
	return Config{
		Version: "2", Serial: "L-0042", SKU: "small", Family: "Client", FirmwareDate: "11/22/2026",
		UUID: [16]byte{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff},
		CPUs: 4,
		Memory: []mem.Range{
			{Base: 0, Size: 0xA0000},
			{Base: 0xC0000, Size: 2<<30 - 0xC0000},
			{Base: 4 << 30, Size: 62 << 30},
		},
	}
}

func build(t *testing.T, c Config) *Tables {
	t.Helper()
	tables, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

func TestBuildRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(c *Config)
		want   string
	}{
		{"no CPU", func(c *Config) { c.CPUs = 0 }, "0 CPUs"},
		{"no memory", func(c *Config) { c.Memory = nil }, "0 ranges"},
		{"part of a page", func(c *Config) { c.Memory[0].Size = 1024 }, "whole pages"},
		{"beyond the end", func(c *Config) { c.Memory[0].Base = 1 << 63 }, "whole pages below 1 PiB"},
		{"too much memory", func(c *Config) { c.Memory[0].Size, c.Memory[1].Size = 1<<50, 1<<50 }, "at most 1 PiB"},
		{"zero in a string", func(c *Config) { c.Serial = "a\x00b" }, `"a\x00b"`},
		{"long string", func(c *Config) { c.Family = strings.Repeat("x", 65) }, "64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := machine()
			tt.change(&c)
			if _, err := Build(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build: %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// find searches m for an entry point, as a kernel does, and returns it and its structures.
func find(t *testing.T, m *mem.Memory, anchor string, length int) (entry, structures []byte) {
	t.Helper()
	for at := biosStart; at < biosEnd; at += 16 {
		e, err := m.Slice(at, length)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(e, []byte(anchor)) {
			continue
		}
		if s := sum(e); s != 0 {
			t.Errorf("%s adds up to %#x", anchor, s)
		}
		var gpa, n uint64
		if anchor == "_SM_" {
			if s := sum(e[16:]); s != 0 {
				t.Errorf("%s: second half adds up to %#x", anchor, s)
			}
			gpa, n = uint64(binary.LittleEndian.Uint32(e[0x18:])), uint64(binary.LittleEndian.Uint16(e[0x16:]))
		} else {
			gpa, n = binary.LittleEndian.Uint64(e[0x10:]), uint64(binary.LittleEndian.Uint32(e[0x0C:]))
		}
		structures, err := m.Slice(mem.GPA(gpa), int(n))
		if err != nil {
			t.Fatalf("%s: %d bytes of structures at %#x: %v", anchor, n, gpa, err)
		}
		return e, structures
	}
	t.Fatalf("no %s", anchor)
	return nil, nil
}

// types walks structures and returns their types and the size of the largest.
func types(t *testing.T, b []byte) (types []byte, largest int) {
	t.Helper()
	for len(b) > 0 {
		n := int(b[1])
		end := bytes.Index(b[n:], []byte{0, 0})
		if end < 0 {
			t.Fatalf("type %d: strings do not end", b[0])
		}
		size := n + end + 2
		types, largest = append(types, b[0]), max(largest, size)
		b = b[size:]
	}
	return types, largest
}

func TestPlace(t *testing.T) {
	m := mem.NewHeap(1 << 20)
	tables := build(t, machine())
	end, err := tables.Place(m, 0xF0010)
	if err != nil {
		t.Fatal(err)
	}
	e32, s32 := find(t, m, "_SM_", 0x1F)
	_, s64 := find(t, m, "_SM3_", 0x18)
	if !bytes.Equal(s32, s64) || !bytes.Equal(s32, tables.structures) {
		t.Error("the entry points lead to different structures")
	}
	got, largest := types(t, s32)
	if d := cmp.Diff([]byte{0, 1, 3, 4, 16, 17, 19, 19, 19, 32, 127}, got); d != "" {
		t.Errorf("types (-want +got):\n%s", d)
	}
	if n := binary.LittleEndian.Uint16(e32[0x08:]); int(n) != largest {
		t.Errorf("largest structure %d bytes, want %d", n, largest)
	}
	if n := binary.LittleEndian.Uint16(e32[0x1C:]); int(n) != len(got) {
		t.Errorf("%d structures, want %d", n, len(got))
	}
	if want := 0xF0010 + 64 + mem.GPA(len(s32)); end != want {
		t.Errorf("end %#x, want %#x", end, want)
	}
	for _, at := range []mem.GPA{0, 0xF0008, 0xE0000, 0xFFFF0, 0x100000} {
		if _, err := tables.Place(m, at); err == nil {
			t.Errorf("Place at %#x: no error", at)
		}
	}
	if _, err := tables.Place(mem.NewHeap(1<<16), 0xF0000); err == nil {
		t.Error("Place beyond memory: no error")
	}
}

func TestFiles(t *testing.T) {
	anchor, structures := build(t, machine()).Files()
	if len(anchor) != 0x1F || sum(anchor) != 0 || sum(anchor[16:]) != 0 {
		t.Errorf("anchor % x", anchor)
	}
	if n := binary.LittleEndian.Uint16(anchor[0x16:]); int(n) != len(structures) {
		t.Errorf("anchor: %d bytes of structures, want %d", n, len(structures))
	}
}

// TestDmidecode has dmidecode read what we say.
func TestDmidecode(t *testing.T) {
	if _, err := exec.LookPath("dmidecode"); err != nil {
		t.Skip("needs dmidecode")
	}
	huge := machine()
	huge.Memory = append(huge.Memory, mem.Range{Base: 4 << 40, Size: 1 << 40})
	tests := []struct {
		name   string
		config Config
		entry  func(*Tables) []byte
		want   []string
	}{
		{"2.8", machine(), func(t *Tables) []byte { return t.entry32(32) }, []string{"SMBIOS 2.8 present.", "Number Of Devices: 1"}},
		{"3.0", machine(), func(t *Tables) []byte { return t.entry64(32) }, []string{
			"SMBIOS 3.0.0 present.",
			"Vendor: Lodge", "Release Date: 11/22/2026", "ACPI is supported", "System is a virtual machine",
			"Manufacturer: Lodge", "Product Name: Lodge Virtual Machine", "Version: 2", "Serial Number: L-0042",
			"UUID: 00112233-4455-6677-8899-aabbccddeeff", "SKU Number: small", "Family: Client",
			"Wake-up Type: Power Switch", "Boot-up State: Safe",
			"Status: Populated, Enabled", "Core Count: 4", "Core Enabled: 4", "Thread Count: 4", "64-bit capable", "Multi-Core",
			"Error Correction Type: None", "Maximum Capacity: 64 GB", "Error Information Handle: Not Provided",
			"Size: 64 GB", "Locator: DIMM 0", "Type: RAM",
			"Starting Address: 0x00000000000", "Ending Address: 0x0000009FFFF", "Range Size: 640 kB",
			"Starting Address: 0x000000C0000", "Ending Address: 0x0007FFFFFFF",
			"Starting Address: 0x00100000000", "Ending Address: 0x0107FFFFFFF", "Range Size: 62 GB",
			"Status: No errors detected", "End Of Table",
		}},
		{"huge", huge, func(t *Tables) []byte { return t.entry64(32) }, []string{"Starting Address: 0x0000040000000000k", "Range Size: 1 TB"}},
		{"small", Config{CPUs: 1, Memory: []mem.Range{{Base: 0, Size: 64 << 20}}}, func(t *Tables) []byte { return t.entry64(32) },
			[]string{"Size: 64 MB", "Serial Number: Not Specified", "UUID: Not Settable", "Release Date: 01/01/2026"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tables := build(t, tt.config)
			dump := append(tt.entry(tables), make([]byte, 32)...)[:32]
			file := filepath.Join(t.TempDir(), "dump")
			if err := os.WriteFile(file, append(dump, tables.structures...), 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := exec.Command("dmidecode", "--from-dump", file).CombinedOutput()
			out := string(b)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range tt.want {
				if !strings.Contains(out, want) {
					t.Errorf("no %q", want)
				}
			}
			for _, bad := range []string{"<OUT OF SPEC>", "<BAD INDEX>", "TRUNCATED", "Wrong", "broken", "Invalid", "unknown"} {
				if strings.Contains(out, bad) {
					t.Errorf("%q", bad)
				}
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}
