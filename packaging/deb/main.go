// Command deb builds Lodge's Debian package from the sources of the module that it is run in: make deb.
//
// It needs no debhelper: the package is a tree of files, which dpkg-deb packs.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/md5" //nolint:gosec // of the format, not for security
	"embed"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lodgehv/lodge/internal/completion"
)

//go:embed debian
var debian embed.FS

const maintainer = "The Lodge authors <lodge@lodgehv.org>"

// programs are what is installed in /usr/bin, with the sections of their manual pages.
var programs = map[string]int{"lodge": 1, "lodged": 8, "lodge-image": 1, "lodge-init": 8, "lodge-net": 8, "lodge-seat": 1, "lodge-vmm": 1}

// documented are those that print their own manual pages and completion.
var documented = []string{"lodge", "lodge-image", "lodge-vmm"}

func main() {
	out := flag.String("o", "out", "`directory` for the package")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	file, err := build(ctx, *out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "deb:", err)
		os.Exit(1)
	}
	fmt.Println(file)
}

// build builds the package and returns its path.
func build(ctx context.Context, out string) (file string, err error) {
	root, err := output(ctx, "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return "", err
	}
	stage, err := os.MkdirTemp("", "lodge-deb-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	if err := os.Chmod(stage, 0o755); err != nil { //nolint:gosec // it becomes / of the package
		return "", err
	}
	p := &tree{ctx: ctx, source: strings.TrimSpace(root), stage: stage}
	for _, step := range []func() error{p.programs, p.data, p.pages, p.completions, p.docs, p.control} {
		if err := step(); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // for everybody
		return "", err
	}
	file = filepath.Join(out, "lodge_"+p.version()+"_amd64.deb")
	_, err = output(ctx, "dpkg-deb", "--root-owner-group", "--build", stage, file)
	return file, err
}

// output returns what a program says.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", name, err, errOut.String())
	}
	return string(b), nil
}

// tree is the package's tree of files while it is made.
type tree struct {
	ctx           context.Context
	source, stage string
	commit        struct {
		known         bool
		version, date string
	}
}

// write writes a file of the package.
func (p *tree) write(name string, b []byte, mode fs.FileMode) error {
	file := filepath.Join(p.stage, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // for everybody
		return err
	}
	if err := os.WriteFile(file, b, mode); err != nil {
		return err
	}
	return os.Chmod(file, mode) // whatever the umask is
}

// writeZipped writes a file with the suffix ".gz", always the same for the same content.
func (p *tree) writeZipped(name string, b []byte) error {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(b); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return p.write(name+".gz", out.Bytes(), 0o644)
}

func (p *tree) programs() error {
	bin := filepath.Join(p.stage, "usr/bin")
	args := []string{"build", "-trimpath", "-ldflags=-s -w -X=github.com/lodgehv/lodge/internal/program.version=" + p.version(), "-o", bin + "/"}
	for name := range programs {
		args = append(args, "./cmd/"+name)
	}
	if err := os.MkdirAll(bin, 0o755); err != nil { //nolint:gosec // for everybody
		return err
	}
	cmd := exec.CommandContext(p.ctx, "go", args...)
	cmd.Dir, cmd.Env = p.source, append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	for name := range programs {
		if err := os.Chmod(filepath.Join(bin, name), 0o755); err != nil { //nolint:gosec // a program
			return err
		}
	}
	return nil
}

