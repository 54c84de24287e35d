package kvm

// CreateIRQChip is KVM_CREATE_IRQCHIP (0xae60): two PICs, an IOAPIC, and a local APIC in each vCPU that is created later.
// Create memory slots before.
func (vm *VM) CreateIRQChip() error {
	_, err := vm.ioctl("KVM_CREATE_IRQCHIP", nrCreateIRQChip, 0)
	return err
}

// CreatePIT2 is KVM_CREATE_PIT2 (0x4040ae77): an 8254 timer, after CreateIRQChip. flags is 0 or PITSpeakerDummy.
func (vm *VM) CreatePIT2(flags uint32) error {
	_, err := ioctlPtr(&vm.file, "KVM_CREATE_PIT2", nrCreatePIT2, &pitConfig{flags: flags})
	return err
}

// IRQLine is KVM_IRQ_LINE (0x4008ae61): sets the level of gsi.
func (vm *VM) IRQLine(gsi uint32, level bool) error {
	l := irqLevel{irq: gsi}
	if level {
		l.level = 1
	}
	_, err := ioctlPtr(&vm.file, "KVM_IRQ_LINE", nrIRQLine, &l)
	return err
}

// SetGSIRouting is KVM_SET_GSI_ROUTING (0x4008ae6a): replaces the whole table. Interrupts under way go by either table.
func (vm *VM) SetGSIRouting(entries []RoutingEntry) error {
	l := newList(entries)
	_, err := ioctlPtr(&vm.file, "KVM_SET_GSI_ROUTING", nrSetGSIRouting, &l[0])
	return err
}

// IRQFD is KVM_IRQFD (0x4020ae76): binds an eventfd to a GSI, or with IRQFDDeassign undoes it. The caller keeps its
// descriptors and may close them at once.
func (vm *VM) IRQFD(a IRQFD) error {
	_, err := ioctlPtr(&vm.file, "KVM_IRQFD", nrIRQFD, &a)
	return err
}

// IOEventFD is KVM_IOEVENTFD (0x4040ae79): binds an eventfd to a guest's writes, or with IOEventFDDeassign undoes it,
// given the same fields.
func (vm *VM) IOEventFD(a IOEventFD) error {
	_, err := ioctlPtr(&vm.file, "KVM_IOEVENTFD", nrIOEventFD, &a)
	return err
}

// SignalMSI is KVM_SIGNAL_MSI (0x4020aea5): sends a message-signalled interrupt. delivered is false when the guest has
// blocked it.
func (vm *VM) SignalMSI(addr uint64, data uint32) (delivered bool, err error) {
	m := msi{addressLo: uint32(addr), addressHi: uint32(addr >> 32), data: data}
	r, err := ioctlPtr(&vm.file, "KVM_SIGNAL_MSI", nrSignalMSI, &m)
	return int(r) > 0, err
}

// GetIRQChip is KVM_GET_IRQCHIP (0xc208ae62) for IRQChipPICMaster, IRQChipPICSlave or IRQChipIOAPIC.
func (vm *VM) GetIRQChip(id uint32) (IRQChip, error) {
	c := IRQChip{ID: id}
	_, err := ioctlPtr(&vm.file, "KVM_GET_IRQCHIP", nrGetIRQChip, &c)
	return c, err
}

// SetIRQChip is KVM_SET_IRQCHIP (0x8208ae63).
func (vm *VM) SetIRQChip(c *IRQChip) error {
	_, err := ioctlPtr(&vm.file, "KVM_SET_IRQCHIP", nrSetIRQChip, c)
	return err
}

// GetPIT2 is KVM_GET_PIT2 (0x8070ae9f).
func (vm *VM) GetPIT2() (PITState2, error) {
	var s PITState2
	_, err := ioctlPtr(&vm.file, "KVM_GET_PIT2", nrGetPIT2, &s)
	return s, err
}

// SetPIT2 is KVM_SET_PIT2 (0x4070aea0).
func (vm *VM) SetPIT2(s *PITState2) error {
	_, err := ioctlPtr(&vm.file, "KVM_SET_PIT2", nrSetPIT2, s)
	return err
}
