package bootimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// guid is a GUID as it is stored: three little-endian fields, and eight bytes.
type guid [16]byte

var (
	// guidShell is OVMF's UEFI Shell: 7C04A583-9E3E-4f1c-AD65-E05268D0B4D1.
	guidShell = guid{0x83, 0xa5, 0x04, 0x7c, 0x3e, 0x9e, 0x1c, 0x4f, 0xad, 0x65, 0xe0, 0x52, 0x68, 0xd0, 0xb4, 0xd1}
	// guidLZMA is a section that is compressed by LZMA: EE4E5898-3914-4259-9D6E-DC7BD79403CF.
	guidLZMA = guid{0x98, 0x58, 0x4e, 0xee, 0x14, 0x39, 0x59, 0x42, 0x9d, 0x6e, 0xdc, 0x7b, 0xd7, 0x94, 0x03, 0xcf}
)

// Of firmware volumes: PI 1.8 volume 3, §3.2.1 EFI_FIRMWARE_VOLUME_HEADER, §3.2.3 EFI_FFS_FILE_HEADER, §3.2.4 sections.
const (
	fvLengthAt       = 32
	fvSignatureAt    = 40
	fvSignature      = "_FVH"
	fvHeaderLengthAt = 48
	fvExtOffsetAt    = 52
	fvHeaderSize     = 56
	fvExtSizeAt      = 16 // in the extended header

	ffsHeaderCheckAt = 16
	ffsFileCheckAt   = 17
	ffsTypeAt        = 18
	ffsAttributesAt  = 19
	ffsSizeAt        = 20
	ffsStateAt       = 23
	ffsHeaderSize    = 24
	ffsLargeSize     = 32 // of the header of a file that is 16 MiB or more
	ffsLarge         = 0x01
	ffsChecksum      = 0x40 // the file check is a checksum, else ffsNoCheck
	ffsNoCheck       = 0xaa
	ffsAlign         = 8
	ffsVolume        = 0x0b // type: has a volume in a section

	sectionHeader      = 4
	sectionLargeHeader = 8 // of one whose size field is all ones
	sectionGUIDed      = 0x02
	sectionPE32        = 0x10
	sectionVolume      = 0x17
	sectionRaw         = 0x19
	sectionAlign       = 4
	guidedHeader       = 20 // behind the section's: GUID, offset of the data, attributes

	// maxUnpacked bounds what a compressed section may unpack to.
	maxUnpacked = 64 << 20
	// maxDepth bounds how deep volumes are in one another. OVMF: 2.
	maxDepth = 4
)

// errNoShell says that a firmware has no UEFI Shell.
var errNoShell = errors.New("has no UEFI Shell to replace: take OVMF_CODE_4M.fd of Debian's package ovmf, not a variant for Secure Boot without it")

// ReplaceShell returns a copy of firmware, such as OVMF's code, with an EFI program in place of its UEFI Shell, which it starts when
// there is nothing else to boot from. The size stays the same.
func ReplaceShell(firmware, program []byte) ([]byte, error) {
	out := bytes.Clone(firmware)
	found, err := editVolumes(out, program, 0)
	if err == nil && !found {
		err = errNoShell
	}
	if err != nil {
		return nil, fmt.Errorf("firmware: %w", err)
	}
	return out, nil
}

// editVolumes looks for the shell in all volumes in b, which follow one another.
func editVolumes(b, program []byte, depth int) (found bool, err error) {
	if depth > maxDepth {
		return false, fmt.Errorf("volumes are more than %d deep", maxDepth)
	}
	for len(b) >= fvHeaderSize {
		if string(b[fvSignatureAt:fvSignatureAt+4]) != fvSignature {
			return false, errors.New("not a firmware volume")
		}
		size := binary.LittleEndian.Uint64(b[fvLengthAt:])
		if size < fvHeaderSize || size > uint64(len(b)) {
			return false, fmt.Errorf("a volume of %d bytes in %d", size, len(b))
		}
		if found, err := editVolume(b[:size], program, depth); found || err != nil {
			return found, err
		}
		b = b[size:]
	}
	return false, nil
}

