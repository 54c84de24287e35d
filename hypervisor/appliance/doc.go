// Package appliance is Lodge as the first process of a machine that has no other system: it mounts what has to be mounted, loads
// kernel modules for the devices that there are, finds the system with Lodge's other programs, finds or makes the state partition, starts
// programs and starts them anew when they die, and ends all of it in order and in a bounded time. There is no shell; what programs there are
// is told by Files and Modules.
//
// The manager of guests is a process of its own, like the seat: if it dies, the kernel does not, and the next one finds the guests.
// So all children of this process are reaped in one place, and nobody's are stolen.
//
// Specifications: init's duties are those of Linux (Documentation/admin-guide/init.rst, reboot(2)); watchdogs are
// Documentation/watchdog/watchdog-api.rst; the partition table is UEFI 2.10 §5; file systems are known by their superblocks
// (Documentation/filesystems/ext4/super.rst, XFS Algorithms & Data Structures §"Superblocks"); the system is checked by dm-verity
// (Documentation/admin-guide/device-mapper/verity.rst).
package appliance
