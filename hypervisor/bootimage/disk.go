package bootimage

import (
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/lodgehv/lodge/hypervisor/bootimage/fat"
)

// Sizes of a disk image, bytes. The partition begins and ends where flash has a border between blocks, whatever it is.
const (
	diskMargin = 1 << 20
	// DefaultESP is the size of the ESP; it may have 64 MiB to 4 GiB.
	DefaultESP = 128 << 20
	minESP     = 64 << 20
	maxESP     = 4 << 30
)

// Disk is what a file system is on.
type Disk = fat.Disk

// fatSector is the size of the sectors of what is made here.
const fatSector = fat.Sector

// Content is what is on a disk of Lodge's.
type Content struct {
	ESP     int64 // its size, bytes
	Manager []byte
	Release
	Guests *io.SectionReader // a file system with guests that come along, for a partition of its own; nil is none
}

// guests returns the size of their partition, bytes.
func (c *Content) guests() int64 {
	if c.Guests == nil {
		return 0
	}
	return (c.Guests.Size() + diskMargin - 1) / diskMargin * diskMargin
}

// Size returns the size of the smallest disk that has it, bytes.
func (c *Content) Size() int64 { return 2*diskMargin + c.ESP + c.guests() }

// WriteDisk writes a partition table, an ESP with the boot manager and one slot, and the guests to a disk of size bytes. What was
// there is lost.
func WriteDisk(d Disk, size int64, c Content) error {
	esp := c.ESP
	if esp < minESP || esp > maxESP || esp%diskMargin != 0 {
		return fmt.Errorf("an ESP of %d bytes: it needs whole MiB, from %d to %d", esp, minESP>>20, maxESP>>20)
	}
	if size < c.Size() {
		return fmt.Errorf("the disk has %d bytes, and needs %d", size, c.Size())
	}
	slot := int64(len(c.UKI) + len(c.System))
	if need := 2*slot + int64(len(c.Manager)) + diskMargin; esp-esp/64 < need {
		return fmt.Errorf("an ESP of %d bytes: two slots of %d bytes do not fit", esp, slot)
	}
	s := &storage{Disk: d, size: size}
	partition := func(index int, at, size int64, kind gpt.Type, name string) *gpt.Partition {
		return &gpt.Partition{Index: index, Start: uint64(at / fatSector), End: uint64((at+size)/fatSector) - 1, Size: uint64(size),
			Type: kind, Name: name, GUID: newGUID(fmt.Sprint("partition", index), c.UKI)}
	}
	table := &gpt.Table{
		LogicalSectorSize: fatSector, PhysicalSectorSize: fatSector, ProtectiveMBR: true, GUID: newGUID("disk", c.UKI),
		Partitions: []*gpt.Partition{partition(1, diskMargin, esp, gpt.EFISystemPartition, "Lodge")},
	}
	if c.Guests != nil {
		at := diskMargin + esp
		table.Partitions = append(table.Partitions, partition(2, at, c.guests(), gpt.LinuxFilesystem, "Lodge guests"))
		if _, err := io.Copy(io.NewOffsetWriter(d, at), io.NewSectionReader(c.Guests, 0, c.Guests.Size())); err != nil {
			return fmt.Errorf("guests: %w", err)
		}
	}
	if err := table.Write(s, size); err != nil {
		return fmt.Errorf("partition table: %w", err)
	}
	if err := format(s, esp); err != nil {
		return fmt.Errorf("ESP: %w", err)
	}
	e, err := openFAT(d, diskMargin, esp)
	if err != nil {
		return fmt.Errorf("ESP: %w", err)
	}
	if err := Install(e, c.Manager, c.Release); err != nil {
		return fmt.Errorf("ESP: %w", err)
	}
	if err := fat.Finish(d, diskMargin, esp); err != nil {
		return fmt.Errorf("ESP: %w", err)
	}
	return d.Sync()
}

// format makes a file system that fills a partition of size bytes, but for a few sectors: of some sizes, the library's tables lack
// entries for the last clusters.
func format(s *storage, size int64) error {
	const most = 64 // sectors: one cluster, which has a table entry
	var err error
	for n := range int64(most) {
		if _, err = fat32.Create(s, size-n*fatSector, diskMargin, fatSector, "LODGE", true); err != nil {
			return err
		}
		if _, err = fat.Read(s, diskMargin, size); err == nil {
			return nil
		}
	}
	return err
}

// newGUID returns a GUID that depends on what a disk has on it: RFC 9562, version 8.
func newGUID(purpose string, content []byte) string {
	h := sha256.New()
	h.Write([]byte(purpose))
	h.Write(content)
	g := h.Sum(nil)[:16]
	g[6], g[8] = g[6]&0x0f|0x80, g[8]&0x3f|0x80
	return fmt.Sprintf("%X-%X-%X-%X-%X", g[:4], g[4:6], g[6:8], g[8:10], g[10:])
}
