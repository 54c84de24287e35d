package kms

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"
)

// TestLayout has the C compiler say what the kernel's headers (Debian's libdrm-dev) make of our structures and numbers.
func TestLayout(t *testing.T) {
	type check struct {
		c    string // an expression of C
		want uintptr
	}
	size := func(name string) string { return "sizeof(struct " + name + ")" }
	off := func(name, field string) string { return "offsetof(struct " + name + ", " + field + ")" }
	checks := []check{
		{size("drm_version"), unsafe.Sizeof(version{})},
		{off("drm_version", "name_len"), unsafe.Offsetof(version{}.nameLen)},
		{off("drm_version", "name"), unsafe.Offsetof(version{}.name)},
		{size("drm_get_cap"), unsafe.Sizeof(capability{})},
		{size("drm_set_client_cap"), unsafe.Sizeof(capability{})},
		{size("drm_gem_close"), unsafe.Sizeof(gemClose{})},
		{size("drm_prime_handle"), unsafe.Sizeof(primeHandle{})},
		{off("drm_prime_handle", "fd"), unsafe.Offsetof(primeHandle{}.fd)},
		{size("drm_mode_modeinfo"), unsafe.Sizeof(ModeInfo{})},
		{off("drm_mode_modeinfo", "vdisplay"), unsafe.Offsetof(ModeInfo{}.VDisplay)},
		{off("drm_mode_modeinfo", "vrefresh"), unsafe.Offsetof(ModeInfo{}.VRefresh)},
		{off("drm_mode_modeinfo", "type"), unsafe.Offsetof(ModeInfo{}.Type)},
		{off("drm_mode_modeinfo", "name"), unsafe.Offsetof(ModeInfo{}.Name)},
		{size("drm_mode_card_res"), unsafe.Sizeof(cardRes{})},
		{off("drm_mode_card_res", "crtc_id_ptr"), unsafe.Offsetof(cardRes{}.crtcIDs)},
		{off("drm_mode_card_res", "connector_id_ptr"), unsafe.Offsetof(cardRes{}.connectorIDs)},
		{off("drm_mode_card_res", "count_crtcs"), unsafe.Offsetof(cardRes{}.countCRTCs)},
		{off("drm_mode_card_res", "count_encoders"), unsafe.Offsetof(cardRes{}.countEncoders)},
		{off("drm_mode_card_res", "max_height"), unsafe.Offsetof(cardRes{}.maxHeight)},
		{size("drm_mode_crtc"), unsafe.Sizeof(CRTC{})},
		{off("drm_mode_crtc", "crtc_id"), unsafe.Offsetof(CRTC{}.ID)},
		{off("drm_mode_crtc", "fb_id"), unsafe.Offsetof(CRTC{}.FB)},
		{off("drm_mode_crtc", "mode_valid"), unsafe.Offsetof(CRTC{}.ModeValid)},
		{off("drm_mode_crtc", "mode"), unsafe.Offsetof(CRTC{}.Mode)},
		{size("drm_mode_get_encoder"), unsafe.Sizeof(Encoder{})},
		{off("drm_mode_get_encoder", "possible_crtcs"), unsafe.Offsetof(Encoder{}.PossibleCRTCs)},
		{size("drm_mode_get_connector"), unsafe.Sizeof(getConnector{})},
		{off("drm_mode_get_connector", "encoder_id"), unsafe.Offsetof(getConnector{}.encoderID)},
		{off("drm_mode_get_connector", "connector_type"), unsafe.Offsetof(getConnector{}.kind)},
		{off("drm_mode_get_connector", "connection"), unsafe.Offsetof(getConnector{}.connection)},
		{off("drm_mode_get_connector", "mm_height"), unsafe.Offsetof(getConnector{}.mmHeight)},
		{size("drm_mode_get_property"), unsafe.Sizeof(getProperty{})},
		{off("drm_mode_get_property", "name"), unsafe.Offsetof(getProperty{}.name)},
		{size("drm_mode_obj_get_properties"), unsafe.Sizeof(objProperties{})},
		{off("drm_mode_obj_get_properties", "obj_id"), unsafe.Offsetof(objProperties{}.obj)},
		{size("drm_mode_get_blob"), unsafe.Sizeof(getBlob{})},
		{size("drm_mode_fb_cmd2"), unsafe.Sizeof(fbCmd2{})},
		{off("drm_mode_fb_cmd2", "pixel_format"), unsafe.Offsetof(fbCmd2{}.format)},
		{off("drm_mode_fb_cmd2", "handles"), unsafe.Offsetof(fbCmd2{}.handles)},
		{off("drm_mode_fb_cmd2", "pitches"), unsafe.Offsetof(fbCmd2{}.pitches)},
		{off("drm_mode_fb_cmd2", "modifier"), unsafe.Offsetof(fbCmd2{}.modifiers)},
		{size("drm_mode_fb_dirty_cmd"), unsafe.Sizeof(fbDirty{})},
		{off("drm_mode_fb_dirty_cmd", "clips_ptr"), unsafe.Offsetof(fbDirty{}.clips)},
		{size("drm_clip_rect"), unsafe.Sizeof(clipRect{})},
		{size("drm_mode_rect"), unsafe.Sizeof(modeRect{})},
		{size("drm_mode_crtc_page_flip"), unsafe.Sizeof(pageFlip{})},
		{off("drm_mode_crtc_page_flip", "user_data"), unsafe.Offsetof(pageFlip{}.userData)},
		{size("drm_mode_create_dumb"), unsafe.Sizeof(createDumb{})},
		{off("drm_mode_create_dumb", "width"), unsafe.Offsetof(createDumb{}.width)},
		{off("drm_mode_create_dumb", "pitch"), unsafe.Offsetof(createDumb{}.pitch)},
		{off("drm_mode_create_dumb", "size"), unsafe.Offsetof(createDumb{}.size)},
		{size("drm_mode_map_dumb"), unsafe.Sizeof(mapDumb{})},
		{size("drm_mode_get_plane_res"), unsafe.Sizeof(planeRes{})},
		{size("drm_mode_get_plane"), unsafe.Sizeof(Plane{})},
		{off("drm_mode_get_plane", "possible_crtcs"), unsafe.Offsetof(Plane{}.PossibleCRTCs)},
		{off("drm_mode_get_plane", "format_type_ptr"), unsafe.Offsetof(Plane{}.formats)},
		{size("drm_mode_cursor2"), unsafe.Sizeof(cursor2{})},
		{off("drm_mode_cursor2", "handle"), unsafe.Offsetof(cursor2{}.handle)},
		{off("drm_mode_cursor2", "hot_y"), unsafe.Offsetof(cursor2{}.hotY)},
		{size("drm_mode_atomic"), unsafe.Sizeof(atomicArg{})},
		{off("drm_mode_atomic", "objs_ptr"), unsafe.Offsetof(atomicArg{}.objs)},
		{off("drm_mode_atomic", "prop_values_ptr"), unsafe.Offsetof(atomicArg{}.values)},
		{off("drm_mode_atomic", "user_data"), unsafe.Offsetof(atomicArg{}.userData)},
		{size("drm_mode_create_blob"), unsafe.Sizeof(createBlob{})},
		{off("drm_mode_create_blob", "blob_id"), unsafe.Offsetof(createBlob{}.id)},
		{size("drm_event"), eventSize},
		{size("drm_event_vblank"), eventVBlank},
		{off("drm_event_vblank", "user_data"), 8},
		{off("drm_event_vblank", "tv_sec"), 16},
		{off("drm_event_vblank", "sequence"), 24},
		{off("drm_event_vblank", "crtc_id"), 28},

		{"DRM_IOCTL_VERSION", nrVersion},
		{"DRM_IOCTL_GEM_CLOSE", nrGEMClose},
		{"DRM_IOCTL_GET_CAP", nrGetCap},
		{"DRM_IOCTL_SET_CLIENT_CAP", nrSetClientCap},
		{"DRM_IOCTL_SET_MASTER", nrSetMaster},
		{"DRM_IOCTL_DROP_MASTER", nrDropMaster},
		{"DRM_IOCTL_PRIME_FD_TO_HANDLE", nrPrimeFDToHandle},
		{"DRM_IOCTL_MODE_GETRESOURCES", nrGetResources},
		{"DRM_IOCTL_MODE_GETCRTC", nrGetCRTC},
		{"DRM_IOCTL_MODE_SETCRTC", nrSetCRTC},
		{"DRM_IOCTL_MODE_GETENCODER", nrGetEncoder},
		{"DRM_IOCTL_MODE_GETCONNECTOR", nrGetConnector},
		{"DRM_IOCTL_MODE_GETPROPERTY", nrGetProperty},
		{"DRM_IOCTL_MODE_GETPROPBLOB", nrGetPropBlob},
		{"DRM_IOCTL_MODE_RMFB", nrRmFB},
		{"DRM_IOCTL_MODE_PAGE_FLIP", nrPageFlip},
		{"DRM_IOCTL_MODE_DIRTYFB", nrDirtyFB},
		{"DRM_IOCTL_MODE_CREATE_DUMB", nrCreateDumb},
		{"DRM_IOCTL_MODE_MAP_DUMB", nrMapDumb},
		{"DRM_IOCTL_MODE_DESTROY_DUMB", nrDestroyDumb},
		{"DRM_IOCTL_MODE_GETPLANERESOURCES", nrGetPlaneResources},
		{"DRM_IOCTL_MODE_GETPLANE", nrGetPlane},
		{"DRM_IOCTL_MODE_ADDFB2", nrAddFB2},
		{"DRM_IOCTL_MODE_OBJ_GETPROPERTIES", nrObjGetProperties},
		{"DRM_IOCTL_MODE_CURSOR2", nrCursor2},
		{"DRM_IOCTL_MODE_ATOMIC", nrAtomic},
		{"DRM_IOCTL_MODE_CREATEPROPBLOB", nrCreatePropBlob},
		{"DRM_IOCTL_MODE_DESTROYPROPBLOB", nrDestroyPropBlob},

		{"DRM_CAP_DUMB_BUFFER", CapDumbBuffer},
		{"DRM_CAP_PRIME", CapPrime},
		{"DRM_PRIME_CAP_IMPORT", primeImport},
		{"DRM_CAP_TIMESTAMP_MONOTONIC", CapTimestampMonotonic},
		{"DRM_CAP_CURSOR_WIDTH", CapCursorWidth},
		{"DRM_CAP_CURSOR_HEIGHT", CapCursorHeight},
		{"DRM_CLIENT_CAP_UNIVERSAL_PLANES", ClientCapUniversalPlanes},
		{"DRM_CLIENT_CAP_ATOMIC", ClientCapAtomic},
		{"DRM_MODE_OBJECT_CRTC", ObjectCRTC},
		{"DRM_MODE_OBJECT_CONNECTOR", ObjectConnector},
		{"DRM_MODE_OBJECT_PLANE", ObjectPlane},
		{"DRM_MODE_FLAG_INTERLACE", modeFlagInterlace},
		{"DRM_MODE_FLAG_DBLSCAN", modeFlagDblScan},
		{"DRM_MODE_TYPE_PREFERRED", modeTypePreferred},
		{"DRM_MODE_PAGE_FLIP_EVENT", flagFlipEvent},
		{"DRM_MODE_ATOMIC_NONBLOCK", flagNonblock},
		{"DRM_MODE_ATOMIC_ALLOW_MODESET", flagAllowModeset},
		{"DRM_MODE_CURSOR_BO", cursorBO},
		{"DRM_MODE_CURSOR_MOVE", cursorMove},
		{"DRM_EVENT_FLIP_COMPLETE", eventFlipComplete},
		{"DRM_MODE_FB_DIRTY_MAX_CLIPS", maxDirtyClips},
	}
	var src strings.Builder
	src.WriteString("#include <stddef.h>\n#include <stdio.h>\n#include <libdrm/drm.h>\n#include <libdrm/drm_mode.h>\nint main(void)\n{\n")
	for _, c := range checks {
		fmt.Fprintf(&src, "\tprintf(\"%%lu\\n\", (unsigned long)(%s));\n", c.c)
	}
	src.WriteString("\treturn 0;\n}\n")
	dir := t.TempDir()
	file, program := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	if err := os.WriteFile(file, []byte(src.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-I/usr/include/libdrm", "-o", program, file).CombinedOutput(); err != nil {
		t.Fatalf("gcc, with Debian's libdrm-dev: %v\n%s", err, out)
	}
	out, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(out))
	for i, c := range checks {
		if want := fmt.Sprint(c.want); got[i] != want {
			t.Errorf("%s is %s, ours is %s", c.c, got[i], want)
		}
	}
}
