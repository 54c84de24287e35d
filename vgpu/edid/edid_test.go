package edid

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lodgehv/lodge/vgpu/display"
)

func monitors() map[string]display.Monitor {
	all := make(map[string]display.Monitor)
	for _, m := range []display.Monitor{
		{Width: 64, Height: 64},
		{Width: 320, Height: 200},
		{Width: 640, Height: 480},
		{Width: 800, Height: 600},
		{Width: 1024, Height: 768},
		{Width: 1280, Height: 800},
		{Width: 1280, Height: 1024},
		{Width: 1366, Height: 768, WidthMM: 344, HeightMM: 193},
		{Width: 1367, Height: 769},
		{Width: 1920, Height: 1048},
		{Width: 1920, Height: 1080},
		{Width: 1920, Height: 1080, RefreshMilliHz: 59_940},
		{Width: 1920, Height: 1080, RefreshMilliHz: 144_000},
		{Width: 1920, Height: 1080, RefreshMilliHz: 360_000},
		{Width: 1920, Height: 1200, WidthMM: 518, HeightMM: 324},
		{Width: 1080, Height: 1920, WidthMM: 324, HeightMM: 518},
		{Width: 2560, Height: 1440, RefreshMilliHz: 165_000},
		{Width: 2560, Height: 1600},
		{Width: 2880, Height: 1800},
		{Width: 3440, Height: 1440, WidthMM: 800, HeightMM: 335},
		{Width: 3840, Height: 2160, WidthMM: 1872, HeightMM: 1053},
		{Width: 3840, Height: 2160, RefreshMilliHz: 120_000},
		{Width: 4095, Height: 2160},
		{Width: 4096, Height: 2160},
		{Width: 5120, Height: 1440},
		{Width: 5120, Height: 2880, WidthMM: 597, HeightMM: 336},
		{Width: 7680, Height: 4320},
		{Width: 16384, Height: 16384},
		{Width: 480, Height: 16384},
	} {
		name := fmt.Sprintf("%dx%d", m.Width, m.Height)
		if m.RefreshMilliHz != 0 {
			name += fmt.Sprintf("@%d", m.RefreshMilliHz)
		}
		all[name] = m
		m.Name, m.Serial = "Guest's screen", 1<<32-1
		all[name+" with names"] = m
	}
	return all
}

// edid-decode, which is not ours, finds the timing that was asked for and no fault.
func TestDecode(t *testing.T) {
	for name, m := range monitors() {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("edid-decode", "--check", "--preferred-timings")
			cmd.Stdin = bytes.NewReader(Encode(m))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("edid-decode: %v", err)
			}
			report, found := strings.CutSuffix(string(out), "\nEDID conformity: PASS\n")
			if !found {
				t.Error("does not pass")
			}
			_, faults, _ := strings.Cut(report, "\nedid-decode SHA:")
			for _, s := range strings.Split(faults, "\n")[1:] {
				// The one that Debian 12 has knows no PNP ID but Apple's; later ones do not complain of that.
				if strings.HasPrefix(s, "  ") && !strings.Contains(s, "Unknown OUI 4C-44-47 (possible PNP LDG)") {
					t.Errorf("fault: %s", s)
				}
			}
			_, preferred, _ := strings.Cut(report, "\nPreferred Video Timing")
			if mode := fmt.Sprintf(" %dx%d ", m.Width, m.Height); !strings.Contains(preferred, mode) {
				t.Errorf("mode%sis not preferred", mode)
			}
			if t.Failed() {
				t.Log(string(out))
			}
		})
	}
}

