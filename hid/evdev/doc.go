// Package evdev reads Linux's input devices, /dev/input/event*, and makes of them what package hid speaks of. It finds them
// and waits for new ones, takes them for itself, reads whole reports, and turns touchpads into mice. It knows nothing of
// guests: package route decides who gets what.
//
// The interface to the kernel is include/uapi/linux/input.h, Documentation/input/event-codes.rst and
// multi-touch-protocol.rst (protocol B); devices announce themselves by uevents, Documentation/ABI/testing/sysfs-uevent.
// The structures are those of 64-bit systems.
//
// While a device is grabbed, the kernel gives its events to nobody else: not to other readers, not to the text console, not
// to the magic SysRq key. Below the input layer, hidraw and usbmon remain; they are for root alone.
package evdev