// editVolume looks for the shell in the volume that b is.
func editVolume(b, program []byte, depth int) (found bool, err error) {
	at := int(binary.LittleEndian.Uint16(b[fvHeaderLengthAt:]))
	if ext := int(binary.LittleEndian.Uint16(b[fvExtOffsetAt:])); ext != 0 {
		if ext+fvExtSizeAt+4 > len(b) {
			return false, errors.New("a volume's extended header is not within it")
		}
		size := binary.LittleEndian.Uint32(b[ext+fvExtSizeAt:])
		if uint64(size) > uint64(len(b)-ext) {
			return false, errors.New("a volume's extended header is not within it")
		}
		at = ext + int(size)
	}
	if at < fvHeaderSize {
		return false, errors.New("a volume's header is too short")
	}
	for at = alignUp(at, ffsAlign); at+ffsHeaderSize <= len(b); {
		if isErased(b[at : at+ffsHeaderSize]) {
			return false, nil // free space
		}
		f, err := parseFile(b[at:])
		if err != nil {
			return false, fmt.Errorf("file at %#x of a volume: %w", at, err)
		}
		next := alignUp(at+f.size, ffsAlign)
		room := b[at : at+f.size]
		if next+ffsHeaderSize > len(b) || isErased(b[next:]) {
			room = b[at:] // the last one may grow
		}
		if f.name == guidShell {
			return true, putProgram(b[at:at+f.size], f.header, program)
		}
		if b[at+ffsTypeAt] != ffsVolume {
			at = next
			continue
		}
		if found, err := editSections(room, f, program, depth); found || err != nil {
			return found, err
		}
		at = next
	}
	return false, nil
}

// ffsFile is a file's header.
type ffsFile struct {
	name         guid
	header, size int // bytes, the size with the header
}

func parseFile(b []byte) (ffsFile, error) {
	f := ffsFile{name: guid(b[:16]), header: ffsHeaderSize, size: get24(b[ffsSizeAt:])}
	if b[ffsAttributesAt]&ffsLarge != 0 {
		if len(b) < ffsLargeSize {
			return f, errors.New("its header is cut off")
		}
		f.header = ffsLargeSize
		f.size = int(min(binary.LittleEndian.Uint64(b[ffsHeaderSize:]), uint64(len(b))+1))
	}
	if f.size < f.header || f.size > len(b) {
		return f, fmt.Errorf("%d bytes, where there are %d", f.size, len(b))
	}
	return f, nil
}

// eachSection calls do with the begin and the end of each section in b, its type, and the size of its header, until that is done.
func eachSection(b []byte, do func(at, end int, kind byte, header int) (done bool, err error)) (done bool, err error) {
	for at := 0; at+sectionHeader <= len(b); {
		size, header := get24(b[at:]), sectionHeader
		if size == 0xffffff && at+sectionLargeHeader <= len(b) {
			header = sectionLargeHeader
			size = int(min(binary.LittleEndian.Uint32(b[at+sectionHeader:]), uint32(len(b))+1))
		}
		if size < header || size > len(b)-at {
			return false, fmt.Errorf("section at %#x: %d bytes, where there are %d", at, size, len(b)-at)
		}
		if done, err := do(at, at+size, b[at+3], header); done || err != nil {
			return done, err
		}
		at = alignUp(at+size, sectionAlign)
	}
	return false, nil
}

// editSections looks for the shell in the volumes in the sections of a file. The file is at the begin of room, which it may fill.
func editSections(room []byte, f ffsFile, program []byte, depth int) (found bool, err error) {
	body := room[f.header:f.size]
	return eachSection(body, func(at, end int, kind byte, header int) (bool, error) {
		s := body[at:end]
		if kind != sectionGUIDed || len(s) < header+guidedHeader || guid(s[header:header+16]) != guidLZMA {
			return false, nil
		}
		data := int(binary.LittleEndian.Uint16(s[header+16:]))
		if data < header+guidedHeader || data > len(s) {
			return false, errors.New("compressed section: its data is not within it")
		}
		raw, err := unpackSection(s[data:])
		if err != nil {
			return false, fmt.Errorf("compressed section: %w", err)
		}
		found, err := eachSection(raw, func(at, end int, kind byte, header int) (bool, error) {
			if kind != sectionVolume {
				return false, nil
			}
			return editVolumes(raw[at+header:end], program, depth+1)
		})
		if !found || err != nil {
			return false, err
		}
		if header != sectionHeader || f.header != ffsHeaderSize || alignUp(end, sectionAlign) < len(body) {
			return false, errors.New("compressed section: is not alone in its file")
		}
		packed, err := packSection(raw)
		if err != nil {
			return false, err
		}
		size := f.header + at + data + len(packed)
		if size > len(room) || size >= 1<<24 {
			return false, fmt.Errorf("compressed section: has become %d bytes larger, for which there is no room", len(packed)-len(s[data:]))
		}
		copy(room[f.header+at+data:], packed)
		put24(room[f.header+at:], size-f.header-at)
		put24(room[ffsSizeAt:], size)
		for i := size; i < len(room); i++ {
			room[i] = 0xff // erased
		}
		sumFile(room[:size])
		return true, nil
	})
}

