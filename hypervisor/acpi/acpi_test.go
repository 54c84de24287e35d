package acpi

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/hypervisor/acpi/aml"
	"github.com/lodgehv/lodge/hypervisor/mem"
)

// board returns the Config of a board with everything.
func board() Config {
	return Config{
		APICIDs: []uint8{0, 1, 2, 3}, LAPICBase: 0xFEE00000, IOAPICID: 4, IOAPICBase: 0xFEC00000,
		ECAMBase: 0xB0000000, ECAMBuses: 256,
		PCIIO:    Window{0x1000, 0xFFFF},
		PCIMem32: Window{0xC0000000, 0xFEBFFFFF},
		PCIMem64: Window{0x8000000000, 0x9FFFFFFFFF},
		INTx:     func(slot, pin int) uint32 { return 16 + uint32(slot+pin)%8 },
		PMBase:   0x600, ResetPort: 0xCF9, ResetValue: 6, S3: true, S4: true,
		CenturyReg: 0x32, VGA: true, I8042: true, COM1: true, COM2: true, FWCfg: true, VMGenID: true,
		Extra: []aml.Term{
			aml.Scope(`\_SB`, aml.Device("AC", aml.Name("_HID", aml.String("ACPI0003")), aml.Name("_PSR", aml.Int(1)))),
		},
	}
}

// smallBoard returns the Config of a board with as little as possible.
func smallBoard() Config {
	c := board()
	c.APICIDs, c.ECAMBuses, c.PCIMem64 = []uint8{0}, 1, Window{}
	c.S3, c.S4, c.CenturyReg, c.VGA, c.I8042, c.COM1, c.COM2, c.FWCfg, c.VMGenID = false, false, 0, false, false, false, false, false, false
	c.Extra = nil
	return c
}

// guest is what a guest finds by following the pointers.
type guest struct {
	t      *testing.T
	mem    *mem.Memory
	tables map[string][]byte
}

func (g *guest) bytes(gpa uint64, n int) []byte {
	g.t.Helper()
	b, err := g.mem.Slice(mem.GPA(gpa), n)
	if err != nil {
		g.t.Fatalf("%d bytes at %#x: %v", n, gpa, err)
	}
	return b
}

// table returns the table at gpa after checking its checksum.
func (g *guest) table(gpa uint64) []byte {
	g.t.Helper()
	n := binary.LittleEndian.Uint32(g.bytes(gpa, 8)[4:])
	b := g.bytes(gpa, int(n))
	sig := string(b[:4])
	if s := sum(b); s != 0 && sig != "FACS" {
		g.t.Errorf("%s: bytes add up to %#x", sig, s)
	}
	g.tables[sig] = b
	return b
}

// discover finds all tables as a kernel does, by searching for the RSDP.
func discover(t *testing.T, m *mem.Memory) map[string][]byte {
	t.Helper()
	g := guest{t, m, map[string][]byte{}}
	for at := uint64(biosStart); at < uint64(biosEnd); at += 16 {
		p := g.bytes(at, 36)
		if string(p[:8]) != "RSD PTR " {
			continue
		}
		if sum(p[:20]) != 0 || sum(p) != 0 {
			t.Errorf("RSDP at %#x: bytes add up to %#x and %#x", at, sum(p[:20]), sum(p))
		}
		g.tables["RSDP"] = p
		rsdt := g.table(uint64(binary.LittleEndian.Uint32(p[16:])))
		xsdt := g.table(binary.LittleEndian.Uint64(p[24:]))
		if d := cmp.Diff(pointers(xsdt, 8), pointers(rsdt, 4)); d != "" {
			t.Errorf("XSDT and RSDT differ (-XSDT +RSDT):\n%s", d)
		}
		for p := xsdt[headerLen:]; len(p) > 0; p = p[8:] {
			table := g.table(binary.LittleEndian.Uint64(p))
			if string(table[:4]) == "FACP" {
				if a, b := binary.LittleEndian.Uint32(table[40:]), binary.LittleEndian.Uint64(table[140:]); uint64(a) != b {
					t.Errorf("FADT: DSDT %#x, X_DSDT %#x", a, b)
				}
				facs := uint64(binary.LittleEndian.Uint32(table[36:]))
				if facs%64 != 0 {
					t.Errorf("FACS at %#x: want a multiple of 64", facs)
				}
				g.table(facs)
				g.table(binary.LittleEndian.Uint64(table[140:]))
			}
		}
		return g.tables
	}
	t.Fatal("no RSDP")
	return nil
}

