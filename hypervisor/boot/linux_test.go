package boot

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLinux(t *testing.T) {
	const size = 4 << 20
	for name, c := range map[string]struct {
		xload    uint16
		protocol Protocol
		want     Entry
	}{
		"64-bit":                      {xlfKernel64, Auto, Entry{Protocol: Linux64, Mode: Long64, RIP: 0x100200, RSI: zeroAddr, CR3: tablesAddr, GDT: gdtAddr}},
		"32-bit":                      {0, Auto, Entry{Protocol: Linux32, Mode: Protected32, RIP: 0x100000, RSI: zeroAddr, GDT: gdtAddr}},
		"64-bit, by the 32-bit entry": {xlfKernel64, Linux32, Entry{Protocol: Linux32, Mode: Protected32, RIP: 0x100000, RSI: zeroAddr, GDT: gdtAddr}},
	} {
		t.Run(name, func(t *testing.T) {
			k := defaultBz()
			k.xload, k.initrdMax = c.xload, 0x2fffff
			file := k.build()
			m := dirtyHeap(size)
			e, err := Load(m, Config{
				Kernel: BytesImage("bzImage", file), Cmdline: "quiet", Modules: []Module{{Image: BytesImage("initrd", []byte("cpio"))}},
				MemMap: smallMap(size), RSDP: 0xf0000, Protocol: c.protocol,
			})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, e); d != "" {
				t.Errorf("entry (-want +got):\n%s", d)
			}
			if got := peek(t, m, 0x100000, 1024); !bytes.Equal(got, file[1024:2048]) {
				t.Error("kernel differs")
			}
			zero := peek(t, m, e.RSI, zeroSize)
			if !bytes.Equal(zero[:bpAcpiRSDP], make([]byte, bpAcpiRSDP)) || zero[0x1ef] != 0 {
				t.Error("boot_params is not zero where it must be")
			}
			if got := string(zero[hdrMagic : hdrMagic+4]); got != "HdrS" {
				t.Errorf("header magic %q", got)
			}
			if got := peek64(t, m, e.RSI+hdrSetupData); got != 0 {
				t.Errorf("setup_data %#x from the file", got)
			}
			for field, want := range map[uint64]uint32{
				hdrCode32Start: 0x100000, hdrRamdiskImage: 0x2ff000, hdrRamdiskSize: 4, hdrCmdLinePtr: cmdlineAddr, bpAcpiRSDP: 0xf0000,
			} {
				if got := peek32(t, m, e.RSI+field); got != want {
					t.Errorf("field %#x: %#x, want %#x", field, got, want)
				}
			}
			if zero[hdrTypeOfLoader] != loaderUndefined {
				t.Errorf("type_of_loader %#x", zero[hdrTypeOfLoader])
			}
			if got := peekString(t, m, cmdlineAddr); got != "quiet" {
				t.Errorf("command line %q", got)
			}
			if got := string(peek(t, m, 0x2ff000, 4)); got != "cpio" {
				t.Errorf("initrd %q", got)
			}
			var got []MemRange
			for i := range uint64(zero[bpE820Entries]) {
				at := e.RSI + bpE820Table + i*20
				got = append(got, MemRange{peek64(t, m, at), peek64(t, m, at+8), MemType(peek32(t, m, at+16))})
			}
			if d := cmp.Diff(smallMap(size), got); d != "" {
				t.Errorf("e820 (-want +got):\n%s", d)
			}
			code := uint64(code32)
			if e.Mode == Long64 {
				code = code64
			}
			if got := peek64(t, m, e.GDT+CodeSelector); got != code {
				t.Errorf("code descriptor %#x, want %#x", got, code)
			}
			if e.CR3 == 0 {
				return
			}
			// Walk the tables as the CPU does.
			for _, addr := range []uint64{0, 0x100200, 0xfee00000, fourGiB - 1} {
				pml4e := peek64(t, m, e.CR3+8*(addr>>39&511))
				pdpte := peek64(t, m, pml4e&^0xfff+8*(addr>>30&511))
				pde := peek64(t, m, pdpte&^0xfff+8*(addr>>21&511))
				if pml4e&3 != 3 || pdpte&3 != 3 || pde&0x83 != 0x83 || pde&^0x1fffff|addr&0x1fffff != addr {
					t.Errorf("address %#x maps by %#x, %#x, %#x", addr, pml4e, pdpte, pde)
				}
			}
		})
	}
}

// A bzImage with a PVH kernel inside is unpacked; one without starts by itself.
func TestLinuxPrefersPVH(t *testing.T) {
	const size = 4 << 20
	plain := buildELF(true, 0, testSegment{typ: elfPTLoad, paddr: 0x100000, data: make([]byte, 64)})
	for name, c := range map[string]struct {
		payload  []byte
		protocol Protocol
		want     Protocol
	}{
		"PVH inside":             {gzipped(t, pvhKernel()), Auto, PVH},
		"PVH inside, forced":     {gzipped(t, pvhKernel()), Linux64, Linux64},
		"plain ELF inside":       {gzipped(t, plain), Auto, Linux64},
		"unknown compression":    {make([]byte, 64), Auto, Linux64},
		"nothing to be unpacked": {nil, Auto, Linux64},
	} {
		k := defaultBz()
		k.payload = c.payload
		e, err := Load(dirtyHeap(size), Config{Kernel: BytesImage("bzImage", k.build()), MemMap: smallMap(size), Protocol: c.protocol})
		if err != nil || e.Protocol != c.want {
			t.Errorf("%s: protocol %v, error %v, want %v", name, e.Protocol, err, c.want)
		}
	}
}
