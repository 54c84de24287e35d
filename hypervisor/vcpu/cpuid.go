package vcpu

import (
	"fmt"
	"math/bits"

	"github.com/lodgehv/lodge/hypervisor/kvm"
)

// MaxCPUs is how many vCPUs a machine may have. Their APIC IDs fit in four bits.
const MaxCPUs = 16

// CPUID leaves that tell the topology (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E).
const (
	leafFeatures       = 0x1
	leafCaches         = 0x4
	leafTopology       = 0xb
	leafTopologyV2     = 0x1f
	leafExtFeatures    = 0x80000001
	leafAddressSizes   = 0x80000008
	leafSVM            = 0x8000000a
	leafAMDCaches      = 0x8000001d
	leafAMDTopologyExt = 0x8000001e
)

// CPUID returns what the vCPU with the given index and APIC ID, of a machine with n vCPUs, answers to CPUID, given
// System.GetSupportedCPUID. The machine is one package of n cores with one thread each, which share the last-level
// cache. KVM's own leaves, 0x40000000 and up, stay as they are; tscDeadline says that KVM has CapTSCDeadlineTimer, which
// its list leaves out.
//
// Virtualisation is left out (VMX, SVM), which KVM offers to guests of its own by default: what it keeps of a guest in a
// guest (KVM_GET_NESTED_STATE) is no part of a saved state, so that a restore would leave such a guest without its own.
func CPUID(supported []kvm.CPUIDEntry, index, n int, tscDeadline bool) ([]kvm.CPUIDEntry, error) {
	if n < 1 || n > MaxCPUs || index < 0 || index >= n {
		return nil, fmt.Errorf("vcpu %d of %d: a machine has 1 to %d vcpus", index, n, MaxCPUs)
	}
	id, cores := uint32(index), uint32(n)
	width := uint32(bits.Len32(cores - 1)) // of the part of an APIC ID that tells the cores apart
	slots := uint32(1) << width            // APIC IDs that the package has room for

	var out []kvm.CPUIDEntry
	for _, e := range supported {
		switch e.Function {
		case leafFeatures:
			const hypervisor, tscDeadlineBit, vmx, htt = 1 << 31, 1 << 24, 1 << 5, 1 << 28
			e.EBX = e.EBX&0x0000ffff | id<<24 | slots<<16
			e.ECX = e.ECX&^vmx | hypervisor
			e.ECX = setBit(e.ECX, tscDeadlineBit, tscDeadline)
			e.EDX = setBit(e.EDX, htt, n > 1)
		case leafCaches:
			e.EAX = cacheSharing(e.EAX, slots, 3)
			if e.EAX&0x1f != 0 {
				e.EAX = e.EAX&0x03ffffff | (slots-1)<<26 // cores in the package, less one
			}
		case leafAMDCaches:
			e.EAX = cacheSharing(e.EAX, cores, 3)
		case leafTopology, leafTopologyV2:
			if e.Index == 0 {
				out = append(out, topology(e.Function, id, cores, width)...)
			}
			continue
		case leafExtFeatures:
			const cmpLegacy = 1 << 1 // of AMD: leaf 1 counts cores, not threads
			const svm = 1 << 2
			e.ECX &^= svm
			if e.ECX&cmpLegacy != 0 || isAMD(supported) {
				e.ECX = setBit(e.ECX, cmpLegacy, n > 1)
			}
		case leafAddressSizes:
			if isAMD(supported) {
				e.ECX = e.ECX&^0xf0ff | width<<12 | (cores - 1)
			}
		case leafSVM:
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
		case leafAMDTopologyExt:
			e.EAX = id
			e.EBX = id // core ID; one thread in each
			e.ECX = 0  // node 0 of one
		}
		out = append(out, e)
	}
	return out, nil
}

// topology is leaf 0xb or 0x1f: a level of threads, one in a core, a level of cores, and the end.
func topology(leaf, id, cores, width uint32) []kvm.CPUIDEntry {
	const threads, core = 1 << 8, 2 << 8 // types of a level
	sub := func(index, eax, ebx, typ uint32) kvm.CPUIDEntry {
		return kvm.CPUIDEntry{
			Function: leaf, Index: index, Flags: kvm.CPUIDSignificantIndex, EAX: eax, EBX: ebx, ECX: typ | index, EDX: id,
		}
	}
	return []kvm.CPUIDEntry{sub(0, 0, 1, threads), sub(1, width, cores, core), sub(2, 0, 0, 0)}
}

// cacheSharing sets in EAX of a cache's description how many logical processors share it, which is held less one: all
// those of the package from the given level on, else one. Type 0 ends the list and stays.
func cacheSharing(eax, n, level uint32) uint32 {
	if eax&0x1f == 0 {
		return eax
	}
	eax &^= 0xfff << 14
	if eax>>5&7 >= level {
		eax |= (n - 1) << 14
	}
	return eax
}

func setBit(v, mask uint32, on bool) uint32 {
	if on {
		return v | mask
	}
	return v &^ mask
}

// isAMD reports whether leaf 0 names AMD or Hygon, which uses AMD's leaves.
func isAMD(entries []kvm.CPUIDEntry) bool {
	for _, e := range entries {
		if e.Function == 0 {
			return e.EBX == 0x68747541 || e.EBX == 0x6f677948 // "Auth"enticAMD, "Hygo"nGenuine
		}
	}
	return false
}
