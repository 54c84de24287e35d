package bootimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf16"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/lodgehv/lodge/hypervisor/bootimage/fat"
	"github.com/lodgehv/lodge/hypervisor/bootimage/system"
)

// testRelease is a release as far as an ESP wants it: each number gives another UKI, and of two of them one has another system.
func testRelease(n int) Release {
	if r, ok := testReleases.Load(n); ok {
		return r.(Release)
	}
	image, id := system.Seal(bytes.Repeat(fmt.Appendf(nil, "%07d ", n/2), 1000+500*(n/2)))
	uki, err := appendSections(loader(), section{".linux", bytes.Repeat(fmt.Appendf(nil, "%07d ", n), 2000+100*n)},
		section{".cmdline", []byte("quiet " + system.Parameter + "=" + id.String() + "\x00")})
	if err != nil {
		panic(err)
	}
	r := Release{uki, image}
	testReleases.Store(n, r)
	return r
}

var testReleases sync.Map // by number, for it takes a while to make one

func testUKI(n int) []byte { return testRelease(n).UKI }

// memDisk is a disk in memory whose writes can be taken back. A sector is written whole or not at all.
type memDisk struct {
	size    int64
	sectors map[int64][]byte
	log     []write // since the begin
	record  bool
}

// write is one of a sector, or, if data is nil, a barrier: all before it are on the disk.
type write struct {
	sector int64
	data   []byte
}

func newMemDisk(size int64) *memDisk { return &memDisk{size: size, sectors: make(map[int64][]byte)} }

func (d *memDisk) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off >= d.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), d.size-off))
	for i := 0; i < n; {
		at := (off + int64(i)) % fatSector
		part := b[i:min(n, i+int(fatSector-at))]
		if s := d.sectors[(off+int64(i))/fatSector]; s != nil {
			copy(part, s[at:])
		} else {
			clear(part)
		}
		i += len(part)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memDisk) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > d.size {
		return 0, io.ErrShortWrite
	}
	for i := 0; i < len(b); {
		n, at := (off+int64(i))/fatSector, (off+int64(i))%fatSector
		s := make([]byte, fatSector)
		copy(s, d.sectors[n])
		i += copy(s[at:], b[i:])
		if old := d.sectors[n]; old == nil && isZero(s) || bytes.Equal(old, s) {
			continue
		}
		d.sectors[n] = s
		if d.record {
			d.log = append(d.log, write{n, s})
		}
	}
	return len(b), nil
}

