package kms

// The numbers of the ioctls. The upper half encodes the direction and the size of the argument.
const (
	nrVersion           = 0xc0406400
	nrGEMClose          = 0x40086409
	nrGetCap            = 0xc010640c
	nrSetClientCap      = 0x4010640d
	nrSetMaster         = 0x0000641e
	nrDropMaster        = 0x0000641f
	nrPrimeFDToHandle   = 0xc00c642e
	nrGetResources      = 0xc04064a0
	nrGetCRTC           = 0xc06864a1
	nrSetCRTC           = 0xc06864a2
	nrGetEncoder        = 0xc01464a6
	nrGetConnector      = 0xc05064a7
	nrGetProperty       = 0xc04064aa
	nrGetPropBlob       = 0xc01064ac
	nrRmFB              = 0xc00464af
	nrPageFlip          = 0xc01864b0
	nrDirtyFB           = 0xc01864b1
	nrCreateDumb        = 0xc02064b2
	nrMapDumb           = 0xc01064b3
	nrDestroyDumb       = 0xc00464b4
	nrGetPlaneResources = 0xc01064b5
	nrGetPlane          = 0xc02064b6
	nrAddFB2            = 0xc06864b8
	nrObjGetProperties  = 0xc02064b9
	nrCursor2           = 0xc02464bb
	nrAtomic            = 0xc03864bc
	nrCreatePropBlob    = 0xc01064bd
	nrDestroyPropBlob   = 0xc00464be
)

// Capabilities of a driver, for GetCap.
const (
	CapDumbBuffer         = 0x1
	CapPrime              = 0x5 // bits: 1 import, 2 export
	CapTimestampMonotonic = 0x6
	CapCursorWidth        = 0x8
	CapCursorHeight       = 0x9

	primeImport = 1 << 0
)

// Capabilities of ours, for SetClientCap.
const (
	ClientCapUniversalPlanes = 2
	ClientCapAtomic          = 3
	ClientCapCursorHotspot   = 6
)

// Types of objects, for ObjGetProperties.
const (
	ObjectCRTC      = 0xcccccccc
	ObjectConnector = 0xc0c0c0c0
	ObjectPlane     = 0xeeeeeeee
)

// Flags of a mode and of its type.
const (
	modeFlagInterlace = 1 << 4
	modeFlagDblScan   = 1 << 5
	modeTypePreferred = 1 << 3
)

// Connected is the state of a connector with a monitor.
const Connected = 1

// Values of a plane's property "type".
const (
	planeOverlay = 0
	planePrimary = 1
	planeCursor  = 2
)

// Flags of PageFlip and Atomic.
const (
	flagFlipEvent    = 0x1
	flagTestOnly     = 0x100
	flagNonblock     = 0x200
	flagAllowModeset = 0x400
)

// Flags of Cursor2.
const (
	cursorBO   = 0x1
	cursorMove = 0x2
)

// eventFlipComplete is the type of the event at the end of a page flip.
const eventFlipComplete = 0x2

// maxDirtyClips is DRM_MODE_FB_DIRTY_MAX_CLIPS.
const maxDirtyClips = 256
