package virtiogpu

import (
	"encoding/binary"

	"github.com/lodgehv/lodge/hypervisor/virtio"
	"github.com/lodgehv/lodge/vgpu/edid"
)

// command is what there is to know of a command of the control queue.
type command struct {
	size    int    // bytes behind the header that it must have
	feature uint64 // that must have been negotiated for it; 0 if none
	// run returns the type of the response. d.mu is held.
	run func(d *Device, c *call) uint32
}

// commands returns those of 2D. A renderer adds its own.
func commands() map[uint32]command {
	return map[uint32]command{
		cmdGetDisplayInfo:        {0, 0, (*Device).getDisplayInfo},
		cmdResourceCreate2D:      {16, 0, (*Device).resourceCreate2D},
		cmdResourceUnref:         {8, 0, (*Device).resourceUnref},
		cmdSetScanout:            {24, 0, (*Device).setScanout},
		cmdResourceFlush:         {24, 0, (*Device).resourceFlush},
		cmdTransferToHost2D:      {32, 0, (*Device).transferToHost2D},
		cmdResourceAttachBacking: {8, 0, (*Device).resourceAttachBacking},
		cmdResourceDetachBacking: {8, 0, (*Device).resourceDetachBacking},
		cmdGetEDID:               {8, featureEDID, (*Device).getEDID},
		cmdResourceAssignUUID:    {8, featureResourceUUID, (*Device).resourceAssignUUID},
		cmdResourceCreateBlob:    {32, featureResourceBlob, (*Device).resourceCreateBlob},
		cmdSetScanoutBlob:        {72, featureResourceBlob, (*Device).setScanoutBlob},
	}
}

// header is struct virtio_gpu_ctrl_hdr, §5.7.6.7.
type header struct {
	typ, flags uint32
	fence      uint64
	context    uint32
	ring       uint8
}

func parseHeader(f fields) header {
	return header{typ: f.u32(0), flags: f.u32(4), fence: f.u64(8), context: f.u32(16), ring: f[20]}
}

// answer writes the header of the response to h. A fence comes back as it was: what it waits for is done (§5.7.6.7).
func (h header) answer(b []byte, typ uint32) {
	clear(b[:headerSize])
	binary.LittleEndian.PutUint32(b[0:], typ)
	if h.flags&flagFence != 0 {
		binary.LittleEndian.PutUint32(b[4:], h.flags&(flagFence|flagRingIdx))
		binary.LittleEndian.PutUint64(b[8:], h.fence)
		binary.LittleEndian.PutUint32(b[16:], h.context)
		b[20] = h.ring
	}
}

// call is a command that is being executed.
type call struct {
	header
	p     fields        // what follows the header, as long as the command's size
	chain *virtio.Chain // has what follows that
	reply []byte        // room for what follows the header in the response, all zero
	n     int           // how much of it is used
}

// control is what serving the control queue needs.
type control struct {
	chain virtio.Chain
	call  call
	in    [headerSize + maxRequest]byte
	out   [headerSize + maxReply]byte
	spans []span
}

// serveControl executes the commands of the control queue.
func (d *Device) serveControl(q *virtio.Queue) error {
	c := &d.control.chain
	for {
		ok, err := q.Next(c)
		if !ok || err != nil {
			return err
		}
		if err := d.execute(c); err != nil {
			return err
		}
		q.Done(c)
	}
}

// execute executes the command in c and writes the response.
func (d *Device) execute(chain *virtio.Chain) error {
	w := &d.control
	if chain.Readable() < headerSize || chain.Writable() < headerSize {
		return virtio.Protocolf("graphics: command of %d bytes with %d for the response, where %d are the least",
			chain.Readable(), chain.Writable(), headerSize)
	}
	if _, err := chain.Read(w.in[:headerSize]); err != nil {
		return err
	}
	c := &w.call
	*c = call{header: parseHeader(w.in[:headerSize]), chain: chain, reply: w.out[headerSize:]}
	typ := d.run(c)
	if chain.Writable() < headerSize+c.n {
		typ, c.n = respErrUnspec, 0
	}
	c.answer(w.out[:], typ)
	_, err := chain.Write(w.out[:headerSize+c.n])
	return err
}

// run looks the command up and runs it.
func (d *Device) run(c *call) (typ uint32) {
	cmd, ok := d.commands[c.typ]
	if !ok || d.features&cmd.feature != cmd.feature {
		return respErrUnspec
	}
	if c.chain.Readable() < cmd.size {
		return respErrInvalidParameter
	}
	c.p = d.control.in[headerSize : headerSize+cmd.size]
	if _, err := c.chain.Read(c.p); err != nil {
		return respErrUnspec
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return cmd.run(d, c)
}

// use takes n zero bytes behind the response's header.
func (c *call) use(n int) []byte {
	c.n = n
	clear(c.reply[:n])
	return c.reply[:n]
}

// getDisplayInfo tells which monitors there are: struct virtio_gpu_resp_display_info.
func (d *Device) getDisplayInfo(c *call) uint32 {
	b := c.use(maxScanouts * displayOneSize)
	for _, s := range d.cfg.Screens {
		m := s.Monitor()
		for i, v := range [...]int{m.X, m.Y, m.Width, m.Height} {
			binary.LittleEndian.PutUint32(b[4*i:], uint32(max(v, 0)))
		}
		if m.Connected && m.Width > 0 && m.Height > 0 {
			b[16] = 1 // enabled
		}
		b = b[displayOneSize:]
	}
	return respOKDisplayInfo
}

// getEDID tells what a monitor says of itself, nothing if there is none: struct virtio_gpu_resp_edid.
func (d *Device) getEDID(c *call) uint32 {
	scanout := c.p.u32(0)
	if uint64(scanout) >= uint64(len(d.cfg.Screens)) {
		return respErrInvalidScanoutID
	}
	b := c.use(edidSize)
	if m := d.cfg.Screens[scanout].Monitor(); m.Connected {
		n := copy(b[8:], edid.Encode(m))
		binary.LittleEndian.PutUint32(b, uint32(n))
	}
	return respOKEDID
}
