package pool

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkClone makes a clone of a disk of 40 GB of which 1 GB is allocated, by reflink and by copying.
func BenchmarkClone(b *testing.B) {
	for _, kind := range []string{"xfs", "btrfs", "ext4"} {
		b.Run(kind, func(b *testing.B) {
			p := open(b, filepath.Join(mounted(b, kind, 4<<30), "pool"), nil)
			if _, err := p.Create("root", 40<<30); err != nil {
				b.Fatal(err)
			}
			f, err := p.OpenDisk("root", false)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			src := noise(b, 64<<20)
			data, err := os.ReadFile(src.Name())
			if err != nil {
				b.Fatal(err)
			}
			const allocated = 1 << 30
			for off := int64(0); off < allocated; off += int64(len(data)) {
				if _, err := f.WriteAt(data, off*37); err != nil {
					b.Fatal(err)
				}
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(allocated)
			for b.Loop() {
				if _, err := p.Clone(b.Context(), "root", "clone", CopyOptions{Paused: true}, nothing); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := p.Delete("clone"); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkImport imports a disk of 256 MiB, half of it holes, and has qemu-img convert it for comparison. Both end with all
// of it on the disk.
func BenchmarkImport(b *testing.B) {
	const size = 256 << 20
	raw := rawDisk(b, size, 13)
	for _, kind := range []string{"raw", "qcow2", "qcow2 compressed", "vmdk", "vmdk compressed", "gzip", "zstd", "xz"} {
		file := packed(b, raw.Name(), kind)
		b.Run(kind+"/lodge", func(b *testing.B) {
			p := open(b, b.TempDir(), nil)
			b.SetBytes(size)
			for b.Loop() {
				write(b, p, "x", opened(b, file))
				b.StopTimer()
				if err := p.Delete("x"); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		peer := func(out string) string {
			return fmt.Sprintf("qemu-img convert -O raw '%s' '%s' && sync '%s'", file, out, out)
		}
		switch kind {
		case "gzip", "zstd", "xz":
			peer = func(out string) string { return fmt.Sprintf("%s -dc '%s' > '%s' && sync '%s'", kind, file, out, out) }
		}
		b.Run(kind+"/peer", func(b *testing.B) {
			out := filepath.Join(b.TempDir(), "out.raw")
			b.SetBytes(size)
			for b.Loop() {
				if msg, err := exec.Command("sh", "-c", peer(out)).CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, msg)
				}
				b.StopTimer()
				if err := os.Remove(out); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
