// Package virtiogputest drives a graphics card as the driver of a guest does, for benchmarks: by commands in a ring, in guest
// memory that has a file. It waits for an answer by looking at the ring, so that no interrupt is measured.
package virtiogputest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/vgpu/display"
	"github.com/lodgehv/lodge/vgpu/dmabuf/dmabuftest"
	"github.com/lodgehv/lodge/vgpu/virtiogpu"
)

// The size of a desk's picture, in pixels.
const (
	Width  = 1920
	Height = 1080
)

// Commands and what belongs to them, virtio 1.2 §5.7.6.
const (
	cmdResourceCreate2D      = 0x0101
	cmdSetScanout            = 0x0103
	cmdResourceFlush         = 0x0104
	cmdTransferToHost2D      = 0x0105
	cmdResourceAttachBacking = 0x0106
	cmdResourceDetachBacking = 0x0107
	cmdResourceCreateBlob    = 0x010c
	cmdSetScanoutBlob        = 0x010d

	respOKNoData = 0x1100

	headerSize     = 24
	formatB8G8R8X8 = 2
	blobMemGuest   = 1
	blobShareable  = 1 << 1
)

// Guest memory.
const (
	descAt     = 0
	availAt    = 0x2000
	usedAt     = 0x3000
	ringSize   = 256
	responseAt = 0x8000
	requestAt  = 0x10000
	// requestSize is the room of a request, of which most have little: the longest is an attachment of single pages.
	requestSize = 64 << 10
	pictureAt   = 16 << 20
	memorySize  = 64 << 20
)

// answerLimit is how long a command may take.
const answerLimit = time.Minute

// Desk is a card with one screen, and its driver.
type Desk struct {
	card *virtiogpu.Device
	mem  *mem.Memory
	kick *os.File
	env  *virtio.Env
	ring []byte
	idx  uint16
}

// NewDesk returns a card that shows on screen, and has shown nothing yet.
func NewDesk(screen *display.Screen) (k *Desk, err error) {
	k = &Desk{}
	defer func() {
		if err != nil {
			k.Close()
		}
	}()
	if k.mem, err = mem.Alloc([]mem.Range{{Base: 0, Size: memorySize}}, mem.AllocOptions{}); err != nil {
		return k, err
	}
	if k.ring, err = k.mem.Slice(0, responseAt); err != nil {
		return k, err
	}
	if k.card, err = virtiogpu.New(virtiogpu.Config{Blob: true, Share: dmabuftest.Make, Screens: []*display.Screen{screen}}); err != nil {
		return k, err
	}
	if k.kick, err = virtio.NewEventFD("desk"); err != nil {
		return k, err
	}
	cfg := virtio.Config{Size: ringSize, Desc: descAt, Avail: availAt, Used: usedAt}
	q, err := virtio.NewQueue(0, k.mem, cfg, virtio.FeatureEventIdx, k.kick, func() {})
	if err != nil {
		return k, err
	}
	k.env = &virtio.Env{Mem: k.mem, Features: k.card.Features(), Queues: []*virtio.Queue{q, nil}, ConfigChanged: func() {}, Broken: func(error) {}}
	return k, k.card.Start(k.env)
}

// Close frees everything.
func (k *Desk) Close() {
	if k.env != nil {
		k.env.Stop(k.card)
	}
	if k.card != nil {
		k.card.Reset()
	}
	if k.kick != nil {
		k.kick.Close()
	}
	if k.mem != nil {
		k.mem.Close()
	}
}

// Show2D shows a resource of the card's own, whose backing is in one piece or scattered: single pages of which no two adjoin.
func (k *Desk) Show2D(scattered bool) error {
	spans := spans(scattered)
	return k.each(
		command(cmdResourceCreate2D, 1, formatB8G8R8X8, Width, Height),
		command(cmdResourceAttachBacking, 1, len(spans), spans),
		command(cmdTransferToHost2D, all, uint64(0), 1, 0),
		command(cmdSetScanout, all, 0, 1))
}

// ShowBlob shows a resource that is the guest's own memory.
func (k *Desk) ShowBlob(scattered bool) error {
	spans := spans(scattered)
	return k.each(
		command(cmdResourceCreateBlob, 1, blobMemGuest, blobShareable, len(spans), uint64(0), uint64(pictureSize), spans),
		command(cmdSetScanoutBlob, all, 0, 1, Width, Height, formatB8G8R8X8, 0, pitch, 0, 0, 0, 0, 0, 0, 0))
}

