package pool

import (
	"bufio"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
)

// ImportOptions say what is expected of what is imported.
type ImportOptions struct {
	// SHA256 is the hash, in hex, that the file is to have as it comes, still compressed if it is. Empty is any.
	SHA256 string
	// Format takes the file for what it is told to be, in place of looking at it: Raw is for images that look like others.
	Format format.Format
	// Work is kept in the images' Meta: who makes more than images can tell by it, after a crash, what it has to undo.
	Work string
}

// Imported is what an import has made.
type Imported struct {
	Images  []Image // one, or all of an OVA
	Format  format.Format
	SHA256  string          // of the file, in hex; of a file that is read in place only if it was asked for
	Machine *format.Machine // what an OVA says of its machine: its Disks that have a File are Images, in their order
}

const (
	// What decompressors may keep of what they have unpacked: as much as `zstd --long` and `xz -9` want.
	maxWindow = 128 << 20
	// What may come behind an image in a file, such as the zeros at the end of an archive.
	maxTrailer = 16 << 20
)

// Import makes an image of what src has: raw, also compressed by gzip, xz, zstd or bzip2, qcow2, VMDK, an OVA or a CD. What
// it is it tells by the content. Several disks of an OVA are NAME, NAME-2, NAME-3 and so on. Blocks of zeros become holes.
// The images become visible together and at the end; after an error, or if ctx ends, there is nothing of them.
func (p *Pool) Import(ctx context.Context, name string, src *Source, opt ImportOptions, progress Progress) (*Imported, error) {
	if isSnapshot(name) {
		return nil, fmt.Errorf("%w: %s would be a snapshot", ErrName, name)
	}
	opt.SHA256 = strings.ToLower(strings.TrimSpace(opt.SHA256))
	if _, err := hex.DecodeString(opt.SHA256); err != nil || opt.SHA256 != "" && len(opt.SHA256) != 2*sha256.Size {
		return nil, fmt.Errorf("image %s: %q is no SHA-256: give %d hexadecimal digits", name, opt.SHA256, 2*sha256.Size)
	}
	s, err := p.stage(name)
	if err != nil {
		return nil, err
	}
	m := &importer{p: p, ctx: ctx, src: src, opt: opt, progress: progress, images: []*staged{s}, g: p.guard()}
	defer func() {
		for _, s := range m.images {
			s.discard()
		}
	}()
	if err := m.run(); err != nil {
		if e := ctx.Err(); e != nil { // a read that was cut short says something else
			err = e
		}
		return nil, fmt.Errorf("import %s from %s: %w", name, src.Origin, err)
	}
	for _, s := range m.images {
		s.meta.Origin, s.meta.Format, s.meta.SHA256, s.meta.Work = src.Origin, string(m.format), m.sum, opt.Work
	}
	if err := p.publish(m.images...); err != nil {
		return nil, err
	}
	done := &Imported{Format: m.format, SHA256: m.sum, Machine: m.machine}
	for _, s := range m.images {
		i, err := p.Get(s.name)
		if err != nil {
			return nil, err
		}
		done.Images = append(done.Images, i)
	}
	return done, nil
}

type importer struct {
	p        *Pool
	ctx      context.Context // of one Import
	src      *Source
	opt      ImportOptions
	progress Progress
	g        *guard

	format  format.Format
	sum     string
	machine *format.Machine
	images  []*staged
}

func (m *importer) run() error {
	if m.src.file != nil {
		done, err := m.inPlace(m.src.file)
		if done || err != nil {
			return err
		}
	}
	in := &input{ctx: m.ctx, r: m.src.Reader, size: m.src.Size, progress: m.progress, hash: sha256.New()}
	if d, ok := m.src.Reader.(interface{ SetReadDeadline(time.Time) error }); ok {
		defer context.AfterFunc(m.ctx, func() { _ = d.SetReadDeadline(time.Unix(1, 0)) })()
	}
	if err := m.stream(in, m.images[0], true); err != nil {
		return err
	}
	m.sum = hex.EncodeToString(in.hash.Sum(nil))
	return m.checkSum()
}

func (m *importer) checkSum() error {
	if m.opt.SHA256 != "" && m.sum != m.opt.SHA256 {
		return fmt.Errorf("%w: the file's SHA-256 is %s, not %s", format.ErrChecksum, m.sum, m.opt.SHA256)
	}
	return nil
}

