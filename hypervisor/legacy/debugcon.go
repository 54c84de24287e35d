package legacy

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/lodgehv/lodge/hypervisor/bus"
	"github.com/lodgehv/lodge/hypervisor/snap"
)

// DebugConsolePort is where the debug console is.
const DebugConsolePort = 0x402

const (
	debugconID   = 0xe9 // what the port reads, by which firmware finds it
	debugconLine = 256  // bytes; a longer line is cut
)

// DebugConsole is the port that firmware prints its messages to. It gives whole lines to an io.Writer, through a
// buffer and a goroutine as a UART has them. It cannot tell the guest to wait: lines that find the buffer full are lost.
type DebugConsole struct {
	out  output
	mu   sync.Mutex
	line ring
}

// NewDebugConsole returns a debug console, mapped at DebugConsolePort, that prints to w. A writer that may block for
// good should have SetWriteDeadline, as a UART's.
func NewDebugConsole(w io.Writer) *DebugConsole {
	d := &DebugConsole{line: newRing(debugconLine)}
	d.out.init(w, nil)
	return d
}

// Read implements bus.Device.
func (d *DebugConsole) Read(a bus.Access, p []byte) {
	for i := range p {
		p[i] = debugconID
	}
}

// Write implements bus.Device. All bytes of a wider access are printed.
func (d *DebugConsole) Write(a bus.Access, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range p {
		d.put(b)
	}
}

func (d *DebugConsole) put(b byte) {
	d.line.push(b)
	if b != '\n' && d.line.free() > 0 {
		return
	}
	d.out.push(d.line.buf[:d.line.n]...) // the line is always emptied whole, so it begins at 0
	d.line.clear()
}

// Flush hands the writer what there is of the last line too, and waits until it has all, or for ctx. The console must
// not be paused.
func (d *DebugConsole) Flush(ctx context.Context) error {
	d.mu.Lock()
	if d.line.n > 0 {
		d.out.push(d.line.buf[:d.line.n]...)
		d.line.clear()
	}
	d.mu.Unlock()
	if err := d.out.flush(ctx); err != nil {
		return fmt.Errorf("debug console: flush: %w", err)
	}
	return nil
}

// SnapID implements snap.Component.
func (d *DebugConsole) SnapID() string { return "debugcon" }

// SnapVersion implements snap.Component.
func (d *DebugConsole) SnapVersion() uint16 { return 1 }

// Pause implements snap.Component. What the writer has not taken stays with the console.
func (d *DebugConsole) Pause() error {
	d.out.pause()
	return nil
}

// Resume implements snap.Component.
func (d *DebugConsole) Resume() error {
	d.out.start()
	return nil
}

// State implements snap.Component.
func (d *DebugConsole) State(c *snap.Codec) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.line.state(c)
	d.out.state(c)
}
