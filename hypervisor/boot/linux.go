package boot

import (
	"encoding/binary"
	"errors"
)

// Offsets of the setup header's fields, in the file and in boot_params alike: Linux, Documentation/arch/x86/boot.rst,
// "The real-mode kernel header".
const (
	hdrSetupSects     = 0x1f1 // u8
	hdrSyssize        = 0x1f4 // u32, in 16 bytes
	hdrVidMode        = 0x1fa // u16
	hdrBootFlag       = 0x1fe // u16
	hdrJump           = 0x200 // 2 bytes; the second is the header's length from 0x202
	hdrMagic          = 0x202 // "HdrS"
	hdrVersion        = 0x206 // u16
	hdrTypeOfLoader   = 0x210 // u8
	hdrLoadflags      = 0x211 // u8
	hdrCode32Start    = 0x214 // u32
	hdrRamdiskImage   = 0x218 // u32
	hdrRamdiskSize    = 0x21c // u32
	hdrCmdLinePtr     = 0x228 // u32
	hdrInitrdAddrMax  = 0x22c // u32
	hdrXloadflags     = 0x236 // u16
	hdrCmdlineSize    = 0x238 // u32
	hdrPayloadOffset  = 0x248 // u32
	hdrPayloadLength  = 0x24c // u32
	hdrSetupData      = 0x250 // u64
	hdrPrefAddress    = 0x258 // u64
	hdrInitSize       = 0x260 // u32
	hdrEnd            = 0x290 // where boot_params goes on with other things
	hdrMinSize        = 0x268 // up to here every header of protocol 2.10 reaches
	sectorSize        = 512
	bootFlag          = 0xaa55
	loadedHigh        = 1 << 0 // loadflags
	xlfKernel64       = 1 << 0 // xloadflags
	loaderUndefined   = 0xff   // type_of_loader: none of the registered ones
	vidModeNormal     = 0xffff
	entry64Offset     = 0x200
	protocol210       = 0x020a
	protocol212       = 0x020c
	linux32InitrdMax  = 0x37ffffff // what a 32-bit kernel can map, for images that do not say
	defaultSetupSects = 4
)

// Offsets of boot_params outside the setup header: Documentation/arch/x86/zero-page.rst.
const (
	bpAcpiRSDP    = 0x070 // u64
	bpE820Entries = 0x1e8 // u8
	bpE820Table   = 0x2d0 // 128 entries of 20 bytes
)

// bzImage is the setup header of a kernel image, checked.
type bzImage struct {
	header      []byte // the setup header as in the file: bytes hdrSetupSects to its end
	version     uint16
	xloadflags  uint16
	off, size   uint64 // the protected-mode kernel in the file
	payload     uint64 // offset in the file
	payloadSize uint64 // 0: none
	prefAddress uint64
	initSize    uint64 // memory that the kernel needs from prefAddress on until it has read the memory map
	initrdMax   uint64 // highest address that an initrd may occupy
	cmdlineMax  uint64 // bytes, without the closing zero
}

func isBzImage(head []byte) bool {
	return len(head) >= hdrMinSize && binary.LittleEndian.Uint16(head[hdrBootFlag:]) == bootFlag && string(head[hdrMagic:hdrMagic+4]) == "HdrS"
}

// parseBzImage checks the setup header of img. head is a prefix of the file that isBzImage recognised.
func parseBzImage(img Image, head []byte) (*bzImage, error) {
	le := binary.LittleEndian
	k := &bzImage{version: le.Uint16(head[hdrVersion:])}
	if k.version < protocol210 {
		return nil, img.errorf("boot protocol %d.%02d, at least 2.10 (Linux 2.6.31) is needed: start this kernel from a disk, by firmware and boot loader",
			k.version>>8, k.version&0xff)
	}
	if head[hdrLoadflags]&loadedHigh == 0 {
		return nil, img.errorf("a zImage, which loads below 1 MiB: a bzImage is needed")
	}
	end := hdrMagic + int(head[hdrJump+1])
	if end < hdrMinSize || end > len(head) {
		return nil, img.errorf("setup header: its end %#x is not in [%#x, %#x]: the file is damaged", end, hdrMinSize, len(head))
	}
	k.header = head[hdrSetupSects:min(end, hdrEnd)]

	sects := uint64(head[hdrSetupSects])
	if sects == 0 {
		sects = defaultSetupSects
	}
	k.off = (sects + 1) * sectorSize
	k.size = uint64(le.Uint32(head[hdrSyssize:])) * 16
	if k.size == 0 || !img.contains(k.off, k.size) {
		return nil, img.errorf("setup header: a kernel of %d bytes at offset %d, but the file has %d bytes: it is cut short or damaged", k.size, k.off, img.size())
	}
	k.payloadSize = uint64(le.Uint32(head[hdrPayloadLength:]))
	k.payload = k.off + uint64(le.Uint32(head[hdrPayloadOffset:]))
	if !img.contains(k.payload, k.payloadSize) {
		return nil, img.errorf("setup header: a payload of %d bytes at offset %d, but the file has %d bytes: it is cut short or damaged", k.payloadSize, k.payload, img.size())
	}
	if k.version >= protocol212 {
		k.xloadflags = le.Uint16(head[hdrXloadflags:])
	}
	k.prefAddress = le.Uint64(head[hdrPrefAddress:])
	k.initSize = max(uint64(le.Uint32(head[hdrInitSize:])), k.size)
	k.initrdMax = uint64(le.Uint32(head[hdrInitrdAddrMax:]))
	k.cmdlineMax = uint64(le.Uint32(head[hdrCmdlineSize:]))
	return k, nil
}

