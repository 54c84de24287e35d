// Package program knows which version this program of Lodge is, and where the others are.
package program

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
)

// version is set by who builds a package (-ldflags=-X).
var version string

// Version returns this program's version: that of its package, or else of the commit that it was built from, if that is known.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// Find returns the absolute path of one of Lodge's programs, such as "lodge-vmm": the one beside this program, or else on the
// PATH.
func Find(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside this program nor on the PATH: install it", name)
	}
	return filepath.Abs(path)
}
