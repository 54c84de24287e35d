package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lodgehv/lodge/hypervisor/manager/pool/format"
)

// ExportOptions say what an image is written as.
type ExportOptions struct {
	Format      format.Format      // Raw, QCOW2, VMDKStream or OVA
	Compression format.Compression // of QCOW2
	// Machine is what an OVA describes: its name, CPUs, memory, firmware and network cards. The disks are filled in.
	Machine format.Machine
	CopyOptions
}

// Export writes an image to dst, an empty file: or several, if it is an OVA, in the order in which their machine has them.
// What is zero is written as holes in Raw, and not at all in the others. Raw can also go into a pipe. After an error dst is
// empty again. dst stays the caller's, who syncs and closes it.
func (p *Pool) Export(ctx context.Context, names []string, dst *os.File, opt ExportOptions, progress Progress) (err error) {
	if len(names) == 0 || len(names) > 1 && opt.Format != format.OVA {
		return fmt.Errorf("export of %d images as %q: only an OVA holds several, and one at least", len(names), opt.Format)
	}
	var sources []format.Source
	var sizes []int64
	var first *os.File
	for _, name := range names {
		f, err := p.open(name, true, opt.Paused)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		if first == nil {
			first = f
		}
		sources, sizes = append(sources, source{f}), append(sizes, st.Size())
	}
	st, err := dst.Stat()
	if err != nil {
		return err
	}
	regular := st.Mode().IsRegular()
	switch {
	case regular && st.Size() > 0:
		return fmt.Errorf("export %s: %s: %w: it is not empty", names[0], dst.Name(), os.ErrExist)
	case !regular && opt.Format != format.Raw && opt.Format != format.VMDKStream:
		return fmt.Errorf("export %s: %s is no file, which %s needs: write raw, or to a file", names[0], dst.Name(), opt.Format)
	}
	switch opt.Format {
	case format.Raw:
		err = exportRaw(ctx, dst, first, sizes[0], regular, progress)
	case format.QCOW2:
		_, err = format.WriteQCOW2(ctx, dst, sources[0], sizes[0], opt.Compression, format.Progress(progress))
	case format.VMDKStream:
		err = format.WriteVMDK(ctx, dst, sources[0], sizes[0], names[0]+".vmdk", format.Progress(progress))
	case format.OVA:
		m := opt.Machine
		m.Name = cmp.Or(m.Name, names[0])
		if !isName(m.Name) { // it names files in the archive
			return fmt.Errorf("export %s: %w: %.200q", names[0], ErrName, m.Name)
		}
		err = format.WriteOVA(ctx, dst, &m, sources, sizes, format.Progress(progress))
	default:
		err = fmt.Errorf("%w: format %q: use %s, %s, %s or %s", format.ErrUnsupported, opt.Format, format.Raw, format.QCOW2, format.VMDKStream, format.OVA)
	}
	if err != nil {
		err = fmt.Errorf("export %s: %w", names[0], err)
		if regular {
			err = errors.Join(err, dst.Truncate(0))
		}
	}
	return err
}

func exportRaw(ctx context.Context, dst, src *os.File, size int64, regular bool, progress Progress) error {
	if regular {
		if err := reflink(dst, src); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		return sparseCopy(ctx, dst, src, size, func(int64) error { return nil }, progress)
	}
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		progress(off, size)
		n := min(copyStep, size-off)
		if _, err := io.Copy(dst, io.NewSectionReader(src, off, n)); err != nil {
			return err
		}
		off += n
	}
	progress(size, size)
	return nil
}
