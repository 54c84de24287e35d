package machine

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/lodgehv/lodge/hypervisor/kvm/kvmtest"
	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/pci"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// driver is a virtio driver in the guest: every access to the device is the guest's (virtio 1.2 §4.1).
type driver struct {
	g      *guest
	config uint32 // the function's configuration space, in ECAM
	bar    uint32
	slot   int
	intx   bool
	next   uint16 // requests made so far

	lenient bool // there may be interrupts without a reason, as drivers have to expect

	common, isr, device, notify uint32 // addresses of the structures
	multiplier                  uint32
}

// Where the driver keeps queue 0, and its buffers.
const (
	queueDesc   = kvmtest.Data
	queueAvail  = kvmtest.Data + 0x1000
	queueUsed   = kvmtest.Data + 0x2000
	queueBuffer = 0x100000
	queueLen    = 8

	queueVector  = 0x30 // the guest's vector for queue 0
	configVector = 0x31
)

// find looks for a device by both ways into configuration space.
func find(g *guest, id virtio.DeviceID) *driver {
	g.t.Helper()
	want := uint32(0x1af4) | uint32(0x1040+id)<<16
	for slot := 1; slot < 32; slot++ {
		config := ecamBase + uint32(slot)<<15
		g.Out32(pci.ConfigAddressPort, 1<<31|uint32(slot)<<11)
		viaPort, viaECAM := g.In32(pci.ConfigAddressPort+4), g.Load32(config)
		if viaPort != viaECAM {
			g.t.Fatalf("slot %d: identity %#x by ports, %#x by ECAM", slot, viaPort, viaECAM)
		}
		if viaECAM == want {
			d := &driver{g: g, config: config, slot: slot, bar: g.Load32(config+0x10) &^ 0xf}
			d.structures()
			return d
		}
	}
	g.t.Fatalf("no virtio device %d", id)
	return nil
}

// structures walks the capabilities (§4.1.4). All lie in BAR 0, where the board put it.
func (d *driver) structures() {
	g := d.g
	for at := uint32(g.Load8(d.config + 0x34)); at != 0; at = uint32(g.Load8(d.config + at + 1)) {
		if g.Load8(d.config+at) != pci.CapVendor {
			continue
		}
		where := d.bar + g.Load32(d.config+at+8)
		switch g.Load8(d.config + at + 3) {
		case 1:
			d.common = where
		case 2:
			d.notify, d.multiplier = where, g.Load32(d.config+at+16)
		case 3:
			d.isr = where
		case 4:
			d.device = where
		}
	}
}

// msix programs MSI-X vectors 0 (configuration) and 1 (queue 0) and enables them; without it the device uses INTx.
func (d *driver) msix() {
	g := d.g
	for at := uint32(g.Load8(d.config + 0x34)); at != 0; at = uint32(g.Load8(d.config + at + 1)) {
		if g.Load8(d.config+at) != 0x11 {
			continue
		}
		table := d.bar + g.Load32(d.config+at+4)&^7
		for i, vector := range []uint32{configVector, queueVector} {
			entry := table + 16*uint32(i)
			g.Store32(entry, lapicBase)
			g.Store32(entry+4, 0)
			g.Store32(entry+8, vector)
			g.Store32(entry+12, 0)
		}
		g.Store16(d.config+at+2, 1<<15)
		return
	}
	g.t.Fatal("no MSI-X")
}

// start negotiates the given features beside VERSION_1, sets queue 0 up and lets interrupts in (§3.1.1, §4.1.5).
func (d *driver) start(intx bool, features uint32) {
	g := d.g
	g.t.Helper()
	d.intx = intx
	g.Store16(d.config+4, pci.CommandMemory|pci.CommandMaster)
	if intx {
		g.ioapic(intxGSI(d.slot, 0), queueVector, true)
	} else {
		d.msix()
	}
	status := d.common + 20
	g.Store8(status, 0)
	g.Store8(status, 1|2)
	for i, v := range []uint32{features, 1} { // the second half has VERSION_1
		g.Store32(d.common, uint32(i))
		if offered := g.Load32(d.common + 4); v&^offered != 0 {
			g.t.Fatalf("features %#x are not among %#x", v, offered)
		}
		g.Store32(d.common+8, uint32(i))
		g.Store32(d.common+12, v)
	}
	g.Store8(status, 1|2|8)
	if v := g.Load8(status); v != 1|2|8 {
		g.t.Fatalf("status %#x after FEATURES_OK", v)
	}
	g.Store16(d.common+22, 0)
	g.Store16(d.common+24, queueLen)
	if !intx {
		g.Store16(d.common+16, 0)
		g.Store16(d.common+26, 1)
	}
	for i, addr := range []uint32{queueDesc, queueAvail, queueUsed} {
		g.Store32(d.common+32+8*uint32(i), addr)
		g.Store32(d.common+36+8*uint32(i), 0)
	}
	g.Store16(d.common+28, 1)
	g.Store8(status, 1|2|8|4)
	g.Sti()
}

// buffer is a descriptor.
type buffer struct {
	gpa   mem.GPA
	n     int
	write bool
}

