package manager

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// A template is a disposable guest with its memory, as it was when it was ready after a boot. From then on every start goes on
// from there, by a private mapping of the memory and fresh copies of the disks, until something is another than it was: see
// templateKey. The machine sees to what must not be the same twice: the generation identifier, random numbers and the clock.

// Names in a template's directory, beside a file for each disk that is written to.
const (
	templateName   = "template.json" // written last
	workingSetName = "working-set.json"
)

// template is what is known of one beside its content.
type template struct {
	Created time.Time   `json:"created"`
	Key     templateKey `json:"key"`
}

// templateKey is all that the memory of a guest depends on, as texts by what people call it.
type templateKey map[string]string

// differs says what of k is another than in t; "" if nothing is.
func (k templateKey) differs(t templateKey) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(k)) {
		if v, ok := t[name]; !ok || v != k[name] {
			names = append(names, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if _, ok := k[name]; !ok {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

func (g *guest) templateDir() string { return filepath.Join(g.dir(), "template") }

// templateKey returns the key of the guest that is about to start from definition d, before disks are replaced by copies.
func (g *guest) templateKey(d *definition.Definition, disks []store.Disk) (templateKey, error) {
	text, err := d.Marshal()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	k := templateKey{"definition": hex.EncodeToString(sum[:])}
	files := map[string]string{"kernel": d.Boot.Kernel, "initrd": d.Boot.Initrd, "firmware": d.Boot.Firmware}
	if d.Display != nil {
		files["graphics card's firmware"] = d.Display.ROM
	}
	for _, disk := range disks {
		if !disk.Keep {
			files["disk "+disk.Name] = disk.Path
		}
	}
	for name, path := range files {
		if path == "" {
			continue
		}
		if k[name], err = fileIdentity(path); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if k["lodge-vmm"], err = programIdentity(g.m.cfg.Launcher.Program()); err != nil {
		return nil, err
	}
	if k["processor"], err = processorIdentity("/proc/cpuinfo"); err != nil {
		return nil, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	k["host's kernel"] = unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Version[:])
	return k, nil
}

// fileIdentity is other for each content of a file: no program changes that without a change of its time of change (stat(2)).
func fileIdentity(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", fmt.Errorf("%s: is no regular file, of which it can be told whether it was changed", path)
	}
	return fmt.Sprintf("inode %d, %d bytes, changed %d.%09d", st.Ino, st.Size, st.Ctim.Sec, st.Ctim.Nsec), nil
}

// programIdentity is other for each build of a Go program: its build ID, or what all of it adds up to if it has none. Its file may
// be in an initramfs, where it is new after each start.
func programIdentity(path string) (string, error) {
	if f, err := elf.Open(path); err == nil {
		defer f.Close()
		if s := f.Section(".note.go.buildid"); s != nil {
			if b, err := s.Data(); err == nil {
				sum := sha256.Sum256(b)
				return "build " + hex.EncodeToString(sum[:]), nil
			}
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// processorIdentity is that of the first processor that file, /proc/cpuinfo, lists: what it is, what it can do, its microcode.
func processorIdentity(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(b), "\n\n")
	h := sha256.New()
	fmt.Fprintln(h, runtime.GOARCH)
	for line := range strings.Lines(first) {
		name, _, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags", "bugs", "vmx flags":
			fmt.Fprint(h, line)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// useTemplate returns the directory of the template that a guest with key k can go on from, and "" if it has to boot. why is what
// is wrong with the template that is there; it is dropped.
func (g *guest) useTemplate(k templateKey, def *store.Guest) (dir, why string) {
	dir = g.templateDir()
	t, err := readJSON[template](filepath.Join(dir, templateName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", ""
	case err != nil:
		why = "is damaged: " + err.Error()
	default:
		if names := k.differs(t.Key); names != "" {
			why = "was made with another " + names
			break
		}
		files := []string{filepath.Join(memoryName, snap.StateName), filepath.Join(memoryName, snap.RAMName)}
		for _, disk := range overlaid(def) {
			files = append(files, disk.Name+".raw")
		}
		for _, name := range files {
			if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
				why = "is damaged: " + err.Error()
			}
		}
	}
	if why == "" {
		return dir, ""
	}
	g.do(g.dropTemplate)
	return "", why
}

// dropTemplate removes the template; a guest that has its memory mapped is not touched.
func (g *guest) dropTemplate() {
	away := filepath.Join(g.dir(), tmpPrefix+"template")
	err := os.Rename(g.templateDir(), away)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err = errors.Join(err, os.RemoveAll(away)); err != nil {
		g.log.Error("template cannot be removed", "err", err)
	}
}

// fresh tells that the guest boots because of what is wrong with its template.
func (g *guest) fresh(why string) {
	g.note = "boots afresh: its template " + why
	g.report("%s", g.note)
	g.publish()
}

// takeTemplate makes a template of the guest, which has just got ready, if it is to have one and did not come from one.
func (g *guest) takeTemplate() {
	if d := g.running.def; d == nil || !d.Template || g.rec.Template || g.rec.Key == nil || g.state != life.Running {
		return
	}
	g.order = order{template: true}
	g.op = &progress{}
	_ = g.step(life.Snapshot) // it is running
	g.op = nil
}

// makeTemplate makes the template of a guest, all or nothing. live keeps it still meanwhile.
func (g *guest) makeTemplate(ctx context.Context, def *store.Guest, key templateKey, live *still) error {
	tmp := filepath.Join(g.dir(), tmpPrefix+"template")
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // it is gone if all is well
	if err := live.begin(ctx, tmp); err != nil {
		return err
	}
	for _, k := range overlaid(def) {
		to := filepath.Join(tmp, k.Name+".raw")
		if err := pool.CopyFile(ctx, g.overlay(k.Name), to, pool.CopyOptions{Paused: true}, live.op.set); err != nil {
			return fmt.Errorf("disk %s: %w", k.Name, err)
		}
	}
	if err := live.end(); err != nil {
		return err
	}
	for _, k := range overlaid(def) {
		if err := syncPath(filepath.Join(tmp, k.Name+".raw")); err != nil {
			return fmt.Errorf("disk %s: %w", k.Name, err)
		}
	}
	if err := writeFile(filepath.Join(tmp, templateName), template{Created: time.Now(), Key: key}); err != nil {
		return err
	}
	if err := os.RemoveAll(g.templateDir()); err != nil {
		return err
	}
	if err := os.Rename(tmp, g.templateDir()); err != nil {
		return err
	}
	return syncPath(g.dir())
}

// overlaid returns the disks of which a disposable guest writes to copies.
func overlaid(def *store.Guest) (list []store.Disk) {
	for _, k := range written(def) {
		if !k.Keep {
			list = append(list, k)
		}
	}
	return list
}

// Once a guest runs that came from a template, what it uses first is noted, for the next start to read it ahead; and when it has
// what it needs, all of the template is looked at: what was mapped was not.
const (
	workingSetAfter = 5 * time.Second
	verifyAfter     = 20 * time.Second
)

// mindTemplate does that, until ctx ends, for the guest whose VMM is p.
func (g *guest) mindTemplate(ctx context.Context, p *process) {
	wait := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return true
		case <-ctx.Done():
			return false
		}
	}
	if !wait(workingSetAfter) {
		return
	}
	set := filepath.Join(g.templateDir(), workingSetName)
	if _, err := os.Stat(set); errors.Is(err, fs.ErrNotExist) {
		spans, err := residentSpans(p.pid, filepath.Join(g.templateDir(), memoryName, snap.RAMName))
		if err == nil {
			err = writeFile(set, spans)
		}
		if err != nil && ctx.Err() == nil {
			g.log.Warn("what the guest uses first is not known", "err", err)
		}
	}
	if !wait(verifyAfter - workingSetAfter) {
		return
	}
	if err := g.verifyTemplate(ctx); err != nil && ctx.Err() == nil {
		g.do(func() {
			if g.proc != p {
				return
			}
			g.report("its template is not what was written: it is switched off and boots afresh: %v", err)
			g.dropTemplate()
			g.again = true
			if err := g.step(life.Kill); err != nil {
				g.log.Error("guest of a damaged template", "err", err)
			}
		})
	}
}

// verifyTemplate reads all of the template's memory.
func (g *guest) verifyTemplate(ctx context.Context) error {
	dir := filepath.Join(g.templateDir(), memoryName)
	f, err := snap.Read(filepath.Join(dir, snap.StateName))
	if err != nil {
		return err
	}
	return mem.VerifyFile(ctx, filepath.Join(dir, snap.RAMName), f.Snapshot, nil)
}