// detect says what something is by its head, or by what we were told.
func (m *importer) detect(head []byte) (format.Format, error) {
	if m.opt.Format != "" {
		return m.opt.Format, nil
	}
	return format.Detect(head)
}

// inPlace imports from a file that need not be read from its begin to its end. It returns false if it does.
func (m *importer) inPlace(f *os.File) (done bool, err error) {
	head := make([]byte, format.HeadSize)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return false, err
	}
	kind, err := m.detect(head[:n])
	if err != nil {
		return false, err
	}
	if kind != format.Raw && kind != format.ISO && kind.Streams() {
		return false, nil
	}
	before, err := f.Stat()
	if err != nil {
		return false, err
	}
	if m.opt.SHA256 != "" {
		h := sha256.New()
		in := &input{ctx: m.ctx, r: io.NewSectionReader(f, 0, before.Size()), size: before.Size(), progress: m.progress, hash: h}
		if _, err := io.Copy(io.Discard, in); err != nil {
			return false, err
		}
		m.sum = hex.EncodeToString(h.Sum(nil))
		if err := m.checkSum(); err != nil {
			return false, err
		}
	}
	m.format = kind
	s := m.images[0]
	if kind == format.Raw || kind == format.ISO {
		s.iso = kind == format.ISO
		if before.Size() > m.p.opt.MaxSize {
			return false, fmt.Errorf("%w: it has %d bytes: %d are the most", ErrSize, before.Size(), m.p.opt.MaxSize)
		}
		if err = reflink(s.f, f); errors.Is(err, errors.ErrUnsupported) {
			err = m.copyRegions(f, before.Size(), m.target(s))
		}
		if err != nil {
			return false, err
		}
		err = m.sized(s, before.Size(), kind)
	} else {
		err = m.random(f, before.Size(), kind, s, m.progress)
	}
	if err != nil {
		return false, err
	}
	after, err := f.Stat()
	if err == nil && (after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime())) {
		err = errors.New("the file was written to meanwhile: try again when nobody does")
	}
	return err == nil, err
}

// copyRegions copies what is allocated of a raw image of size bytes. Unlike sparseCopy it looks for zeros.
func (m *importer) copyRegions(f *os.File, size int64, t *target) error {
	if err := t.Resize(size); err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		begin, end, err := dataRegion(f, off)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		for off = begin; off < min(end, size); {
			if err := m.ctx.Err(); err != nil {
				return err
			}
			m.progress(off, size)
			n, err := f.ReadAt(b[:min(int64(len(b)), end-off, size-off)], off)
			if n == 0 && err != nil {
				return err
			}
			if _, err := t.WriteAt(b[:n], off); err != nil {
				return err
			}
			off += int64(n)
		}
	}
	m.progress(size, size)
	return nil
}

// random imports from an image that is read here and there.
func (m *importer) random(r io.ReaderAt, size int64, kind format.Format, s *staged, progress Progress) error {
	var disk interface {
		Size() int64
		CopyTo(context.Context, format.Target, format.Progress) error
	}
	var err error
	if kind == format.QCOW2 {
		disk, err = format.OpenQCOW2(r, size)
	} else {
		disk, err = format.OpenVMDK(r, size)
	}
	if err == nil {
		err = disk.CopyTo(m.ctx, m.target(s), format.Progress(progress))
	}
	if err != nil {
		return err
	}
	return m.sized(s, disk.Size(), kind)
}

func (m *importer) target(s *staged) *target { return &target{f: s.f, max: m.p.opt.MaxSize, g: m.g} }

// sized ends an image of size bytes: it gets whole sectors.
func (m *importer) sized(s *staged, size int64, kind format.Format) error {
	if size == 0 {
		return fmt.Errorf("%w: it is empty", ErrSize)
	}
	if rest := size % SizeUnit; rest != 0 {
		if kind == format.Raw && m.opt.Format != format.Raw {
			return fmt.Errorf("%w: it has %d bytes and is of no known format: it seems not to be a disk image; if it is one, "+
				"say that it is raw", format.ErrUnsupported, size)
		}
		return s.f.Truncate(size + SizeUnit - rest)
	}
	return nil
}

