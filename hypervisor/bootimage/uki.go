package bootimage

import (
	"bytes"
	"crypto/rsa"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
)

// UKI describes a unified kernel image: an EFI program that starts the kernel in it.
type UKI struct {
	Stub      []byte // systemd's linuxx64.efi.stub
	Kernel    []byte // a bzImage
	Initramfs []byte
	Cmdline   string // the kernel's parameters
	Release   string // of Lodge, for the boot manager's menu

	// MeasurementKey signs what the TPM will have measured, for keys sealed to images that it signed. Nil: none is signed.
	MeasurementKey *rsa.PrivateKey
}

// Build returns the image and how much room its parts take.
func (u *UKI) Build() ([]byte, []Part, error) {
	if _, err := KernelVersion(u.Kernel); err != nil {
		return nil, nil, err
	}
	if strings.ContainsAny(u.Release, "\"\\$`\n") {
		return nil, nil, fmt.Errorf("release %q: quotes, backslashes, $ and line ends cannot be in it", u.Release)
	}
	if strings.ContainsAny(u.Cmdline, "\x00\n") {
		return nil, nil, fmt.Errorf("command line %q: no line end can be in it", u.Cmdline)
	}
	sections := []section{
		// No ID and no IMAGE_ID: the boot manager shall go by the names of slots, whatever their releases.
		{".osrel", fmt.Appendf(nil, "NAME=\"Lodge\"\nPRETTY_NAME=\"Lodge %[1]s\"\nVERSION_ID=\"%[1]s\"\n", u.Release)},
		{".cmdline", append([]byte(u.Cmdline), 0)},
		{".linux", u.Kernel},
		{".initrd", u.Initramfs},
	}
	if u.MeasurementKey != nil {
		var err error
		if sections, err = signMeasurements(u.MeasurementKey, sections); err != nil {
			return nil, nil, err
		}
	}
	image, err := appendSections(u.Stub, sections...)
	if err != nil {
		return nil, nil, fmt.Errorf("UKI: the stub: %w", err)
	}
	parts := []Part{{Name: "stub", Size: len(u.Stub)}}
	for _, s := range sections {
		parts = append(parts, Part{Name: s.name, Size: len(s.data)})
	}
	return image, parts, nil
}

var versionForm = regexp.MustCompile(`^[!-~]+`)

// KernelVersion returns what the kernel in a bzImage calls itself, such as "6.1.0-18-amd64". Linux, x86/boot.rst: kernel_version.
func KernelVersion(bzImage []byte) (string, error) {
	const magicAt, pointerAt, base = 0x202, 0x20e, 0x200
	if len(bzImage) < pointerAt+2 || string(bzImage[magicAt:magicAt+4]) != "HdrS" {
		return "", errors.New("kernel: not a bzImage: give a file such as /boot/vmlinuz-6.1.0-18-amd64")
	}
	at := base + int(binary.LittleEndian.Uint16(bzImage[pointerAt:]))
	if v := versionForm.Find(bzImage[min(at, len(bzImage)):]); v != nil {
		return string(v), nil
	}
	return "", errors.New("kernel: has no version in it")
}

// section is a part of a PE image.
type section struct {
	name string // at most 8 bytes
	data []byte
}

// Of a PE32+ image: PE format, "COFF File Header", "Optional Header", "Section Table".
const (
	peOffsetAt        = 0x3c // in the DOS header
	peMagic           = "PE\x00\x00"
	coffSize          = 20
	coffSections      = 2 // number of sections
	coffOptionalSize  = 16
	optInitialized    = 8 // size of initialized data
	optFileAlignment  = 36
	optSizeOfImage    = 56
	optSizeOfHeaders  = 60
	optCheckSum       = 64
	optCertificates   = 144 // data directory 4: address in the file, size
	optSize           = 240 // with 16 data directories
	sectionHeaderSize = 40

	sectionReadData = 0x40000040 // characteristics: initialized data, readable

	// pageSize is what sections that are added are aligned to in memory.
	pageSize = 4096
)

