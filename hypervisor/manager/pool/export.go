package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

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
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, name := range names {
		f, err := p.open(name, true, opt.Paused)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if len(names) > 0 {
		opt.Machine.Name = cmp.Or(opt.Machine.Name, names[0])
	}
	return Export(ctx, files, dst, opt, progress)
}

// Export is Pool.Export of disks that are in pools or elsewhere, and that nobody writes to. Their file's name is their own
// unless opt.Machine has one.
func Export(ctx context.Context, disks []*os.File, dst *os.File, opt ExportOptions, progress Progress) (err error) {
	if len(disks) == 0 || len(disks) > 1 && opt.Format != format.OVA {
		return fmt.Errorf("export of %d images as %q: only an OVA holds several, and one at least", len(disks), opt.Format)
	}
	name := opt.Machine.Name
	if opt.Format == format.OVA && !isName(name) { // it names files in the archive
		return fmt.Errorf("export: %w: %.200q", ErrName, name)
	}
	var sources []format.Source
	var sizes []int64
	for _, f := range disks {
		st, err := f.Stat()
		if err != nil {
			return fmt.Errorf("export %s: %w", name, err)
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
		return fmt.Errorf("export %s: %s: %w: it is not empty", name, dst.Name(), os.ErrExist)
	case !regular && opt.Format != format.Raw && opt.Format != format.VMDKStream:
		return fmt.Errorf("export %s: %s is no file, which %s needs: write raw, or to a file", name, dst.Name(), opt.Format)
	}
	if !regular { // a pipe whose reader does not read
		defer context.AfterFunc(ctx, func() { _ = dst.SetWriteDeadline(time.Unix(1, 0)) })()
	}
	switch opt.Format {
	case format.Raw:
		err = exportRaw(ctx, dst, disks[0], sizes[0], regular, progress)
	case format.QCOW2:
		_, err = format.WriteQCOW2(ctx, dst, sources[0], sizes[0], opt.Compression, format.Progress(progress))
	case format.VMDKStream:
		err = format.WriteVMDK(ctx, dst, sources[0], sizes[0], name+".vmdk", format.Progress(progress))
	case format.OVA:
		err = format.WriteOVA(ctx, dst, &opt.Machine, sources, sizes, format.Progress(progress))
	default:
		err = fmt.Errorf("%w: format %q: use %s, %s, %s or %s", format.ErrUnsupported, opt.Format, format.Raw, format.QCOW2, format.VMDKStream, format.OVA)
	}
	if err != nil {
		if e := ctx.Err(); e != nil { // a write that was cut short says something else
			err = e
		}
		err = fmt.Errorf("export %s: %w", name, err)
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
