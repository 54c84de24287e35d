package notebook

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// QMP speaks QEMU's machine protocol.
type QMP struct {
	conn *net.UnixConn
	call sync.Mutex // one command at a time
	// replies carries the answer to the one command under way.
	replies chan qmpMessage
	done    chan struct{}

	mu     sync.Mutex
	events map[string]int // how often each event has come
	why    string         // the reason of the event SHUTDOWN
	change chan struct{}  // closed and replaced at each event
}

type qmpMessage struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class, Desc string
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Reason string `json:"reason"`
	} `json:"data"`
}

// NewQMP begins to speak on a connection to QEMU.
func NewQMP(ctx context.Context, conn *net.UnixConn) (*QMP, error) {
	q := &QMP{
		conn: conn, replies: make(chan qmpMessage, 1), done: make(chan struct{}),
		events: map[string]int{}, change: make(chan struct{}),
	}
	go q.read()
	if _, err := q.Do(ctx, "qmp_capabilities", nil); err != nil {
		return nil, err
	}
	return q, nil
}

func (q *QMP) read() {
	defer close(q.done)
	s := bufio.NewScanner(q.conn)
	s.Buffer(nil, 16<<20)
	for s.Scan() {
		var m qmpMessage
		if json.Unmarshal(s.Bytes(), &m) != nil {
			continue
		}
		switch {
		case m.Event != "":
			q.mu.Lock()
			q.events[m.Event]++
			if m.Event == "SHUTDOWN" {
				q.why = m.Data.Reason
			}
			close(q.change)
			q.change = make(chan struct{})
			q.mu.Unlock()
		case m.Return != nil || m.Error != nil:
			select {
			case q.replies <- m:
			default: // the answer to a command that nobody waits for any more
			}
		}
	}
}

// Do executes a command: args is what is encoded as its arguments, nil for none. fds travel with it: getfd takes one.
func (q *QMP) Do(ctx context.Context, command string, args any, fds ...int) (json.RawMessage, error) {
	q.call.Lock()
	defer q.call.Unlock()
	msg := map[string]any{"execute": command}
	if args != nil {
		msg["arguments"] = args
	}
	b, err := json.Marshal(msg)
	if err != nil {
		return nil, err
	}
	select {
	case <-q.replies: // a late answer to a command that was given up
	default:
	}
	if _, _, err := q.conn.WriteMsgUnix(append(b, '\n'), unix.UnixRights(fds...), nil); err != nil {
		return nil, fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case m := <-q.replies:
		if m.Error != nil {
			return nil, fmt.Errorf("qmp %s: %s", command, m.Error.Desc)
		}
		return m.Return, nil
	case <-q.done:
		return nil, fmt.Errorf("qmp %s: %w", command, errors.New("QEMU has ended"))
	case <-ctx.Done():
		return nil, fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
	}
}

// shutdownReason returns why QEMU has ended, by its own account: "guest-reset"
// for instance when the notebook's kernel panicked or its processor gave up.
func (q *QMP) shutdownReason() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.why
}

// count returns how often an event has come, and a channel that is closed when
// any comes next.
func (q *QMP) count(event string) (int, <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.events[event], q.change
}