// Update returns what draws a part of the picture of Show2D: TRANSFER_TO_HOST_2D and RESOURCE_FLUSH, in one go as drivers
// do, from the kick to the answer.
func (k *Desk) Update(r image.Rectangle) (func() error, error) {
	offset := uint64(r.Min.Y)*pitch + uint64(r.Min.X)*display.BytesPerPixel
	return k.prepare(command(cmdTransferToHost2D, r, offset, 1, 0), command(cmdResourceFlush, r, 1, 0))
}

// Flush returns what says that all of the picture of ShowBlob has changed.
func (k *Desk) Flush() (func() error, error) { return k.prepare(command(cmdResourceFlush, all, 1, 0)) }

// Reattach takes the backing of Show2D away and gives it again.
func (k *Desk) Reattach(scattered bool) (func() error, error) {
	spans := spans(scattered)
	return k.prepare(command(cmdResourceDetachBacking, 1, 0), command(cmdResourceAttachBacking, 1, len(spans), spans))
}

const (
	pitch       = Width * display.BytesPerPixel
	pictureSize = pitch * Height
)

var all = image.Rect(0, 0, Width, Height)

type span struct{ gpa, size uint64 }

// spans are where the guest has its picture.
func spans(scattered bool) (s []span) {
	if !scattered {
		return []span{{pictureAt, pictureSize}}
	}
	for i := range uint64(pictureSize+mem.PageSize-1) / mem.PageSize {
		s = append(s, span{pictureAt + i*1237%4096*2*mem.PageSize, mem.PageSize})
	}
	return s
}

// command encodes a command: a number without a type has 32 bits.
func command(typ int, body ...any) []byte {
	le := binary.LittleEndian
	b := make([]byte, headerSize)
	le.PutUint32(b, uint32(typ))
	for _, v := range body {
		switch v := v.(type) {
		case int:
			b = le.AppendUint32(b, uint32(v))
		case uint64:
			b = le.AppendUint64(b, v)
		case image.Rectangle:
			for _, n := range []int{v.Min.X, v.Min.Y, v.Dx(), v.Dy()} {
				b = le.AppendUint32(b, uint32(n))
			}
		case []span:
			for _, s := range v {
				b = le.AppendUint64(b, s.gpa)
				b = le.AppendUint64(b, s.size)
			}
		default:
			panic(fmt.Sprintf("%T in a command", v))
		}
	}
	return b
}

func (k *Desk) each(commands ...[]byte) error {
	for _, c := range commands {
		do, err := k.prepare(c)
		if err == nil {
			err = do()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prepare puts commands into the guest's memory and returns what executes them. The next prepare overwrites them.
func (k *Desk) prepare(commands ...[]byte) (func() error, error) {
	for i, c := range commands {
		if len(c) > requestSize {
			return nil, fmt.Errorf("a command of %d bytes", len(c))
		}
		if err := k.mem.WriteAt(c, requestAt+mem.GPA(i)*requestSize); err != nil {
			return nil, err
		}
	}
	n := len(commands)
	return func() error { return k.do(n) }, nil
}

// do executes the first n commands.
func (k *Desk) do(n int) error {
	le := binary.LittleEndian
	for i := range n {
		desc := k.ring[descAt+32*i:]
		le.PutUint64(desc, requestAt+uint64(i)*requestSize)
		le.PutUint32(desc[8:], requestSize)
		le.PutUint16(desc[12:], 1) // VIRTQ_DESC_F_NEXT
		le.PutUint16(desc[14:], uint16(2*i+1))
		le.PutUint64(desc[16:], responseAt)
		le.PutUint32(desc[24:], headerSize)
		le.PutUint16(desc[28:], 2) // VIRTQ_DESC_F_WRITE
		le.PutUint16(k.ring[availAt+4+2*int(k.idx%ringSize):], uint16(2*i))
		k.idx++
	}
	atomic.StoreUint32(k.word(availAt), uint32(k.idx)<<16)
	k.env.Queues[0].Kick()
	for begin := time.Now(); uint16(atomic.LoadUint32(k.word(usedAt))>>16) != k.idx; {
		if time.Since(begin) > answerLimit {
			return errors.New("the card does not answer")
		}
	}
	p, err := k.mem.Slice(responseAt, 4)
	if err != nil {
		return err
	}
	if r := le.Uint32(p); r != respOKNoData {
		return fmt.Errorf("the card answers %#x", r)
	}
	return nil
}

func (k *Desk) word(off int) *uint32 { return (*uint32)(unsafe.Pointer(&k.ring[off])) }
