package vcpu

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

const sig = kvm.CPUIDSignificantIndex

func TestCPUIDTopology(t *testing.T) {
	intel := []kvm.CPUIDEntry{
		{Function: 0, EAX: 0x1f, EBX: 0x756e6547},
		{Function: 1, EBX: 0xff100800, ECX: 1<<21 | 1<<5, EDX: 1},
		{Function: 4, Index: 0, Flags: sig, EAX: 0xfc01c121},
		{Function: 4, Index: 1, Flags: sig, EAX: 0xfc01c163},
		{Function: 4, Index: 2, Flags: sig},
		{Function: 0xb, Index: 0, Flags: sig, EDX: 9},
		{Function: 0xb, Index: 1, Flags: sig, EDX: 9},
		{Function: 0x40000000, EBX: 0x4b4d564b},
	}
	amd := []kvm.CPUIDEntry{
		{Function: 0, EAX: 1, EBX: 0x68747541},
		{Function: 1},
		{Function: 0x80000001, ECX: 1<<22 | 1<<2},
		{Function: 0x80000008, EAX: 0x3030, ECX: 0x7007},
		{Function: 0x8000000a, EAX: 1, EBX: 0x8000, EDX: 0x119b9cff},
		{Function: 0x8000001e, EAX: 9, EBX: 0x109, ECX: 0x103},
	}
	for _, c := range []struct {
		name     string
		in       []kvm.CPUIDEntry
		index, n int
		want     []kvm.CPUIDEntry
	}{
		{"Intel, vcpu 2 of 3", intel, 2, 3, []kvm.CPUIDEntry{
			intel[0],
			{Function: 1, EBX: 0x02040800, ECX: 1<<31 | 1<<24 | 1<<21, EDX: 1<<28 | 1},
			{Function: 4, Index: 0, Flags: sig, EAX: 0x0c000121},
			{Function: 4, Index: 1, Flags: sig, EAX: 0x0c00c163},
			{Function: 4, Index: 2, Flags: sig},
			{Function: 0xb, Index: 0, Flags: sig, EAX: 0, EBX: 1, ECX: 0x100, EDX: 2},
			{Function: 0xb, Index: 1, Flags: sig, EAX: 2, EBX: 3, ECX: 0x201, EDX: 2},
			{Function: 0xb, Index: 2, Flags: sig, ECX: 2, EDX: 2},
			intel[7],
		}},
		{"AMD, vcpu 0 of 1", amd, 0, 1, []kvm.CPUIDEntry{
			amd[0],
			{Function: 1, EBX: 0x00010000, ECX: 1<<31 | 1<<24},
			{Function: 0x80000001, ECX: 1 << 22},
			{Function: 0x80000008, EAX: 0x3030},
			{Function: 0x8000000a},
			{Function: 0x8000001e},
		}},
		{"AMD, vcpu 15 of 16", amd, 15, 16, []kvm.CPUIDEntry{
			amd[0],
			{Function: 1, EBX: 0x0f100000, ECX: 1<<31 | 1<<24, EDX: 1 << 28},
			{Function: 0x80000001, ECX: 1<<22 | 1<<1},
			{Function: 0x80000008, EAX: 0x3030, ECX: 0x400f},
			{Function: 0x8000000a},
			{Function: 0x8000001e, EAX: 15, EBX: 15},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := CPUID(c.in, c.index, c.n, true)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("leaves (-want +got):\n%s", diff)
			}
		})
	}
	for _, c := range [][2]int{{0, 0}, {0, 17}, {2, 2}, {-1, 2}} {
		if _, err := CPUID(intel, c[0], c[1], true); err == nil {
			t.Errorf("vcpu %d of %d was taken", c[0], c[1])
		}
	}
}

func TestMissingFeatures(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		here, saved := rapid.Uint32().Draw(t, "here"), rapid.Uint32().Draw(t, "saved")
		err := missingFeatures(
			[]kvm.CPUIDEntry{{Function: 7, EBX: saved}, {Function: 2, EAX: saved}}, []kvm.CPUIDEntry{{Function: 7, EBX: here}},
		)
		if (err != nil) != (saved&^here != 0) {
			t.Fatalf("%#x here, %#x saved: %v", here, saved, err)
		}
	})
	if missingFeatures([]kvm.CPUIDEntry{{Function: 7, EBX: 1}}, nil) == nil {
		t.Error("a leaf that is not here misses nothing")
	}
	if err := missingFeatures([]kvm.CPUIDEntry{{Function: 1, ECX: 1 << 27}}, nil); err != nil {
		t.Errorf("OSXSAVE follows the guest's CR4: %v", err)
	}
}

func TestEntry(t *testing.T) {
	var s kvm.SRegs2
	if err := (Entry{Mode: ModeLong64, CR3: 0x9000, GDTBase: 0x500, GDTLimit: 39}).system(&s); err != nil {
		t.Fatal(err)
	}
	if s.CS.L != 1 || s.CS.DB != 0 || s.CR3 != 0x9000 || s.EFER != 0x500 || s.CR4 != 0x20 || s.CR0>>31 != 1 || s.GDT.Base != 0x500 {
		t.Errorf("64-bit: %+v", s)
	}
	if err := (Entry{Mode: ModeProtected32}).system(&s); err != nil {
		t.Fatal(err)
	}
	if s.CS.L != 0 || s.CS.DB != 1 || s.EFER != 0 || s.CR0 != 0x11 || s.CR4 != 0 || s.DS.Limit != 0xffffffff {
		t.Errorf("32-bit: %+v", s)
	}
	if (Entry{Mode: 9}).system(&s) == nil {
		t.Error("mode 9 was taken")
	}
}
