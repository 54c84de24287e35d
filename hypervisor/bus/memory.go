package bus

// Mapper puts memory of a device's into the guest, which then reads and writes it without leaving the CPU (KVM's memory
// slots): a frame buffer, for one. A device never knows who implements it; where nobody does, it answers accesses itself.
//
// Once the machine is built, a mapping or its end takes milliseconds.
type Mapper interface {
	// Map puts memory, whole pages outside the Go heap, at the guest-physical address base. It is an error if the guest has
	// RAM there. The memory must stay until Unmap.
	Map(base uint64, memory []byte) (Mapping, error)
}

// Mapping is memory that a guest has. Its methods may be called from any goroutine, none of them after Unmap.
type Mapping interface {
	// Dirty overwrites pages with a bit for each page of the memory that the guest has written to since the last call,
	// bit 0 of word 0 being the first. pages has room for all of them.
	Dirty(pages []uint64) error
	// Unmap takes the memory from the guest.
	Unmap() error
}
