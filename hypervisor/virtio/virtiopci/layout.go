// Package virtiopci shows a virtio device to the guest as a PCI function: the modern transport of virtio 1.2 §4.1, without
// the legacy one. It negotiates, starts and stops the device, delivers its interrupts, and saves it.
package virtiopci

import "github.com/lodgehv/lodge/hypervisor/virtio"

// PCI identity, virtio 1.2 §4.1.2.
const (
	vendorID     = 0x1af4
	deviceIDBase = 0x1040
	revision     = 1
)

// Capability types, virtio 1.2 §4.1.4.
const (
	capCommon = 1
	capNotify = 2
	capISR    = 3
	capDevice = 4
	capPCI    = 5
)

// One 32-bit memory BAR holds everything. It lies below 4 GiB, so that 32-bit guests and firmware reach it.
const (
	barIndex = 0
	barSize  = 0x4000

	commonOff  = 0x0000 // struct virtio_pci_common_cfg
	commonSize = 0x38
	isrOff     = 0x0800 // one byte
	deviceOff  = 0x1000 // device-specific configuration
	deviceSize = 0x1000
	notifyOff  = 0x2000 // one dword per queue
	notifySize = 0x1000
	notifyStep = 4
	tableOff   = 0x3000 // MSI-X table
	pbaOff     = 0x3800 // MSI-X pending bits
	pageSize   = 0x0800 // everything starts at a multiple of this
)

// Offsets in struct virtio_pci_common_cfg, virtio 1.2 §4.1.4.3.
const (
	regDeviceFeatureSelect = 0
	regDeviceFeature       = 4
	regDriverFeatureSelect = 8
	regDriverFeature       = 12
	regConfigVector        = 16
	regNumQueues           = 18
	regStatus              = 20
	regGeneration          = 21
	regQueueSelect         = 22
	regQueueSize           = 24
	regQueueVector         = 26
	regQueueEnable         = 28
	regQueueNotifyOff      = 30
	regQueueDesc           = 32
	regQueueDriver         = 40
	regQueueDevice         = 48
)

// Bits of the device status, virtio 1.2 §2.1.
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 64
	statusFailed      = 128
	// statusOfDriver are the bits that the driver sets: the others are the device's, or nobody's.
	statusOfDriver = statusAcknowledge | statusDriver | statusDriverOK | statusFeaturesOK | statusFailed
)

// Bits of the ISR status, virtio 1.2 §4.1.4.5.
const (
	isrQueue  = 1
	isrConfig = 2
)

// noVector means no MSI-X vector, virtio 1.2 §4.1.5.1.2.
const noVector = 0xffff

// pciClass returns the class code that makes lspci and generic drivers call the device what it is.
func pciClass(id virtio.DeviceID) uint32 {
	switch id {
	case virtio.IDNet:
		return 0x020000 // Ethernet controller
	case virtio.IDBlock:
		return 0x018000 // mass storage, other
	case virtio.IDConsole:
		return 0x078000 // communication, other
	case virtio.IDEntropy:
		return 0x100000 // encryption, network and computing
	case virtio.IDGPU:
		return 0x038000 // display, other
	case virtio.IDInput:
		return 0x098000 // input, other
	}
	return 0x00ff00 // no class fits
}
