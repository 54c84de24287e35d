package notebook

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lodgehv/lodge/e2e/image"
)

// A saved notebook is a directory with the state of the machine, a QEMU
// migration stream, and its disks as they were, DISK.qcow2. Nothing in it is
// written again: what resumes from it writes to overlays.
const stateFile = "state"

// booted returns the saved state of this configuration just after its boot.
func (n *Notebook) booted(ctx context.Context) (string, error) {
	version, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("qemu-system-x86_64: %w: run make deps", err)
	}
	parts := []string{"2", string(version), n.set.Notebook.Key}
	var names []drive
	for _, d := range n.cfg.Disks {
		names = append(names, drive{name: d.Name})
		parts = append(parts, d.Name, d.Base, fmt.Sprint(d.Size), d.NBD)
	}
	parts = append(parts, n.cfg.args(n.set, "", "", names)...)
	return n.cfg.Builder.Result(ctx, "notebook-state", image.Key(parts...), func(ctx context.Context, dir string) error {
		return n.boot(ctx, dir)
	})
}

func (n *Notebook) boot(ctx context.Context, dir string) error {
	start := time.Now()
	if err := n.writeTools(nil); err != nil {
		return err
	}
	for _, d := range n.cfg.Disks {
		if d.NBD != "" {
			n.drives = append(n.drives, d.served())
			continue
		}
		file := filepath.Join(dir, d.Name+".qcow2")
		args := []string{"create", "-q", "-f", "qcow2", file, fmt.Sprint(d.Size)}
		if d.Base != "" {
			args = []string{"create", "-q", "-f", "qcow2", "-b", d.Base, "-F", "raw", file}
		}
		if err := qemuImg(ctx, args...); err != nil {
			return err
		}
		n.drives = append(n.drives, drive{d.Name, file, forgotten})
	}
	if err := n.launch(ctx, bootLimit, ""); err != nil {
		return err
	}
	n.logf("booted in %.1f s", time.Since(start).Seconds())
	return n.save(ctx, dir)
}

// save writes the machine's state to dir and ends the notebook; its drives are
// in dir already.
func (n *Notebook) save(ctx context.Context, dir string) error {
	start := time.Now()
	file := filepath.Join(dir, stateFile)
	if err := n.migrate(ctx, "migrate", "exec:cat >"+shellQuote(file)); err != nil {
		return n.qemu.explain(err)
	}
	n.qemu.close(n.qmp)
	n.Client.Close()
	n.qemu, n.qmp, n.Client = nil, nil, nil
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	n.logf("saved %d MiB in %.1f s", st.Size()>>20, time.Since(start).Seconds())
	return nil
}

// served is the drive of a disk that a server has.
func (d Disk) served() drive { return drive{d.Name, "nbd:unix:" + d.NBD, "raw,cache=writeback"} }

// resume resumes from a saved state, on overlays of the disks in it.
func (n *Notebook) resume(ctx context.Context, snap string) error {
	n.drives = nil
	for _, d := range n.cfg.Disks {
		if d.NBD != "" {
			n.drives = append(n.drives, d.served())
			continue
		}
		file := n.path(d.Name + ".qcow2")
		if err := qemuImg(ctx, "create", "-q", "-f", "qcow2", "-b", filepath.Join(snap, d.Name+".qcow2"), "-F", "qcow2", file); err != nil {
			return err
		}
		n.drives = append(n.drives, drive{d.Name, file, forgotten})
	}
	return n.launch(ctx, startLimit, filepath.Join(snap, stateFile))
}

// Checkpoint saves the notebook as it is, with its disks, for PowerOn. It
// resumes from that, so that connections into it and commands under way end.
func (n *Notebook) Checkpoint(ctx context.Context) error {
	dir := n.path("checkpoint")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := n.save(ctx, dir); err != nil {
		return err
	}
	for _, d := range n.cfg.Disks {
		if d.NBD == "" {
			if err := os.Rename(n.path(d.Name+".qcow2"), filepath.Join(dir, d.Name+".qcow2")); err != nil {
				return err
			}
		}
	}
	return n.resume(ctx, dir)
}

// Cut ends the notebook as a power cut would. PowerOn or Close comes next.
func (n *Notebook) Cut() {
	n.qemu.kill()
	n.Client.Close()
	n.qemu, n.qmp, n.Client = nil, nil, nil
}

// PowerOn has a notebook that was cut run again, as it was at its Checkpoint.
// Its disks are too, but for those that a server has: what of these was in
// memory then must not be used before it was read again.
func (n *Notebook) PowerOn(ctx context.Context) error { return n.resume(ctx, n.path("checkpoint")) }

// restore resumes from the state just after the boot.
func (n *Notebook) restore(ctx context.Context, snap string) error {
	start := time.Now()
	if err := n.writeTools(n.cfg.Tools); err != nil {
		return err
	}
	if err := n.resume(ctx, snap); err != nil {
		return err
	}
	answered := time.Since(start)
	if len(n.cfg.Tools) > 0 {
		r, err := n.Run(ctx, "/bin/agent", "unpack", "/disk/tools", "/tools")
		if err == nil {
			err = r.Check("agent unpack")
		}
		if err != nil {
			return err
		}
	}
	n.logf("resumed in %.2f s, with tools %.2f s", answered.Seconds(), time.Since(start).Seconds())
	return nil
}

func (n *Notebook) incoming(ctx context.Context, state string) error {
	if err := n.migrate(ctx, "migrate-incoming", "exec:cat "+shellQuote(state)); err != nil {
		return err
	}
	_, err := n.QMP(ctx, "cont", nil)
	return err
}

// migrate starts a migration in either direction and waits for its end.
func (n *Notebook) migrate(ctx context.Context, command, uri string) error {
	_, err := n.QMP(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []map[string]any{{"capability": "events", "state": true}},
	})
	if err != nil {
		return err
	}
	if _, err := n.QMP(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": int64(8 << 30)}); err != nil {
		return err
	}
	if _, err := n.QMP(ctx, command, map[string]any{"uri": uri}); err != nil {
		return err
	}
	for seen := 0; ; {
		r, err := n.QMP(ctx, "query-migrate", nil)
		if err != nil {
			return err
		}
		var st struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := json.Unmarshal(r, &st); err != nil {
			return err
		}
		switch st.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("%s: %s: %s", command, st.Status, st.Desc)
		}
		if seen, err = n.WaitEvent(ctx, "MIGRATION", seen); err != nil {
			return err
		}
	}
}

// writeTools makes the archive that is the tools drive.
func (n *Notebook) writeTools(tools map[string]string) error {
	f, err := os.Create(n.path("tools.raw"))
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	for _, name := range slices.Sorted(maps.Keys(tools)) {
		if err := addFile(w, name, tools[name]); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := w.Close(); err != nil {
		return errors.Join(err, f.Close())
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at > toolsSize {
		return errors.Join(fmt.Errorf("tools: %d bytes, at most %d fit", at, toolsSize), err, f.Close())
	}
	return errors.Join(f.Truncate(toolsSize), f.Close())
}

func addFile(w *tar.Writer, name, local string) error {
	f, err := os.Open(local)
	if err != nil {
		return fmt.Errorf("tool %s: %w", name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Mode: int64(st.Mode().Perm()), Size: st.Size(), Typeflag: tar.TypeReg, ModTime: st.ModTime()}
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("tool %s: %w", name, err)
	}
	_, err = io.Copy(w, f)
	return err
}

func qemuImg(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "qemu-img", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img: %w: %s", err, out)
	}
	return nil
}

// shellQuote quotes a file name for the shell that QEMU starts.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
