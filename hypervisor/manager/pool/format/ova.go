package format

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha1" //nolint:gosec // what manifests of old use; it guards against accidents, as all of a manifest does
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"
)

const (
	ovfMax      = 1 << 20 // bytes of a description
	manifestMax = 64 << 10
	ovaFilesMax = 64
)

// CopyOVA reads an archive up to its end: first the description, which has to come first, then every disk of it, in the order
// of the archive. disk is given one that has that file, with what is in the file; it need not read all of it. The manifest, if
// there is one, is checked: when the error is nil, all that the description names was there and is what the manifest says.
func CopyOVA(ctx context.Context, r io.Reader, disk func(m *Machine, d OVFDisk, r io.Reader) error) (*Machine, error) {
	t := tar.NewReader(r)
	var m *Machine
	sums := map[string]map[string]string{} // of files: by name of the hash
	var manifest []byte
	var missing []string // disks' files that have not come yet
	for range ovaFilesMax {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := t.Next()
		if err == io.EOF {
			if m == nil {
				return nil, fmt.Errorf("%w: the archive is empty", ErrDamaged)
			}
			if len(missing) > 0 {
				return nil, fmt.Errorf("%w: the archive lacks the disk %s", ErrDamaged, strings.Join(missing, ", "))
			}
			return m, checkManifest(manifest, sums)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: archive: %w", ErrDamaged, noEOF(err))
		}
		name := path.Clean(h.Name)
		if h.Typeflag == tar.TypeDir {
			continue
		}
		if h.Typeflag != tar.TypeReg || strings.Contains(name, "/") {
			return nil, fmt.Errorf("%w: the archive holds %q, which is no plain file", ErrDamaged, h.Name)
		}
		if sums[name] != nil {
			return nil, fmt.Errorf("%w: the archive holds %s twice", ErrDamaged, name)
		}
		if strings.HasSuffix(name, ".mf") {
			if manifest, err = readAll(t, manifestMax); err != nil {
				return nil, fmt.Errorf("manifest %s: %w", name, err)
			}
			continue
		}
		hashed := newHashed(t)
		switch {
		case m == nil:
			if !strings.HasSuffix(name, ".ovf") {
				return nil, fmt.Errorf("%w: a tar archive that begins with %q is no OVA: unpack it, and import the disk in it", ErrUnsupported, name)
			}
			b, err := readAll(hashed, ovfMax)
			if err != nil {
				return nil, fmt.Errorf("description %s: %w", name, err)
			}
			if m, err = ParseOVF(b); err != nil {
				return nil, fmt.Errorf("description %s: %w", name, err)
			}
			for _, d := range m.Disks {
				if d.File != "" {
					missing = append(missing, d.File)
				}
			}
		default:
			i := slices.Index(missing, name)
			if i < 0 {
				break // a certificate, a CD: not ours to judge
			}
			missing = slices.Delete(missing, i, i+1)
			for _, d := range m.Disks {
				if d.File != name {
					continue
				}
				if err := disk(m, d, hashed); err != nil {
					return nil, fmt.Errorf("disk %s: %w", name, err)
				}
			}
		}
		if _, err := io.Copy(io.Discard, hashed); err != nil { // up to its end, for the hashes
			return nil, fmt.Errorf("%s: %w", name, noEOF(err))
		}
		sums[name] = hashed.sums()
	}
	return nil, fmt.Errorf("%w: more than %d files in the archive", ErrUnsupported, ovaFilesMax)
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%w: it has more than %d bytes", ErrDamaged, limit)
	}
	return b, noEOF(err)
}

// hashed reads from r and knows the hashes of what it has read that a manifest may name.
type hashed struct {
	r      io.Reader
	hashes map[string]hash.Hash
}

func newHashed(r io.Reader) *hashed {
	h := &hashed{hashes: map[string]hash.Hash{"SHA1": sha1.New(), "SHA256": sha256.New(), "SHA512": sha512.New()}} //nolint:gosec // see above
	h.r = io.TeeReader(r, io.MultiWriter(h.hashes["SHA1"], h.hashes["SHA256"], h.hashes["SHA512"]))
	return h
}

func (h *hashed) Read(p []byte) (int, error) { return h.r.Read(p) }

func (h *hashed) sums() map[string]string {
	s := make(map[string]string, len(h.hashes))
	for name, hash := range h.hashes {
		s[name] = hex.EncodeToString(hash.Sum(nil))
	}
	return s
}

