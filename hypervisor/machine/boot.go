package machine

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/acpi"
	"github.com/lodgehv/lodge/hypervisor/boot"
	"github.com/lodgehv/lodge/hypervisor/kvm"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/smbios"
	"github.com/lodgehv/lodge/hypervisor/vcpu"
)

// boot puts the guest's first program into its memory and its first vCPU at its entry.
func (m *Machine) boot() error {
	b := &m.cfg.Boot
	switch {
	case b.Firmware != nil && b.Kernel != nil:
		return errors.New("both a kernel and firmware to boot: name one of them")
	case b.Firmware != nil:
		return m.addFirmwareFiles()
	case b.Kernel != nil:
		return m.bootKernel()
	}
	return errors.New("nothing to boot: name a kernel or firmware")
}

// bootKernel does for a kernel what firmware would have done: tables, memory map and the PCI registers.
func (m *Machine) bootKernel() error {
	tables, err := m.acpiTables()
	if err != nil {
		return err
	}
	placed, err := tables.Place(m.mem, tablesBase)
	if err != nil {
		return err
	}
	if placed.End > smbiosBase {
		return fmt.Errorf("ACPI tables of %d bytes do not fit below %#x", placed.End-tablesBase, smbiosBase)
	}
	if err := m.vmgenid.SetGPA(placed.GUID); err != nil {
		return err
	}
	info, err := m.smbiosTables()
	if err != nil {
		return err
	}
	if _, err := info.Place(m.mem, smbiosBase); err != nil {
		return err
	}
	windows := m.windows()
	for _, c := range m.cards {
		if err := windows.Place(c.Function()); err != nil {
			return err
		}
	}
	b := &m.cfg.Boot
	entry, err := boot.Load(m.mem, boot.Config{
		Kernel: *b.Kernel, Cmdline: b.Cmdline, Modules: b.Modules, Protocol: b.Protocol,
		MemMap: m.memoryMap(), RSDP: uint64(placed.RSDP), Zeroed: true,
	})
	if err != nil {
		return err
	}
	return m.enter(entry)
}

// enter puts the first vCPU where entry says. The others wait for INIT and SIPI.
func (m *Machine) enter(e boot.Entry) error {
	modes := map[boot.Mode]vcpu.Mode{
		boot.Reset: vcpu.ModeReset, boot.Protected32: vcpu.ModeProtected32, boot.Long64: vcpu.ModeLong64,
	}
	entry := vcpu.Entry{Mode: modes[e.Mode], RIP: e.RIP, RAX: e.RAX, RBX: e.RBX, RSI: e.RSI, CR3: e.CR3}
	if e.Mode != boot.Reset {
		entry.GDTBase, entry.GDTLimit = e.GDT, boot.GDTLimit
	}
	return m.cpus[0].Do(func(k *kvm.VCPU) error { return entry.SetRegisters(k) })
}

// memoryMap is what a kernel without firmware is told of memory (ACPI 6.5 §15).
func (m *Machine) memoryMap() []boot.MemRange {
	low := min(m.cfg.Memory, lowRAMMax)
	r := []boot.MemRange{
		{Base: 0, Size: vgaBase, Type: boot.RAM},
		{Base: tablesBase, Size: tablesEnd - tablesBase, Type: boot.Reserved},
		{Base: tablesEnd, Size: low - tablesEnd, Type: boot.RAM},
		{Base: ecamBase, Size: pci.ECAMSize, Type: boot.Reserved},
	}
	if m.cfg.Memory > low {
		r = append(r, boot.MemRange{Base: fourGiB, Size: m.cfg.Memory - low, Type: boot.RAM})
	}
	return r
}

func (m *Machine) windows() pci.Windows {
	base := pci64Window(m.cfg.Memory)
	return pci.Windows{
		IO:    pci.Window{Next: pciIOBARs, Last: pciIOLast},
		Mem32: pci.Window{Next: pci32Base, Last: pci32Last},
		Mem64: pci.Window{Next: base, Last: base + pci64Size - 1},
	}
}