func (d *memDisk) Sync() error {
	if d.record {
		d.log = append(d.log, write{})
	}
	return nil
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// Sizes of the ESP and of the disk with nothing else.
const (
	testESP  = minESP
	testDisk = testESP + 2*diskMargin
)

// installed returns a disk with UKI 1 in its first slot, and its ESP.
func installed(t testing.TB) (*memDisk, *fatESP) {
	t.Helper()
	c := Content{ESP: testESP, Manager: []byte("manager"), Release: testRelease(1)}
	d := newMemDisk(testDisk)
	if err := WriteDisk(d, d.size, c); err != nil {
		t.Fatal(err)
	}
	return d, reopen(t, d)
}

func reopen(t testing.TB, d *memDisk) *fatESP {
	t.Helper()
	e, err := openFAT(d, diskMargin, testESP)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// esps are the kinds of ESPs, each with UKI 1 in its first slot.
func esps(t *testing.T) map[string]ESP {
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := mounted{root}
	if err := Install(dir, []byte("manager"), testRelease(1)); err != nil {
		t.Fatal(err)
	}
	_, fat := installed(t)
	return map[string]ESP{"mounted": dir, "disk": fat}
}

// list describes the slots in the order of the boot manager: generation, then + and the tries left of one that has not come up.
func list(t testing.TB, esp ESP) string {
	t.Helper()
	slots, err := Slots(esp)
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, s := range slots {
		w := fmt.Sprint(s.Generation)
		if !s.Good {
			w += fmt.Sprintf("+%d", s.Left)
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

func TestSlots(t *testing.T) {
	for kind, esp := range esps(t) {
		t.Run(kind, func(t *testing.T) {
			uki := 1
			update := func() error {
				uki++
				_, err := Update(esp, testRelease(uki), DefaultTries)
				return err
			}
			rollback := func() error { _, err := Rollback(esp); return err }
			good := func(file string) func() error {
				return func() error { _, err := MarkGood(esp, file); return err }
			}
			// boots has the boot manager start a slot n times.
			boots := func(from, to string) func() error {
				return func() error { return esp.Rename(slotDir+"/"+from, slotDir+"/"+to) }
			}
			for _, step := range []struct {
				what string
				do   func() error
				want string
				err  string
			}{
				{"rollback of the only one", rollback, "1", "no other slot"},
				{"update", update, "2+3 1", ""},
				{"update of what was never tried", update, "3+3 1", ""},
				{"one try", boots("lodge-3+3.efi", "lodge-3+2-1.efi"), "3+2 1", ""},
				{"it comes up", good("EFI/Linux/lodge-3+2-1.efi"), "3 1", ""},
				{"good again", good("EFI/Linux/lodge-3+2-1.efi"), "3 1", ""},
				{"good, not counted", good(""), "3 1", ""},
				{"update", update, "4+3 3", ""},
				{"it never comes up", boots("lodge-4+3.efi", "lodge-4+0-3.efi"), "3 4+0", ""},
				{"good, of the other", good(""), "3 4+0", ""},
				{"update over what failed", update, "5+3 3", ""},
				{"rollback", rollback, "3 5+0", ""},
				{"rollback to what failed", rollback, "3 5+0", "no other slot"},
				{"good of a stranger", good("EFI/Linux/lodge-9+1-1.efi"), "3 5+0", "not among the slots"},
				{"update", update, "6+3 3", ""},
			} {
				err := step.do()
				if step.err == "" && err != nil || step.err != "" && (err == nil || !strings.Contains(err.Error(), step.err)) {
					t.Fatalf("%s: %v, want %q", step.what, err, step.err)
				}
				if got := list(t, esp); got != step.want {
					t.Fatalf("%s: slots %s, want %s", step.what, got, step.want)
				}
			}
			// The content is what it says.
			for file, n := range map[string]int{"lodge-6+3.efi": 6, "lodge-3.efi": 3} {
				if b, err := esp.ReadFile(slotDir + "/" + file); err != nil || !bytes.Equal(b, testUKI(n)) {
					t.Errorf("%s is not UKI %d (%v)", file, n, err)
				}
				if err := hasSystem(esp, testRelease(n)); err != nil {
					t.Errorf("%s: %v", file, err)
				}
			}
			if names, err := esp.ReadDir(slotDir); err != nil || len(slices.DeleteFunc(names, func(n string) bool { return n[0] == '.' })) != 2 {
				t.Errorf("files %v (%v)", names, err)
			}
			if names, err := esp.ReadDir(system.Dir); err != nil || len(slices.DeleteFunc(names, func(n string) bool { return n[0] == '.' })) != 2 {
				t.Errorf("systems %v (%v)", names, err)
			}
			for _, tt := range []struct {
				err  error
				want string
			}{
				{Install(esp, []byte("manager"), testRelease(1)), "update it instead"},
				{second(Update(esp, Release{UKI: []byte("nothing")}, 3)), "not a PE image"},
				{second(Update(esp, testRelease(1), 0)), "1 to 9"},
				{second(Update(esp, Release{UKI: testUKI(1)}, 1)), "it needs a system image"},
				{second(Update(esp, Release{testUKI(1), testRelease(2).System}, 1)), "take that of the same build"},
				{second(Update(esp, Release{testUKI(1), damaged(testRelease(1).System)}, 1)), "not the UKI's, or damaged"},
			} {
				if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
					t.Errorf("%v, want %q", tt.err, tt.want)
				}
			}
		})
	}
}

func damaged(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)/2] ^= 1
	return b
}

func second[T any](_ T, err error) error { return err }

func TestInstallBesideOthers(t *testing.T) {
	for kind, prepare := range map[string]func(dir string){
		"boot manager of others": func(dir string) { must(t, os.WriteFile(filepath.Join(dir, removable), []byte("other"), 0o644)) },
	} {
		dir := writeFiles(t, map[string]string{"EFI/BOOT/x": "", "EFI/other/x.efi": "theirs"})
		prepare(dir)
		esp, err := OpenESP(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := Install(esp, []byte("manager"), testRelease(1)); err == nil || !strings.Contains(err.Error(), "another system's") {
			t.Errorf("%s: %v", kind, err)
		}
		if names, err := esp.ReadDir(slotDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a refused install has left %v (%v)", kind, names, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// What an update may have left that was cut while another system renamed the file: two names of one content.
func TestSharedContent(t *testing.T) {
	for kind, esp := range esps(t) {
		if err := esp.WriteFile(unfinished, testUKI(1)); err != nil {
			t.Fatal(err)
		}
		_, err := Update(esp, testRelease(2), DefaultTries)
		if err == nil || !strings.Contains(err.Error(), "fsck.fat") {
			t.Errorf("%s: %v", kind, err)
		}
		if b, err := esp.ReadFile(slotDir + "/lodge-1.efi"); err != nil || !bytes.Equal(b, testUKI(1)) {
			t.Errorf("%s: the slot is not as it was (%v)", kind, err)
		}
	}
}

func TestRunningSlot(t *testing.T) {
	value := []byte{6, 0, 0, 0}
	for _, u := range utf16.Encode([]rune("\\EFI\\Linux\\lodge-2+1-2.efi\x00")) {
		value = binary.LittleEndian.AppendUint16(value, u)
	}
	dir := writeFiles(t, map[string]string{"some/" + bootCountVariable: string(value), "odd/" + bootCountVariable: "12345", "none/x": ""})
	for _, tt := range []struct {
		dir, want string
		ok        bool
	}{{"some", "EFI/Linux/lodge-2+1-2.efi", true}, {"odd", "", false}, {"none", "", true}} {
		if got, err := RunningSlot(filepath.Join(dir, tt.dir)); got != tt.want || (err == nil) != tt.ok {
			t.Errorf("%s: %q %v", tt.dir, got, err)
		}
	}
}

// cut returns the disk as a power cut leaves it after some of the log: what was written since the last barrier may be there or not.
func cut(base map[int64][]byte, log []write, random *rand.Rand) *memDisk {
	d := newMemDisk(testDisk)
	d.sectors = maps.Clone(base)
	barrier := 0
	for i, w := range log {
		if w.data == nil {
			barrier = i
		}
	}
	keep := random.Float64()
	for i, w := range log {
		if w.data != nil && (i < barrier || random.Float64() < keep) {
			d.sectors[w.sector] = w.data
		}
	}
	return d
}

// starts returns the number of the UKI in each slot that firmware could start, in the boot manager's order. A slot that it prefers
// but could not start is an error.
func starts(d *memDisk) (numbers []int, err error) {
	f, err := fat.Read(d, diskMargin, testESP)
	if err != nil {
		return nil, err
	}
	content := make(map[string][]byte)
	err = f.Walk(func(path string, size int64, clusters []uint32) error {
		if path != unfinished && path != system.Unfinished {
			g, err := fat.Read(d, diskMargin, testESP)
			if err != nil {
				return err
			}
			if content[path], err = g.ReadFile(path); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if string(content[removable]) != "manager" {
		return nil, errors.New("no boot manager")
	}
	slots, err := Slots(inMemory(content))
	if err != nil {
		return nil, err
	}
	for _, s := range slots {
		h, err := parsePE(content[s.path()])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		n, err := strconv.Atoi(string(content[s.path()][h.sections[1].PointerToRawData:][:7]))
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(content[s.path()], testUKI(n)) {
			return nil, fmt.Errorf("%s is not UKI %d", s.name, n)
		}
		if err := hasSystem(inMemory(content), testRelease(n)); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// inMemory is enough of an ESP to list its slots.
type inMemory map[string][]byte

func (m inMemory) ReadDir(dir string) (names []string, err error) {
	for p := range m {
		if filepath.Dir(p) == dir {
			names = append(names, filepath.Base(p))
		}
	}
	return names, nil
}
func (m inMemory) ReadFile(name string) ([]byte, error) {
	if b, ok := m[name]; ok {
		return b, nil
	}
	return nil, os.ErrNotExist
}

// hasSystem returns an error if the system of a release is not on an ESP.
func hasSystem(esp ESP, r Release) error {
	id, err := r.system()
	if err != nil {
		return err
	}
	if b, err := esp.ReadFile(id.Path()); err != nil || !bytes.Equal(b, r.System) {
		return fmt.Errorf("%s is not its system (%w)", id.Path(), err)
	}
	return nil
}
func (inMemory) WriteFile(string, []byte) error { return errors.ErrUnsupported }
func (inMemory) Rename(string, string) error    { return errors.ErrUnsupported }
func (inMemory) Remove(string) error            { return errors.ErrUnsupported }
func (inMemory) Close() error                   { return nil }

// The power may fail at any write of an update, of a rollback, and of what follows: a slot that worked before starts. Then the
// update is done again, and cut again, and at last it goes through.
func TestPowerCut(t *testing.T) {
	const lives, cuts = 5, 10
	for life := range lives {
		random := rand.New(rand.NewPCG(1, uint64(life)))
		d, _ := installed(t)
		good, uki := 1, 1 // the UKI that is known to start, the newest
		for range cuts {
			uki++
			base := maps.Clone(d.sectors)
			d.log, d.record = nil, true
			esp := reopen(t, d)
			what := "update"
			switch s, err := Update(esp, testRelease(uki), DefaultTries); {
			case err != nil:
				t.Fatalf("life %d: update to %d: %v", life, uki, err)
			case random.IntN(3) == 0:
				what = "rollback"
				_, err := Rollback(esp)
				must(t, err)
			case random.IntN(2) == 0:
				what = "good"
				_, err := MarkGood(esp, s.path())
				must(t, err)
			}
			at := random.IntN(len(d.log) + 1)
			if random.IntN(2) == 0 { // the end is where names change, but most writes are of content
				at = len(d.log) - random.IntN(6)
			}
			log := d.log[:at]
			d = cut(base, log, random)
			numbers, err := starts(d)
			if err != nil || !slices.Contains(numbers, good) && !slices.Contains(numbers, uki) {
				t.Fatalf("life %d: %s of %d, cut after %d writes: %d was good, there are %v: %v", life, what, uki, at, good, numbers, err)
			}
			// What starts then comes up, if it is not the new one, which may not.
			slots, err := Slots(reopen(t, d))
			must(t, err)
			if what == "good" && slots[0].Good {
				good = numbers[0]
			}
			if !slices.Contains(numbers, good) {
				t.Fatalf("life %d: %s of %d, cut after %d writes: %d was good, there are %v", life, what, uki, at, good, numbers)
			}
		}
		// Undisturbed, it works; and nothing has been lost of the space.
		esp := reopen(t, d)
		if _, err := Update(esp, testRelease(uki+1), DefaultTries); err != nil {
			t.Fatalf("life %d: the last update: %v", life, err)
		}
		if numbers, err := starts(d); err != nil || !slices.Equal(numbers, []int{uki + 1, good}) {
			t.Fatalf("life %d: at last there are %v, want %d and %d (%v)", life, numbers, uki+1, good, err)
		}
		checkFAT(t, d)
	}
}

// failing is an ESP that works for some more operations; of a file that is written then, a part is there.
type failing struct {
	ESP
	left int
}

var errPower = errors.New("power failed")

func (f *failing) use() error {
	if f.left--; f.left < 0 {
		return errPower
	}
	return nil
}

func (f *failing) WriteFile(name string, data []byte) error {
	if err := f.use(); err != nil {
		return errors.Join(err, f.ESP.WriteFile(name, data[:len(data)/2]))
	}
	return f.ESP.WriteFile(name, data)
}

func (f *failing) Rename(from, to string) error {
	if err := f.use(); err != nil {
		return err
	}
	return f.ESP.Rename(from, to)
}

func (f *failing) Remove(name string) error {
	if err := f.use(); err != nil {
		return err
	}
	return f.ESP.Remove(name)
}

// The same at each step of an update of an ESP that is mounted.
func TestPowerCutMounted(t *testing.T) {
	for steps := 0; ; steps++ {
		esp := esps(t)["mounted"]
		if _, err := Update(esp, testRelease(2), DefaultTries); err != nil { // so that there is a slot to remove
			t.Fatal(err)
		}
		_, err := Update(&failing{esp, steps}, testRelease(3), DefaultTries)
		if err != nil && !errors.Is(err, errPower) {
			t.Fatalf("after %d steps: %v", steps, err)
		}
		slots, listed := Slots(esp)
		if listed != nil {
			t.Fatalf("after %d steps: %v", steps, listed)
		}
		for _, s := range slots {
			n := s.Generation
			b, err := esp.ReadFile(s.path())
			if err == nil && bytes.Equal(b, testUKI(3)) {
				n = 3
			}
			if err != nil || !bytes.Equal(b, testUKI(n)) {
				t.Errorf("after %d steps: %s is not whole (%v)", steps, s.name, err)
			}
			if err := hasSystem(esp, testRelease(n)); err != nil {
				t.Errorf("after %d steps: %s: %v", steps, s.name, err)
			}
		}
		if !slices.ContainsFunc(slots, func(s Slot) bool { return s.Generation == 1 && s.Good }) {
			t.Errorf("after %d steps: the good slot is gone: %v", steps, slots)
		}
		if err == nil {
			if steps < 3 {
				t.Errorf("an update is done after %d steps", steps)
			}
			return
		}
		if _, err := Update(esp, testRelease(3), DefaultTries); err != nil {
			t.Errorf("after %d steps, once more: %v", steps, err)
		}
	}
}

// checkFAT has fsck.fat look at the ESP.
func checkFAT(t *testing.T, d *memDisk) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "esp")
	f, err := os.Create(name)
	must(t, err)
	must(t, f.Truncate(testESP))
	for n, s := range d.sectors {
		if at := n*fatSector - diskMargin; at >= 0 && at < testESP {
			_, err := f.WriteAt(s, at)
			must(t, err)
		}
	}
	must(t, f.Close())
	if out, err := exec.Command("/usr/sbin/fsck.fat", "-n", "-v", name).CombinedOutput(); err != nil {
		t.Errorf("fsck.fat: %v\n%s", err, out)
	}
}

func TestWriteDisk(t *testing.T) {
	d, esp := installed(t)
	checkFAT(t, d)
	again, _ := installed(t)
	if !maps.EqualFunc(d.sectors, again.sectors, bytes.Equal) {
		t.Error("made once more it differs")
	}
	if got := list(t, esp); got != "1" {
		t.Errorf("slots %s", got)
	}
	for _, tt := range []struct {
		size, esp int64
		release   Release
		want      string
	}{
		{testDisk, 1 << 20, testRelease(1), "it needs whole MiB, from 64"},
		{testDisk, testESP + 1, testRelease(1), "whole MiB"},
		{testDisk - 1, testESP, testRelease(1), "the disk has"},
		{testDisk, testESP, Release{make([]byte, testESP/4), make([]byte, testESP/4)}, "two slots"},
		{testDisk, testESP, Release{UKI: []byte("no UKI")}, "not a PE image"},
	} {
		c := Content{ESP: tt.esp, Manager: []byte("manager"), Release: tt.release}
		if err := WriteDisk(newMemDisk(tt.size), tt.size, c); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %q", err, tt.want)
		}
	}
}

// Guests that come along have a partition behind the ESP.
func TestWriteGuests(t *testing.T) {
	guests := bytes.Repeat([]byte("guests"), 100_000)
	c := Content{ESP: testESP, Manager: []byte("manager"), Release: testRelease(1), Guests: io.NewSectionReader(bytes.NewReader(guests), 0, int64(len(guests)))}
	if got := c.Size(); got != testDisk+diskMargin {
		t.Errorf("%d bytes", got)
	}
	if err := WriteDisk(newMemDisk(testDisk), testDisk, c); err == nil || !strings.Contains(err.Error(), "the disk has") {
		t.Errorf("on a disk without room for them: %v", err)
	}
	d := newMemDisk(c.Size())
	must(t, WriteDisk(d, d.size, c))
	table, err := gpt.Read(&storage{Disk: d, size: d.size}, fatSector, fatSector)
	must(t, err)
	p := table.Partitions[1]
	if p.Name != "Lodge guests" || p.Type != gpt.LinuxFilesystem || p.Size != diskMargin {
		t.Errorf("%+v", p)
	}
	got := make([]byte, len(guests))
	_, err = d.ReadAt(got, int64(p.Start)*fatSector)
	must(t, err)
	if !bytes.Equal(got, guests) {
		t.Error("they are not in their partition")
	}
	if got := list(t, reopen(t, d)); got != "1" {
		t.Errorf("slots %s", got)
	}
}

// A disk in which others are, or nothing is, is told from one of ours.
func TestOpenESP(t *testing.T) {
	d, esp := installed(t)
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	must(t, err)
	must(t, f.Truncate(d.size))
	if _, err := OpenESP(name); err == nil || !strings.Contains(err.Error(), "partition table") {
		t.Errorf("an empty disk: %v", err)
	}
	for n, s := range d.sectors {
		_, err := f.WriteAt(s, n*fatSector)
		must(t, err)
	}
	must(t, f.Close())
	opened, err := OpenESP(name)
	must(t, err)
	if got := list(t, opened); got != "1" {
		t.Errorf("slots %s", got)
	}
	must(t, opened.Close())

	partition := filepath.Join(t.TempDir(), "partition") // the ESP alone
	whole, err := os.ReadFile(name)
	must(t, err)
	must(t, os.WriteFile(partition, whole[diskMargin:diskMargin+testESP], 0o600))
	opened, err = OpenESP(partition)
	must(t, err)
	if s, err := MarkGood(opened, "EFI/Linux/lodge-1.efi"); err != nil || s.Generation != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	must(t, opened.Close())

	if err := esp.WriteFile("EFI/BOOT/other.txt", []byte("x")); err != nil {
		t.Errorf("a file in another directory: %v", err)
	}
	must(t, esp.fs.Rename("EFI/Linux/lodge-1.efi", "EFI/Linux/debian.efi"))
	must(t, esp.reload())
	if err := esp.WriteFile(unfinished, []byte("x")); err == nil || !strings.Contains(err.Error(), "another system's") {
		t.Errorf("a directory with files of others: %v", err)
	}
}

func FuzzFAT(f *testing.F) {
	// A small file system of what matters in a real one: boot sector, begin of the table, first clusters.
	const size, reserved, perTable = 4 << 20, 32, 64
	d, _ := installed(f)
	real, err := fat.Read(d, diskMargin, testESP)
	must(f, err)
	boot, table, data := make([]byte, fatSector), make([]byte, fatSector), make([]byte, 8*fatSector)
	for at, b := range map[int64][]byte{0: boot, real.Table: table, real.Data: data} {
		_, err := d.ReadAt(b, diskMargin+at)
		must(f, err)
	}
	binary.LittleEndian.PutUint32(boot[32:], size/fatSector)
	binary.LittleEndian.PutUint32(boot[36:], perTable)
	disk := func(boot, table, data []byte) *memDisk {
		d := newMemDisk(size)
		for at, b := range map[int64][]byte{0: boot[:min(len(boot), fatSector)], reserved: table, reserved + 2*perTable: data} {
			_, _ = d.WriteAt(b, at*fatSector)
		}
		return d
	}
	must(f, fat.Mend(disk(boot, table, data), 0, size))
	f.Add(boot, table, data)
	for _, field := range []int{14, 44} { // a table in place of the boot sector; no root directory
		bad := slices.Clone(boot)
		clear(bad[field : field+2])
		if fat.Mend(disk(bad, table, data), 0, size) == nil {
			f.Errorf("a boot sector with 0 at %d is taken", field)
		}
		f.Add(bad, table, data)
	}
	f.Fuzz(func(t *testing.T, boot, table, data []byte) {
		d := disk(boot, table, data)
		if fat.Mend(d, 0, size) != nil {
			return
		}
		d.log, d.record = nil, true
		if err := fat.Mend(d, 0, size); err != nil || len(slices.DeleteFunc(d.log, func(w write) bool { return w.data == nil })) > 0 {
			t.Errorf("what was mended needs it again (%v)", err)
		}
	})
}
