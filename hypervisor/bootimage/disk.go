package bootimage

import (
	"crypto/sha256"
	"fmt"

	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// Sizes of a disk image, bytes. The partition begins and ends where flash has a border between blocks, whatever it is.
const (
	diskMargin = 1 << 20
	// DefaultESP is the size of the ESP; it may have 64 MiB to 4 GiB.
	DefaultESP = 128 << 20
	minESP     = 64 << 20
	maxESP     = 4 << 30
)

// DiskSize returns the size of a disk image with an ESP of some bytes.
func DiskSize(esp int64) int64 { return 2*diskMargin + esp }

// WriteDisk writes a partition table and an ESP of some bytes to a disk of size bytes, with the boot manager and one slot. What was
// there is lost.
func WriteDisk(d Disk, size, esp int64, manager, uki []byte) error {
	if esp < minESP || esp > maxESP || esp%diskMargin != 0 {
		return fmt.Errorf("an ESP of %d bytes: it needs whole MiB, from %d to %d", esp, minESP>>20, maxESP>>20)
	}
	if size < DiskSize(esp) {
		return fmt.Errorf("the disk has %d bytes, an ESP of %d needs %d", size, esp, DiskSize(esp))
	}
	if need := 2*int64(len(uki)) + int64(len(manager)) + diskMargin; esp-esp/64 < need {
		return fmt.Errorf("an ESP of %d bytes: two slots of %d bytes do not fit", esp, len(uki))
	}
	s := &storage{Disk: d, size: size}
	table := &gpt.Table{
		LogicalSectorSize: fatSector, PhysicalSectorSize: fatSector, ProtectiveMBR: true, GUID: newGUID("disk", uki),
		Partitions: []*gpt.Partition{{
			Index: 1, Start: diskMargin / fatSector, End: uint64(diskMargin+esp)/fatSector - 1, Size: uint64(esp),
			Type: gpt.EFISystemPartition, Name: "Lodge", GUID: newGUID("partition", uki),
		}},
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
	if err := Install(e, manager, uki); err != nil {
		return fmt.Errorf("ESP: %w", err)
	}
	if err := finish(d, diskMargin, esp); err != nil {
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
		if _, err = readFAT(s, diskMargin, size); err == nil {
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