func (m *Machine) acpiTables() (*acpi.Tables, error) {
	ids := make([]uint8, m.cfg.CPUs)
	for i := range ids {
		ids[i] = uint8(i)
	}
	mem64 := m.windows().Mem64
	return acpi.Build(acpi.Config{
		APICIDs: ids, LAPICBase: lapicBase, IOAPICBase: ioapicBase,
		ECAMBase: ecamBase, ECAMBuses: 1,
		PCIIO:    acpi.Window{Base: pciIOBase, Last: pciIOLast},
		PCIMem32: acpi.Window{Base: pci32Base, Last: pci32Last},
		PCIMem64: acpi.Window{Base: mem64.Next, Last: mem64.Last},
		INTx:     intxGSI,
		PMBase:   legacy.PMBase, ResetPort: legacy.ResetPort, ResetValue: legacy.ResetValue,
		S4:         true, // off, as S5: what the guest needs then is on its disk
		CenturyReg: cmosCentury, VGA: m.hasVGA(), I8042: true, COM1: m.serial[0] != nil, COM2: m.serial[1] != nil,
		FWCfg: true, VMGenID: true,
	})
}

// hasVGA reports whether a card is VGA-compatible: systems use its ports and its window only if they are told so.
func (m *Machine) hasVGA() bool {
	const vga = 0x030000 // PCI 3.0 appendix D
	for _, c := range m.cards {
		var p [4]byte
		c.ReadConfig(pci.RevisionID, p[:])
		if binary.LittleEndian.Uint32(p[:])>>8 == vga {
			return true
		}
	}
	return false
}

func (m *Machine) smbiosTables() (*smbios.Tables, error) {
	low := min(m.cfg.Memory, lowRAMMax)
	ram := []mem.Range{{Base: 0, Size: low}}
	if m.cfg.Memory > low {
		ram = append(ram, mem.Range{Base: fourGiB, Size: m.cfg.Memory - low})
	}
	return smbios.Build(smbios.Config{UUID: m.cfg.UUID, CPUs: m.cfg.CPUs, Memory: ram})
}

// addFirmwareFiles gives firmware what it places itself: the tables.
func (m *Machine) addFirmwareFiles() error {
	tables, err := m.acpiTables()
	if err != nil {
		return err
	}
	for _, f := range tables.Files() {
		if f.Writable {
			err = m.fwcfg.AddWritableFile(f.Name, len(f.Data), m.placeGenerationID)
		} else {
			err = m.fwcfg.AddFile(f.Name, f.Data)
		}
		if err != nil {
			return err
		}
	}
	info, err := m.smbiosTables()
	if err != nil {
		return err
	}
	anchor, structures := info.Files()
	if err := m.fwcfg.AddFile(smbios.AnchorFile, anchor); err != nil {
		return err
	}
	if err := m.fwcfg.AddFile(smbios.TablesFile, structures); err != nil {
		return err
	}
	if m.serial[0] != nil { // SeaBIOS shows its text screen there
		return m.fwcfg.AddFile("etc/sercon-port", binary.LittleEndian.AppendUint16(nil, legacy.COM1Base))
	}
	return nil
}

// placeGenerationID is firmware's word where it put the generation identifier.
func (m *Machine) placeGenerationID(addr []byte) {
	if err := m.vmgenid.SetAddr(addr); err != nil {
		m.log.Warn("firmware places the generation identifier where it cannot be", "err", err)
	}
}

// rom is firmware, read from its file.
type rom struct {
	blob []byte // ends at 4 GiB
	low  []byte // ends at 1 MiB
}

func loadROM(img boot.Image) (*rom, error) {
	f, err := boot.LoadFirmware(img, nil)
	if err != nil {
		return nil, err
	}
	r := &rom{}
	for _, region := range f.Regions {
		switch region.Kind {
		case boot.ROM:
			r.blob = region.Bytes
		case boot.Shadow:
			r.low = region.Bytes
		}
	}
	return r, nil
}

func (r *rom) size() uint64 {
	if r == nil {
		return 0
	}
	return uint64(len(r.blob))
}

// place writes the firmware to where the guest sees it. The copy below 1 MiB is RAM from the start.
func (r *rom) place(m *mem.Memory) error {
	if r == nil {
		return nil
	}
	if err := m.WriteAt(r.blob, mem.GPA(fourGiB-r.size())); err != nil {
		return err
	}
	return m.WriteAt(r.low, mem.GPA(tablesEnd-len(r.low)))
}
