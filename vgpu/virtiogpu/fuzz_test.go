package virtiogpu

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/lodgehv/lodge/hypervisor/virtio/virtiotest"
)

// expand makes a request of what a fuzzer thought up: a byte chooses the command, and every other byte is a 32-bit number,
// as they all are, small or close to 2³². Numbers of 64 bits are two of them.
func expand(data []byte) []byte {
	typ := uint32(0x100 + int(data[0]&0x1f))
	if data[0]&0x80 != 0 {
		typ = 0x300 + uint32(data[0]&1)
	}
	b := head(typ)
	for _, v := range data[1:] {
		n := uint32(v)
		switch {
		case v >= 0xf0:
			n = uint32(int32(int8(v)))
		case v >= 0xc0:
			n = uint32(v-0xc0) << 8
		}
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return b
}

// FuzzCommands executes commands, each a byte of length and its expanded bytes. Whatever comes, the accounts are right, and
// what State saves comes back as it was.
func FuzzCommands(f *testing.F) {
	seed := func(commands ...[]byte) {
		var b []byte
		for _, c := range commands {
			b = append(append(b, byte(len(c))), c...)
		}
		f.Add(b)
	}
	create := []byte{0x01, 1, 1, 16, 16}
	attach := []byte{0x06, 1, 2, 0xd0, 0, 0xc2, 0, 0xe0, 0, 0xc2, 0} // 2 × 512 bytes
	blob := []byte{0x0c, 2, 1, 2, 1, 0, 0, 0xc4, 0, 0xc8, 0, 0xc4, 0}
	scattered := []byte{0x0c, 3, 1, 2, 2, 0, 0, 0xc4, 0, 0xc8, 0, 0xc2, 0, 0xd8, 0, 0xc2, 0}
	seed([]byte{0}, []byte{0x0a, 0, 0}, []byte{0x0b, 1, 0})
	seed(create, attach, []byte{0x05, 0, 0, 16, 16, 0, 0, 1, 0}, []byte{0x03, 0, 0, 16, 16, 0, 1}, []byte{0x04, 3, 3, 5, 5, 1, 0},
		[]byte{0x80, 0, 5, 5, 0, 1, 1, 1, 0}, []byte{0x81, 1, 0xff, 5, 0, 0, 0, 0, 0}, []byte{0x0b, 1, 0}, []byte{0x07, 1, 0}, []byte{0x02, 1, 0})
	seed(create, attach, []byte{0x05, 16, 16, 0, 0, 0, 0, 1, 0}, []byte{0x04, 16, 16, 0, 0, 1, 0})
	for _, b := range [][]byte{blob, scattered} {
		id := b[1]
		seed(b, []byte{0x0d, 0, 0, 16, 16, 0, id, 16, 16, 1, 0, 64, 0, 0, 0, 0, 0, 0, 0}, []byte{0x04, 3, 3, 5, 5, id, 0},
			[]byte{0x0d, 1, 1, 10, 10, 1, id, 15, 15, 2, 0, 64, 0, 0, 0, 4, 0, 0, 0}, []byte{0x80, 0, 5, 5, 0, id, 1, 1, 0},
			[]byte{0x07, id, 0}, []byte{0x02, id, 0})
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newCard(t, 2)
		for n := 0; len(data) > 1 && n < 64; n++ {
			k := min(int(data[0]), len(data)-1)
			command := data[1 : 1+k]
			if data = data[1+k:]; k == 0 {
				continue
			}
			at, q := c.Alloc(0), c.Queues[controlQueue]
			if command[0]&0x80 != 0 {
				q = c.Queues[cursorQueue]
			}
			q.Send(c.Out(expand(command)), c.In(headerSize+maxReply))
			if !c.wait(q) {
				return
			}
			c.Free(at)
		}
		c.Stop()
		check(t, c.d)
		state := save(t, c.d)
		again := newDevice(t, &recorder{t: t}, &recorder{t: t})
		if err := load(again, state); err != nil {
			t.Errorf("what was saved is refused: %v", err)
		}
		if err := again.Start(c.Env); err != nil {
			t.Errorf("what was saved does not start: %v", err)
		}
		check(t, again)
		c.Env.Stop(again)
		if string(save(t, again)) != string(state) {
			t.Error("what was saved is another thing after a restore")
		}
		again.Reset()
	})
}

// wait waits for the answer to a command, or reports that the device is broken.
func (c *card) wait(q *virtiotest.Queue) bool {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if _, _, ok := q.TryWait(time.Millisecond); ok {
			return true
		}
		if len(c.Broken) > 0 {
			return false
		}
	}
	c.T.Fatal("the command did not come back and the device is not broken")
	return false
}
