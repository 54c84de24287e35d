package kms

//lint:file-ignore U1000 the kernel's structures have fields that we leave at zero

// version is struct drm_version.
type version struct {
	major, minor, patch int32
	_                   int32
	nameLen             uint64
	name                uint64
	dateLen             uint64
	date                uint64
	descLen             uint64
	desc                uint64
}

// capability is struct drm_get_cap, and struct drm_set_client_cap.
type capability struct{ capability, value uint64 }

// gemClose is struct drm_gem_close.
type gemClose struct{ handle, pad uint32 }

// primeHandle is struct drm_prime_handle.
type primeHandle struct {
	handle, flags uint32
	fd            int32
}

// ModeInfo is struct drm_mode_modeinfo: a mode with its timing, in pixels and lines.
type ModeInfo struct {
	Clock                                         uint32 // kHz
	HDisplay, HSyncStart, HSyncEnd, HTotal, HSkew uint16
	VDisplay, VSyncStart, VSyncEnd, VTotal, VScan uint16
	VRefresh                                      uint32 // Hz, roughly
	Flags, Type                                   uint32
	Name                                          [32]byte
}

// cardRes is struct drm_mode_card_res.
type cardRes struct {
	fbIDs, crtcIDs, connectorIDs, encoderIDs             uint64
	countFBs, countCRTCs, countConnectors, countEncoders uint32
	minWidth, maxWidth, minHeight, maxHeight             uint32
}

// CRTC is struct drm_mode_crtc: what a CRTC shows.
type CRTC struct {
	connectors      uint64
	countConnectors uint32
	ID, FB          uint32
	X, Y            uint32
	gammaSize       uint32
	ModeValid       uint32
	Mode            ModeInfo
}

// Encoder is struct drm_mode_get_encoder.
type Encoder struct {
	ID, Type, CRTC uint32
	PossibleCRTCs  uint32 // bits, by the order of Resources.CRTCs
	PossibleClones uint32
}

// getConnector is struct drm_mode_get_connector.
type getConnector struct {
	encoders, modes, props, values        uint64
	countModes, countProps, countEncoders uint32
	encoderID                             uint32
	id, kind, kindID                      uint32
	connection                            uint32
	mmWidth, mmHeight, subpixel, pad      uint32
}

// getProperty is struct drm_mode_get_property.
type getProperty struct {
	values, enumBlobs       uint64
	id, flags               uint32
	name                    [32]byte
	countValues, countEnums uint32
}

// objProperties is struct drm_mode_obj_get_properties.
type objProperties struct {
	props, values    uint64
	count, obj, kind uint32
	_                uint32
}

// getBlob is struct drm_mode_get_blob.
type getBlob struct {
	id, length uint32
	data       uint64
}

// fbCmd2 is struct drm_mode_fb_cmd2.
type fbCmd2 struct {
	id, width, height, format, flags uint32
	handles, pitches, offsets        [4]uint32
	modifiers                        [4]uint64
}

// fbDirty is struct drm_mode_fb_dirty_cmd.
type fbDirty struct {
	id, flags, color, numClips uint32
	clips                      uint64
}

// clipRect is struct drm_clip_rect.
type clipRect struct{ x1, y1, x2, y2 uint16 }

// modeRect is struct drm_mode_rect, of which FB_DAMAGE_CLIPS is a list.
type modeRect struct{ x1, y1, x2, y2 int32 }

// pageFlip is struct drm_mode_crtc_page_flip.
type pageFlip struct {
	crtc, fb, flags, reserved uint32
	userData                  uint64
}

// createDumb is struct drm_mode_create_dumb.
type createDumb struct {
	height, width, bpp, flags uint32
	handle, pitch             uint32
	size                      uint64
}

// mapDumb is struct drm_mode_map_dumb.
type mapDumb struct {
	handle, pad uint32
	offset      uint64
}

// planeRes is struct drm_mode_get_plane_res.
type planeRes struct {
	ids   uint64
	count uint32
	_     uint32
}

// Plane is struct drm_mode_get_plane, without its formats.
type Plane struct {
	ID, CRTC, FB  uint32
	PossibleCRTCs uint32 // bits, by the order of Resources.CRTCs
	gammaSize     uint32
	countFormats  uint32
	formats       uint64
}

// cursor2 is struct drm_mode_cursor2.
type cursor2 struct {
	flags, crtc           uint32
	x, y                  int32
	width, height, handle uint32
	hotX, hotY            int32
}

// atomicArg is struct drm_mode_atomic.
type atomicArg struct {
	flags, countObjs                uint32
	objs, countProps, props, values uint64
	reserved, userData              uint64
}

// createBlob is struct drm_mode_create_blob.
type createBlob struct {
	data       uint64
	length, id uint32
}
