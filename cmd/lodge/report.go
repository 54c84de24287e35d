package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/definition"
	"github.com/lodgehv/lodge/hypervisor/manager/client"
	"github.com/lodgehv/lodge/internal/doctor"
	"github.com/lodgehv/lodge/internal/program"
)

// reportCommand is the command "report".
type reportCommand struct {
	Output    string `short:"o" placeholder:"FILE" help:"Where to; lodge-report-TIME.tar.gz in this directory if it is missing, - is the standard output."`
	GuestLogs bool   `help:"Add what guests print on their serial ports and debug consoles, which may be confidential."`
	ConfigDir string `default:"/etc/lodge" placeholder:"DIR" help:"Where the definitions are, if lodged does not answer."`
	StateDir  string `default:"/var/lib/lodge" placeholder:"DIR" help:"Where lodged keeps guests."`
}

// Bounds of a report.
const (
	maxReportFile   = 1 << 20 // bytes of each log and file: the last ones
	maxReportGuests = 1000
	reportCommands  = 20 * time.Second // for each program that is asked
)

const reportReadme = `A report of Lodge, for those who maintain it.

versions.txt         programs, kernel, system
doctor.txt, .json    what this machine can do
host/                its processor, memory, PCI devices, and the kernel's messages about virtualisation, graphics and Lodge
lodged.log           what the manager says
guests.json          the guests and their states; jobs.json: what was done last
guests/NAME/         definition.toml, and the last MiB of each log
errors.txt           what could not be had

Taken out, and marked REMOVED: comments of definitions; values of keys whose names are those of secrets; values on kernels'
command lines, but for well-known ones; private keys, tokens, and names and passwords in URLs, wherever they are.
Never in it: guests' memory, saved states, disks, pictures of screens, keys. What guests print is in it only if it was asked
for by --guest-logs. Look through it before you send it: labels, names and paths are yours.
`

