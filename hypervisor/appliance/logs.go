package appliance

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

// Sizes of what is kept of the log.
const (
	keptLines = 200
	maxLine   = 1000    // bytes, less than what /dev/kmsg takes at once
	maxLog    = 4 << 20 // bytes; a full file is renamed to FILE.1
)

// journal is the machine's log: it goes to the kernel's, so that a console shows it, and to a file once there is one. The last lines
// are kept for the emergency console. A line is written by each call of Write.
type journal struct {
	mu    sync.Mutex
	kmsg  io.Writer
	lines []string
	path  string
	file  *os.File
	size  int64
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for l := range strings.SplitSeq(strings.TrimRight(string(p), "\n"), "\n") {
		l = strings.ToValidUTF8(strings.Map(printable, l), "?")
		if len(l) > maxLine {
			l = strings.ToValidUTF8(l[:maxLine], "") + "…"
		}
		j.lines = append(j.lines, l)
		if len(j.lines) > keptLines {
			j.lines = slices.Delete(j.lines, 0, len(j.lines)-keptLines)
		}
		if j.kmsg != nil {
			fmt.Fprintf(j.kmsg, "<6>lodge: %s\n", l)
		}
		j.store(l)
	}
	return len(p), nil
}

// printable drops what a terminal would obey.
func printable(r rune) rune {
	if r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 {
		return -1
	}
	return r
}

// store writes a line to the file, if there is one. Where it fails, the log goes on without.
func (j *journal) store(line string) {
	if j.file == nil {
		return
	}
	if j.size >= maxLog {
		j.file.Close()
		j.file = nil
		if err := os.Rename(j.path, j.path+".1"); err != nil || j.open() != nil {
			return
		}
	}
	n, _ := j.file.WriteString(line + "\n")
	j.size += int64(n)
}

func (j *journal) open() error {
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	j.file, j.size = f, st.Size()
	return nil
}

// keep has the log written to a file from now on; it begins with what was logged before.
func (j *journal) keep(path string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.path = path
	if err := j.open(); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	for _, l := range j.lines {
		j.store(l)
	}
	return nil
}

// close ends the file, and has it on the disk.
func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	err := errors.Join(j.file.Sync(), j.file.Close())
	j.file = nil
	return err
}

// last returns the last lines.
func (j *journal) last(n int) []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines[max(0, len(j.lines)-n):])
}

// pipe has what a program prints written line by line, each with a name before it. The end that is returned is the program's:
// close it when it has started. What a program leaves behind may go on printing after its end.
func pipe(cmd *exec.Cmd, out io.Writer, name string) (io.Closer, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	go func() {
		defer r.Close()
		if err := copyLines(out, r, name); err != nil && !errors.Is(err, fs.ErrClosed) {
			fmt.Fprintf(out, "%s: what it prints is lost: %v\n", name, err)
		}
	}()
	return w, nil
}

// copyLines writes lines, long ones in parts.
func copyLines(out io.Writer, r io.Reader, name string) error {
	b := bufio.NewReaderSize(r, maxLine)
	for {
		l, err := b.ReadSlice('\n')
		if l = bytes.TrimRight(l, "\r\n"); len(l) > 0 {
			fmt.Fprintf(out, "%s: %s\n", name, l)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}
