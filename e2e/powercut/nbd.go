package powercut

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The NBD protocol, doc/proto.md of its project: fixed newstyle negotiation, simple replies.
const (
	magicServer  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicReply   = 0x0003e889045565a9 // to an option
	magicRequest = 0x25609513
	magicSimple  = 0x67446698

	flagFixedNewstyle = 1 << 0 // of the handshake
	flagNoZeroes      = 1 << 1

	optExportName = 1
	optAbort      = 2
	optGo         = 7

	repAck    = 1
	repInfo   = 3
	repUnsupp = 1<<31 + 1

	flagHasFlags  = 1 << 0 // of the transmission
	flagSendFlush = 1 << 2
	flagSendFUA   = 1 << 3

	cmdRead  = 0
	cmdWrite = 1
	cmdDisc  = 2
	cmdFlush = 3

	cmdFlagFUA = 1 << 0

	errInvalid = 22
)

// Limits on what a client may send, in bytes.
const (
	maxOption  = 64 << 10
	maxRequest = 32 << 20
)

// flushTime is how long a flush takes, as on a disk of the cheaper kind: long enough for a cut to come meanwhile.
const flushTime = 10 * time.Millisecond

// Server serves a disk on a Unix socket.
type Server struct {
	*Disk
	l      *net.UnixListener
	accept sync.WaitGroup
	served sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]chan struct{} // closed by Disconnect
	errs  error
}

// Serve begins to serve a disk. Clients may come and go.
func Serve(d *Disk, socket string) (*Server, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	s := &Server{Disk: d, l: l, conns: make(map[net.Conn]chan struct{})}
	s.accept.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.add(c)
		}
	})
	return s, nil
}

func (s *Server) add(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := make(chan struct{})
	s.conns[c] = gone
	s.served.Go(func() {
		err := s.serve(c, gone)
		c.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
		// A client that is killed goes in the middle of anything.
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !isBroken(err) {
			s.errs = errors.Join(s.errs, err)
		}
	})
}

// isBroken reports whether err is of the connection.
func isBroken(err error) bool {
	var op *net.OpError
	return errors.As(err, &op)
}

// Disconnect ends all connections. When it returns, nothing more is written, and a flush that was under way has not been done.
func (s *Server) Disconnect() {
	s.mu.Lock()
	for c, gone := range s.conns {
		close(gone)
		c.Close()
	}
	clear(s.conns)
	s.mu.Unlock()
	s.served.Wait()
}

// Close ends the server. It returns what clients have done wrong.
func (s *Server) Close() error {
	err := s.l.Close()
	s.accept.Wait()
	s.Disconnect()
	return errors.Join(err, s.errs)
}

// serve serves one client.
func (s *Server) serve(c net.Conn, gone <-chan struct{}) error {
	w := bufio.NewWriter(c)
	r := bufio.NewReaderSize(c, 64<<10)
	if err := s.negotiate(r, w); err != nil {
		return fmt.Errorf("NBD negotiation: %w", err)
	}
	if err := s.transmit(r, w, gone); err != nil {
		return fmt.Errorf("NBD: %w", err)
	}
	return nil
}

// put writes values in network byte order, and sends them.
func put(w *bufio.Writer, values ...any) error {
	for _, v := range values {
		if err := binary.Write(w, binary.BigEndian, v); err != nil {
			return err
		}
	}
	return w.Flush()
}

func get(r io.Reader, values ...any) error {
	for _, v := range values {
		if err := binary.Read(r, binary.BigEndian, v); err != nil {
			return err
		}
	}
	return nil
}

// negotiate returns when the client has chosen the one export, by whatever name.
func (s *Server) negotiate(r *bufio.Reader, w *bufio.Writer) error {
	if err := put(w, uint64(magicServer), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes)); err != nil {
		return err
	}
	var client uint32
	if err := get(r, &client); err != nil {
		return err
	}
	export := []any{uint64(s.size), uint16(flagHasFlags | flagSendFlush | flagSendFUA)}
	for {
		var magic uint64
		var option, length uint32
		if err := get(r, &magic, &option, &length); err != nil {
			return err
		}
		if magic != magicOption || length > maxOption {
			return fmt.Errorf("option %d of %d bytes, magic %#x", option, length, magic)
		}
		if _, err := r.Discard(int(length)); err != nil {
			return err
		}
		reply := func(kind uint32, data ...any) error {
			var b bytes.Buffer
			for _, v := range data {
				if err := binary.Write(&b, binary.BigEndian, v); err != nil {
					return err
				}
			}
			return put(w, uint64(magicReply), option, kind, uint32(b.Len()), b.Bytes())
		}
		switch option {
		case optExportName:
			if client&flagNoZeroes == 0 {
				export = append(export, [124]byte{})
			}
			return put(w, export...)
		case optGo:
			if err := reply(repInfo, append([]any{uint16(0)}, export...)...); err != nil { // NBD_INFO_EXPORT
				return err
			}
			return reply(repAck)
		case optAbort:
			return io.EOF
		default:
			if err := reply(repUnsupp); err != nil {
				return err
			}
		}
	}
}

// transmit carries out requests, one after the other.
func (s *Server) transmit(r *bufio.Reader, w *bufio.Writer, gone <-chan struct{}) error {
	for {
		var q struct {
			Magic       uint32
			Flags, Type uint16
			Handle      uint64
			Offset      uint64
			Length      uint32
		}
		if err := get(r, &q); err != nil {
			return err
		}
		if q.Magic != magicRequest || q.Length > maxRequest {
			return fmt.Errorf("request %d of %d bytes, magic %#x", q.Type, q.Length, q.Magic)
		}
		var data []byte
		var err error
		switch q.Type {
		case cmdRead:
			data = make([]byte, q.Length)
			_, err = s.ReadAt(data, int64(q.Offset))
		case cmdWrite:
			p := make([]byte, q.Length)
			if _, err := io.ReadFull(r, p); err != nil {
				return err
			}
			_, err = s.write(p, int64(q.Offset), q.Flags&cmdFlagFUA != 0)
		case cmdFlush:
			select {
			case <-time.After(flushTime):
				s.Flush()
			case <-gone:
				return io.EOF
			}
		case cmdDisc:
			return io.EOF
		default:
			err = fmt.Errorf("command %d", q.Type)
		}
		code := uint32(0)
		if err != nil {
			code, data = errInvalid, nil
		}
		if err := put(w, uint32(magicSimple), code, q.Handle, data); err != nil {
			return err
		}
	}
}