// Run writes the report.
func (c *reportCommand) Run(ctx context.Context, m *manageCommands, out io.Writer) error {
	name := c.Output
	if name == "" {
		name = time.Now().Format("lodge-report-20060102-150405.tar.gz")
	}
	if name == "-" {
		return c.write(ctx, m, out)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(c.write(ctx, m, f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	_, err = fmt.Fprintln(out, name)
	return err
}

func (c *reportCommand) write(ctx context.Context, m *manageCommands, out io.Writer) error {
	z := gzip.NewWriter(out)
	r := &report{t: tar.NewWriter(z), began: time.Now()}
	r.add("README.txt", reportReadme)
	r.host(ctx)
	r.doctor(examine(ctx, m, "", c.StateDir))
	k, err := m.dial(ctx)
	if err == nil {
		defer k.Close()
		r.manager(ctx, k, c.GuestLogs)
	} else {
		r.fail("lodged", err)
		r.files(c)
	}
	r.add("versions.txt", versions(ctx, k))
	r.add("errors.txt", strings.Join(r.failed, ""))
	return errors.Join(r.err, r.t.Close(), z.Close(), ctx.Err())
}

// report is an archive that is being written. What is added to it has been through redact.
type report struct {
	t      *tar.Writer
	began  time.Time
	failed []string
	err    error // of writing
}

// add adds a file, unless it is empty.
func (r *report) add(name, text string) {
	if text == "" || r.err != nil {
		return
	}
	text = redact(text)
	h := &tar.Header{Name: "lodge-report/" + name, Mode: 0o600, Size: int64(len(text)), ModTime: r.began, Format: tar.FormatPAX}
	if r.err = r.t.WriteHeader(h); r.err == nil {
		_, r.err = io.WriteString(r.t, text)
	}
}

// fail notes that something is missing.
func (r *report) fail(what string, err error) {
	r.failed = append(r.failed, fmt.Sprintf("%s: %v\n", what, err))
}

func (r *report) addJSON(name string, v any, err error) {
	if err != nil {
		r.fail(name, err)
		return
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		r.fail(name, err)
		return
	}
	r.add(name, string(b)+"\n")
}

// addFile adds the end of a file.
func (r *report) addFile(name, path string, change func(string) string) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil {
		r.fail(name, err)
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && st.Size() > maxReportFile {
		if _, err := f.Seek(-maxReportFile, io.SeekEnd); err != nil {
			r.fail(name, err)
			return
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxReportFile))
	if err != nil {
		r.fail(name, err)
	}
	text := string(b)
	if change != nil {
		text = change(text)
	}
	r.add(name, text)
}

// addOutput adds the end of what a program says, if it is installed.
func (r *report) addOutput(ctx context.Context, name string, program string, args ...string) {
	ctx, cancel := context.WithTimeout(ctx, reportCommands)
	defer cancel()
	path, err := exec.LookPath(program)
	if err != nil {
		return
	}
	var errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stderr = &errOut
	b, err := cmd.Output()
	if err != nil {
		r.fail(name, fmt.Errorf("%s: %w: %s", program, err, errOut.String()))
	}
	r.add(name, string(b[max(len(b)-maxReportFile, 0):]))
}

// aboutUs are the kernel's messages that a report has.
var aboutUs = regexp.MustCompile(`(?i)kvm|lodge|iommu|dmar|amd-vi|vfio|drm|i915|amdgpu|nouveau|hugetlb|userfault|out of memory|oom|microcode`)

func (r *report) host(ctx context.Context) {
	r.addFile("host/cpuinfo.txt", "/proc/cpuinfo", func(text string) string { // all processors are alike
		first, _, _ := strings.Cut(text, "\n\n")
		return first + "\n"
	})
	r.addFile("host/meminfo.txt", "/proc/meminfo", nil)
	r.addFile("host/modules.txt", "/proc/modules", nil)
	r.addFile("host/cmdline.txt", "/proc/cmdline", func(text string) string { return redactCmdline(text) + "\n" })
	r.addOutput(ctx, "host/pci.txt", "lspci", "-nnk")
	b := make([]byte, maxReportFile)
	const readAll = 3 // SYSLOG_ACTION_READ_ALL, syslog(2)
	n, err := unix.Klogctl(readAll, b)
	if err != nil {
		r.fail("host/kernel.log", err)
		return
	}
	var log strings.Builder
	for line := range strings.Lines(string(b[:n])) {
		if aboutUs.MatchString(line) && !strings.Contains(line, "Command line:") {
			log.WriteString(line)
		}
	}
	r.add("host/kernel.log", log.String())
	r.addOutput(ctx, "lodged.log", "journalctl", "--unit=lodged", "--boot", "--output=short-iso", "--no-pager", "--lines=5000", "--quiet")
}

func (r *report) doctor(list []doctor.Check) {
	var text strings.Builder
	if err := diagnosis(&text, list); err != nil {
		r.fail("doctor.txt", err)
	}
	r.add("doctor.txt", text.String())
	r.addJSON("doctor.json", list, nil)
}

// versions tells the versions of ours, and of what we stand on. k may be nil.
func versions(ctx context.Context, k *client.Client) string {
	var text strings.Builder
	line := func(name, value string) { fmt.Fprintf(&text, "%-8s %s\n", name, value) }
	line("lodge", program.Version())
	if k != nil {
		if v, err := k.Version(ctx); err == nil {
			line("lodged", v)
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		field := func(b []byte) string { return unix.ByteSliceToString(b) }
		line("kernel", field(u.Sysname[:])+" "+field(u.Release[:])+" "+field(u.Version[:])+" "+field(u.Machine[:]))
	}
	line("go", runtime.Version())
	if b, err := os.ReadFile("/etc/os-release"); err == nil {
		text.Write(b)
	}
	return text.String()
}

// guestsOwn reports whether a log is what a guest prints, not what its machine says.
func guestsOwn(log string) bool { return log != "vmm" }

func (r *report) manager(ctx context.Context, k *client.Client, guestLogs bool) {
	guests, err := k.Guests(ctx)
	r.addJSON("guests.json", guests, err)
	jobs, err := k.Jobs(ctx)
	r.addJSON("jobs.json", jobs, err)
	for _, g := range guests[:min(len(guests), maxReportGuests)] {
		dir := "guests/" + g.Name + "/"
		text, _, err := k.Definition(ctx, g.Name)
		r.definition(dir, text, err)
		logs, err := k.Logs(ctx, g.Name)
		if err != nil {
			r.fail(dir, err)
		}
		for _, log := range logs {
			if guestsOwn(log) && !guestLogs {
				continue
			}
			b, err := k.ReadLog(ctx, g.Name, log, maxReportFile)
			if err != nil {
				r.fail(dir+log, err)
			}
			r.add(dir+log+".log", strings.ToValidUTF8(string(b), "\uFFFD"))
		}
	}
}

// files takes from the disk what the manager does not tell, as far as we may.
func (r *report) files(c *reportCommand) {
	paths, _ := filepath.Glob(filepath.Join(c.ConfigDir, "guests/*.toml")) // the pattern is good
	for _, path := range paths[:min(len(paths), maxReportGuests)] {
		name := strings.TrimSuffix(filepath.Base(path), ".toml")
		if !definition.IsName(name) {
			continue
		}
		dir, state := "guests/"+name+"/", filepath.Join(c.StateDir, "guests", name)
		b, err := os.ReadFile(path)
		r.definition(dir, string(b), err)
		r.addFile(dir+"run.json", filepath.Join(state, "run.json"), nil)
		r.addFile(dir+"outcome.json", filepath.Join(state, "outcome.json"), nil)
		r.addFile(dir+"vmm.log", filepath.Join(state, "logs/vmm.log"), nil)
		if c.GuestLogs {
			r.addFile(dir+"serial.log", filepath.Join(state, "logs/serial.log"), nil)
		}
	}
}

func (r *report) definition(dir, text string, err error) {
	if err == nil {
		text, err = redactDefinition(text)
	}
	if err != nil {
		r.fail(dir+"definition.toml", err)
		return
	}
	r.add(dir+"definition.toml", text)
}
