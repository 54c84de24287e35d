// Package balloon is the memory balloon (virtio 1.2 §5.5): the host asks the guest to do without some of its memory, the
// guest says which pages, and their frames go back to the host. With page reporting the guest also tells of free pages by
// itself. A page that the guest takes back needs nothing: it gets a frame when it is touched.
package balloon

import (
	"encoding/binary"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lodgehv/lodge/hypervisor/mem"
	"github.com/lodgehv/lodge/hypervisor/snap"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// PageSize is the unit, in bytes, of the balloon's size, whatever pages guest and host have (§5.5.6).
const PageSize = 4096

// Feature bits, §5.5.3.
const (
	featureStats        = 1 << 1
	featureDeflateOnOOM = 1 << 2
	featureReporting    = 1 << 5
)

// Queues, §5.5.2. Linux before 6.11 counts only the queues of features that were negotiated, so that the reporting queue is
// number 3 for it, where free page hints would be. We do not offer those, and listen at both.
const (
	inflateQueue      = 0
	deflateQueue      = 1
	statsQueue        = 2
	reportingQueueOld = 3
	reportingQueue    = 4
)

const (
	maxPFNs  = 1 << 16 // in one request; Linux sends 256, Windows 1024
	batch    = 1024    // PFNs that are given back between two looks at whether to stop
	statSize = 10      // struct virtio_balloon_stat, packed
	maxStats = 16      // tags that we keep
)

// Tags of statistics, §5.5.6.3. Faults and swapping are counts since the guest's start, the others bytes.
const (
	StatSwapIn = iota
	StatSwapOut
	StatMajorFaults
	StatMinorFaults
	StatFree
	StatTotal
	StatAvailable
	StatCaches
)

// Device is a balloon. Its methods for the host may be called at any time from any goroutine.
type Device struct {
	log       *slog.Logger
	target    atomic.Uint32 // num_pages
	actual    atomic.Uint32 // written by the driver
	wantStats atomic.Bool
	logged    atomic.Bool

	mu    sync.Mutex
	env   *virtio.Env // while started
	stats [maxStats]uint64
	known uint32 // bit i: stats[i] was told
	asOf  time.Time

	// Each belongs to its queue's goroutine.
	inflating, deflating, asked virtio.Chain
	reporting                   [2]virtio.Chain
	list                        [4 * batch]byte // of inflate
	pfns                        [batch]uint32
}

// New returns an empty balloon. A nil log is slog.Default.
func New(log *slog.Logger) *Device {
	if log == nil {
		log = slog.Default()
	}
	return &Device{log: log}
}

// SetTarget asks the guest to give up that many pages of PageSize altogether. It may take any time, and not succeed.
func (d *Device) SetTarget(pages uint32) {
	if d.target.Swap(pages) == pages {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.env != nil {
		d.env.ConfigChanged()
	}
}

// Target returns what SetTarget was last given.
func (d *Device) Target() uint32 { return d.target.Load() }

// Actual returns how many pages of PageSize the guest says it has given up.
func (d *Device) Actual() uint32 { return d.actual.Load() }

// AskStats asks the guest for new statistics. It answers later, or never if its driver has none.
func (d *Device) AskStats() {
	d.wantStats.Store(true)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.env != nil && d.env.Queues[statsQueue] != nil {
		d.env.Queues[statsQueue].Kick()
	}
}

// Stats returns the latest statistics by tag, and when they came. The zero time means never.
func (d *Device) Stats() (map[int]uint64, time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := map[int]uint64{}
	for i, v := range d.stats {
		if d.known&(1<<i) != 0 {
			m[i] = v
		}
	}
	return m, d.asOf
}

// ID returns virtio.IDBalloon.
func (*Device) ID() virtio.DeviceID { return virtio.IDBalloon }

// Features returns what we know of the balloon.
func (*Device) Features() uint64 { return featureStats | featureDeflateOnOOM | featureReporting }

// QueueSizes returns the sizes of the five queues.
func (*Device) QueueSizes() []uint16 { return []uint16{128, 128, 64, 64, 64} }

// ReadConfig reads struct virtio_balloon_config, §5.5.4.
func (d *Device) ReadConfig(off uint32, p []byte) {
	var c [16]byte
	binary.LittleEndian.PutUint32(c[0:], d.target.Load())
	binary.LittleEndian.PutUint32(c[4:], d.actual.Load())
	virtio.ConfigAt(c[:], off, p)
}

// WriteConfig takes the field actual.
func (d *Device) WriteConfig(off uint32, p []byte) {
	if off == 4 && len(p) == 4 {
		d.actual.Store(binary.LittleEndian.Uint32(p))
	}
}

// Start begins to serve the queues of the features that were negotiated.
func (d *Device) Start(env *virtio.Env) error {
	d.mu.Lock()
	d.env = env
	d.mu.Unlock()
	env.Serve(inflateQueue, func(q *virtio.Queue) error { return d.inflate(env.Mem, q) })
	env.Serve(deflateQueue, d.deflate)
	if env.Has(featureStats) {
		env.Serve(statsQueue, d.takeStats)
	}
	if env.Has(featureReporting) {
		for i, n := range []int{reportingQueueOld, reportingQueue} {
			env.Serve(n, func(q *virtio.Queue) error { return d.report(env.Mem, q, &d.reporting[i]) })
		}
	}
	return nil
}

// Stop forgets the driver: no handler waits.
func (d *Device) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.env = nil
}

// Reset forgets what the driver told. The target is the host's and stays.
func (d *Device) Reset() {
	d.actual.Store(0)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known, d.asOf = 0, time.Time{}
}

// StateVersion returns 1.
func (*Device) StateVersion() uint16 { return 1 }

// State carries both sizes. Statistics are asked for anew.
func (d *Device) State(c *snap.Codec) {
	target, actual := d.target.Load(), d.actual.Load()
	c.U32(&target)
	c.U32(&actual)
	if c.Loading() && c.Err() == nil {
		d.target.Store(target)
		d.actual.Store(actual)
	}
}

// inflate takes lists of page numbers. After a pause, a list begins again.
func (d *Device) inflate(m *mem.Memory, q *virtio.Queue) error {
	c := &d.inflating
	for {
		ok, err := q.Next(c)
		if !ok || err != nil {
			return err
		}
		if n := c.Readable(); n%4 != 0 || n > 4*maxPFNs {
			return virtio.Protocolf("balloon: a list of %d bytes of page numbers", n)
		}
		for c.Readable() > 0 {
			if q.Stopping() {
				q.Undo(1)
				return nil
			}
			if err := d.discardList(m, c); err != nil {
				return err
			}
		}
		q.Done(c)
	}
}

// discardList gives back the next pages of the list c, neighbours at once.
func (d *Device) discardList(m *mem.Memory, c *virtio.Chain) error {
	n, _ := c.Read(d.list[:]) // what there is, which is whole numbers
	pfns := d.pfns[:n/4]
	for i := range pfns {
		pfns[i] = binary.LittleEndian.Uint32(d.list[4*i:])
	}
	slices.Sort(pfns)
	for len(pfns) > 0 {
		first, end, k := uint64(pfns[0]), uint64(pfns[0])+1, 1
		for ; k < len(pfns) && uint64(pfns[k]) <= end; k++ {
			end = uint64(pfns[k]) + 1
		}
		if err := d.discard(m, first, end); err != nil {
			return err
		}
		pfns = pfns[k:]
	}
	return nil
}

// discard gives back the page frames [first, end). It is the driver's error if some are not memory.
func (d *Device) discard(m *mem.Memory, first, end uint64) error {
	missing := end - first
	for _, r := range m.Regions() {
		a := max(first, uint64(r.Base)/PageSize)
		b := min(end, uint64(r.End())/PageSize)
		if a >= b {
			continue
		}
		missing -= b - a
		if err := m.Discard(mem.GPA(a*PageSize), int((b-a)*PageSize)); err != nil && d.logged.CompareAndSwap(false, true) {
			// The guest cannot help it: its page keeps the frame.
			d.log.Warn("memory of a balloon was not given back; more will not be logged", "err", err)
		}
	}
	if missing > 0 {
		return virtio.Protocolf("balloon: %d of the pages [%#x, %#x) are not memory", missing, first, end)
	}
	return nil
}

// deflate only acknowledges.
func (d *Device) deflate(q *virtio.Queue) error {
	for {
		ok, err := q.Next(&d.deflating)
		if !ok || err != nil {
			return err
		}
		q.Done(&d.deflating)
	}
}

// report takes free pages: each descriptor is a range of them, which the guest leaves alone until the chain is used.
func (d *Device) report(m *mem.Memory, q *virtio.Queue, c *virtio.Chain) error {
	for {
		ok, err := q.Next(c)
		if !ok || err != nil {
			return err
		}
		for c.Writable() > 0 {
			if q.Stopping() {
				q.Undo(1)
				return nil
			}
			b := c.NextWritable(c.Writable())
			at := uint64(q.Address(b))
			// Whole pages inside.
			first, end := (at+PageSize-1)/PageSize, (at+uint64(len(b)))/PageSize
			if first < end {
				if err := d.discard(m, first, end); err != nil {
					return err
				}
			}
		}
		q.Done(c)
	}
}

// takeStats keeps the driver's buffer until the host asks for statistics: giving it back is the question, and the answer
// is when it comes again (§5.5.6.3). There should be one at a time; another takes the first one's place, since Wait does
// not wait while there is one to take.
func (d *Device) takeStats(q *virtio.Queue) error {
	for held := false; ; {
		if held && (q.Available() > 0 || d.wantStats.CompareAndSwap(true, false)) {
			q.Done(&d.asked)
			held = false
		}
		if held {
			if !q.Wait() {
				q.Undo(1) // after the pause it is there again
				return nil
			}
			continue
		}
		ok, err := q.Next(&d.asked)
		if !ok || err != nil {
			return err
		}
		d.parseStats(&d.asked)
		held = true
	}
}

func (d *Device) parseStats(c *virtio.Chain) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range 4 * maxStats { // a longer list says nothing new
		var b [statSize]byte
		if _, err := c.Read(b[:]); err != nil {
			break
		}
		if tag := binary.LittleEndian.Uint16(b[0:]); tag < maxStats {
			d.stats[tag] = binary.LittleEndian.Uint64(b[2:])
			d.known |= 1 << tag
			d.asOf = time.Now()
		}
	}
}