// bzImage starts cfg.Kernel, a bzImage, by the protocol asked for or the best one.
func (l *loader) bzImage(head []byte) (Entry, error) {
	img := l.cfg.Kernel
	k, err := parseBzImage(img, head)
	if err != nil {
		return Entry{}, err
	}
	p := l.cfg.Protocol
	if p == Auto || p == PVH {
		e, err := l.unpacked(k)
		if err == nil || p == PVH || !errors.Is(err, errNotSupported) {
			return e, err
		}
		p = Linux32
		if k.xloadflags&xlfKernel64 != 0 {
			p = Linux64
		}
	}
	switch {
	case p == Linux64 && k.xloadflags&xlfKernel64 == 0:
		return Entry{}, img.errorf("protocol %v: %w: a 32-bit kernel, or older than boot protocol 2.12", p, errNotSupported)
	case p == Linux64 || p == Linux32:
		return l.linux(k, p)
	}
	return Entry{}, img.errorf("protocol %v: %w, it is a bzImage", p, errNotSupported)
}

// unpacked starts the ELF image inside k by PVH. The error is errNotSupported if there is none that can be.
func (l *loader) unpacked(k *bzImage) (Entry, error) {
	b, err := k.extract(l.cfg.Kernel)
	if err != nil {
		return Entry{}, err
	}
	img := BytesImage(l.cfg.Kernel.Name+" (unpacked)", b)
	f, err := parseELF(img, b[:min(len(b), headSize)])
	if err != nil {
		return Entry{}, err
	}
	entry, ok, err := f.pvhEntry(img)
	if err != nil {
		return Entry{}, err
	}
	if !ok {
		return Entry{}, img.errorf("protocol %v: %w: it was built without CONFIG_PVH", PVH, errNotSupported)
	}
	return l.pvh(img, f, entry, k.initrdMax+1, k.cmdlineMax)
}

// linux places a bzImage for its own entry points.
func (l *loader) linux(k *bzImage, p Protocol) (Entry, error) {
	img := l.cfg.Kernel
	// A kernel that finds itself elsewhere moves to prefAddress first, so nothing is gained by another place.
	load := k.prefAddress
	if load >= fourGiB || load+k.initSize > fourGiB {
		return Entry{}, img.errorf("setup header: %d bytes of memory at %#x do not lie below 4 GiB: the file is damaged", k.initSize, load)
	}
	if err := l.reserve("kernel "+img.Name, load, k.initSize); err != nil {
		return Entry{}, err
	}
	if err := l.reserve("boot parameters", zeroAddr, zeroSize); err != nil {
		return Entry{}, err
	}
	if err := l.fill(img, k.off, load, k.size); err != nil {
		return Entry{}, err
	}
	cmdline, err := l.cmdline(img.Name, l.cfg.Cmdline, k.cmdlineMax)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Protocol: p, Mode: Protected32, RIP: load, RSI: zeroAddr, GDT: gdtAddr}
	code := uint64(code32)
	if p == Linux64 {
		e.Mode, e.RIP, e.CR3 = Long64, load+entry64Offset, tablesAddr
		code = code64
		if err := l.pageTables(); err != nil {
			return Entry{}, err
		}
	}
	if err := l.gdt(code); err != nil {
		return Entry{}, err
	}
	initrd, initrdSize, err := l.initrd(k.initrdMax + 1)
	if err != nil {
		return Entry{}, err
	}
	return e, l.write(zeroAddr, k.bootParams(l.cfg, load, cmdline, initrd, initrdSize))
}

// bootParams returns the zero page. All addresses lie below 4 GiB.
func (k *bzImage) bootParams(cfg *Config, load, cmdline, initrd, initrdSize uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, zeroSize)
	copy(b[hdrSetupSects:], k.header)
	b[hdrTypeOfLoader] = loaderUndefined
	le.PutUint16(b[hdrVidMode:], vidModeNormal)
	le.PutUint32(b[hdrCode32Start:], uint32(load))
	le.PutUint32(b[hdrRamdiskImage:], uint32(initrd))
	le.PutUint32(b[hdrRamdiskSize:], uint32(initrdSize))
	le.PutUint32(b[hdrCmdLinePtr:], uint32(cmdline))
	le.PutUint64(b[hdrSetupData:], 0) // a list for the loader to fill: what the file says there is no address of ours
	le.PutUint64(b[bpAcpiRSDP:], cfg.RSDP)
	b[bpE820Entries] = uint8(len(cfg.MemMap))
	e := b[bpE820Table:bpE820Table]
	for _, r := range cfg.MemMap {
		e = le.AppendUint64(e, r.Base)
		e = le.AppendUint64(e, r.Size)
		e = le.AppendUint32(e, uint32(r.Type))
	}
	return b
}

// pageTables places tables that map the first 4 GiB to themselves in pages of 2 MiB, which every 64-bit CPU has.
func (l *loader) pageTables() error {
	const (
		present  = 1 << 0
		writable = 1 << 1
		large    = 1 << 7
		page     = 0x1000
		pdpt     = tablesAddr + page
		pd       = tablesAddr + 2*page
	)
	if err := l.reserve("page tables", tablesAddr, tablesSize); err != nil {
		return err
	}
	le := binary.LittleEndian
	b := make([]byte, tablesSize)
	le.PutUint64(b, pdpt|present|writable)
	for i := range uint64(4) {
		le.PutUint64(b[page+8*i:], (pd+page*i)|present|writable)
	}
	for i := range uint64(4 * 512) {
		le.PutUint64(b[2*page+8*i:], i<<21|present|writable|large)
	}
	return l.write(tablesAddr, b)
}