// appendSections returns a PE32+ image with more sections. A signature is not kept.
func appendSections(image []byte, sections ...section) ([]byte, error) {
	h, err := parsePE(image)
	if err != nil {
		return nil, err
	}
	tableEnd := h.table + (len(h.sections)+len(sections))*sectionHeaderSize
	if tableEnd > h.firstRaw {
		return nil, fmt.Errorf("its header has no room for %d more sections", len(sections))
	}
	out := bytes.Clone(image[:h.endRaw]) // without symbols and a signature
	align := func(n, to uint64) uint64 { return (n + to - 1) / to * to }
	va := h.endVirtual
	added := uint64(0)
	for i, s := range sections {
		if len(s.name) > 8 {
			return nil, fmt.Errorf("section name %q has more than 8 bytes", s.name)
		}
		va = align(va, pageSize)
		out = append(out, make([]byte, align(uint64(len(out)), h.fileAlignment)-uint64(len(out)))...)
		at, size := uint64(len(out)), align(uint64(len(s.data)), h.fileAlignment)
		if max(va, at)+size > math.MaxInt32 {
			return nil, fmt.Errorf("section %s of %d bytes: the image would be larger than 2 GiB", s.name, len(s.data))
		}
		out = append(append(out, s.data...), make([]byte, size-uint64(len(s.data)))...)
		e := out[h.table+(len(h.sections)+i)*sectionHeaderSize:][:sectionHeaderSize]
		clear(e)
		copy(e, s.name)
		binary.LittleEndian.PutUint32(e[8:], uint32(len(s.data)))
		binary.LittleEndian.PutUint32(e[12:], uint32(va))
		binary.LittleEndian.PutUint32(e[16:], uint32(size))
		binary.LittleEndian.PutUint32(e[20:], uint32(at))
		binary.LittleEndian.PutUint32(e[36:], sectionReadData)
		va += uint64(len(s.data))
		added += size
	}
	coff, opt := out[h.coff:], out[h.coff+coffSize:]
	binary.LittleEndian.PutUint16(coff[coffSections:], uint16(len(h.sections)+len(sections)))
	clear(coff[8:16]) // symbols, which are cut off
	binary.LittleEndian.PutUint32(opt[optInitialized:], uint32(uint64(binary.LittleEndian.Uint32(opt[optInitialized:]))+added))
	binary.LittleEndian.PutUint32(opt[optSizeOfImage:], uint32(align(va, pageSize)))
	clear(opt[optCheckSum : optCheckSum+4]) // firmware does not look at it
	clear(opt[optCertificates : optCertificates+8])
	return out, nil
}

// peHeader is where things are in a PE32+ image, in bytes from its begin.
type peHeader struct {
	coff, table      int
	sections         []pe.SectionHeader32
	firstRaw, endRaw int    // of the sections' content
	endVirtual       uint64 // of the image in memory
	fileAlignment    uint64
}

// parsePE reads the headers of a PE32+ image for x86-64.
func parsePE(b []byte) (*peHeader, error) {
	if len(b) < peOffsetAt+4 || string(b[:2]) != "MZ" {
		return nil, errors.New("not a PE image")
	}
	at := uint64(binary.LittleEndian.Uint32(b[peOffsetAt:]))
	if at+uint64(len(peMagic)+coffSize+optSize) > uint64(len(b)) || string(b[at:at+4]) != peMagic {
		return nil, errors.New("not a PE image")
	}
	h := &peHeader{coff: int(at) + len(peMagic)}
	coff, opt := b[h.coff:], b[h.coff+coffSize:]
	if binary.LittleEndian.Uint16(coff) != pe.IMAGE_FILE_MACHINE_AMD64 || binary.LittleEndian.Uint16(opt) != 0x20b {
		return nil, errors.New("not a PE32+ image for x86-64")
	}
	size := int(binary.LittleEndian.Uint16(coff[coffOptionalSize:]))
	if size < optSize {
		return nil, errors.New("its header has no room for a signature")
	}
	h.table = h.coff + coffSize + size
	h.fileAlignment = uint64(binary.LittleEndian.Uint32(opt[optFileAlignment:]))
	if h.fileAlignment == 0 || h.fileAlignment > 1<<16 || h.fileAlignment&(h.fileAlignment-1) != 0 {
		return nil, fmt.Errorf("alignment of sections in the file: %d", h.fileAlignment)
	}
	n := int(binary.LittleEndian.Uint16(coff[coffSections:]))
	if h.table+n*sectionHeaderSize > len(b) {
		return nil, errors.New("its section table is cut off")
	}
	h.sections = make([]pe.SectionHeader32, n)
	if err := binary.Read(bytes.NewReader(b[h.table:]), binary.LittleEndian, h.sections); err != nil {
		return nil, err
	}
	headers := uint64(binary.LittleEndian.Uint32(opt[optSizeOfHeaders:]))
	if headers > uint64(len(b)) {
		return nil, errors.New("its headers are cut off")
	}
	h.firstRaw, h.endRaw = int(headers), int(headers)
	for _, s := range h.sections {
		name := strings.TrimRight(string(s.Name[:]), "\x00")
		raw, end := uint64(s.PointerToRawData), uint64(s.PointerToRawData)+uint64(s.SizeOfRawData)
		if s.SizeOfRawData > 0 {
			if end > uint64(len(b)) || raw < headers {
				return nil, fmt.Errorf("section %s is not within the file", name)
			}
			h.endRaw = max(h.endRaw, int(end))
		}
		h.endVirtual = max(h.endVirtual, uint64(s.VirtualAddress)+uint64(max(s.VirtualSize, s.SizeOfRawData)))
	}
	return h, nil
}
