package manager

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/life"
)

// templated defines a guest with a template, which gets ready by what it prints.
func (r *rig) templated(words string) {
	r.t.Helper()
	r.define("a", "print=login "+words, "disposable = true", "template = true", "ready = { serial = \"login: \" }", r.disk("root", "content"))
}

const templateFile = "var/guests/a/template/" + templateName

// vmmLog returns what the VMMs of guest a have said since from bytes of it.
func (r *rig) vmmLog(from int) string {
	r.t.Helper()
	b, err := r.Tail("a", "vmm", 1<<20)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b[from:])
}

// awaitTemplate waits until guest a has a template and goes on.
func (r *rig) awaitTemplate() {
	r.t.Helper()
	for deadline := time.Now().Add(patience); !r.exists(templateFile); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("there is no template: %+v", r.info("a"))
		}
	}
	r.state("a", life.Running)
}

func (r *rig) info(name string) Guest {
	r.t.Helper()
	g, err := r.Get(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

// awaitStep waits until somebody is told a text with want in it.
func (r *rig) awaitStep(s *Subscription, want string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	var told []string
	for {
		e, err := s.Next(ctx)
		if err != nil {
			r.t.Fatalf("nobody is told %q, but %q: %v", want, told, err)
		}
		if e.Kind == GuestStep {
			if told = append(told, e.Text); strings.Contains(e.Text, want) {
				return
			}
		}
	}
}

// A guest boots once, and goes on from there at every start, with its disks as they were.
func TestTemplate(t *testing.T) {
	r := newRig(t)
	r.templated("")
	r.must(r.Start("a"))
	r.until("a", "ready", func(g Guest) bool { return g.Ready })
	r.awaitTemplate()
	if b, err := os.ReadFile(filepath.Join(r.dir, "var/guests/a/template/root.raw")); err != nil || string(b) != "content" {
		t.Errorf("%q, %v", b, err)
	}
	for range 2 {
		if err := os.WriteFile(filepath.Join(r.dir, "var/guests/a/overlay/root.raw"), []byte("written"), 0o600); err != nil {
			t.Fatal(err)
		}
		r.must(r.Kill("a"))
		r.state("a", life.Defined)
		from := len(r.vmmLog(0))
		r.must(r.Start("a"))
		if g := r.until("a", "ready", func(g Guest) bool { return g.Ready }); g.State != life.Running || g.Note != "" {
			t.Errorf("%+v", g)
		}
		if said := r.vmmLog(from); !strings.Contains(said, "template/memory") {
			t.Errorf("it did not come from its template: %s", said)
		}
		if b, err := os.ReadFile(filepath.Join(r.dir, "var/guests/a/overlay/root.raw")); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
	}
	r.must(r.Kill("a"))
	if err := r.Discard("a"); err != nil || r.exists("var/guests/a/template") {
		t.Errorf("a template that is to be dropped is there: %v", err)
	}
}

// A guest that came from its template, was switched off, and could not say how it ended, for the disk was full, has done nothing to
// its template.
func TestTemplateStaysWhenFull(t *testing.T) {
	r := newRig(t)
	r.templated("outcome=none")
	r.must(r.Start("a"))
	r.awaitTemplate()
	for range 2 {
		r.must(r.Kill("a"))
		r.state("a", life.Defined)
		from := len(r.vmmLog(0))
		r.must(r.Start("a"))
		r.until("a", "ready", func(g Guest) bool { return g.Ready })
		if said := r.vmmLog(from); !strings.Contains(said, "template/memory") {
			t.Errorf("it did not come from its template: %s", said)
		}
	}
	r.must(r.Kill("a"))
}

// What does not fit any more, or is damaged, is never used: the guest boots, says why, and has another template.
func TestTemplateStale(t *testing.T) {
	damage := func(r *rig, file, content string) {
		if err := os.WriteFile(filepath.Join(r.dir, file), []byte(content), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		words string
		do    func(r *rig)
		want  string // of what is reported
	}{
		"kernel": {do: func(r *rig) { damage(r, "vmlinux", "another") }, want: "was made with another kernel"},
		"disk":   {do: func(r *rig) { damage(r, "root.img", "another") }, want: "was made with another disk root"},
		"definition": {do: func(r *rig) {
			text, tag, _ := r.Definition("a")
			if err := r.Edit("a", []byte(strings.Replace(string(text), "64M", "96M", 1)), tag); err != nil {
				r.t.Fatal(err)
			}
		}, want: "was made with another definition"},
		"cut":     {do: func(r *rig) { damage(r, templateFile, "{") }, want: "is damaged"},
		"empty":   {do: func(r *rig) { damage(r, templateFile, "{}") }, want: "was made with another "},
		"gone":    {do: func(r *rig) { os.Remove(filepath.Join(r.dir, "var/guests/a/template/memory/state")) }, want: "is damaged: "},
		"refused": {words: "restore=refuse", do: func(*rig) {}, want: "cannot be used: its VMM has ended"},
		"no disk": {do: func(r *rig) { os.Remove(filepath.Join(r.dir, "var/guests/a/template/root.raw")) }, want: "is damaged: "},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.templated(tc.words)
			r.must(r.Start("a"))
			r.awaitTemplate()
			made, err := readJSON[template](filepath.Join(r.dir, templateFile))
			if err != nil {
				t.Fatal(err)
			}
			r.must(r.Kill("a"))
			r.state("a", life.Defined)
			tc.do(r)
			events := r.Subscribe()
			defer events.Close()
			if err := r.run(r.Start("a")); err != nil {
				t.Fatal(err)
			}
			r.awaitStep(events, tc.want)
			r.until("a", "ready", func(g Guest) bool { return g.Ready })
			r.awaitStep(events, "a template was made of it")
			if now, err := readJSON[template](filepath.Join(r.dir, templateFile)); err != nil || !now.Created.After(made.Created) {
				t.Errorf("%+v, %v", now, err)
			}
			r.state("a", life.Running)
		})
	}
}

// A template that cannot be made leaves the guest running, and nothing else.
func TestTemplateFails(t *testing.T) {
	r := newRig(t)
	r.templated("save=fail")
	events := r.Subscribe()
	defer events.Close()
	r.must(r.Start("a"))
	r.awaitStep(events, "no template was made of it: ")
	r.state("a", life.Running)
	if left := glob(r.dir, "var/guests/a/*template*"); left != nil {
		t.Errorf("left: %v", left)
	}
}

// The manager is killed while a template is made: the guest runs on, and nothing is half made.
func TestTemplateInterrupted(t *testing.T) {
	r := newRig(t)
	r.templated("save=slow")
	r.must(r.Start("a"))
	r.state("a", life.Saving)
	r.reopen()
	r.state("a", life.Running)
	if left := glob(r.dir, "var/guests/a/*template*"); left != nil {
		t.Errorf("left: %v", left)
	}
	r.must(r.Kill("a"))
}

// What a process has used of a file is found.
func TestResidentSpans(t *testing.T) {
	page := os.Getpagesize()
	path := filepath.Join(t.TempDir(), "ram")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const pages = 256
	if err := f.Truncate(int64(page) * pages); err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), int64(page), page*(pages-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	if err := unix.Madvise(b, unix.MADV_RANDOM); err != nil {
		t.Fatal(err)
	}
	gap := spanGap / page
	for _, i := range []int{1, 2, 2 + gap, 100, 254} {
		b[i*page] = 1
	}
	got, err := residentSpans(os.Getpid(), path)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i, n int) span { return span{int64((i + 1) * page), int64(n * page)} }
	if diff := cmp.Diff([]span{at(1, gap+2), at(100, 1), at(254, 1)}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := residentSpans(os.Getpid(), t.TempDir()); err == nil {
		t.Error("something of a directory is mapped")
	}
}
