package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// skip is a reason for which tests may skip, if its condition holds on this machine.
type skip struct {
	reason string // how the test's message begins
	holds  bool
}

// readSkips reads the file of allowed skips: lines "REASON when CONDITION", of which CONDITION is a shell command that
// succeeds where the skip is allowed.
func readSkips(ctx context.Context, path string) ([]skip, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var skips []skip
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		reason, condition, ok := strings.Cut(line, " when ")
		if !ok {
			return nil, fmt.Errorf("%s:%d: want REASON when CONDITION", path, n)
		}
		holds := exec.CommandContext(ctx, "sh", "-c", condition).Run() == nil
		skips = append(skips, skip{strings.TrimSpace(reason), holds})
	}
	return skips, sc.Err()
}

// allowed reports whether a test may skip with this message.
func allowed(skips []skip, message string) bool {
	for _, s := range skips {
		if s.holds && strings.HasPrefix(message, s.reason) {
			return true
		}
	}
	return false
}
