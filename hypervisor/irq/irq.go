// Package irq is how devices interrupt: level-triggered lines and message-signalled vectors. The board implements both
// over KVM's irqchip and irqfds; a device sees these interfaces only.
package irq

// Line is an interrupt line: an ISA interrupt or a PCI INTx pin. It is wired-or: it stays asserted while any of the
// devices that share it asserts it. Setting the level that it already has does nothing.
type Line interface{ Set(level bool) error }

// MSI is a message-signalled interrupt: a write of Data to Addr (PCI 3.0 §6.8.1; the local APIC's format of both is in
// the Intel SDM volume 3, §11.11).
type MSI struct {
	Addr uint64
	Data uint32
}

// Vectors is a device's set of message-signalled interrupts, numbered from 0.
type Vectors interface {
	// Trigger sends vector i, unless it is masked: then it stays pending and is sent when it is unmasked.
	Trigger(i int) error
	// Pending reports whether vector i was triggered while it was masked and has not been sent since.
	Pending(i int) bool
	// Cancel makes vector i not pending: what it told of is no more, as after a reset of the device.
	Cancel(i int)
	// EventFD returns an eventfd whose signal sends vector i, for a process that is not ours (vhost-user, VFIO). It is made
	// on first use and belongs to the set: the caller does not close it.
	EventFD(i int) (int, error)
	// Update sets vector i's message and mask. Interrupts that are under way are neither lost nor sent twice.
	Update(i int, m MSI, masked bool) error
	// Len returns the number of vectors.
	Len() int
	// Close gives the vectors back.
	Close() error
}

// Allocator hands out sets of n vectors.
type Allocator interface {
	Vectors(n int) (Vectors, error)
}
