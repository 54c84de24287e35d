package bootimage

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/lodgehv/lodge/hypervisor/bootimage/system"
)

// ESP is an EFI system partition. Names are relative and have slashes. What a method has done is on the disk when it returns; a power
// cut before that leaves the file system's other files whole.
type ESP interface {
	// ReadDir returns the names in a directory, sorted; fs.ErrNotExist if there is none.
	ReadDir(name string) ([]string, error)
	ReadFile(name string) ([]byte, error)
	// WriteFile makes a file, and the directories above it, or replaces it, but not at once.
	WriteFile(name string, data []byte) error
	// Rename gives a file another name in its directory, at once.
	Rename(from, to string) error
	Remove(name string) error
	Close() error
}

// Places on an ESP.
const (
	slotDir    = "EFI/Linux"
	unfinished = slotDir + "/lodge.new" // not a name that a boot manager takes
	removable  = "EFI/BOOT/BOOTX64.EFI" // what firmware starts from a disk that it knows nothing of
	loaderConf = "loader/loader.conf"
)

// DefaultTries is how often a new slot may fail to come up.
const DefaultTries = 3

// Slot is a UKI on an ESP. The boot manager takes the one of the highest generation that has tries left or is good, and before it
// starts one that is not good yet, takes a try off.
type Slot struct {
	Generation int
	// Good says that it came up once: it is not counted.
	Good bool
	// Left is how often a slot that is not good may still be tried, and Done how often it was.
	Left, Done int
	name       string // in slotDir
}

// Failed reports whether the slot has no tries left: it is started only if there is no other.
func (s Slot) Failed() bool { return !s.Good && s.Left == 0 }

func (s Slot) path() string { return path.Join(slotDir, s.name) }

var slotForm = regexp.MustCompile(`^lodge-([1-9][0-9]{0,8})(?:\+([0-9]{1,4})(?:-([0-9]{1,4}))?)?\.efi$`)

// parseSlot returns the slot of a file's name; ok is false if it is none.
func parseSlot(name string) (s Slot, ok bool) {
	m := slotForm.FindStringSubmatch(name)
	if m == nil {
		return s, false
	}
	s = Slot{Good: m[2] == "", name: name}
	for to, digits := range map[*int]string{&s.Generation: m[1], &s.Left: m[2], &s.Done: m[3]} {
		*to, _ = strconv.Atoi(digits) // "" is 0
	}
	return s, true
}

