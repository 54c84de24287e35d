package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/life"
	"github.com/lodgehv/lodge/hypervisor/manager/storaged"
)

// qemuImg makes an image.
func (r *rig) qemuImg(name string, args ...string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	for try := 1; ; try++ {
		out, err := exec.Command("qemu-img", append(append([]string{"create", "-q"}, args...), path, "1M")...).CombinedOutput()
		if err == nil {
			return path
		}
		if try == 20 || !bytes.Contains(out, []byte("Unable to get accurate CPU usage")) { // of a busy machine
			r.t.Fatalf("qemu-img: %v\n%s", err, out)
		}
	}
}

// pids returns the storage daemons of a guest that run.
func (r *rig) pids(guest string) (list []int) {
	for _, file := range glob(r.dir, "run/guests/"+guest+"/disk.*.pid") {
		if pid, ok := storaged.PID(file); ok {
			list = append(list, pid)
		}
	}
	return list
}

// gone waits until processes have ended.
func (r *rig) gone(pids []int) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		left := 0
		for _, pid := range pids {
			if p, err := openProcess(pid, 0); err == nil {
				p.close()
				left++
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%d of %v still run", left, pids)
		}
	}
}

// A qcow2 in place is served while its guest runs, also over the end of the manager, and not longer.
func TestServed(t *testing.T) {
	r := newRig(t)
	path := r.qemuImg("disk.qcow2", "-f", "qcow2")
	r.define("a", "", fmt.Sprintf(`disk = [{ name = "root", path = %q, format = "qcow2" }]`, path))
	r.must(r.Start("a"))
	pids := r.pids("a")
	socket := filepath.Join(r.dir, "run/guests/a/disk.root.sock")
	if _, err := os.Stat(socket); err != nil || len(pids) != 1 {
		t.Errorf("daemons %v: %v", pids, err)
	}
	vmm, err := os.ReadFile(filepath.Join(r.dir, "var/guests/a/vmm.toml"))
	if err != nil || !strings.Contains(string(vmm), socket) || strings.Contains(string(vmm), path) {
		t.Errorf("%v\n%s", err, vmm)
	}
	if err := r.run(r.SnapshotDisks("a", "s")); err == nil || !strings.Contains(err.Error(), "no raw file") {
		t.Errorf("a snapshot of a disk that is served: %v", err)
	}
	r.state("a", life.Running)
	r.reopen()
	r.state("a", life.Running)
	if now := r.pids("a"); len(now) != 1 || now[0] != pids[0] {
		t.Errorf("daemons %v, were %v", now, pids)
	}
	r.must(r.Stop("a"))
	r.gone(pids)
	// At once again: the next waits until the one before has left the image.
	for range 3 {
		r.must(r.Start("a"))
		pids = append(pids, r.pids("a")...)
		r.must(r.Kill("a"))
	}
	r.gone(pids)
	if len(pids) != 4 {
		t.Errorf("daemons %v", pids)
	}
}

// A daemon that dies is told of, and the guest can be stopped.
func TestDaemonDies(t *testing.T) {
	r := newRig(t)
	r.define("a", "", fmt.Sprintf(`disk = [{ name = "root", path = %q, format = "qcow2" }]`, r.qemuImg("disk.qcow2", "-f", "qcow2")))
	r.must(r.Start("a"))
	pids := r.pids("a")
	if len(pids) != 1 {
		t.Fatal(pids)
	}
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	g, _ := r.find("a")
	if _, err := g.await(ctx, func(p *published) bool { return strings.Contains(p.Note, "storage daemon of disk root has ended") }); err != nil {
		t.Errorf("%v: %+v", err, g.info.Load().Guest)
	}
	r.must(r.Kill("a"))
}

// A manager that is killed while it starts daemons leaves none behind.
func TestServedKilled(t *testing.T) {
	r := newRig(t)
	r.define("a", "start=slow", fmt.Sprintf(`disk = [{ name = "root", path = %q, format = "qcow2" }, { name = "more", path = %q, format = "qcow2" }]`,
		r.qemuImg("1.qcow2", "-f", "qcow2"), r.qemuImg("2.qcow2", "-f", "qcow2")))
	for round := range 8 {
		r.Close()
		v := startVictim(t, r.dir)
		if got := v.do("a", "start"); got != "done <nil>" {
			t.Fatal(got)
		}
		time.Sleep(time.Duration(30*round) * time.Millisecond)
		v.kill()
		time.Sleep(100 * time.Millisecond) // as the next one needs to come up
		pids := r.pids("a")
		r.open()
		r.state("a", life.Running) // it carries on
		pids = append(pids, r.pids("a")...)
		r.must(r.Kill("a"))
		r.gone(pids)
	}
}

// An encrypted disk needs its key at each start, which the manager forgets with the guest's end.
func TestKeys(t *testing.T) {
	r := newRig(t)
	path := r.qemuImg("disk.luks", "-f", "luks", "--object", "secret,id=k,data=correct horse", "-o", "key-secret=k,iter-time=10")
	r.define("a", "", fmt.Sprintf(`disk = [{ name = "root", path = %q, format = "luks" }]`, path))
	if keys, err := r.Keys("a"); err != nil || len(keys) != 1 || keys[0] != "root" {
		t.Errorf("%v, %v", keys, err)
	}
	if err := r.run(r.Start("a")); !errors.Is(err, ErrKey) {
		t.Errorf("start without a key: %v", err)
	}
	if err := r.GiveKey("a", "none", []byte("x")); err == nil {
		t.Error("a key for no disk is taken")
	}
	if err := r.GiveKey("a", "root", []byte("wrong")); err != nil {
		t.Fatal(err)
	}
	if err := r.run(r.Start("a")); err == nil || errors.Is(err, ErrKey) {
		t.Errorf("start with a wrong key: %v", err)
	}
	if err := r.GiveKey("a", "root", []byte("correct horse")); err != nil {
		t.Fatal(err)
	}
	if keys, err := r.Keys("a"); err != nil || len(keys) != 0 {
		t.Errorf("%v, %v", keys, err)
	}
	r.must(r.Start("a"))
	r.must(r.Reboot("a")) // it is still known
	pids := r.pids("a")
	r.must(r.Kill("a"))
	r.gone(pids)
	if err := r.run(r.Start("a")); !errors.Is(err, ErrKey) {
		t.Errorf("start after its end: %v", err)
	}
}
