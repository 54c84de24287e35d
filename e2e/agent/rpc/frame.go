package rpc

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// MaxPayload is the largest payload of one frame, in bytes.
const MaxPayload = 32 << 10

const (
	headerSize = 16
	// window is how many frames of standard input may be under way.
	window = 8
)

type frameType uint8

const (
	frameHello  frameType = 1 // both ways, payload: hello as JSON
	frameExec   frameType = 2 // to the agent: command as JSON
	frameStdin  frameType = 3 // to the agent: data, none means end of file
	frameSignal frameType = 4 // to the agent: one byte, the signal's number
	frameStdout frameType = 5 // from the agent: data
	frameStderr frameType = 6 // from the agent: data
	frameAck    frameType = 7 // from the agent: one stdin frame was consumed
	frameExit   frameType = 8 // from the agent: ExitStatus as JSON; the stream's last
)

type frame struct {
	typ     frameType
	stream  uint32
	payload []byte
}

// frameWriter serialises frames of many senders onto one stream.
type frameWriter struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func newFrameWriter(w io.Writer) *frameWriter {
	return &frameWriter{w: w, buf: make([]byte, 0, headerSize+MaxPayload)}
}

func (fw *frameWriter) write(typ frameType, stream uint32, payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("agent frame: payload of %d bytes exceeds %d", len(payload), MaxPayload)
	}
	fw.mu.Lock()
	defer fw.mu.Unlock()
	b := append(fw.buf[:0], 'L', 'A', byte(typ), 0)
	b = binary.LittleEndian.AppendUint32(b, stream)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(b, payload...)
	_, err := fw.w.Write(b)
	return err
}

// frameReader finds frames in a stream, skipping what is none.
type frameReader struct{ r *bufio.Reader }

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, headerSize+MaxPayload)}
}

// read returns the next frame; its payload belongs to the caller.
func (fr *frameReader) read() (frame, error) {
	for {
		h, err := fr.r.Peek(headerSize)
		if err != nil {
			return frame{}, err
		}
		n := binary.LittleEndian.Uint32(h[8:])
		if h[0] != 'L' || h[1] != 'A' || n > MaxPayload ||
			binary.LittleEndian.Uint32(h[12:]) != crc32.ChecksumIEEE(h[:12]) {
			if _, err := fr.r.Discard(1); err != nil {
				return frame{}, err
			}
			continue
		}
		f := frame{typ: frameType(h[2]), stream: binary.LittleEndian.Uint32(h[4:]), payload: make([]byte, n)}
		if _, err := fr.r.Discard(headerSize); err != nil {
			return frame{}, err
		}
		if _, err := io.ReadFull(fr.r, f.payload); err != nil {
			return frame{}, err
		}
		return f, nil
	}
}

type hello struct {
	Nonce uint64 `json:"nonce"`
	// Time is the client's clock, Unix nanoseconds.
	Time int64 `json:"time,omitempty"`
}

type command struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	Log  string   `json:"log,omitempty"`
}
