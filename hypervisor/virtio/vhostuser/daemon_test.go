package vhostuser_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lodgehv/lodge/hypervisor/manager/storaged"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/hypervisor/virtio/blk"
	"github.com/lodgehv/lodge/hypervisor/virtio/vhostuser"
	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// daemon serves an image and returns a device on it.
func daemon(t testing.TB, image storaged.Image, queues int) *vhostuser.Device {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	cfg := storaged.Config{Name: "disk", Socket: filepath.Join(t.TempDir(), "s"), Image: image, Queues: queues, Log: log}
	d, err := storaged.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := d.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	b, err := vhostuser.Open(t.Context(), vhostuser.Config{Name: "disk", Dial: vhostuser.DialPath(cfg.Socket), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	dev, err := vhostuser.New(b, vhostuser.Options{Queues: queues})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

func rawImage(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	for at := int64(0); at < size; at += 1 << 20 {
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(at >> 20)}, 1<<20), at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func qcow2Image(t testing.TB, raw *os.File) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-q", "-O", "qcow2", raw.Name(), path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	return path
}

func header(kind uint32, sector uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, uint64(kind)), sector)
}

// QEMU's storage daemon serves several queues, stops and goes on.
func TestStorageDaemon(t *testing.T) {
	raw := rawImage(t, 4<<20)
	for name, image := range map[string]storaged.Image{
		"raw":   {Path: raw.Name(), Format: storaged.Raw},
		"qcow2": {Path: qcow2Image(t, raw), Format: storaged.QCOW2},
	} {
		t.Run(name, func(t *testing.T) {
			r := virtiotest.New(t, daemon(t, image, 2), 0)
			if len(r.Queues) != 2 {
				t.Fatalf("%d queues", len(r.Queues))
			}
			data, status := r.In(512), r.In(1)
			for i := range 100 {
				q := r.Queues[i%2]
				at := r.Alloc(1)
				want := bytes.Repeat([]byte{byte(i + 100)}, 512)
				q.Do(r.Out(header(1, uint64(i))), r.Out(want), status)
				q.Do(r.Out(header(0, uint64(i))), data, status)
				if got := r.Bytes(data.Addr, 512); !bytes.Equal(got, want) || r.Bytes(status.Addr, 1)[0] != 0 {
					t.Fatalf("request %d: read %x..., status %d", i, got[:4], r.Bytes(status.Addr, 1)[0])
				}
				if i%10 == 9 { // in the middle of requests
					q.Send(r.Out(header(0, 1)), data, status)
					r.Stop()
					if n := q.Used(); n != 1 {
						t.Fatalf("stopped with %d requests done", n)
					}
					q.Wait()
					r.Start()
				}
				r.Free(at)
			}
		})
	}
}

// BenchmarkRead compares disks of a storage daemon with those of our own process. Unlike a guest, which KVM interrupts by
// itself, the driver of the rig pays for the wake-up of a goroutine at each interrupt of the daemon's.
func BenchmarkRead(b *testing.B) {
	const size, block = 64 << 20, 4096
	raw := rawImage(b, size)
	for _, c := range []struct {
		name string
		make func(b *testing.B) virtio.Device
	}{
		{"own process", func(b *testing.B) virtio.Device {
			d, err := blk.New(blk.Config{Name: "bench", File: raw})
			if err != nil {
				b.Fatal(err)
			}
			return d
		}},
		{"daemon raw", func(b *testing.B) virtio.Device {
			return daemon(b, storaged.Image{Path: raw.Name(), Format: storaged.Raw}, 1)
		}},
		{"daemon qcow2", func(b *testing.B) virtio.Device {
			return daemon(b, storaged.Image{Path: qcow2Image(b, raw), Format: storaged.QCOW2}, 1)
		}},
	} {
		for _, depth := range []int{1, 32} {
			b.Run(c.name+map[int]string{1: "/4K×1", 32: "/4K×32"}[depth], func(b *testing.B) {
				r := virtiotest.New(b, c.make(b), 0)
				q := r.Queues[0]
				rnd := rand.New(rand.NewPCG(1, 2))
				var headers []virtiotest.Desc
				for range 512 {
					headers = append(headers, r.Out(header(0, uint64(rnd.IntN(size/block)*(block/512)))))
				}
				data, status := r.In(block), r.In(1)
				var before, after unix.Rusage
				_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
				b.SetBytes(block)
				inFlight, i := 0, 0
				for b.Loop() {
					if inFlight == depth { // then all: the rig's driver takes it that descriptors come back in order
						for inFlight > 0 {
							<-q.Interrupts
							for ; q.Used() > 0; inFlight-- {
								q.Wait()
							}
						}
					}
					q.Send(headers[i%len(headers)], data, status)
					inFlight++
					i++
				}
				for ; inFlight > 0; inFlight-- {
					q.Wait()
				}
				_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
				own := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
				b.ReportMetric(float64(own)/float64(b.N), "own-CPU-ns/op") // with the driver's part
				if s := r.Bytes(status.Addr, 1)[0]; s != 0 {
					b.Fatalf("status %d", s)
				}
			})
		}
	}
}