// offer puts a chain into the ring without telling the device.
func (d *driver) offer(chain ...buffer) {
	le := binary.LittleEndian
	var table []byte
	for i, b := range chain {
		flags := uint16(0)
		if i < len(chain)-1 {
			flags |= 1
		}
		if b.write {
			flags |= 2
		}
		table = le.AppendUint64(table, uint64(b.gpa))
		table = le.AppendUint32(table, uint32(b.n))
		table = le.AppendUint16(table, flags)
		table = le.AppendUint16(table, uint16(i+1))
	}
	d.g.put(queueDesc, table) // always at 0: one request at a time
	d.g.Store16(queueAvail+4+2*uint32(d.next%queueLen), 0)
	d.next++
	d.g.Store16(queueAvail+2, d.next)
}

// kick tells the device: a store that the kernel turns into an eventfd's signal.
func (d *driver) kick() {
	d.g.Store16(d.common+22, 0)
	d.g.Store16(d.notify+uint32(d.g.Load16(d.common+30))*d.multiplier, 0)
}

// finish waits for the interrupt and returns how many bytes the device wrote.
func (d *driver) finish() uint32 {
	g := d.g
	g.t.Helper()
	g.expect(queueVector)
	for d.lenient && g.Load16(queueUsed+2) != d.next {
		d.again()
	}
	if used := g.Load16(queueUsed + 2); used != d.next {
		g.t.Errorf("used index %d after %d requests", used, d.next)
	}
	n := g.Load32(queueUsed + 4 + 8*uint32((d.next-1)%queueLen) + 4)
	if !d.intx {
		g.EndOfInterrupt()
		return n
	}
	if v := g.Load8(d.isr); v&1 == 0 && !d.lenient {
		g.t.Errorf("ISR status %#x", v)
	}
	if d.lenient {
		g.EndOfInterrupt()
	} else {
		g.endLevel(queueVector)
	}
	return n
}

// again ends an interrupt that had no reason and waits for the next.
func (d *driver) again() {
	if d.intx {
		d.g.Load8(d.isr)
	}
	d.g.EndOfInterrupt()
	d.g.expect(queueVector)
}

// do is one request.
func (d *driver) do(chain ...buffer) uint32 {
	d.g.t.Helper()
	d.offer(chain...)
	d.kick()
	return d.finish()
}

// Requests to a block device, §5.2.6.
const (
	blkIn        = 0
	blkOut       = 1
	blkFlush     = 4
	featureFlush = 1 << 9
	diskHeader   = queueBuffer
	diskStatus   = queueBuffer + 0x100
	diskData     = queueBuffer + 0x1000
)

// request is the chain of a block request whose n bytes of data are at diskData.
func (d *driver) request(typ uint32, sector uint64, n int) []buffer {
	header := binary.LittleEndian.AppendUint32(nil, typ)
	header = binary.LittleEndian.AppendUint32(header, 0)
	d.g.put(diskHeader, binary.LittleEndian.AppendUint64(header, sector))
	d.g.put(diskStatus, []byte{0xaa})
	chain := []buffer{{diskHeader, 16, false}}
	if n > 0 {
		chain = append(chain, buffer{diskData, n, typ == blkIn})
	}
	return append(chain, buffer{diskStatus, 1, true})
}

func (d *driver) disk(typ uint32, sector uint64, n int) {
	d.g.t.Helper()
	d.do(d.request(typ, sector, n)...)
	if s := d.g.Load8(diskStatus); s != 0 {
		d.g.t.Errorf("request %d of %d bytes at sector %d: status %d", typ, n, sector, s)
	}
}

// A guest writes, flushes and reads a disk, by either kind of interrupt. The host's file is the witness.
func TestVirtioBlock(t *testing.T) {
	for name, intx := range map[string]bool{"MSI-X": false, "INTx": true} {
		t.Run(name, func(t *testing.T) {
			disk := rawDisk(t, 1<<20)
			g := newGuest(t, fullBoard(t, kvmtest.RemoteProgram(), disk))
			d := find(g, virtio.IDBlock)
			if c := g.Load32(d.device); c != 1<<20/512 {
				t.Errorf("capacity of %d sectors", c)
			}
			d.start(intx, featureFlush)
			for i := range 20 {
				content := bytes.Repeat([]byte{byte(i + 1)}, 512*(i+1))
				g.put(diskData, content)
				d.disk(blkOut, uint64(64*i), len(content))
				got := make([]byte, len(content))
				if _, err := disk.ReadAt(got, int64(64*i)*512); err != nil || !bytes.Equal(got, content) {
					t.Errorf("the file has %x… where %x… was written: %v", got[:8], content[:8], err)
				}
			}
			d.disk(blkFlush, 0, 0)
			secret := sha256.Sum256([]byte(name))
			if _, err := disk.WriteAt(secret[:], 512*1024); err != nil {
				t.Fatal(err)
			}
			d.disk(blkIn, 1024, 4096)
			if got := g.bytes(diskData, len(secret)); !bytes.Equal(got, secret[:]) {
				t.Errorf("read %x, want %x", got, secret)
			}
			g.quiet()
		})
	}
}

// The entropy device answers, and never twice the same.
func TestVirtioEntropy(t *testing.T) {
	g := newGuest(t, fullBoard(t, kvmtest.RemoteProgram(), rawDisk(t, 1<<20)))
	d := find(g, virtio.IDEntropy)
	d.start(false, 0)
	seen := make(map[string]bool)
	for range 20 {
		if n := d.do(buffer{queueBuffer, 64, true}); n != 64 {
			t.Errorf("%d bytes of 64", n)
		}
		seen[string(g.bytes(queueBuffer, 64))] = true
	}
	if len(seen) != 20 {
		t.Errorf("%d different answers to 20 requests", len(seen))
	}
}