// data copies files of the directory data.
func (p *tree) data() error {
	for from, to := range map[string]string{
		"systemd/lodged.service":               "usr/lib/systemd/system/lodged.service",
		"systemd/lodge-cells.service":          "usr/lib/systemd/system/lodge-cells.service",
		"systemd/lodge-guests.service":         "usr/lib/systemd/system/lodge-guests.service",
		"systemd/lodge-seat.service":           "usr/lib/systemd/system/lodge-seat.service",
		"dbus-1/org.lodgehv.Lodge1.conf":       "usr/share/dbus-1/system.d/org.lodgehv.Lodge1.conf",
		"polkit-1/org.lodgehv.Lodge1.policy":   "usr/share/polkit-1/actions/org.lodgehv.Lodge1.policy",
		"polkit-1/50-org.lodgehv.Lodge1.rules": "usr/share/polkit-1/rules.d/50-org.lodgehv.Lodge1.rules",
	} {
		b, err := os.ReadFile(filepath.Join(p.source, "data", from))
		if err == nil {
			err = p.write(to, b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// run returns what a program of the package says.
func (p *tree) run(name string, args ...string) (string, error) {
	return output(p.ctx, filepath.Join(p.stage, "usr/bin", name), args...)
}

// pages writes the manual pages: those in data/man, and what programs print of themselves.
func (p *tree) pages() error {
	files, err := filepath.Glob(filepath.Join(p.source, "data/man/*"))
	if err != nil {
		return err
	}
	texts := make(map[string]string)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		texts[filepath.Base(file)] = string(b)
	}
	for _, name := range documented {
		if texts[name+".1"], err = p.run(name, "man"); err != nil {
			return err
		}
	}
	for name, text := range texts {
		if err := p.writeZipped("usr/share/man/man"+path.Ext(name)[1:]+"/"+name, []byte(text)); err != nil {
			return err
		}
	}
	return nil
}

func (p *tree) completions() error {
	place := map[string]string{
		"bash": "usr/share/bash-completion/completions/%s", "zsh": "usr/share/zsh/vendor-completions/_%s",
		"fish": "usr/share/fish/vendor_completions.d/%s.fish",
	}
	for name := range programs {
		for _, shell := range completion.Shells() {
			text, err := p.completion(name, shell)
			if err == nil {
				err = p.write(fmt.Sprintf(place[shell], name), []byte(text), 0o644)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *tree) completion(name, shell string) (string, error) {
	if slices.Contains(documented, name) {
		return p.run(name, "completion", shell)
	}
	help, err := p.run(name, "--help")
	if err != nil {
		return "", err
	}
	return completion.Script(shell, name, []completion.Command{{Flags: append(completion.Flags(help), "--help")}})
}

const docDir = "usr/share/doc/lodge/"

func (p *tree) docs() error {
	files, err := filepath.Glob(filepath.Join(p.source, "docs/*.md"))
	if err != nil {
		return err
	}
	for _, file := range append(files, filepath.Join(p.source, "README.md")) {
		b, err := os.ReadFile(file)
		if err == nil {
			err = p.write(docDir+filepath.Base(file), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	licenses, err := p.licenses()
	if err != nil {
		return err
	}
	changelog, err := p.template("changelog")
	if err != nil {
		return err
	}
	copyright, err := p.template("copyright")
	if err != nil {
		return err
	}
	overrides, err := p.template("lintian-overrides")
	if err != nil {
		return err
	}
	return errors.Join(p.write("usr/share/lintian/overrides/lodge", overrides, 0o644), p.writeZipped(docDir+"third-party-licenses.txt", licenses), p.writeZipped(docDir+"changelog", changelog),
		p.write(docDir+"copyright", copyright, 0o644))
}

// licenses returns the licenses of Go and of all modules that are in the programs.
func (p *tree) licenses() ([]byte, error) {
	list, err := output(p.ctx, "go", "list", "-C", p.source, "-deps",
		"-f", "{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}\t{{.Dir}}{{end}}{{end}}", "./cmd/...")
	if err != nil {
		return nil, err
	}
	goRoot, err := output(p.ctx, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	lines := append(strings.Split(strings.TrimSpace(list), "\n"), "Go\t"+strings.TrimSpace(goRoot))
	slices.Sort(lines)
	var text bytes.Buffer
	for _, line := range slices.Compact(lines) {
		module, dir, _ := strings.Cut(line, "\t")
		if module == "" {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		found := false
		for _, e := range entries {
			upper := strings.ToUpper(e.Name())
			if e.IsDir() || !strings.HasPrefix(upper, "LICENSE") && !strings.HasPrefix(upper, "COPYING") && !strings.HasPrefix(upper, "NOTICE") {
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			found = true
			fmt.Fprintf(&text, "==== %s: %s ====\n\n%s\n\n", module, e.Name(), b)
		}
		if !found {
			return nil, fmt.Errorf("module %s has no license: look at it before it is shipped", module)
		}
	}
	return text.Bytes(), nil
}

// template returns a file of debian/ with what is known now.
func (p *tree) template(name string) ([]byte, error) {
	b, err := debian.ReadFile("debian/" + name)
	if err != nil {
		return nil, err
	}
	size, err := p.size()
	if err != nil {
		return nil, err
	}
	return []byte(strings.NewReplacer("@VERSION@", p.version(), "@MAINTAINER@", maintainer, "@DATE@", p.date(),
		"@SIZE@", strconv.FormatInt(size, 10)).Replace(string(b))), nil
}

// look asks git for the commit, once. Sources without a history have no version.
func (p *tree) look() {
	if p.commit.known {
		return
	}
	p.commit.known, p.commit.version, p.commit.date = true, "0", time.Unix(0, 0).UTC().Format(time.RFC1123Z)
	if s, err := output(p.ctx, "git", "-C", p.source, "log", "-1", "--date=format-local:%Y%m%d%H%M%S", "--format=%cd.%h%n%cD"); err == nil {
		version, date, _ := strings.Cut(strings.TrimSpace(s), "\n")
		p.commit.version, p.commit.date = "0~git"+version, date
	}
}

func (p *tree) version() string { p.look(); return p.commit.version }
func (p *tree) date() string    { p.look(); return p.commit.date }

// files calls f for each file of the package.
func (p *tree) files(f func(name string) error) error {
	return filepath.WalkDir(p.stage, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if err == nil && d.Name() == "DEBIAN" {
				return fs.SkipDir
			}
			return err
		}
		name, err := filepath.Rel(p.stage, file)
		if err != nil {
			return err
		}
		return f(name)
	})
}

// size returns that of all files, in KiB.
func (p *tree) size() (kib int64, err error) {
	return kib, p.files(func(name string) error {
		st, err := os.Stat(filepath.Join(p.stage, name))
		if err == nil {
			kib += (st.Size() + 1023) / 1024
		}
		return err
	})
}

// control writes what dpkg reads. It comes last: it has the sums of the files.
func (p *tree) control() error {
	var sums bytes.Buffer
	if err := p.files(func(name string) error {
		b, err := os.ReadFile(filepath.Join(p.stage, name))
		fmt.Fprintf(&sums, "%x  %s\n", md5.Sum(b), name) //nolint:gosec // of the format
		return err
	}); err != nil {
		return err
	}
	if err := p.write("DEBIAN/md5sums", sums.Bytes(), 0o644); err != nil {
		return err
	}
	for name, mode := range map[string]fs.FileMode{"control": 0o644, "postinst": 0o755, "prerm": 0o755, "postrm": 0o755} {
		b, err := p.template(name)
		if err == nil {
			err = p.write("DEBIAN/"+name, b, mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
