package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
)

// writerSector is a boot sector that fills the disk it is started from, from sector 64 to 32768, 32 KiB at a time by INT 13h, function
// 43h, and prints on the first serial port how that went: WRITTEN or FAILED. As the GNU assembler has it:
//
//		cli; xor %ax,%ax; mov %ax,%ds; mov %ax,%ss; mov $0x7c00,%sp; mov %dl,drive; sti
//	again:	mov $dap,%si; mov $0x4300,%ax; mov drive,%dl; int $0x13
//		mov $failed,%si; jc say; addl $64,lba; cmpl $32768,lba; jb again; mov $done,%si
//	say:	mov $0x3f8,%dx
//	next:	lodsb; test %al,%al; jz stop; out %al,%dx; jmp next
//	stop:	hlt; jmp stop
//	drive:	.byte 0; done: .asciz "\nWRITTEN\n"; failed: .asciz "\nFAILED\n"; .balign 4
//	dap:	.byte 16,0; .word 64,0,0x1000; lba: .long 64,0
const writerSector = "\xfa\x31\xc0\x8e\xd8\x8e\xd0\xbc\x00\x7c\x88\x16\x42\x7c\xfb" +
	"\xbe\x58\x7c\xb8\x00\x43\x8a\x16\x42\x7c\xcd\x13" +
	"\xbe\x4d\x7c\x72\x14\x66\x83\x06\x60\x7c\x40\x66\x81\x3e\x60\x7c\x00\x80\x00\x00\x72\xde\xbe\x43\x7c" +
	"\xba\xf8\x03\xac\x84\xc0\x74\x03\xee\xeb\xf8\xf4\xeb\xfd" +
	"\x00\nWRITTEN\n\x00\nFAILED\n\x00\x66\x90" +
	"\x10\x00\x40\x00\x00\x00\x00\x10\x40\x00\x00\x00\x00\x00\x00\x00"

// writtenSize is what the writer's disk has at least, in bytes.
const writtenSize = 16 << 20

// writerDisk makes the writer's disk. What it does not hold takes no space.
func writerDisk(t *testing.T, path string) {
	t.Helper()
	sector := append([]byte(writerSector), make([]byte, 510-len(writerSector))...)
	if err := os.WriteFile(path, append(sector, 0x55, 0xaa), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, writtenSize+1<<20); err != nil {
		t.Fatal(err)
	}
}

// writer is a guest with that disk, which is ready when it has written.
func (h *home) writer(name, disk string) {
	h.write(name, fmt.Sprintf("name = %q\nmemory = \"32M\"\n[boot]\nfirmware = %q\n[ready]\nserial = \"WRITTEN\"\n[[disk]]\nname = \"root\"\n%s\n", name, seabios, disk))
}

// A guest that fills the host's disk is paused, says why, and goes on once there is space.
func TestDiskFull(t *testing.T) {
	needKVM(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	h := newHome(t)
	small := filepath.Join(h.dir, "small")
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("lodge-test", small, "tmpfs", 0, "size=8M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	disk := filepath.Join(small, "disk.img")
	writerDisk(t, disk)
	h.writer("g", fmt.Sprintf("path = %q", disk))
	m := h.manager()
	defer func() { m.Close() }()
	id, err := m.Start("g")
	done(t, m, id, err)
	full := func() {
		t.Helper()
		g := until(t, m, "g", "paused, with a reason", func(g manager.Guest) bool { return g.State == life.Paused && g.Reason != "" })
		if g.Reason != "disk-full" || !strings.Contains(g.Note, "the host's disk is full: make space, then resume it") {
			t.Errorf("%+v", g)
		}
	}
	full()
	m.Close()
	m = h.manager() // the next manager knows it too
	full()
	if err := unix.Mount("", small, "", unix.MS_REMOUNT, "size=64M"); err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(t.Context(), "g"); err != nil {
		t.Fatal(err)
	}
	if g := until(t, m, "g", "ready", func(g manager.Guest) bool { return g.Ready }); g.Reason != "" || g.Note != "" {
		t.Errorf("%+v", g)
	}
	id, err = m.Kill("g")
	done(t, m, id, err)
}

// A guest starts from a qcow2 that stays where it is, and what it writes is in there.
func TestServedDisk(t *testing.T) {
	needKVM(t)
	h := newHome(t)
	raw, image := filepath.Join(h.dir, "disk.img"), filepath.Join(h.dir, "disk.qcow2")
	writerDisk(t, raw)
	qemu := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("qemu-img", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	qemu("convert", "-O", "qcow2", raw, image)
	h.writer("g", fmt.Sprintf("path = %q\nformat = \"qcow2\"", image))
	m := h.manager()
	defer func() { m.Close() }()
	id, err := m.Start("g")
	done(t, m, id, err)
	m.Close()
	m = h.manager() // over the end of a manager
	until(t, m, "g", "ready", func(g manager.Guest) bool { return g.Ready })
	id, err = m.Kill("g")
	done(t, m, id, err)
	// The daemon has ended when the image can be used again.
	id, err = m.Start("g")
	done(t, m, id, err)
	id, err = m.Kill("g")
	done(t, m, id, err)
	m.Close() // which waits for it
	if st, err := os.Stat(image); err != nil || st.Size() < writtenSize {
		t.Errorf("the image has %d bytes, %v", st.Size(), err)
	}
	qemu("check", image)
	m = h.manager()
}

// A guest starts from an image of a pool, of which snapshots are made while it writes.
func TestPoolDisk(t *testing.T) {
	needKVM(t)
	h := newHome(t)
	raw := filepath.Join(h.dir, "disk.img")
	writerDisk(t, raw)
	m := h.manager()
	defer m.Close()
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	id, err := m.ImportImage("default", "root", manager.Source{File: f}, pool.ImportOptions{})
	done(t, m, id, err)
	h.writer("g", `image = "root"`)
	if err := m.Reload(); err != nil {
		t.Fatal(err)
	}
	id, err = m.Start("g")
	done(t, m, id, err)
	for _, name := range []string{"a", "b"} {
		id, err = m.SnapshotDisks("g", name)
		done(t, m, id, err)
	}
	until(t, m, "g", "ready", func(g manager.Guest) bool { return g.Ready })
	id, err = m.CloneGuest("g", "clone", "b")
	done(t, m, id, err)
	id, err = m.Kill("g")
	done(t, m, id, err)
	id, err = m.Start("clone")
	done(t, m, id, err)
	until(t, m, "clone", "ready", func(g manager.Guest) bool { return g.Ready })
}
