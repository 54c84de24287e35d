// Command lodge-init is the first program of a machine that has nothing but Lodge: it makes that one in which the others can run, starts
// them, and ends the machine in order. It is all that the initramfs has beside kernel modules: the other programs are in the system
// (hypervisor/bootimage/system).
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/lodgehv/lodge/hypervisor/appliance"
)

const usage = `usage: lodge-init

The first program of a machine that has nothing but Lodge: /init of the initramfs that lodge-image build makes. There it has no arguments;
elsewhere it does nothing.

The kernel's parameters that it knows:

  lodge.system=HASH:BLOCKS   the system that it goes on with, on an EFI system partition; lodge-image build writes it
  lodge.state=DEVICE         an empty device for the state, if no disk has a file system labelled lodge-state
  lodge.encrypt=yes          the state is to be encrypted
`

func main() {
	var err error
	switch {
	case appliance.IsModprobe(os.Args):
		err = appliance.Modprobe(os.Args)
	case appliance.IsInit(os.Args):
		err = appliance.Run(appliance.Lodge())
	case len(os.Args) == 2 && (os.Args[1] == "--help" || os.Args[1] == "-h"):
		fmt.Print(usage)
	default:
		err = errors.New("this is the first program of a machine, /init of the initramfs that lodge-image build makes")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lodge-init:", err)
		os.Exit(1)
	}
}
