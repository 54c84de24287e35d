// Command hostile is the init of a guest that attacks its VMM: it writes garbage to the configuration space, the registers
// and the ports of its machine, and hands the virtio devices rings with loops, absurd lengths and addresses outside memory.
// It tells its seed and its progress on the console.
//
// Two things a guest is entitled to are left out, since they would end the attack: the ports that reset the machine or
// switch it off, and what makes the guest's own processor stop.
package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := attack(); err != nil {
		fmt.Println("hostile: failed:", err)
	}
	// As init it must not return. Power off may be impossible by now; the reset that a panic brings may be too.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func attack() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	seed, rounds, err := parameters()
	if err != nil {
		return err
	}
	fmt.Println("hostile: seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	functions, err := openFunctions()
	if err != nil {
		return err
	}
	ports, err := os.OpenFile("/dev/port", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	pages, err := allocate(64)
	if err != nil {
		return err
	}
	for round := range rounds {
		for _, f := range functions {
			f.decode()
			f.attackRings(rnd, pages)
			f.decode()
			f.attackRegisters(rnd)
			f.attackConfig(rnd)
		}
		attackPorts(rnd, ports)
		fmt.Println("hostile: round", round+1, "of", rounds)
	}
	fmt.Println("hostile: done")
	return nil
}

// parameters reads lodge.seed and lodge.rounds from the kernel's command line.
func parameters() (seed uint64, rounds int, err error) {
	seed, rounds = uint64(time.Now().UnixNano()), 20
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return 0, 0, err
	}
	for w := range strings.FieldsSeq(string(line)) {
		if v, ok := strings.CutPrefix(w, "lodge.seed="); ok {
			if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
				return 0, 0, err
			}
		}
		if v, ok := strings.CutPrefix(w, "lodge.rounds="); ok {
			if rounds, err = strconv.Atoi(v); err != nil {
				return 0, 0, err
			}
		}
	}
	return seed, rounds, nil
}

// openFunctions opens all PCI functions.
func openFunctions() ([]*function, error) {
	dirs, err := filepath.Glob("/sys/bus/pci/devices/*")
	if err != nil {
		return nil, err
	}
	var fs []*function
	for _, d := range dirs {
		f, err := openFunction(d)
		if err != nil {
			return nil, err
		}
		fs = append(fs, f)
	}
	return fs, nil
}

// attackPorts writes random values to random ports.
func attackPorts(rnd *rand.Rand, ports *os.File) {
	b := make([]byte, 4)
	for range 2000 {
		port := rnd.IntN(1 << 16)
		if rnd.IntN(2) == 0 {
			port = rnd.IntN(0x1000) // where the devices are
		}
		n := 1 << rnd.IntN(3)
		if entitled(port, n) {
			continue
		}
		if rnd.IntN(4) == 0 {
			_, _ = ports.ReadAt(b[:n], int64(port))
			continue
		}
		scramble(rnd, b[:n])
		_, _ = ports.WriteAt(b[:n], int64(port)) // an error is the guest kernel's, and as good as none
		if port <= cmosData && port+n > cmosIndex {
			quietClock(ports)
		}
	}
}

// Ports of the CMOS clock.
const (
	cmosIndex = 0x70
	cmosData  = 0x71
)

// quietClock turns off the clock's interrupts: 8192 in a second, each with its exits, leave a guest no time for anything
// else where a virtual machine is as slow as in the simulated notebook.
func quietClock(ports *os.File) {
	for _, w := range [][2]byte{{cmosIndex, 0x0b}, {cmosData, 0x02}} { // register B: 24 hours, no interrupts
		_, _ = ports.WriteAt(w[1:], int64(w[0]))
	}
}

// entitled reports whether an access reaches a port by which a guest may stop its machine, or itself: the interrupt
// controllers and timer, the keyboard controller's and the system control port's reset line, the reset register, the
// debug-exit port, and the ACPI power management block with the APM ports in front of it.
func entitled(port, n int) bool {
	for _, r := range [][2]int{{0x20, 0x21}, {0x40, 0x43}, {0x60, 0x64}, {0x92, 0x92}, {0xa0, 0xa1}, {0xb2, 0xb3}, {0xf4, 0xf7},
		{0x3f8, 0x3ff}, {0x402, 0x402}, {0x4d0, 0x4d1}, {0x600, 0x67f}, {0xcf8, 0xcff}} {
		if port <= r[1] && port+n > r[0] {
			return true
		}
	}
	return false
}

func scramble(rnd *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
}

// page is memory whose guest-physical address is known, so that devices can be pointed at it.
type page struct {
	data []byte
	addr uint64
}

// allocate returns n pages that stay where they are.
func allocate(n int) ([]page, error) {
	const size = 4096
	m, err := unix.Mmap(-1, 0, n*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE|unix.MAP_LOCKED)
	if err != nil {
		return nil, fmt.Errorf("allocate: %w", err)
	}
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var pages []page
	for i := range n {
		p := page{data: m[i*size : (i+1)*size]}
		if p.addr, err = frame(f, p.data); err != nil {
			return nil, err
		}
		pages = append(pages, p)
	}
	return pages, nil
}