// stream imports from what is read from its begin to its end. outer is false of what is inside of an archive.
func (m *importer) stream(r io.Reader, s *staged, outer bool) error {
	kind, b, err := m.peek(r)
	if err != nil {
		return err
	}
	if outer {
		m.format = kind
	}
	if !kind.Compressed() {
		if err := m.plain(b, kind, s, outer); err != nil {
			return err
		}
		return drain(b)
	}
	u, err := decompress(b, kind)
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	defer u.Close()
	inside, ub, err := m.peek(u)
	if err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	if inside.Compressed() {
		return fmt.Errorf("%w: compressed twice", format.ErrUnsupported)
	}
	if outer {
		m.format = inside
	}
	if err := m.plain(ub, inside, s, outer); err != nil {
		return fmt.Errorf("%s: %w", kind, err)
	}
	if err := drain(ub); err != nil { // up to the checksum at its end
		return fmt.Errorf("%s: %w", kind, err)
	}
	return drain(b)
}

func (m *importer) peek(r io.Reader) (format.Format, *bufio.Reader, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	head, err := b.Peek(format.HeadSize)
	if err != nil && err != io.EOF {
		return "", nil, err
	}
	kind, err := m.detect(head)
	return kind, b, err
}

// plain imports from what is not compressed.
func (m *importer) plain(r io.Reader, kind format.Format, s *staged, outer bool) error {
	switch kind {
	case format.Raw, format.ISO:
		s.iso = kind == format.ISO
		n, err := format.CopyRaw(m.ctx, r, m.target(s))
		if err != nil {
			return err
		}
		return m.sized(s, n, kind)
	case format.VMDKStream:
		n, err := format.CopyVMDKStream(m.ctx, r, m.target(s))
		if err != nil {
			return err
		}
		return m.sized(s, n, kind)
	case format.QCOW2, format.VMDKSparse:
		f, err := m.p.unnamed()
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := format.CopyRaw(m.ctx, r, &target{f: f, max: m.p.opt.MaxSize, g: m.g})
		if err != nil {
			return err
		}
		return m.random(f, n, kind, s, func(int64, int64) {})
	case format.OVA:
		if !outer {
			return fmt.Errorf("%w: an archive in an archive", format.ErrUnsupported)
		}
		return m.archive(r)
	}
	return fmt.Errorf("%w: format %q", format.ErrUnsupported, kind)
}

// archive imports an OVA's disks.
func (m *importer) archive(r io.Reader) (err error) {
	told := m.opt.Format // is about the archive
	m.opt.Format = ""
	defer func() { m.opt.Format = told }()
	disks := map[string]*staged{} // by file
	m.machine, err = format.CopyOVA(m.ctx, r, func(_ *format.Machine, d format.OVFDisk, r io.Reader) error {
		s := m.images[0]
		if len(disks) > 0 {
			var err error
			if s, err = m.p.stage(fmt.Sprintf("%s-%d", m.images[0].name, len(disks)+1)); err != nil {
				return err
			}
			m.images = append(m.images, s)
		}
		disks[d.File] = s
		return m.stream(r, s, false)
	})
	if err == nil && len(disks) == 0 {
		err = fmt.Errorf("%w: the archive describes a machine without a disk", format.ErrUnsupported)
	}
	if err != nil {
		return err
	}
	// The archive may have the disks in another order than the machine.
	m.images = m.images[:0]
	for _, d := range m.machine.Disks {
		if s := disks[d.File]; s != nil {
			m.images = append(m.images, s)
			delete(disks, d.File)
		}
	}
	return nil
}

// decompress returns a reader of what was compressed into r.
func decompress(r io.Reader, kind format.Format) (io.ReadCloser, error) {
	switch kind {
	case format.Gzip:
		return gzip.NewReader(r)
	case format.Bzip2:
		return io.NopCloser(bzip2.NewReader(r)), nil
	case format.XZ:
		x, err := xz.NewReader(r, maxWindow)
		return io.NopCloser(x), err
	case format.Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("%w: format %q", format.ErrUnsupported, kind)
}

// drain reads r to its end, which is to be near.
func drain(r io.Reader) error {
	n, err := io.CopyN(io.Discard, r, maxTrailer)
	if err == io.EOF {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%w: there is more than an image: %d bytes and more behind it", format.ErrUnsupported, n)
	}
	return err
}

// input is what is imported as it comes: counted and hashed, until the context ends.
type input struct {
	ctx      context.Context // of one Import
	r        io.Reader
	size     int64
	progress Progress
	hash     hash.Hash
	done     int64
}

func (i *input) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := i.r.Read(p)
	i.hash.Write(p[:n])
	i.done += int64(n)
	i.progress(i.done, max(i.size, 0))
	return n, err
}
