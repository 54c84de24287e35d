package bus

// Doorbells binds guest writes to eventfds, so that a write signals the eventfd without leaving the kernel
// (KVM_IOEVENTFD). A device never knows who implements it; in tests nobody may.
type Doorbells interface {
	// Bind makes a write of size bytes (2 or 4; 0 is any size) at the guest-physical address addr signal fd.
	Bind(addr uint64, size int, fd int) error
	// Unbind undoes a Bind with the same arguments.
	Unbind(addr uint64, size int, fd int) error
}