// checkManifest compares the files of an archive with the lines of its manifest: "SHA256(file)= hex".
func checkManifest(manifest []byte, sums map[string]map[string]string) error {
	if manifest == nil {
		return nil
	}
	listed := map[string]bool{}
	for s := bufio.NewScanner(strings.NewReader(string(manifest))); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" {
			continue
		}
		left, sum, ok := strings.Cut(line, "=")
		kind, file, ok2 := strings.Cut(strings.TrimSpace(left), "(")
		file, ok3 := strings.CutSuffix(file, ")")
		kind = strings.ReplaceAll(strings.ToUpper(strings.TrimSpace(kind)), "-", "")
		if !ok || !ok2 || !ok3 {
			return fmt.Errorf("%w: manifest: a line %q", ErrDamaged, line)
		}
		got, ok := sums[file]
		if !ok {
			return fmt.Errorf("%w: the archive lacks %s, which its manifest names", ErrDamaged, file)
		}
		if got[kind] == "" {
			return fmt.Errorf("%w: manifest: a hash of kind %q", ErrUnsupported, kind)
		}
		if !strings.EqualFold(got[kind], strings.TrimSpace(sum)) {
			return fmt.Errorf("%w: %s is not what the manifest says: its %s is %s", ErrChecksum, file, kind, got[kind])
		}
		listed[file] = true
	}
	for file := range sums {
		if !listed[file] && !strings.HasSuffix(file, ".cert") {
			return fmt.Errorf("%w: the manifest lacks %s", ErrDamaged, file)
		}
	}
	return nil
}

// ErrChecksum is content that is not what somebody said it would be.
var ErrChecksum = errors.New("checksum differs")

// ovaFile is where an archive is written: it is gone back to when the disks' sizes are known.
type ovaFile interface {
	io.Writer
	io.WriterAt
	io.Seeker
}

// WriteOVA writes an archive of machine m, whose disks are src, to w from its begin on. It sets the disks' files and
// capacities in m. sizes are those of the disks in bytes.
func WriteOVA(ctx context.Context, w ovaFile, m *Machine, src []Source, sizes []int64, progress Progress) error {
	var total, before int64
	m.Disks = make([]OVFDisk, len(src))
	for i, n := range sizes {
		m.Disks[i] = OVFDisk{ID: fmt.Sprintf("vmdisk%d", i+1), File: fmt.Sprintf("%s-disk%d.vmdk", m.Name, i+1), Capacity: n, FileSize: 1<<63 - 1}
		total += n
	}
	// The description comes first but has the files' sizes in it: there is room for the longest.
	room, err := m.OVF()
	if err != nil {
		return err
	}
	o := &ovaWriter{w: w}
	var manifest strings.Builder
	ovf := m.Name + ".ovf"
	o.pos = tarSize(int64(len(room)))
	for i := range src {
		d := &m.Disks[i]
		begin := o.pos
		if _, err := w.Seek(begin+tarBlock, io.SeekStart); err != nil {
			return err
		}
		sum := &sumWriter{w: w, h: sha256.New()}
		buffered := bufio.NewWriterSize(sum, 1<<20)
		err := WriteVMDK(ctx, buffered, src[i], sizes[i], d.File, func(done, _ int64) { progress(before+done, total) })
		if err == nil {
			err = buffered.Flush()
		}
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.File, err)
		}
		before += sizes[i]
		d.FileSize = sum.n
		if err := o.header(d.File, sum.n, begin); err != nil {
			return err
		}
		o.pos = begin + tarSize(sum.n)
		fmt.Fprintf(&manifest, "SHA256(%s)= %x\n", d.File, sum.h.Sum(nil))
	}
	text, err := m.OVF()
	if err != nil {
		return err
	}
	text = append(text, strings.Repeat("\n", len(room)-len(text))...)
	end := o.pos
	if err := o.file(ovf, text, 0); err != nil {
		return err
	}
	list := fmt.Sprintf("SHA256(%s)= %x\n%s", ovf, sha256.Sum256(text), manifest.String())
	if err := o.file(m.Name+".mf", []byte(list), end); err != nil {
		return err
	}
	_, err = w.WriteAt(make([]byte, 2*tarBlock), end+tarSize(int64(len(list))))
	return err
}

const tarBlock = 512

// tarSize returns how much of an archive a file of n bytes takes.
func tarSize(n int64) int64 { return tarBlock + divUp(n, tarBlock)*tarBlock }

type ovaWriter struct {
	w   ovaFile
	pos int64
}

// header writes the header of a file of n bytes, and zeros up to the next block behind it.
func (o *ovaWriter) header(name string, n, at int64) error {
	var b strings.Builder
	// GNU's headers, unlike others, are one block whatever the size.
	h := &tar.Header{Name: name, Size: n, Mode: 0o644, Typeflag: tar.TypeReg, Format: tar.FormatGNU}
	if err := tar.NewWriter(&b).WriteHeader(h); err != nil {
		return err
	}
	if b.Len() != tarBlock {
		return fmt.Errorf("%w: the name %q is too long for an archive", ErrUnsupported, name)
	}
	if _, err := o.w.WriteAt([]byte(b.String()), at); err != nil {
		return err
	}
	if rest := n % tarBlock; rest != 0 {
		_, err := o.w.WriteAt(zeros[:tarBlock-rest], at+tarBlock+n)
		return err
	}
	return nil
}

func (o *ovaWriter) file(name string, b []byte, at int64) error {
	if err := o.header(name, int64(len(b)), at); err != nil {
		return err
	}
	_, err := o.w.WriteAt(b, at+tarBlock)
	return err
}

// sumWriter counts and hashes what goes through it.
type sumWriter struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (s *sumWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.h.Write(p[:n])
	s.n += int64(n)
	return n, err
}