// What a guest is told is what the seat would read of such a monitor.
func TestRoundTrip(t *testing.T) {
	for name, m := range monitors() {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(Encode(m))
			if err != nil {
				t.Fatal(err)
			}
			want := Info{Vendor: "LDG", Product: 1, Serial: m.Serial, Name: "Lodge",
				Width: m.Width, Height: m.Height, RefreshMilliHz: m.RefreshMilliHz, WidthMM: m.WidthMM, HeightMM: m.HeightMM}
			if m.Name != "" {
				want.Name, want.SerialText = "Guest's scree", "4294967295"
			}
			if want.RefreshMilliHz == 0 {
				want.RefreshMilliHz = 60_000
			}
			// The clock comes in steps of 250 kHz, which is much for small modes.
			if d := want.RefreshMilliHz - got.RefreshMilliHz; d >= -5 && d < 1+want.RefreshMilliHz/50 {
				got.RefreshMilliHz = want.RefreshMilliHz
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// The timings are those that edid-decode computes by CVT.
func TestReducedBlanking(t *testing.T) {
	for _, m := range [][3]int{
		{640, 480, 60}, {1280, 720, 60}, {1280, 1024, 60}, {1680, 1050, 60}, {1920, 1080, 60},
		{1920, 1080, 144}, {1920, 1200, 60}, {1920, 1048, 60}, {1200, 1920, 75}, {2560, 1440, 120}, {2560, 1600, 60},
		{3440, 1440, 100}, {3840, 2160, 60}, {5120, 2880, 60}, {7680, 4320, 60},
	} {
		got := reducedBlanking(m[0], m[1], 1000*m[2])
		out, err := exec.Command("edid-decode", "--cvt", fmt.Sprintf("w=%d,h=%d,fps=%d,rb=1", m[0], m[1], m[2])).CombinedOutput()
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Join(strings.Fields(string(out)), " ")
		for _, s := range []string{
			fmt.Sprintf("%dx%d ", got.width, got.height),
			fmt.Sprintf(" %d.%06d MHz (RB)", got.clock/1e6, got.clock%1e6),
			fmt.Sprintf("Hfront %d Hsync %d Hback %d Hpol P", got.hFront, got.hSync, got.hBack),
			fmt.Sprintf("Vfront %d Vsync %d Vback %d Vpol N", got.vFront, got.vSync, got.vBack),
		} {
			if !strings.Contains(want, s) {
				t.Errorf("%d×%d at %d Hz: %s is not in %s", m[0], m[1], m[2], s, want)
			}
		}
	}
}

// Whatever is asked for, what comes is a valid EDID.
func TestBounds(t *testing.T) {
	for _, v := range []int{-1 << 62, -1, 0, 1, 63, 4096, 16385, 1 << 62} {
		for _, m := range []display.Monitor{
			{Width: v, Height: v, RefreshMilliHz: v, WidthMM: v, HeightMM: v},
			{Width: v, Height: 1000, RefreshMilliHz: 1}, {Width: 1000, Height: v, RefreshMilliHz: 1 << 40},
			{Width: v, Height: 64, WidthMM: v, HeightMM: 1, Name: "\n\x00 ÄÖ \xff Name of a monitor"},
		} {
			got, err := Parse(Encode(m))
			if err != nil || got.Width < 64 || got.Width > 16384 || got.Height < 64 || got.Height > 16384 ||
				got.RefreshMilliHz < 39_000 || got.RefreshMilliHz > 480_010 {
				t.Errorf("%+v: %+v, %v", m, got, err)
			}
		}
	}
	if got := name("\n\x00 ÄÖ \xff Name of a monitor"); got != "Name of a mon" {
		t.Errorf("name: %q", got)
	}
}

// panel is what many notebooks' panels say: EDID 1.3, no name, no serial number, text in descriptors that is for nobody.
const panel = "00ffffffffffff0030e4d8020000000000160103801c1078ea8855995b558f261d505400000001010101010101010101010101010101" +
	"601d56d85000183030404700159c1000001b000000000000000000000000000000000000000000fe004c4720446973706c61790a2020000000fe004c503132355748322d534c423300"

// Real monitors and damaged ones.
func TestParse(t *testing.T) {
	b, err := hex.DecodeString(panel)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, checksum(b))
	want := Info{Vendor: "LGD", Product: 0x2d8, Width: 1366, Height: 768, RefreshMilliHz: 60_019, WidthMM: 277, HeightMM: 156}
	got, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut short": func(b []byte) []byte { return b[:127] },
		"checksum":  func(b []byte) []byte { b[40]++; return b },
		"header":    func(b []byte) []byte { b[0], b[1] = 0xff, 0; return b },
		"version 2": func(b []byte) []byte { b[18]++; b[127]--; return b },
	} {
		if _, err := Parse(spoil(bytes.Clone(b))); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An extension that is announced and missing, or damaged, does no harm.
	m := display.Monitor{Width: 5120, Height: 2880}
	b = Encode(m)
	for name, c := range map[string][]byte{"missing": b[:BlockSize], "damaged": append(b[:200:200], make([]byte, 56)...)} {
		if got, err := Parse(c); err != nil || got.Width != 2560 || got.Height != 1440 {
			t.Errorf("extension %s: %+v, %v", name, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range monitors() {
		f.Add(Encode(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// Checksums are put right: a fuzzer does not find them.
		for n := BlockSize; n <= len(b); n += BlockSize {
			b[n-1] = checksum(b[n-BlockSize : n-1])
		}
		i, err := Parse(b)
		if err != nil {
			return
		}
		if i.Width < 0 || i.Width > 1<<16 || i.Height < 0 || i.Height > 1<<16 || i.RefreshMilliHz < 0 || (i.Width == 0) != (i.Height == 0) {
			t.Errorf("%+v", i)
		}
		for _, s := range []string{i.Vendor, i.Name, i.SerialText} {
			if len(s) > textSize || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("text %q", s)
			}
		}
	})
}
