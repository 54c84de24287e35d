package machine

import (
	"encoding/binary"
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/acpi"
	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/legacy"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// addDevices puts the board's small devices on its ports.
func (m *Machine) addDevices() error {
	irqs := m.interrupts
	for i, port := range []struct {
		id   string
		base uint64
		irq  uint32
	}{{"com1", legacy.COM1Base, legacy.COM1IRQ}, {"com2", legacy.COM2Base, legacy.COM2IRQ}} {
		if w := m.cfg.Serial[i]; w != nil {
			m.serial[i] = legacy.NewUART(port.id, irqs.line(port.irq), w)
			if err := m.add(m.serial[i], bus.Range{Base: port.base, Size: legacy.UARTSize}); err != nil {
				return err
			}
		}
	}
	below, above := min(m.cfg.Memory, lowRAMMax), m.cfg.Memory-min(m.cfg.Memory, lowRAMMax)
	m.pm = legacy.NewPM(legacy.PMConfig{SCI: irqs.line(acpi.SCI), Sleep: m.sleep, ACPI: true})
	m.i8042 = legacy.NewI8042(irqs.line(legacy.KeyboardIRQ), irqs.line(legacy.MouseIRQ), m.reset("the keyboard controller"))
	m.fwcfg = legacy.NewFWCfg(m.mem)
	m.vmgenid = acpi.NewVMGenID(m.mem, func() { _ = m.pm.RaiseGPE(acpi.VMGenIDGPE) })
	m.devices = append(m.devices, m.vmgenid)
	cmos := legacy.NewCMOS(legacy.CMOSConfig{IRQ: irqs.line(legacy.CMOSIRQ), Alarm: m.pm.RTCAlarm, Battery: m.cfg.Battery,
		Below4G: below, Above4G: above, Boot: [3]uint8{2, 3, 0}, CPUs: m.cfg.CPUs})
	fastA20 := legacy.NewFastA20(m.resetKind("port 0x92"))
	exit := legacy.NewDebugExit(func(v uint32) {
		m.finish(Outcome{Reason: DebugExit, Code: legacy.ExitCode(v), Detail: fmt.Sprintf("debug exit %d", v)})
	})
	for _, d := range []struct {
		dev device
		at  []bus.Range
	}{
		{m.i8042, []bus.Range{{Base: legacy.I8042Data, Size: 1}, {Base: legacy.I8042Command, Size: 1}}},
		{cmos, []bus.Range{{Base: legacy.CMOSBase, Size: legacy.CMOSSize}}},
		{m.pm, []bus.Range{{Base: legacy.PMBase, Size: legacy.PMSize}}},
		{m.fwcfg, []bus.Range{{Base: legacy.FWCfgBase, Size: legacy.FWCfgSize}}},
		{fastA20, []bus.Range{{Base: legacy.Port92, Size: 1}}},
		{exit, []bus.Range{{Base: legacy.DebugExitBase, Size: legacy.DebugExitSize}}},
	} {
		if err := m.add(d.dev, d.at...); err != nil {
			return err
		}
	}
	for port, make := range m.cfg.PS2 {
		if make != nil {
			d := make(m.i8042.Ready)
			m.i8042.Attach(legacy.PS2Index(port), d)
			m.devices = append(m.devices, d)
		}
	}
	if err := m.ports.Map(bus.Range{Base: legacy.APMBase, Size: legacy.APMSize}, m.pm.APM()); err != nil {
		return err
	}
	if m.cfg.DebugConsole != nil {
		m.debugcon = legacy.NewDebugConsole(m.cfg.DebugConsole)
		if err := m.add(m.debugcon, bus.Range{Base: legacy.DebugConsolePort, Size: 1}); err != nil {
			return err
		}
	}
	return m.addFWCfgKeys()
}

// device is a board device: on a bus, and saved.
type device interface {
	bus.Device
	snap.Component
}

func (m *Machine) add(d device, at ...bus.Range) error {
	m.devices = append(m.devices, d)
	for _, r := range at {
		if err := m.ports.Map(r, d); err != nil {
			return err
		}
	}
	return nil
}

// addFWCfgKeys adds the numbers that firmware asks fw_cfg for.
func (m *Machine) addFWCfgKeys() error {
	le := binary.LittleEndian
	cpus := le.AppendUint16(nil, uint16(m.cfg.CPUs))
	for key, v := range map[uint16][]byte{
		legacy.FWCfgUUID:      m.cfg.UUID[:],
		legacy.FWCfgRAMSize:   le.AppendUint64(nil, m.cfg.Memory),
		legacy.FWCfgCPUs:      cpus,
		legacy.FWCfgMaxCPUs:   cpus,
		legacy.FWCfgNoGraphic: {1, 0},
		legacy.FWCfgIRQ0:      {1}, // the timer is at pin 2 of the IOAPIC
		legacy.FWCfgBootMenu:  {0, 0},
	} {
		if err := m.fwcfg.AddKey(key, v); err != nil {
			return err
		}
	}
	return nil
}

// addChipset puts the host bridge and the LPC bridge on the PCI bus, and the bus where the vCPUs reach it.
func (m *Machine) addChipset() error {
	mch, err := newMCH()
	if err != nil {
		return err
	}
	lpc, err := newLPC(m.interrupts)
	if err != nil {
		return err
	}
	env := pci.Env{Ports: &m.ports, MMIO: &m.mmio}
	for slot, f := range map[uint8]*pci.Function{slotMCH: mch, slotLPC: lpc} {
		if err := f.Attach(env); err != nil {
			return err
		}
		if err := m.pci.Insert(pci.Address{Device: slot}, f); err != nil {
			return err
		}
	}
	rst := legacy.NewResetControl(m.resetKind("port 0xcf9"))
	m.devices = append(m.devices, &m.pci, mch, lpc, rst)
	if err := m.mmio.Map(bus.Range{Base: ecamBase, Size: pci.ECAMSize}, m.pci.ECAM()); err != nil {
		return err
	}
	return m.ports.Map(bus.Range{Base: pci.ConfigAddressPort, Size: 8}, configPorts{m.pci.Ports(), rst})
}

// configPorts are ports 0xcf8 to 0xcff. The reset register, one byte wide, hides among those of the configuration
// address, which takes accesses of four bytes only.
type configPorts struct{ pci, reset bus.Device }

func (c configPorts) Read(a bus.Access, p []byte) {
	if a.Addr == legacy.ResetPort && len(p) == 1 {
		c.reset.Read(bus.Access{Addr: a.Addr, VCPU: a.VCPU}, p)
		return
	}
	c.pci.Read(a, p)
}

func (c configPorts) Write(a bus.Access, p []byte) {
	if a.Addr == legacy.ResetPort && len(p) == 1 {
		c.reset.Write(bus.Access{Addr: a.Addr, VCPU: a.VCPU}, p)
		return
	}
	c.pci.Write(a, p)
}
