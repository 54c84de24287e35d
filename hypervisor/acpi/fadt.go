package acpi

import "encoding/binary"

// The fixed description table's version, ACPI 6.5, and length (ACPI 6.5 §5.2.9).
const (
	fadtRevision = 6
	fadtMinor    = 5
	fadtLen      = 276
)

// Flags of the FADT (ACPI 6.5 table 5.10). Not set are PWR_BUTTON, so the power button is a fixed one; TMR_VAL_EXT, so
// 24 bits of the timer count; FIX_RTC, so the clock's alarm has its bits among the fixed events; RTC_S4, as nothing wakes
// a machine that is off; and HW_REDUCED_ACPI.
const (
	flagWBINVD    = 1 << 0
	flagProcC1    = 1 << 2
	flagSlpButton = 1 << 5 // there is no fixed sleep button
	flagResetReg  = 1 << 10
)

// Flags of IAPC_BOOT_ARCH (ACPI 6.5 table 5.11).
const (
	bootLegacyDevices = 1 << 0
	boot8042          = 1 << 1
	bootNoVGA         = 1 << 2
)

// fadtBody returns the fixed description table after its header, but for the addresses of other tables.
func fadtBody(c *Config) []byte {
	t := make([]byte, fadtLen) // with room for the header: offsets are those of the specification
	le := binary.LittleEndian

	le.PutUint16(t[46:], SCI)
	// SMI_CMD, ACPI_ENABLE and ACPI_DISABLE stay 0: there is no legacy mode to leave.
	block := func(offset, xOffset int, register uint16, length int, access byte) {
		le.PutUint32(t[offset:], uint32(c.PMBase+register))
		gas(t[xOffset:], c.PMBase+register, length, access)
	}
	block(56, 148, PM1aEvent, 4, accessUndefined)
	block(64, 172, PM1aControl, 2, accessWord)
	block(76, 208, PMTimer, 4, accessDWord)
	block(80, 220, GPE0, 16, accessUndefined)
	t[88], t[89], t[91], t[92] = 4, 2, 4, 16 // PM1_EVT_LEN, PM1_CNT_LEN, PM_TMR_LEN, GPE0_BLK_LEN

	le.PutUint16(t[96:], 0xFFF) // P_LVL2_LAT, so long that there is no C2
	le.PutUint16(t[98:], 0xFFF) // P_LVL3_LAT, nor C3
	t[108] = c.CenturyReg

	arch := uint16(bootLegacyDevices)
	if c.I8042 {
		arch |= boot8042
	}
	if !c.VGA {
		arch |= bootNoVGA
	}
	le.PutUint16(t[109:], arch)
	le.PutUint32(t[112:], flagWBINVD|flagProcC1|flagSlpButton|flagResetReg)
	gas(t[116:], c.ResetPort, 1, accessByte)
	t[128] = c.ResetValue
	t[131] = fadtMinor
	copy(t[268:], oemID) // hypervisor vendor identity
	return t[headerLen:]
}

// Access sizes of a generic address. A block of several registers has none.
const (
	accessUndefined = 0
	accessByte      = 1
	accessWord      = 2
	accessDWord     = 3
)

// gas writes the generic address (ACPI 6.5 §5.2.3.2) of length bytes of ports to b.
func gas(b []byte, port uint16, length int, access byte) {
	const systemIO = 1
	b[0], b[1], b[2], b[3] = systemIO, byte(8*length), 0, access
	binary.LittleEndian.PutUint64(b[4:], uint64(port))
}
