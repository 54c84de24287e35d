package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const qemu = "qemu-system-x86_64"

// processes are the figures of whole VMMs as processes: how long from exec until the guest's first instruction, and how
// much memory they have then.
//
// The guest is a ROM that writes a byte to its serial port, which the VMM copies to its standard output. Lodge lets a
// byte wait up to a millisecond for more to go with it: that is part of what is measured.
func processes(vmm, dir string) []figure {
	microvm := func() []string {
		return []string{qemu, "-M", "microvm,accel=kvm,memory-backend=ram", "-bios", filepath.Join(dir, "rom.bin")}
	}
	q35 := func() []string {
		return []string{qemu, "-M", "q35,accel=kvm,memory-backend=ram", "-bios", filepath.Join(dir, "rom.bin")}
	}
	common := []string{
		"-m", "256", "-object", "memory-backend-memfd,id=ram,size=256M", "-nodefaults", "-no-user-config",
		"-display", "none", "-serial", "stdio",
	}
	ours := []string{vmm, "run", filepath.Join(dir, "guest.toml")}
	prepare := func(peer []string, measure func(context.Context, []string) (float64, error)) func(context.Context) (measurement, measurement, func() error, error) {
		return func(context.Context) (measurement, measurement, func() error, error) {
			if err := guestFiles(dir); err != nil {
				return nil, nil, nil, err
			}
			of := func(args []string) measurement {
				return func(ctx context.Context) (float64, error) { return measure(ctx, args) }
			}
			return of(ours), of(append(peer, common...)), nil, nil
		}
	}
	return []figure{
		{
			name: "start to first instruction", unit: "ms", goal: goal{ratio: 1.0 / 15}, runs: 21, peerName: "QEMU microvm",
			prepare: prepare(microvm(), startTime),
		},
		{
			name: "resident memory", unit: "MiB", goal: goal{value: 8}, runs: 5, peerName: "QEMU microvm",
			prepare: prepare(microvm(), startMemory),
		},
		{
			name: "resident memory, full board", unit: "MiB", goal: goal{value: 8}, runs: 5, peerName: "QEMU q35",
			prepare: prepare(q35(), startMemory),
		},
	}
}

// guestFiles writes the ROM, and a definition with a card of each kind that needs nothing of the host.
func guestFiles(dir string) error {
	disk, err := os.Create(filepath.Join(dir, "disk.raw"))
	if err != nil {
		return err
	}
	return errors.Join(
		disk.Truncate(64<<20), disk.Close(),
		os.WriteFile(filepath.Join(dir, "rom.bin"), rom(sayByte...), 0o644),
		os.WriteFile(filepath.Join(dir, "guest.toml"), []byte(`name = "bench"
memory = "256M"
balloon = true
control = "control.sock"
[boot]
firmware = "rom.bin"
[serial]
mode = "stdio"
[[disk]]
name = "root"
path = "disk.raw"
[console]
path = "console.sock"
[vsock]
cid = 3
path = "vsock.sock"
`), 0o644))
}

// started runs a VMM until its guest has said its byte, calls look, and kills it. It returns what look does.
func started(ctx context.Context, args []string, look func(pid int, took time.Duration) (float64, error)) (_ float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe() // a VMM may take the end of its input for a hang-up
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		// Killed, it ends with an error of no interest; it is gone when Wait returns.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var b [1]byte
	for b[0] != '!' { // a VMM may greet first
		if _, err := out.Read(b[:]); err != nil {
			_ = cmd.Wait()
			return 0, fmt.Errorf("%s: no sign of the guest: %w: %s", args[0], err, &stderr)
		}
	}
	return look(cmd.Process.Pid, time.Since(begin))
}

// startTime returns how long a VMM takes from exec to its guest's first instruction, in milliseconds.
func startTime(ctx context.Context, args []string) (float64, error) {
	return started(ctx, args, func(_ int, took time.Duration) (float64, error) {
		return float64(took) / float64(time.Millisecond), nil
	})
}

// startMemory returns the resident memory of a VMM whose guest has run its first instruction, in MiB.
func startMemory(ctx context.Context, args []string) (float64, error) {
	return started(ctx, args, func(pid int, _ time.Duration) (float64, error) {
		f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
		if err != nil {
			return 0, err
		}
		defer f.Close()
		return resident(f)
	})
}

// ram is the guests' RAM in bytes.
const ram = 256 << 20

// resident adds up the resident sizes in a /proc/PID/smaps, in MiB, but for the guest's RAM: writable mappings of that
// size.
func resident(r io.Reader) (float64, error) {
	var kib float64
	guest, found := false, false
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"): // the line that begins a mapping
			var begin, end uint64
			if _, err := fmt.Sscanf(fields[0], "%x-%x", &begin, &end); err != nil {
				return 0, fmt.Errorf("smaps: %q: %w", sc.Text(), err)
			}
			guest = strings.HasPrefix(fields[1], "rw") && end-begin >= ram
			found = found || guest
		case len(fields) == 3 && fields[0] == "Rss:" && !guest:
			var n float64
			if _, err := fmt.Sscan(fields[1], &n); err != nil {
				return 0, err
			}
			kib += n
		}
	}
	if err := sc.Err(); err != nil {
		return 0, err
	}
	if !found {
		return 0, errors.New("the process has no mapping that could be its guest's RAM")
	}
	return kib / 1024, nil
}
