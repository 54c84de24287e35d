package evdev

// Directions of an ioctl, seen from the caller (include/uapi/asm-generic/ioctl.h).
const (
	iocNone  = 0
	iocWrite = 1
	iocRead  = 2
)

// ioc returns the number of an ioctl of evdev, as the kernel's macro _IOC('E') makes it. size is that of its argument.
func ioc(dir, nr, size int) uintptr { return uintptr(dir<<30 | size<<16 | 'E'<<8 | nr) }

// The ioctls, include/uapi/linux/input.h. Some numbers contain how much room the caller has.
func evioCGID() uintptr               { return ioc(iocRead, 0x02, sizeID) }
func evioCGName(room int) uintptr     { return ioc(iocRead, 0x06, room) }
func evioCGPhys(room int) uintptr     { return ioc(iocRead, 0x07, room) }
func evioCGUniq(room int) uintptr     { return ioc(iocRead, 0x08, room) }
func evioCGProp(room int) uintptr     { return ioc(iocRead, 0x09, room) }
func evioCGMTSlots(room int) uintptr  { return ioc(iocRead, 0x0a, room) }
func evioCGKey(room int) uintptr      { return ioc(iocRead, 0x18, room) }
func evioCGLED(room int) uintptr      { return ioc(iocRead, 0x19, room) }
func evioCGSW(room int) uintptr       { return ioc(iocRead, 0x1b, room) }
func evioCGBit(typ, room int) uintptr { return ioc(iocRead, 0x20+typ, room) }
func evioCGAbs(axis uint16) uintptr   { return ioc(iocRead, 0x40+int(axis), sizeAbsInfo) }
func evioCGrab() uintptr              { return ioc(iocWrite, 0x90, sizeInt) }
func evioCRevoke() uintptr            { return ioc(iocWrite, 0x91, sizeInt) }
func evioCSMask() uintptr             { return ioc(iocWrite, 0x93, sizeMask) }
func evioCSClockID() uintptr          { return ioc(iocWrite, 0xa0, sizeInt) }

// Sizes of structures, in bytes.
const (
	sizeInt     = 4
	sizeID      = 8  // input_id
	sizeAbsInfo = 24 // input_absinfo
	sizeMask    = 16 // input_mask
	sizeEvent   = 24 // input_event
)

// How many codes a type can have: KEY_CNT and so on, in bytes and rounded up to the kernel's words.
const (
	roomKeys  = 0x300 / 8
	roomAbs   = 0x40 / 8
	roomSmall = 8 // EV_CNT, REL_CNT, LED_CNT, SW_CNT, INPUT_PROP_CNT: 32 bits at most
)

// mtToolPalm is the value of ABS_MT_TOOL_TYPE for what the device itself takes for a palm.
const mtToolPalm = 2
