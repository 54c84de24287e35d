// Command stopwatch runs a command until its output shows a text, kills it, and prints how long that took since before the
// command was executed:
//
//	stopwatch TEXT COMMAND ARGUMENT...
//	{"ns":…}
//
// Lines that the command has printed before go to standard error, as does what it says there.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "stopwatch:", err)
		os.Exit(1)
	}
}

// reading is what is printed.
type reading struct {
	NS int64 `json:"ns"`
}

func run(args []string, to io.Writer) error {
	if len(args) < 2 {
		return fmt.Errorf("want TEXT COMMAND ARGUMENT..., got %q", args)
	}
	text := args[0]
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Stderr = os.Stderr
	// A VMM may take the end of its input for a hang-up.
	if _, err := cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		// Killed, it ends with an error of no interest; it is gone when Wait returns.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.Contains(lines.Text(), text) {
			return json.NewEncoder(to).Encode(reading{time.Since(begin).Nanoseconds()})
		}
		fmt.Fprintln(os.Stderr, lines.Text())
	}
	return errors.Join(fmt.Errorf("%s ended before it showed %q", args[1], text), lines.Err())
}
