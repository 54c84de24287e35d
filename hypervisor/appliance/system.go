package appliance

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	devmapper "github.com/anatol/devmapper.go"
	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/bootimage/fat"
	"github.com/lodgehv/lodge/hypervisor/bootimage/system"
)

// SystemDir is where the system is mounted: Lodge's programs, and all kernel modules.
const SystemDir = "/system"

// systemModules are what the kernel needs to find the system and mount it; the first makes that fast.
var systemModules = []string{"sha256_ssse3", "dm_mod", "dm_verity", "squashfs"}

// Names of the devices (dm-linear and dm-verity): the pieces of the system's file on the ESP in a row, and what is checked.
const (
	piecesName = "lodge-pieces"
	systemName = "lodge-system"
)

// errNoSystem says that the system is nowhere.
var errNoSystem = errors.New("no disk has the system that this kernel was made with")

// mountSystem mounts the system that a kernel's command line names, once a disk has it, and makes it the machine's programs and
// modules. It returns where it is; "" if all programs are in the initramfs.
func mountSystem(cmdline string, until time.Time) (device string, err error) {
	id, err := system.Of(cmdline)
	if err != nil || id == nil {
		return "", err
	}
	var pieces []fat.Extent
	for {
		devices, err := blockDevices()
		if err != nil {
			return "", err
		}
		var trouble error
		device, pieces, trouble = findSystem(*id, espPartitions(devices))
		if device != "" {
			break
		}
		if time.Now().After(until) {
			return "", errors.Join(fmt.Errorf("%w: %s on an EFI system partition: plug in the disk that it was installed to, or update it with the build of the image that was started",
				errNoSystem, id.Path()), trouble)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := checkedDevice(*id, device, pieces); err != nil {
		return "", fmt.Errorf("system on %s: %w", device, err)
	}
	err = os.MkdirAll(SystemDir, 0o755)
	dev := ""
	if err == nil {
		dev, err = devicePath(systemName)
	}
	if err == nil {
		if err = unix.Mount(dev, SystemDir, "squashfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			err = fmt.Errorf("it is damaged: install it again: %w", err)
		}
	}
	if err != nil {
		err = fmt.Errorf("system on %s: %w", device, err)
		return "", errors.Join(err, devmapper.Remove(systemName), devmapper.Remove(piecesName)) // or it could not be tried again
	}
	return device, linkSystem("/", SystemDir)
}

// espPartitions returns the EFI system partitions of the disks among some devices.
func espPartitions(devices []string) (list []string) {
	for disk, t := range tables(devices) {
		for _, p := range t.Partitions {
			if strings.EqualFold(string(p.Type), string(gpt.EFISystemPartition)) {
				list = append(list, partitionPath(disk, p.Index))
			}
		}
	}
	return list
}

// maxESP is how large an EFI system partition may be for it to be looked at, bytes: its table is read.
const maxESP = 8 << 30

// findSystem returns which of some partitions has a system, and where on it. The error is what is wrong with those that seem to.
func findSystem(id system.ID, partitions []string) (device string, pieces []fat.Extent, err error) {
	var errs []error
	for _, p := range partitions {
		switch pieces, err := systemOn(id, p); {
		case err == nil:
			return p, pieces, nil
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, fat.ErrNotFAT):
			errs = append(errs, fmt.Errorf("%s: %w", p, err))
		}
	}
	return "", nil, errors.Join(errs...)
}

// systemOn returns where a system is on a partition; os.ErrNotExist if it is not there.
func systemOn(id system.ID, partition string) ([]fat.Extent, error) {
	f, err := os.Open(partition)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if size > maxESP {
		return nil, fmt.Errorf("an EFI system partition of more than %d GiB", maxESP>>30)
	}
	fs, err := fat.Read(f, 0, size)
	if err != nil {
		return nil, err
	}
	pieces, err := fs.Extents(id.Path())
	if err != nil {
		return nil, err
	}
	total := int64(0)
	for _, e := range pieces {
		total += e.Size
	}
	if total != id.Size() {
		return nil, fmt.Errorf("%s: %d bytes instead of %d", id.Path(), total, id.Size())
	}
	return pieces, nil
}

// checkedDevice makes a block device of the pieces of a system, whose every block the kernel checks when it is read.
func checkedDevice(id system.ID, partition string, pieces []fat.Extent) error {
	var table []devmapper.Table
	at := uint64(0)
	for _, e := range pieces {
		n := uint64(e.Size)                                                                                                           //nolint:gosec // a file's
		table = append(table, devmapper.LinearTable{Start: at, Length: n, BackendDevice: partition, BackendOffset: uint64(e.Offset)}) //nolint:gosec // within it
		at += n
	}
	if err := devmapper.CreateAndLoad(piecesName, "", devmapper.ReadOnlyFlag, table...); err != nil {
		return err
	}
	raw, err := devicePath(piecesName)
	if err == nil {
		err = devmapper.CreateAndLoad(systemName, "", devmapper.ReadOnlyFlag, devmapper.VerityTable{
			Length: id.Blocks * system.BlockSize, HashType: 1, DataDevice: raw, HashDevice: raw, DataBlockSize: system.BlockSize, HashBlockSize: system.BlockSize,
			NumDataBlocks: id.Blocks, HashStartBlock: id.Blocks, Algorithm: "sha256", Digest: fmt.Sprintf("%x", id.Root), Salt: "-",
		})
	}
	if err != nil {
		return errors.Join(err, devmapper.Remove(piecesName)) // or it could not be tried again
	}
	return nil
}

// devicePath returns the path of a device of the device mapper's.
func devicePath(name string) (string, error) {
	info, err := devmapper.InfoByName(name)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("/dev/dm-%d", unix.Minor(info.DevNo)), nil
}

// linkSystem makes directories of a system that is mounted in dir those of root: what is there by these names is removed. It is in an initramfs, which is
// memory.
func linkSystem(root, dir string) error {
	for _, name := range []string{"bin", "lib", "lib64", "usr"} {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		link := filepath.Join(root, name)
		if err := os.RemoveAll(link); err != nil {
			return err
		}
		if err := os.Symlink(filepath.Join(dir, name), link); err != nil {
			return err
		}
	}
	return nil
}
