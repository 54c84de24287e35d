// Package bundle makes the file system with the guests that come along with Lodge, which the appliance mounts and never writes to.
package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/lodgehv/lodge/hypervisor/appliance"
	"github.com/lodgehv/lodge/hypervisor/manager/store"
)

// Make makes a file system with guests, in a file that must not be there. Each of the directories has a guest's files, and its
// definition, the only one whose name ends in .toml: what it names of these files is found there later.
func Make(ctx context.Context, file string, dirs ...string) (err error) {
	tree, err := os.MkdirTemp(filepath.Dir(file), ".guests-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	const definitions = appliance.GuestDefinitions + "/guests"
	if err := os.MkdirAll(filepath.Join(tree, definitions), 0o755); err != nil {
		return err
	}
	size := int64(0)
	for _, dir := range dirs {
		name, text, err := definitionIn(dir)
		if err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(tree, name), 0o755); errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("guest %s is there twice: the second time in %s", name, dir)
		} else if err != nil {
			return err
		}
		text = relocate(text, dir, filepath.Join(appliance.GuestsDir, name))
		inPool := func(string, string) (string, error) { return "/image", nil }
		if _, err := store.Parse(name+".toml", filepath.Join(appliance.GuestsDir, name), store.Sockets{Run: "/run", Logs: "/log"}, inPool, text); err != nil {
			return fmt.Errorf("guest in %s: %w", dir, err)
		}
		if err := os.WriteFile(filepath.Join(tree, definitions, name+".toml"), text, 0o644); err != nil {
			return err
		}
		n, err := copyFiles(filepath.Join(tree, name), dir)
		if err != nil {
			return err
		}
		size += n
	}
	return mkext4(ctx, file, size, tree)
}

// definitionIn returns the name of the guest in a directory, and its definition.
func definitionIn(dir string) (name string, text []byte, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.toml"))
	if err != nil {
		return "", nil, err
	}
	if len(files) != 1 {
		return "", nil, fmt.Errorf("%s has %d files NAME.toml: a guest's directory has its definition, and one only", dir, len(files))
	}
	text, err = os.ReadFile(files[0])
	return strings.TrimSuffix(filepath.Base(files[0]), ".toml"), text, err
}

// fileKeys finds what a definition says of files.
var fileKeys = regexp.MustCompile(`(?m)^(\s*(?:kernel|initrd|firmware|path)\s*=\s*)"([^"\n]*)"`)

// relocate has a definition name the files of a directory from, by their names, in a directory to.
func relocate(text []byte, from, to string) []byte {
	return fileKeys.ReplaceAllFunc(text, func(line []byte) []byte {
		m := fileKeys.FindSubmatch(line)
		base := filepath.Base(string(m[2]))
		if st, err := os.Stat(filepath.Join(from, base)); err != nil || !st.Mode().IsRegular() {
			return line
		}
		return fmt.Appendf(nil, "%s%q", m[1], filepath.Join(to, base))
	})
}

// copyFiles copies the files of a directory, but not hidden ones and definitions, and returns their size.
func copyFiles(to, from string) (size int64, err error) {
	list, err := os.ReadDir(from)
	if err != nil {
		return 0, err
	}
	for _, d := range list {
		name, err := filepath.EvalSymlinks(filepath.Join(from, d.Name()))
		if err != nil {
			return 0, err
		}
		st, err := os.Stat(name)
		if err != nil {
			return 0, err
		}
		if !st.Mode().IsRegular() || strings.HasPrefix(d.Name(), ".") || strings.HasSuffix(d.Name(), ".toml") {
			continue
		}
		if err := copyFile(filepath.Join(to, d.Name()), name); err != nil {
			return 0, err
		}
		size += st.Size()
	}
	return size, nil
}

// copyFile copies a file, or makes it a link: the copy is only read.
func copyFile(to, from string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// mkext4 makes a file system for size bytes of files, those of a tree. The same tree gives the same bytes: of files, only when they
// were last written to is kept.
func mkext4(ctx context.Context, file string, size int64, tree string) error {
	const uuid = "6c6f6467-652d-8775-8573-74732e657874"
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	const inodeTables, unit = 4 << 20, 1 << 20
	if err := errors.Join(f.Truncate((size+size/32+inodeTables)/unit*unit), f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	var commands strings.Builder // for debugfs(8)
	err = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		inside, err := filepath.Rel(tree, path)
		fields := []string{"uid 0", "gid 0", "atime @1", "ctime @1"}
		if d.IsDir() || strings.HasPrefix(inside, appliance.GuestDefinitions+"/") {
			fields = append(fields, "mtime @1")
		}
		for _, f := range fields {
			fmt.Fprintf(&commands, "set_inode_field \"/%s\" %s\n", inside, f)
		}
		return err
	})
	run := func(in string, args ...string) error {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Env, cmd.Stdin = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1"), strings.NewReader(in)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s (package e2fsprogs): %w: %s", args[0], err, out)
		}
		return nil
	}
	if err == nil {
		err = run("", "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", "1024", "-L", appliance.GuestsLabel, "-U", uuid,
			"-E", "root_owner=0:0,hash_seed="+uuid+",lazy_itable_init=0,nodiscard", "-d", tree, file)
	}
	if err == nil {
		err = run(commands.String(), "/usr/sbin/debugfs", "-w", "-f", "-", file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}
