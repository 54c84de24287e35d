// Package kms shows pictures on monitors through the kernel's mode setting, /dev/dri/card*.
//
// Card is the kernel's interface, as thin as it can be: one method for an ioctl, named after it (include/uapi/drm/drm.h and
// drm_mode.h; Documentation/gpu/drm-uapi.rst). Structures have the kernel's layout, which a test holds against the C
// headers. Display is all of a card's monitors, and Screen, an output.Output, is one of them: each has a CRTC and a primary
// plane of its own, and shows dumb buffers, memory that the CPU writes, which every driver has.
//
// A Display sets modes atomically where the driver can, and by the older ioctls where it cannot. It needs to be the card's
// master, which one program at a time is: Release and Acquire hand the card to another, when the user changes to a text
// console (see console/vt).
package kms