// putProgram puts an EFI program into file, in the place of the one in its PE32 section. A section that nobody reads fills the
// rest, so that no other file moves.
func putProgram(file []byte, header int, program []byte) error {
	body := file[header:]
	var others []byte // its name and version
	_, err := eachSection(body, func(at, end int, kind byte, header int) (bool, error) {
		if kind != sectionPE32 && kind != sectionRaw {
			others = append(append(others, make([]byte, -len(others)&(sectionAlign-1))...), body[at:end]...)
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("UEFI Shell: %w", err)
	}
	put := func(content []byte, kind byte, sections []byte) []byte {
		sections = append(sections, make([]byte, -len(sections)&(sectionAlign-1))...)
		h := make([]byte, sectionHeader)
		put24(h, len(content)+sectionHeader)
		h[3] = kind
		return append(append(sections, h...), content...)
	}
	sections := put(program, sectionPE32, nil)
	sections = append(append(sections, make([]byte, -len(sections)&(sectionAlign-1))...), others...)
	rest := len(body) - alignUp(len(sections), sectionAlign) - sectionHeader
	if rest < 0 || rest+sectionHeader >= 0xffffff {
		return fmt.Errorf("UEFI Shell: a program of %d bytes does not fit into its %d", len(program), len(body))
	}
	copy(body, put(make([]byte, rest), sectionRaw, sections))
	sumFile(file)
	return nil
}

// sumFile sets the checksums of a file: each makes the sum of the bytes that it covers zero. The state is not covered.
func sumFile(file []byte) {
	header := ffsHeaderSize
	if file[ffsAttributesAt]&ffsLarge != 0 {
		header = ffsLargeSize
	}
	file[ffsHeaderCheckAt], file[ffsFileCheckAt] = 0, 0
	file[ffsHeaderCheckAt] = -(sum8(file[:header]) - file[ffsStateAt])
	if file[ffsAttributesAt]&ffsChecksum != 0 {
		file[ffsFileCheckAt] = -sum8(file[header:])
	} else {
		file[ffsFileCheckAt] = ffsNoCheck
	}
}

func sum8(b []byte) (sum byte) {
	for _, c := range b {
		sum += c
	}
	return sum
}

// isErased reports whether b is as erased flash is.
func isErased(b []byte) bool {
	for _, c := range b {
		if c != 0xff {
			return false
		}
	}
	return true
}

// lzmaHeader is the size of LZMA's header: properties, dictionary size, uncompressed size.
const lzmaHeader = 13

func unpackSection(b []byte) ([]byte, error) {
	if len(b) < lzmaHeader {
		return nil, io.ErrUnexpectedEOF
	}
	size := binary.LittleEndian.Uint64(b[lzmaHeader-8:])
	if size > maxUnpacked {
		return nil, fmt.Errorf("unpacks to %d bytes, at most %d are credible", size, maxUnpacked)
	}
	// A dictionary larger than the output is of no use.
	header := bytes.Clone(b[:lzmaHeader])
	dict := min(binary.LittleEndian.Uint32(header[1:]), max(uint32(size), lzma.MinDictCap))
	binary.LittleEndian.PutUint32(header[1:], dict)
	r, err := lzma.NewReader(io.MultiReader(bytes.NewReader(header), bytes.NewReader(b[lzmaHeader:])))
	if err != nil {
		return nil, err
	}
	var raw bytes.Buffer // grows with what is there: the size is not to be believed
	if n, err := io.Copy(&raw, io.LimitReader(r, int64(size))); err != nil {
		return nil, err
	} else if uint64(n) != size {
		return nil, io.ErrUnexpectedEOF
	}
	return raw.Bytes(), nil
}

func packSection(raw []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := lzma.WriterConfig{DictCap: alignUp(max(len(raw), lzma.MinDictCap), 1<<16), SizeInHeader: true, Size: int64(len(raw))}.NewWriter(&b)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	err = w.Close() // writes the last of it
	return b.Bytes(), err
}

func alignUp(n, to int) int { return (n + to - 1) / to * to }

func get24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

func put24(b []byte, v int) { b[0], b[1], b[2] = byte(v), byte(v>>8), byte(v>>16) }