// pointers returns the addresses, of size bytes each, that an RSDT or XSDT holds.
func pointers(table []byte, size int) (all []uint64) {
	for p := range slices.Chunk(table[headerLen:], size) {
		var b [8]byte
		copy(b[:], p)
		all = append(all, binary.LittleEndian.Uint64(b[:]))
	}
	return all
}

func build(t *testing.T, c Config) *Tables {
	t.Helper()
	tables, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// place returns the tables of c, as a guest finds them.
func place(t *testing.T, c Config) map[string][]byte {
	t.Helper()
	m := mem.NewHeap(1 << 20)
	if _, err := build(t, c).Place(m, biosStart); err != nil {
		t.Fatal(err)
	}
	return discover(t, m)
}

func TestPlace(t *testing.T) {
	m := mem.NewHeap(1 << 20)
	p, err := build(t, board()).Place(m, 0xE0010)
	if err != nil {
		t.Fatal(err)
	}
	if p.RSDP != 0xE0010 || p.GUID%4096 != guidOffset || p.End <= p.GUID || p.End > biosEnd {
		t.Errorf("placed %+v", p)
	}
	names := slices.Sorted(maps.Keys(discover(t, m)))
	if d := cmp.Diff([]string{"APIC", "DSDT", "FACP", "FACS", "MCFG", "RSDP", "RSDT", "XSDT"}, names); d != "" {
		t.Errorf("tables (-want +got):\n%s", d)
	}

	// The DSDT begins with the address of the identifier.
	dsdt := discover(t, m)["DSDT"]
	if got := mem.GPA(binary.LittleEndian.Uint32(dsdt[headerLen+7:])); string(dsdt[headerLen:headerLen+7]) != "\x08\\VGIA\x0C" || got != p.GUID {
		t.Errorf("DSDT names %q %#x, want VGIA %#x", dsdt[headerLen:headerLen+7], got, p.GUID)
	}

	for _, at := range []mem.GPA{0, 0xE0008, 0xDFFF0, 0xFF000, 0x100000} {
		if p, err := build(t, board()).Place(m, at); err == nil {
			t.Errorf("Place at %#x: no error, placed %+v", at, p)
		}
	}
	if _, err := build(t, board()).Place(mem.NewHeap(0xE1000), 0xE0000); err == nil {
		t.Error("Place beyond memory: no error")
	}
}

func TestBuildRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(c *Config)
		want   string
	}{
		{"no CPU", func(c *Config) { c.APICIDs = nil }, "0 CPUs"},
		{"many CPUs", func(c *Config) { c.APICIDs = make([]uint8, 17) }, "17 CPUs"},
		{"same CPU twice", func(c *Config) { c.APICIDs = []uint8{3, 3} }, "identifier 3"},
		{"broadcast", func(c *Config) { c.APICIDs = []uint8{255} }, "identifier 255"},
		{"no bus", func(c *Config) { c.ECAMBuses = 0 }, "0 buses"},
		{"configuration space too high", func(c *Config) { c.ECAMBase = 0xF8000000 }, "below 4 GiB"},
		{"port window over the ISA bridge", func(c *Config) { c.PCIIO.Base = 0x300 }, "port window"},
		{"memory window reversed", func(c *Config) { c.PCIMem32 = Window{2 << 20, 1 << 20} }, "32-bit memory window"},
		{"memory window low", func(c *Config) { c.PCIMem64.Base = 1 << 30 }, "64-bit memory window"},
		{"no routing", func(c *Config) { c.INTx = nil }, "routing"},
		{"routing to ISA", func(c *Config) { c.INTx = func(int, int) uint32 { return 11 } }, "GSI 11"},
		{"PM block", func(c *Config) { c.PMBase = 0x610 }, "power management"},
		{"reset", func(c *Config) { c.ResetPort = 0 }, "reset"},
		{"extra term", func(c *Config) { c.Extra = []aml.Term{aml.Name("lower", aml.Int(1))} }, "lower"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := board()
			tt.change(&c)
			if _, err := Build(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Build: %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestFADT(t *testing.T) {
	f := place(t, board())["FACP"]
	if len(f) != fadtLen || f[8] != 6 || f[131] != 5 {
		t.Errorf("length %d, version %d.%d", len(f), f[8], f[131])
	}
	u32 := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(f[at:])) }
	type value struct {
		Name string
		V    uint64
	}
	got := []value{
		{"SCI_INT", uint64(binary.LittleEndian.Uint16(f[46:]))},
		{"SMI_CMD", u32(48)},
		{"X_FIRMWARE_CTRL", binary.LittleEndian.Uint64(f[132:])},
		{"PM1a_EVT_BLK", u32(56)}, {"PM1a_CNT_BLK", u32(64)}, {"PM_TMR_BLK", u32(76)}, {"GPE0_BLK", u32(80)},
		{"CENTURY", uint64(f[108])},
		{"IAPC_BOOT_ARCH", uint64(binary.LittleEndian.Uint16(f[109:]))},
		{"Flags", u32(112)},
		{"RESET_VALUE", uint64(f[128])},
	}
	want := []value{
		{"SCI_INT", 9}, {"SMI_CMD", 0}, {"X_FIRMWARE_CTRL", 0},
		{"PM1a_EVT_BLK", 0x600}, {"PM1a_CNT_BLK", 0x604}, {"PM_TMR_BLK", 0x608}, {"GPE0_BLK", 0x620},
		{"CENTURY", 0x32}, {"IAPC_BOOT_ARCH", 3}, {"Flags", 0x425}, {"RESET_VALUE", 6},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("fields (-want +got):\n%s", d)
	}
	wantGAS := map[int]string{
		116: "1 8 1 0xcf9", 148: "1 32 0 0x600", 172: "1 16 2 0x604", 208: "1 32 3 0x608", 220: "1 128 0 0x620",
		160: "0 0 0 0x0", 184: "0 0 0 0x0", 232: "0 0 0 0x0",
	}
	gotGAS := map[int]string{}
	for at := range wantGAS {
		gotGAS[at] = fmt.Sprintf("%d %d %d %#x", f[at], f[at+1], f[at+3], binary.LittleEndian.Uint64(f[at+4:]))
	}
	if d := cmp.Diff(wantGAS, gotGAS); d != "" {
		t.Errorf("generic addresses (-want +got):\n%s", d)
	}
	if arch := place(t, smallBoard())["FACP"][109]; arch != bootLegacyDevices|bootNoVGA {
		t.Errorf("IAPC_BOOT_ARCH of the small board %#x", arch)
	}
}

func TestMADT(t *testing.T) {
	c := board()
	c.APICIDs = []uint8{0, 2}
	want := []byte("" +
		"\x00\x00\xE0\xFE" + "\x01\x00\x00\x00" +
		"\x00\x08\x00\x00\x01\x00\x00\x00" + "\x00\x08\x01\x02\x01\x00\x00\x00" +
		"\x01\x0C\x04\x00\x00\x00\xC0\xFE\x00\x00\x00\x00" +
		"\x02\x0A\x00\x00\x02\x00\x00\x00\x00\x00" + "\x02\x0A\x00\x09\x09\x00\x00\x00\x0D\x00" +
		"\x04\x06\xFF\x00\x00\x01")
	if d := cmp.Diff(want, place(t, c)["APIC"][headerLen:]); d != "" {
		t.Errorf("MADT (-want +got):\n%s", d)
	}
}

func TestMCFG(t *testing.T) {
	c := board()
	c.ECAMBuses = 32
	want := []byte("\x00\x00\x00\x00\x00\x00\x00\x00" + "\x00\x00\x00\xB0\x00\x00\x00\x00" + "\x00\x00\x00\x1F" + "\x00\x00\x00\x00")
	if d := cmp.Diff(want, place(t, c)["MCFG"][headerLen:]); d != "" {
		t.Errorf("MCFG (-want +got):\n%s", d)
	}
}
