package acpi

import (
	"encoding/binary"
	"fmt"

	"github.com/lodgehv/lodge/hypervisor/acpi/aml"
)

// Build returns the tables of the board that c describes. The error says what in c cannot be.
func Build(c Config) (*Tables, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("acpi: %w", err)
	}
	// The one value in AML that depends on where tables are placed comes first, so that its offset is known.
	var prefix []byte
	if c.VMGenID {
		var err error
		if prefix, err = aml.Encode(aml.Name(guidPath, aml.DWord(guidOffset))); err != nil {
			return nil, err
		}
	}
	code, err := aml.Encode(dsdt(&c)...)
	if err != nil {
		return nil, err
	}

	b := builder{file: tablesFile}
	facs := b.add(facsTable()) // first: it alone has an alignment, that of the blob
	dsdt := b.addTable("DSDT", 2, append(prefix, code...))
	fadt := b.addTable("FACP", fadtRevision, fadtBody(&c))
	madt := b.addTable("APIC", 5, madtBody(&c))
	mcfg := b.addTable("MCFG", 1, mcfgBody(&c))

	b.pointer(fadt+36, facs, 4)
	b.pointer(fadt+40, dsdt, 4)
	b.pointer(fadt+140, dsdt, 8) // X_DSDT; X_FIRMWARE_CTRL stays 0 because FIRMWARE_CTRL is not
	if c.VMGenID {
		b.links = append(b.links, link{
			file: tablesFile, offset: dsdt + headerLen + len(prefix) - 4, target: vmgenidGUIDFile, size: 4,
		})
	}

	// Boot loaders, and systems of ACPI 1.0, look at the RSDT only.
	roots := []int{fadt, madt, mcfg}
	rsdt := b.addTable("RSDT", 1, make([]byte, 4*len(roots)))
	xsdt := b.addTable("XSDT", 1, make([]byte, 8*len(roots)))
	for i, table := range roots {
		b.pointer(rsdt+headerLen+4*i, table, 4)
		b.pointer(xsdt+headerLen+8*i, table, 8)
	}
	b.sums(dsdt, fadt, madt, mcfg, rsdt, xsdt)

	t := &Tables{
		blobs: []blob{
			{file: rsdpFile, data: rsdp(rsdt, xsdt), align: 16, low: true},
			{file: tablesFile, data: b.data, align: 64},
		},
		links: append(b.links,
			link{file: rsdpFile, offset: 16, target: tablesFile, size: 4},
			link{file: rsdpFile, offset: 24, target: tablesFile, size: 8},
			link{file: rsdpFile, offset: 8, start: 0, length: 20},
			link{file: rsdpFile, offset: 32, start: 0, length: 36},
		),
	}
	if c.VMGenID {
		// A page of its own, as its specification wants: the guest may map it with any caching.
		t.blobs = append(t.blobs, blob{file: vmgenidGUIDFile, data: make([]byte, 4096), align: 4096})
	}
	return t, nil
}

const (
	headerLen = 36 // of the header that all tables but RSDP and FACS begin with

	oemID      = "LODGE "   // 6 bytes
	oemTableID = "LODGEQ35" // 8 bytes
	creatorID  = "LODG"     // 4 bytes
)

// builder puts tables one after another into a blob, and remembers the links between them.
type builder struct {
	file  string
	data  []byte
	links []link
}

// add appends b on a boundary of 16 bytes and returns its offset.
func (b *builder) add(table []byte) int {
	b.data = append(b.data, make([]byte, -len(b.data)&15)...)
	at := len(b.data)
	b.data = append(b.data, table...)
	return at
}

// addTable adds a table of the standard header (ACPI 6.5 §5.2.6) and body.
func (b *builder) addTable(signature string, revision byte, body []byte) int {
	t := make([]byte, 0, headerLen+len(body))
	t = append(t, signature...)
	t = binary.LittleEndian.AppendUint32(t, uint32(headerLen+len(body)))
	t = append(t, revision, 0) // the checksum is a link
	t = append(t, oemID...)
	t = append(t, oemTableID...)
	t = binary.LittleEndian.AppendUint32(t, 1) // OEM revision
	t = append(t, creatorID...)
	t = binary.LittleEndian.AppendUint32(t, 1) // creator revision
	return b.add(append(t, body...))
}

// pointer makes the size bytes at offset at point to the table at offset to.
func (b *builder) pointer(at, to, size int) {
	copy(b.data[at:at+size], binary.LittleEndian.AppendUint64(nil, uint64(to)))
	b.links = append(b.links, link{file: b.file, offset: at, target: b.file, size: size})
}

// sums adds the checksums of tables; no pointer into them may be added later.
func (b *builder) sums(tables ...int) {
	for _, t := range tables {
		n := int(binary.LittleEndian.Uint32(b.data[t+4:]))
		b.links = append(b.links, link{file: b.file, offset: t + 9, start: t, length: n})
	}
}

// rsdp returns the root pointer (ACPI 6.5 §5.2.5.3) to the RSDT and XSDT at offsets in etc/acpi/tables.
func rsdp(rsdt, xsdt int) []byte {
	p := make([]byte, 36)
	copy(p, "RSD PTR ")
	copy(p[9:], oemID)
	p[15] = 2 // revision
	binary.LittleEndian.PutUint32(p[16:], uint32(rsdt))
	binary.LittleEndian.PutUint32(p[20:], uint32(len(p)))
	binary.LittleEndian.PutUint64(p[24:], uint64(xsdt))
	return p
}

// facsTable returns the firmware control structure (ACPI 6.5 §5.2.10), in which a guest puts its waking vector.
func facsTable() []byte {
	f := make([]byte, 64)
	copy(f, "FACS")
	binary.LittleEndian.PutUint32(f[4:], uint32(len(f)))
	f[32] = 2 // version
	return f
}

// madtBody returns the interrupt controllers (ACPI 6.5 §5.2.12).
func madtBody(c *Config) []byte {
	const pcatCompat = 1 // there are two 8259s too
	b := binary.LittleEndian.AppendUint32(nil, c.LAPICBase)
	b = binary.LittleEndian.AppendUint32(b, pcatCompat)
	const enabled = 1
	for uid, id := range c.APICIDs {
		b = append(b, 0, 8, byte(uid), id, enabled, 0, 0, 0) // processor local APIC
	}
	b = append(b, 1, 12, c.IOAPICID, 0) // IOAPIC
	b = binary.LittleEndian.AppendUint32(b, c.IOAPICBase)
	b = binary.LittleEndian.AppendUint32(b, 0) // its first GSI

	const conforming, activeHighLevel = 0, 1 | 3<<2
	b = append(b, 2, 10, 0, 0, 2, 0, 0, 0, conforming, 0)          // the PIT's interrupt 0 is GSI 2
	b = append(b, 2, 10, 0, SCI, SCI, 0, 0, 0, activeHighLevel, 0) // else it would be edge-triggered like ISA
	return append(b, 4, 6, 0xFF, 0, 0, 1)                          // NMI is LINT1 of every CPU
}

// mcfgBody returns where configuration space is mapped (PCI Firmware 3.3 §4.1.2).
func mcfgBody(c *Config) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 8), c.ECAMBase)
	const segment, firstBus = 0, 0
	return append(b, segment, 0, firstBus, byte(c.ECAMBuses-1), 0, 0, 0, 0)
}
