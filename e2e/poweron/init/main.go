// Command init is PID 1 of the boot image's tests: it says on the console that it runs and what it finds, and powers off.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := look(); err != nil {
		fmt.Println("init: error:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // without power off, the test's time is up
}

// look prints what the test wants to know.
func look() error {
	for dir, kind := range map[string]string{"/sys": "sysfs", "/proc": "proc"} {
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	greeting, err := os.ReadFile("/etc/greeting")
	if err != nil {
		return err
	}
	if err := loadModules("loop", "efivarfs"); err != nil {
		return err
	}
	const variables = "/sys/firmware/efi/efivars"
	if err := unix.Mount("efivarfs", variables, "efivarfs", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", variables, err)
	}
	path, _ := os.ReadFile(variables + "/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f") // none is no counter
	secure, err := os.ReadFile(variables + "/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
	if err != nil {
		return err
	}
	fmt.Printf("init: %s pid=%d counted=%q secure=%d\n", strings.TrimSpace(string(greeting)), os.Getpid(),
		strings.ReplaceAll(string(path[min(4, len(path)):]), "\x00", ""), secure[len(secure)-1])
	return nil
}

// loadModules loads modules that depend on no others.
func loadModules(names ...string) error {
	for _, name := range names {
		found, err := filepath.Glob("/lib/modules/*/kernel/*/*/" + name + ".ko*")
		if err != nil || len(found) != 1 {
			return fmt.Errorf("module %s: found %v", name, found)
		}
		f, err := os.Open(found[0])
		if err != nil {
			return err
		}
		if err := errors.Join(unix.FinitModule(int(f.Fd()), "", 0), f.Close()); err != nil {
			return fmt.Errorf("%s: %w", found[0], err)
		}
	}
	return nil
}
