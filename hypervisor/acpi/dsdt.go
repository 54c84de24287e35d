package acpi

import (
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/acpi/aml"
)

// guidPath names the integer that holds the guest-physical address of the generation identifier.
const guidPath = `\VGIA`

// dsdt returns the description of the board in AML, all but the definition of guidPath.
func dsdt(c *Config) []aml.Term {
	var terms []aml.Term

	// SLP_TYP for PM1a control and, unused, PM1b control; then two reserved elements (ACPI 6.5 §7.4.2).
	sleep := func(name aml.Path, typ aml.Int) {
		terms = append(terms, aml.Name(name, aml.Package(typ, aml.Int(0), aml.Int(0), aml.Int(0))))
	}
	if c.S3 {
		sleep("_S3", SleepS3)
	}
	if c.S4 {
		sleep("_S4", SleepS4)
	}
	sleep("_S5", SleepS5)

	devices := []aml.Term{motherboard(c), hostBridge(c)}
	devices = append(devices, processors(c)...)
	if c.FWCfg {
		devices = append(devices, aml.Device("FWCF",
			aml.Name("_HID", aml.String("QEMU0002")),
			aml.Name("_STA", aml.Int(0xB)), // present, enabled, working, but nothing that a user has to see
			aml.Name("_CRS", aml.ResourceTemplate(aml.FixedIO(0x510, 12))),
		))
	}
	if c.VMGenID {
		devices = append(devices, generationID())
	}
	terms = append(terms, aml.Scope(`\_SB`, devices...))
	if c.VMGenID {
		terms = append(terms, aml.Scope(`\_GPE`,
			aml.Method(aml.Path(fmt.Sprintf("_E%02X", VMGenIDGPE)), 0,
				aml.Notify(aml.Path(`\_SB.VGEN`), aml.Int(0x80)),
			),
		))
	}
	return append(terms, c.Extra...)
}

// motherboard claims what no other device's resources cover and no BAR may be put over: a kernel trusts MCFG only if
// configuration space is reserved.
func motherboard(c *Config) aml.Term {
	return aml.Device("MBRD",
		aml.Name("_HID", aml.EISAID("PNP0C02")),
		aml.Name("_CRS", aml.ResourceTemplate(
			aml.Memory32Fixed{Base: uint32(c.ECAMBase), Len: uint32(c.ECAMBuses) << 20},
			aml.FixedIO(c.PMBase, PMLen),
		)),
	)
}

// processors returns a device for each CPU, whose _UID is that of its local APIC in the MADT.
func processors(c *Config) []aml.Term {
	var cpus []aml.Term
	for uid := range c.APICIDs {
		cpus = append(cpus, aml.Device(aml.Path(fmt.Sprintf("C%03X", uid)),
			aml.Name("_HID", aml.String("ACPI0007")),
			aml.Name("_UID", aml.Int(uid)),
		))
	}
	return cpus
}

// hostBridge returns the root of PCI Express with the devices on bus 0 that ACPI has something to say about.
func hostBridge(c *Config) aml.Term {
	windows := []aml.Resource{
		aml.WordBusNumber(0, uint8(c.ECAMBuses-1)),
		aml.FixedIO(0xCF8, 8), // configuration mechanism #1, which the bridge itself decodes
		aml.WordIO(0, 0xCF7),  // devices of the ISA bridge
		aml.WordIO(uint16(c.PCIIO.Base), uint16(c.PCIIO.Last)),
	}
	if c.VGA {
		windows = append(windows, aml.DWordMemory(0xA0000, 0xBFFFF, aml.Cacheable))
	}
	windows = append(windows, aml.DWordMemory(uint32(c.PCIMem32.Base), uint32(c.PCIMem32.Last), aml.NonCacheable))
	if c.PCIMem64 != (Window{}) {
		windows = append(windows, aml.QWordMemory(c.PCIMem64.Base, c.PCIMem64.Last, aml.Cacheable))
	}
	return aml.Device("PCI0",
		aml.Name("_HID", aml.EISAID("PNP0A08")), // PCI Express
		aml.Name("_CID", aml.EISAID("PNP0A03")), // PCI, for those that know no better
		aml.Name("_UID", aml.Int(0)),
		aml.Name("_SEG", aml.Int(0)),
		aml.Name("_BBN", aml.Int(0)),
		aml.Name("_CRS", aml.ResourceTemplate(windows...)),
		aml.Name("_PRT", interruptRouting(c)),
		operatingSystemCapabilities(),
		isaBridge(c),
	)
}

