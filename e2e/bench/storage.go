package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager"
	"github.com/lodgehv/lodge/hypervisor/manager/pool"
)

// The disk of which snapshots are made: 40 GB, of which 1 GB is allocated, in 128 pieces. It is their number that counts: a
// reflink takes the kernel 10 to 30 µs for each.
const (
	diskSize   = 40 << 30
	pieceSize  = 8 << 20
	pieceEvery = 320 << 20
)

// reflinks is a file system with reflinks, in a file.
func reflinks(ctx context.Context, dir string) (where string, unmount func() error, err error) {
	if os.Geteuid() != 0 {
		return "", nil, errors.New("needs root: mounts a file system")
	}
	image, where := filepath.Join(dir, "xfs"), filepath.Join(dir, "mnt")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(4<<30), f.Close(), os.MkdirAll(where, 0o700))
	}
	if err != nil {
		return "", nil, err
	}
	for _, args := range [][]string{{"mkfs.xfs", "-q", "-f", image}, {"mount", "-o", "loop", image, where}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", nil, fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return where, func() error { return errors.Join(unix.Unmount(where, 0), os.Remove(image)) }, nil
}

// allocate writes the pieces of a disk.
func allocate(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	piece := make([]byte, pieceSize)
	if _, err := rand.Read(piece); err != nil {
		return err
	}
	for off := int64(0); off < diskSize; off += pieceEvery {
		if _, err := f.WriteAt(piece, off); err != nil {
			return err
		}
	}
	return f.Sync()
}

// snapshots are the figures of copies by reflink.
func snapshots(vmm, dir string) []figure {
	return []figure{
		{
			name: "reflink snapshot of a 40 GB disk", unit: "ms", goal: goal{value: 20}, runs: 21, peerName: "cp --reflink",
			prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
				where, unmount, err := reflinks(ctx, dir)
				if err != nil {
					return nil, nil, nil, err
				}
				p, err := pool.Open(filepath.Join(where, "pool"), pool.Options{})
				if err != nil {
					return nil, nil, unmount, err
				}
				end := func() error { return errors.Join(p.Close(), unmount()) }
				if _, err := p.Create("root", diskSize); err != nil {
					return nil, nil, end, err
				}
				path, err := p.PathOf("root")
				if err == nil {
					err = allocate(path)
				}
				if err != nil {
					return nil, nil, end, err
				}
				ours := func(ctx context.Context) (float64, error) {
					begin := time.Now()
					_, err := p.Snapshot(ctx, "root", "s", pool.CopyOptions{}, func(int64, int64) {})
					return milliseconds(time.Since(begin)), errors.Join(err, p.Delete("root@s"))
				}
				peer := func(ctx context.Context) (float64, error) {
					copied := filepath.Join(where, "copy")
					begin := time.Now()
					out, err := exec.CommandContext(ctx, "cp", "--reflink=always", path, copied).CombinedOutput()
					if err == nil {
						err = syncFile(copied)
					}
					took := milliseconds(time.Since(begin))
					if err != nil {
						return 0, fmt.Errorf("%w: %s", err, out)
					}
					return took, os.Remove(copied)
				}
				return ours, peer, end, nil
			},
		},
		{
			name: "guest paused for a snapshot of 40 GB", unit: "ms", goal: goal{value: 5}, runs: 21,
			prepare: func(ctx context.Context) (measurement, measurement, func() error, error) {
				where, unmount, err := reflinks(ctx, dir)
				if err != nil {
					return nil, nil, nil, err
				}
				g, err := newSnapshotGuest(ctx, vmm, where)
				if err != nil {
					return nil, nil, unmount, err
				}
				return g.paused, nil, func() error { return errors.Join(g.close(), unmount()) }, nil
			},
		},
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// snapshotGuest is a guest that runs firmware, of whose disk snapshots are made by a manager.
type snapshotGuest struct {
	m     *manager.Manager
	count int
	proxy net.Listener

	mu    sync.Mutex
	began time.Time     // when its machine was last told to pause
	stood time.Duration // until it had been told to run on
}

func newSnapshotGuest(ctx context.Context, vmm, dir string) (_ *snapshotGuest, err error) {
	run, err := os.MkdirTemp("", "bench") // short enough for sockets
	if err != nil {
		return nil, err
	}
	g := &snapshotGuest{}
	g.m, err = manager.New(manager.Config{ConfigDir: filepath.Join(dir, "etc"), StateDir: filepath.Join(dir, "var"), RunDir: run, Launcher: &manager.Cells{VMM: vmm}})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if err := g.m.CreateImage("default", "root", diskSize); err != nil {
		return nil, err
	}
	if err := allocate(filepath.Join(dir, "var/images/root.raw")); err != nil {
		return nil, err
	}
	if _, err := g.m.Define([]byte("name = \"g\"\nmemory = \"64M\"\n[boot]\nfirmware = \"/usr/share/seabios/bios-256k.bin\"\n[[disk]]\nname = \"root\"\nimage = \"root\"\n")); err != nil {
		return nil, err
	}
	if err := g.do(ctx)(g.m.Start("g")); err != nil {
		return nil, err
	}
	return g, g.listen(filepath.Join(run, "guests/g/control.sock"))
}

// do waits for a job.
func (g *snapshotGuest) do(ctx context.Context) func(id uint64, err error) error {
	return func(id uint64, err error) error {
		if err != nil {
			return err
		}
		s, err := g.m.Jobs().Wait(ctx, id)
		return errors.Join(err, s.Err)
	}
}

// listen takes the place of the machine's control socket, to see when it is told to pause, and when it answers that it runs on.
func (g *snapshotGuest) listen(path string) error {
	if err := os.Rename(path, path+".vmm"); err != nil {
		return err
	}
	var err error
	if g.proxy, err = net.Listen("unix", path); err != nil {
		return err
	}
	go func() {
		for {
			c, err := g.proxy.Accept()
			if err != nil {
				return
			}
			go g.forward(c, path+".vmm")
		}
	}()
	return nil
}

func (g *snapshotGuest) forward(c net.Conn, to string) {
	defer c.Close()
	vmm, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	defer vmm.Close()
	in, out := bufio.NewReader(c), bufio.NewReader(vmm)
	for {
		request, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if strings.Contains(request, `"pause"`) {
			g.mu.Lock()
			g.began = time.Now()
			g.mu.Unlock()
		}
		if _, err := vmm.Write([]byte(request)); err != nil {
			return
		}
		answer, err := out.ReadString('\n')
		if err != nil {
			return
		}
		if strings.Contains(request, `"resume"`) {
			g.mu.Lock()
			g.stood = time.Since(g.began)
			g.mu.Unlock()
		}
		if _, err := c.Write([]byte(answer)); err != nil {
			return
		}
	}
}

// paused makes a snapshot and returns for how long that paused the guest.
func (g *snapshotGuest) paused(ctx context.Context) (float64, error) {
	g.count++
	name := fmt.Sprintf("s%d", g.count)
	g.mu.Lock()
	g.stood = 0
	g.mu.Unlock()
	if err := g.do(ctx)(g.m.SnapshotDisks("g", name)); err != nil {
		return 0, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stood == 0 {
		return 0, errors.New("the guest was not paused")
	}
	return milliseconds(g.stood), g.m.DeleteSnapshot("g", name)
}

func (g *snapshotGuest) close() error {
	if g.proxy != nil {
		g.proxy.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if s, e := g.m.Get("g"); e == nil && s.State.Alive() {
		err = g.do(ctx)(g.m.Kill("g"))
	}
	g.m.Close()
	return err
}
