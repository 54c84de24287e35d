package appliance

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"
)

// BootPartition is the name of the ESP on a disk that Lodge was installed to: the disk whose free space it may have.
const BootPartition = "Lodge"

// The names of the partition that is made: the first until it has its file system, so that a power cut before that is made good at
// the next start, and nothing is ever made over a state that cannot be read.
const (
	makingPartition = "Lodge state (being made)"
	statePartition  = "Lodge state"
)

// Sizes of the state partition, bytes.
const (
	partitionMargin = 1 << 20
	minState        = 32 << 20
)

var errNoBootDisk = errors.New("no disk was installed to: make a file system labelled " + StateLabel +
	" elsewhere, or name an empty disk by lodge.state=DEVICE on the kernel's command line")

// sectorSize returns the size of a disk's logical sectors.
func sectorSize(disk string) int {
	b, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(disk), "queue/logical_block_size"))
	if n, e := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && e == nil {
		return n
	}
	return 512
}

// bootDisk returns the disk among some that has Lodge's ESP. Two of them are an error.
func bootDisk(disks []string) (string, error) {
	var found []string
	for d, t := range tables(disks) {
		if hasPartition(t, BootPartition, gpt.EFISystemPartition) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return "", errNoBootDisk
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("several disks have Lodge: %v: unplug all but one for the first start", found)
}

// PartitionDevice returns the device of the partition with a GUID.
func PartitionDevice(guid string) (string, error) {
	disks, err := blockDevices()
	if err != nil {
		return "", err
	}
	return partitionOn(disks, guid)
}

// tables yields the disks among some devices that have a partition table, in their order.
func tables(devices []string) iter.Seq2[string, *gpt.Table] {
	return func(yield func(string, *gpt.Table) bool) {
		for _, d := range devices {
			if _, err := os.Stat(filepath.Join("/sys/class/block", filepath.Base(d), "partition")); err == nil {
				continue
			}
			f, err := os.Open(d)
			if err != nil { // a drive without a medium
				continue
			}
			t, err := gpt.Read(file.New(f, true), sectorSize(d), sectorSize(d))
			f.Close()
			if err == nil && !yield(d, t) {
				return
			}
		}
	}
}

// partitionOn is PartitionDevice for some disks.
func partitionOn(disks []string, guid string) (string, error) {
	for d, t := range tables(disks) {
		for _, p := range t.Partitions {
			if p.Type != gpt.Unused && strings.EqualFold(p.GUID, guid) {
				return partitionPath(d, p.Index), nil
			}
		}
	}
	return "", fmt.Errorf("no disk has a partition with the GUID %s", guid)
}

func hasPartition(t *gpt.Table, name string, kind gpt.Type) bool {
	for _, p := range t.Partitions {
		if p.Name == name && strings.EqualFold(string(p.Type), string(kind)) {
			return true
		}
	}
	return false
}

// addPartition makes a partition for the state of what is free behind the last one of a disk of size bytes, and returns it.
// The other partitions stay as they are. A table that was written for a smaller disk, as an image that was copied to a
// USB stick, grows with it.
func addPartition(f backend.Storage, size int64, sector int) (*gpt.Partition, error) {
	t, err := gpt.Read(f, sector, sector)
	if err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	free := uint64(partitionMargin / sector)
	var making *gpt.Partition
	used := make(map[int]bool)
	for _, p := range t.Partitions {
		if p.Type == gpt.Unused {
			continue
		}
		used[p.Index] = true
		free = max(free, p.End+1)
		switch p.Name {
		case makingPartition:
			making = p
		case statePartition:
			return nil, fmt.Errorf("partition %d, %q, has no file system labelled %s: it is damaged; nothing is made over it", p.Index, p.Name, StateLabel)
		}
	}
	if making != nil {
		return making, nil
	}
	index := 1
	for used[index] {
		index++
	}
	w, err := f.Writable()
	if err != nil {
		return nil, err
	}
	align := uint64(partitionMargin / sector)
	start := (free + align - 1) / align * align
	end := (uint64(size)-partitionMargin)/uint64(partitionMargin)*align - 1 // the table's copy is behind it
	if end < start || (end-start+1)*uint64(sector) < minState {
		return nil, fmt.Errorf("the disk has no %d MiB behind its last partition: the state needs them", minState>>20)
	}
	making = &gpt.Partition{Index: index, Start: start, End: end, Size: (end - start + 1) * uint64(sector), Type: gpt.LinuxFilesystem, Name: makingPartition}
	t.Partitions = append(t.Partitions, making)
	t.Resize(uint64(size))
	if err := t.Write(w, size); err != nil {
		return nil, fmt.Errorf("partition table: %w", err)
	}
	return making, nil
}

// finishPartition gives the partition its name.
func finishPartition(f backend.Storage, size int64, sector int) error {
	t, err := gpt.Read(f, sector, sector)
	if err != nil {
		return fmt.Errorf("partition table: %w", err)
	}
	for _, p := range t.Partitions {
		if p.Name == makingPartition {
			p.Name = statePartition
		}
	}
	w, err := f.Writable()
	if err != nil {
		return err
	}
	return t.Write(w, size)
}

// partitionPath returns the device of a disk's partition: sda1, but nvme0n1p1.
func partitionPath(disk string, number int) string {
	if last := disk[len(disk)-1]; last >= '0' && last <= '9' {
		disk += "p"
	}
	return disk + strconv.Itoa(number)
}

// emptyDisk returns an error if there may be anything on a device: its first MiB is not zero.
func emptyDisk(f io.ReaderAt) error {
	b := make([]byte, 1<<20)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, c := range b[:n] {
		if c != 0 {
			return errors.New("it is not empty: overwrite its first MiB with zeros if nothing on it is needed")
		}
	}
	return nil
}

// makeState makes a state partition on the disk that Lodge was installed to, or of the empty device that was named, and returns its
// device. mke2fs is run to make the file system.
func makeState(named string, mke2fs func(device string) error) (string, error) {
	if named != "" {
		f, err := os.Open(named)
		if err != nil {
			return "", fmt.Errorf("lodge.state: %w", err)
		}
		err = emptyDisk(f)
		f.Close()
		if err == nil {
			err = mke2fs(named)
		}
		if err != nil {
			return "", fmt.Errorf("lodge.state=%s: %w", named, err)
		}
		return named, nil
	}
	disks, err := blockDevices()
	if err != nil {
		return "", err
	}
	disk, err := bootDisk(disks)
	if err != nil {
		return "", err
	}
	device, err := partition(disk, mke2fs)
	if err != nil {
		return "", fmt.Errorf("%s: %w", disk, err)
	}
	return device, nil
}

// partition adds the state partition to a disk, and returns its device.
func partition(disk string, mke2fs func(device string) error) (string, error) {
	sector := sectorSize(disk)
	var p *gpt.Partition
	err := withDisk(disk, func(f *os.File, size int64) (err error) {
		if p, err = addPartition(file.New(f, false), size, sector); err != nil {
			return err
		}
		return tellKernel(f, p, sector)
	})
	if err != nil {
		return "", err
	}
	device := partitionPath(disk, p.Index)
	for until := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(device); err == nil {
			break
		} else if time.Now().After(until) {
			return "", fmt.Errorf("the kernel does not find the new partition: %w", err)
		}
	}
	if err := mke2fs(device); err != nil {
		return "", fmt.Errorf("%s: making a file system: %w", device, err)
	}
	return device, withDisk(disk, func(f *os.File, size int64) error { return finishPartition(file.New(f, false), size, sector) })
}

// tellKernel tells the kernel of a disk's new partition. It would not read the table anew: the ESP on it is in use, the system is there.
func tellKernel(f *os.File, p *gpt.Partition, sector int) error {
	part := unix.BlkpgPartition{Start: int64(p.Start) * int64(sector), Length: int64(p.End-p.Start+1) * int64(sector), Pno: int32(p.Index)} //nolint:gosec // within the disk
	arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_ADD_PARTITION, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); errno != 0 && errno != unix.EBUSY { // it knows it
		return fmt.Errorf("telling the kernel of partition %d: %w", p.Index, errno)
	}
	return nil
}

// withDisk opens a disk.
func withDisk(disk string, do func(f *os.File, size int64) error) error {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return do(f, size)
}