// interruptRouting returns the _PRT of bus 0 (ACPI 6.5 §6.2.13): every pin is wired to an input of the IOAPIC.
func interruptRouting(c *Config) aml.Term {
	var routes []aml.Term
	for slot := range slots {
		for pin := range 4 {
			routes = append(routes, aml.Package(
				aml.Int(slot<<16|0xFFFF), // all functions in the slot
				aml.Int(pin),
				aml.Int(0), // no link device: the next element is a GSI
				aml.Int(c.INTx(slot, pin)),
			))
		}
	}
	return aml.Package(routes...)
}

// operatingSystemCapabilities returns the _OSC method of a PCI Express host bridge (PCI Firmware 3.3 §4.5.1). There is
// no firmware that would compete for these features, so a system gets all that it asks for and that is specified for
// a bridge without SHPC.
func operatingSystemCapabilities() aml.Term {
	const (
		hostBridgeUUID = "33db4d5b-1ff7-401c-9657-7441c03dd766"

		// Bits of the first DWORD, the status.
		unrecognizedUUID     = 1 << 2
		unrecognizedRevision = 1 << 3
		capabilitiesMasked   = 1 << 4

		// Bits of the third, control.
		nativeHotplug  = 1 << 0
		nativePME      = 1 << 2
		nativeAER      = 1 << 3
		pcieCapability = 1 << 4
	)
	uuid, revision, capabilities := aml.Arg(0), aml.Arg(1), aml.Arg(3)
	status, control, granted := aml.Path("CDW1"), aml.Path("CDW3"), aml.Local(0)
	report := func(bit aml.Int) aml.Term { return aml.Or(status, bit, status) }
	return aml.MethodSerialized("_OSC", 4,
		aml.CreateDWordField(capabilities, aml.Int(0), status),
		aml.If(aml.LEqual(uuid, aml.ToUUID(hostBridgeUUID)),
			aml.If(aml.LNotEqual(revision, aml.Int(1)), report(unrecognizedRevision)),
			aml.CreateDWordField(capabilities, aml.Int(8), control),
			aml.And(control, aml.Int(nativeHotplug|nativePME|nativeAER|pcieCapability), granted),
			aml.If(aml.LNotEqual(control, granted), report(capabilitiesMasked)),
			aml.Store(granted, control),
		),
		aml.Else(report(unrecognizedUUID)),
		aml.Return(capabilities),
	)
}

// isaBridge returns the LPC bridge, 00:1f.0, with the devices at fixed ports.
func isaBridge(c *Config) aml.Term {
	device := func(name aml.Path, id string, uid aml.Int, resources ...aml.Resource) aml.Term {
		return aml.Device(name,
			aml.Name("_HID", aml.EISAID(id)),
			aml.Name("_UID", uid),
			aml.Name("_CRS", aml.ResourceTemplate(resources...)),
		)
	}
	body := []aml.Term{
		aml.Name("_ADR", aml.Int(0x1F<<16)),
		device("RTC", "PNP0B00", 0, aml.FixedIO(0x70, 2), aml.IRQ(8)),
	}
	if c.I8042 {
		body = append(body,
			device("KBD", "PNP0303", 0, aml.FixedIO(0x60, 1), aml.FixedIO(0x64, 1), aml.IRQ(1)),
			device("MOU", "PNP0F13", 0, aml.IRQ(12)),
		)
	}
	if c.COM1 {
		body = append(body, device("COM1", "PNP0501", 1, aml.FixedIO(0x3F8, 8), aml.IRQ(4)))
	}
	if c.COM2 {
		body = append(body, device("COM2", "PNP0501", 2, aml.FixedIO(0x2F8, 8), aml.IRQ(3)))
	}
	return aml.Device("ISA", body...)
}

// generationID returns the device that tells where the generation identifier is (Microsoft, "Virtual Machine Generation
// ID", 2012).
func generationID() aml.Term {
	addr := aml.Local(0)
	return aml.Device("VGEN",
		aml.Name("_HID", aml.String("LODG0001")),
		aml.Name("_CID", aml.String("VM_Gen_Counter")), // what drivers look for
		aml.Name("_DDN", aml.String("VM_Gen_Counter")),
		aml.Method("ADDR", 0,
			aml.Store(aml.Package(aml.Int(0), aml.Int(0)), addr),
			aml.Store(aml.Path(guidPath), aml.Index(addr, aml.Int(0), aml.Discard)), // the upper half stays 0
			aml.Return(addr),
		),
	)
}