// Slots returns the slots of an ESP in the order in which the boot manager prefers them. It is an error if there is none.
func Slots(esp ESP) ([]Slot, error) {
	names, err := esp.ReadDir(slotDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var slots []Slot
	for _, n := range names {
		if s, ok := parseSlot(n); ok {
			slots = append(slots, s)
		}
	}
	if len(slots) == 0 {
		return nil, fmt.Errorf("no slot of Lodge in %s: install it first", slotDir)
	}
	slices.SortFunc(slots, func(a, b Slot) int {
		if a.Failed() != b.Failed() {
			if a.Failed() {
				return 1
			}
			return -1
		}
		return cmp.Or(cmp.Compare(b.Generation, a.Generation), cmp.Compare(a.name, b.name))
	})
	return slots, nil
}

// Release is what a slot has.
type Release struct {
	UKI    []byte
	System []byte // that the UKI's command line names, with its hash tree; nil if it names none
}

// commandLine returns the kernel's parameters in a UKI.
func commandLine(uki []byte) (string, error) {
	h, err := parsePE(uki)
	if err != nil {
		return "", fmt.Errorf("UKI: %w", err)
	}
	for _, s := range h.sections {
		if string(bytes.TrimRight(s.Name[:], "\x00")) == ".cmdline" {
			b := uki[s.PointerToRawData:][:min(s.VirtualSize, s.SizeOfRawData)] // within the image: parsePE
			return string(bytes.TrimRight(b, "\x00")), nil
		}
	}
	return "", nil
}

// system returns the ID of the release's system, nil if it needs none. That it has another is an error.
func (r *Release) system() (*system.ID, error) {
	cmdline, err := commandLine(r.UKI)
	if err != nil {
		return nil, err
	}
	want, err := system.Of(cmdline)
	switch {
	case err != nil:
		return nil, fmt.Errorf("UKI: %w", err)
	case want == nil:
		return nil, nil
	case r.System == nil:
		return nil, errors.New("UKI: it needs a system image, and there is none: take that of the same build")
	case int64(len(r.System)) != want.Size():
		return nil, fmt.Errorf("system image: %d bytes, and the UKI's has %d: take that of the same build", len(r.System), want.Size())
	}
	if _, id := system.Seal(r.System[:want.Blocks*system.BlockSize]); id != *want {
		return nil, errors.New("system image: it is not the UKI's, or damaged: take that of the same build")
	}
	return want, nil
}

// write writes a release under names that nobody looks for, and renames it when it is there: the system first.
func (r *Release) write(esp ESP, s Slot) error {
	id, err := r.system()
	if err != nil {
		return err
	}
	if id != nil {
		old, err := esp.ReadFile(id.Path())
		if err == nil && !bytes.Equal(old, r.System) {
			if err := esp.Remove(id.Path()); err != nil {
				return err
			}
		}
		if err != nil || !bytes.Equal(old, r.System) {
			if err := writeFile(esp, id.Path(), system.Unfinished, r.System); err != nil {
				return err
			}
		}
	}
	return writeFile(esp, s.path(), unfinished, r.UKI)
}

// cleanSystems removes systems that no slot names, and what is left of one whose writing was cut.
func cleanSystems(esp ESP) error {
	names, err := esp.ReadDir(system.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	slots, err := Slots(esp)
	if err != nil {
		return err
	}
	var keep []string
	for _, s := range slots {
		uki, err := esp.ReadFile(s.path())
		if err != nil {
			return err
		}
		cmdline, err := commandLine(uki)
		if err != nil {
			return fmt.Errorf("slot %d: %w", s.Generation, err)
		}
		if id, err := system.Of(cmdline); err == nil && id != nil {
			keep = append(keep, id.Path())
		}
	}
	if err := removeUnfinished(esp, system.Unfinished, keep); err != nil {
		return err
	}
	for _, n := range names {
		p := path.Join(system.Dir, n)
		if path.Ext(n) != ".img" || slices.Contains(keep, p) {
			continue
		}
		if err := esp.Remove(p); err != nil {
			return err
		}
	}
	return nil
}

// Install puts the boot manager and a first, good slot on an ESP. Another program in the place where firmware looks on a disk that
// it does not know is not replaced: that is an error.
func Install(esp ESP, manager []byte, r Release) error {
	if _, err := Slots(esp); err == nil {
		return errors.New("a slot of Lodge is there: update it instead")
	}
	if old, err := esp.ReadFile(removable); err == nil && !bytes.Equal(old, manager) {
		return fmt.Errorf("%s is another system's: move it away, or give Lodge a disk of its own", removable)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The boot manager last: without it the disk is as it was before.
	if err := r.write(esp, Slot{Generation: 1, Good: true, name: "lodge-1.efi"}); err != nil {
		return err
	}
	if _, err := esp.ReadFile(loaderConf); errors.Is(err, fs.ErrNotExist) {
		// No menu, unless the space bar is held; no change of the command line.
		if err := esp.WriteFile(loaderConf, []byte("timeout 0\neditor no\n")); err != nil {
			return err
		}
	}
	return esp.WriteFile(removable, manager)
}

// Update puts a release into the slot that is not needed to fall back to, to be tried first at the next starts, tries times at most.
func Update(esp ESP, r Release, tries int) (Slot, error) {
	if tries < 1 || tries > 9 {
		return Slot{}, fmt.Errorf("%d tries: 1 to 9", tries)
	}
	if _, err := r.system(); err != nil {
		return Slot{}, err
	}
	slots, err := Slots(esp)
	if err != nil {
		return Slot{}, err
	}
	// The newest that has come up is kept, or else the one that would be started.
	keep := slots[max(slices.IndexFunc(slots, func(s Slot) bool { return s.Good }), 0)]
	newest := keep.Generation
	for _, s := range slots {
		newest = max(newest, s.Generation)
		if s.name == keep.name {
			continue
		}
		if err := esp.Remove(s.path()); err != nil {
			return Slot{}, err
		}
	}
	var kept []string
	for _, s := range slots {
		if s.name == keep.name {
			kept = append(kept, s.path())
		}
	}
	if err := removeUnfinished(esp, unfinished, kept); err != nil {
		return Slot{}, err
	}
	if err := cleanSystems(esp); err != nil {
		return Slot{}, err
	}
	s := Slot{Generation: newest + 1, Left: tries, name: fmt.Sprintf("lodge-%d+%d.efi", newest+1, tries)}
	return s, r.write(esp, s)
}

// writeFile writes a file under a name that nobody looks for, and renames it when it is there.
func writeFile(esp ESP, name, unfinished string, data []byte) error {
	if err := esp.WriteFile(unfinished, data); err != nil {
		return errors.Join(err, esp.Remove(unfinished))
	}
	back, err := esp.ReadFile(unfinished)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, data) {
		return fmt.Errorf("%s does not read as it was written: the disk fails", unfinished)
	}
	return esp.Rename(unfinished, name)
}

// removeUnfinished removes what an update has left that was cut. Where a file is renamed in two steps, the old and the new name can
// both be there afterwards, of one and the same content: to remove that would free the clusters of one of those that are kept.
func removeUnfinished(esp ESP, unfinished string, kept []string) error {
	left, err := esp.ReadFile(unfinished)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		for _, k := range kept {
			if b, err := esp.ReadFile(k); err == nil && len(b) > 0 && bytes.Equal(b, left) {
				return fmt.Errorf("%s and %s may share their content: run fsck.fat -a on the ESP, then remove the former", unfinished, k)
			}
		}
	}
	return esp.Remove(unfinished)
}

// Rollback has the boot manager prefer the other slot from the next start on, and returns that one.
func Rollback(esp ESP) (Slot, error) {
	slots, err := Slots(esp)
	if err != nil {
		return Slot{}, err
	}
	if len(slots) < 2 || slots[1].Failed() {
		return Slot{}, errors.New("there is no other slot that could start")
	}
	s := slots[0]
	return slots[1], esp.Rename(s.path(), path.Join(slotDir, fmt.Sprintf("lodge-%d+0-%d.efi", s.Generation, s.Done)))
}

// MarkGood says that a slot has come up. Its file is what RunningSlot returns; "" says that nothing is counted, so nothing is done.
func MarkGood(esp ESP, file string) (Slot, error) {
	slots, err := Slots(esp)
	if err != nil {
		return Slot{}, err
	}
	if file == "" {
		return slots[0], nil
	}
	running, ok := parseSlot(path.Base(file))
	i := slices.IndexFunc(slots, func(s Slot) bool { return s.Generation == running.Generation })
	if !ok || i < 0 {
		return Slot{}, fmt.Errorf("%s was started, but it is not among the slots of this ESP", file)
	}
	if slots[i].Good {
		return slots[i], nil
	}
	good := Slot{Generation: running.Generation, Good: true, name: fmt.Sprintf("lodge-%d.efi", running.Generation)}
	return good, esp.Rename(slots[i].path(), good.path())
}

// Variables of the boot manager, Boot Loader Interface: which file it has started, if it counts that file's tries, and from which
// partition it was started itself.
const (
	bootCountVariable = "LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	partitionVariable = "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
)

// RunningSlot returns the file of the slot that runs, on its ESP, or "" if it has come up before. Variables is where efivarfs is
// mounted: /sys/firmware/efi/efivars.
func RunningSlot(variables string) (string, error) {
	text, err := readVariable(variables, bootCountVariable)
	return strings.TrimPrefix(strings.ReplaceAll(text, `\`, "/"), "/"), err
}

// RunningESP returns the GUID of the partition that the boot manager was started from, or "" if it does not say so.
func RunningESP(variables string) (string, error) { return readVariable(variables, partitionVariable) }

// readVariable returns the text in a variable, or "" if it is not set.
func readVariable(variables, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(variables, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	const attributes = 4 // before the value
	if len(b) < attributes || len(b)%2 != 0 {
		return "", fmt.Errorf("%s: not a text of UTF-16", name)
	}
	units := make([]uint16, len(b)/2-attributes/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[attributes+2*i:])
	}
	return strings.TrimRight(string(utf16.Decode(units)), "\x00"), nil
}
