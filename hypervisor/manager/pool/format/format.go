// Package format reads and writes the files in which disks travel between hypervisors: qcow2 (version 2 and 3), VMDK
// (monolithicSparse and streamOptimized) and OVA, an archive of VMDKs with a description of their machine.
//
// What is read may come from anywhere: nothing in a file makes us open another one, allocate more than a few megabytes, or
// go round in circles. A small file can still describe a large disk of data; what that may take up is the Target's to limit.
//
// The readers are ours because those there are open the backing files that an image names, believe the sizes in its
// headers, or need a file where a stream would do.
package format

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// Format is what a file is.
type Format string

// The formats. A compressed file holds one of those above it.
const (
	Raw        Format = "raw"
	ISO        Format = "iso"         // ISO 9660: a CD or DVD
	QCOW2      Format = "qcow2"       // random access
	VMDKSparse Format = "vmdk"        // monolithicSparse, and what QEMU writes as streamOptimized; random access
	VMDKStream Format = "vmdk-stream" // streamOptimized as it is specified, with its tables at the end
	OVA        Format = "ova"
	Gzip       Format = "gzip"
	XZ         Format = "xz"
	Zstd       Format = "zstd"
	Bzip2      Format = "bzip2"
)

// Formats are all formats.
func Formats() []Format {
	return []Format{Raw, ISO, QCOW2, VMDKSparse, VMDKStream, OVA, Gzip, XZ, Zstd, Bzip2}
}

// Compressed reports whether f is the format of a compressor.
func (f Format) Compressed() bool { return f == Gzip || f == XZ || f == Zstd || f == Bzip2 }

// Streams reports whether a file of the format can be read from its begin to its end.
func (f Format) Streams() bool { return f != QCOW2 && f != VMDKSparse }

// ErrUnsupported is what is known but cannot be read here; the error says what to do.
var ErrUnsupported = errors.New("unsupported")

// ErrDamaged is a file that contradicts itself or its format, or that ends too early.
var ErrDamaged = errors.New("damaged image")

// Target takes a disk's content. What is never written to it reads as zeros. Several goroutines write at the same time, each
// elsewhere.
type Target interface {
	io.WriterAt
	// Resize says how large the disk is, in bytes: before anything is written where the file tells, else at the end.
	Resize(size int64) error
}

// Source is a disk to be written to a file.
type Source interface {
	io.ReaderAt
	// Data returns the first region from off on that may hold anything but zeros; io.EOF if there is none.
	Data(off int64) (begin, end int64, err error)
}

// Progress is told how many bytes of how many are done. It is called often, by one goroutine at a time.
type Progress func(done, total int64)

// HeadSize is how many bytes of a file Detect wants to see.
const HeadSize = 33 << 10

const sector = 512

// Detect tells a file's format by its first HeadSize bytes, or all if it has fewer. What it does not know is Raw.
func Detect(head []byte) (Format, error) {
	has := func(off int, magic string) bool {
		return len(head) >= off+len(magic) && string(head[off:off+len(magic)]) == magic
	}
	const convert = "convert it with qemu-img convert -O qcow2"
	switch {
	case has(0, "QFI\xfb"):
		return QCOW2, nil
	case has(0, "KDMV"):
		if len(head) >= vmdkHeaderSize && binary.LittleEndian.Uint64(head[56:]) == vmdkAtEnd {
			return VMDKStream, nil
		}
		return VMDKSparse, nil
	case has(0, "# Disk DescriptorFile"):
		return "", fmt.Errorf("%w: this VMDK only names the files that its data is in: %s, beside them", ErrUnsupported, convert)
	case has(0, "COWD"):
		return "", fmt.Errorf("%w: a VMDK of an old ESX: %s", ErrUnsupported, convert)
	case has(0, "vhdxfile"):
		return "", fmt.Errorf("%w: a VHDX: %s", ErrUnsupported, convert)
	case has(0, "conectix"):
		return "", fmt.Errorf("%w: a VHD: %s", ErrUnsupported, convert)
	case has(64, "\x7f\x10\xda\xbe"):
		return "", fmt.Errorf("%w: a VDI: %s", ErrUnsupported, convert)
	case has(0, "QED\x00"):
		return "", fmt.Errorf("%w: a QED image: %s", ErrUnsupported, convert)
	case has(0, "LUKS\xba\xbe"):
		return "", fmt.Errorf("%w: an encrypted image (LUKS): decrypt it first", ErrUnsupported)
	case has(257, "ustar"):
		return OVA, nil
	case has(0, "\x1f\x8b\x08"):
		return Gzip, nil
	case has(0, "\xfd7zXZ\x00"):
		return XZ, nil
	case has(0, "\x28\xb5\x2f\xfd"):
		return Zstd, nil
	case has(0, "BZh") && has(4, "1AY&SY"):
		return Bzip2, nil
	case has(0, "PK\x03\x04"):
		return "", fmt.Errorf("%w: a ZIP archive: unpack it first", ErrUnsupported)
	case has(32<<10+1, "CD001"):
		return ISO, nil
	}
	return Raw, nil
}

// CopyRaw copies a raw image from r to its end and returns its size.
func CopyRaw(ctx context.Context, r io.Reader, t Target) (int64, error) {
	b := make([]byte, 1<<20)
	var off int64
	for {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		n, err := fill(r, b)
		if n > 0 {
			if _, err := t.WriteAt(b[:n], off); err != nil {
				return off, err
			}
			off += int64(n)
		}
		if err == io.EOF {
			return off, t.Resize(off)
		}
		if err != nil {
			return off, noEOF(err)
		}
	}
}

// fill is io.ReadFull, but for an end that r itself finds unexpected: only that of io.EOF is one.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = r.Read(b[n:])
		n += k
	}
	return n, err
}

// spread has the jobs that produce gives done by as many workers as there are CPUs. The first error ends all.
func spread[T any](ctx context.Context, worker func() func(T) error, produce func(ctx context.Context, give func(T) error) error) error {
	g, ctx := errgroup.WithContext(ctx)
	jobs := make(chan T)
	for range runtime.GOMAXPROCS(0) {
		do := worker()
		g.Go(func() error {
			for j := range jobs {
				if err := do(j); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(jobs)
		return produce(ctx, func(j T) error {
			select {
			case jobs <- j:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	return g.Wait()
}

// readAt fills b from r at off. The file, of size bytes, may end within the last unit of b: then there are zeros.
func readAt(r io.ReaderAt, size int64, b []byte, off, unit int64) error {
	if off < 0 || off >= size || off+int64(len(b))-size >= unit {
		return fmt.Errorf("%w: data at %d of a file of %d bytes: is it incomplete?", ErrDamaged, off, size)
	}
	n := int(min(int64(len(b)), size-off))
	if k, err := r.ReadAt(b[:n], off); k < n {
		return noEOF(err)
	}
	clear(b[n:])
	return nil
}

// noEOF makes the end of a file where there should be data an error that says so.
func noEOF(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: it ends too early", ErrDamaged)
	}
	return err
}

var zeros [4096]byte

// isZero reports whether b holds only zeros.
func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

func divUp(a, b int64) int64 { return (a + b - 1) / b }
