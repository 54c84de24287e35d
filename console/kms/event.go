package kms

import (
	"encoding/binary"
	"errors"
	"time"
)

// Event is struct drm_event_vblank: a page flip has happened.
type Event struct {
	User     uint64        // what PageFlip or Commit was given
	Time     time.Duration // on CLOCK_MONOTONIC
	Sequence uint32        // of the CRTC's refreshes
	CRTC     uint32        // 0 before Linux 4.12
}

// Sizes of struct drm_event and drm_event_vblank.
const (
	eventSize      = 8
	eventVBlank    = 32
	maxEventBuffer = 1024 // what one read gets at most
)

// parseEvents calls f for each page flip in b, which one read has got: whole events.
func parseEvents(b []byte, f func(Event)) error {
	for len(b) > 0 {
		if len(b) < eventSize {
			return errors.New("event of the graphics card is cut off")
		}
		kind, n := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
		if n < eventSize || uint64(n) > uint64(len(b)) {
			return errors.New("event of the graphics card has a wrong length")
		}
		if kind == eventFlipComplete && n >= eventVBlank {
			f(Event{
				User: binary.NativeEndian.Uint64(b[8:]),
				Time: time.Duration(binary.NativeEndian.Uint32(b[16:]))*time.Second +
					time.Duration(binary.NativeEndian.Uint32(b[20:]))*time.Microsecond,
				Sequence: binary.NativeEndian.Uint32(b[24:]),
				CRTC:     binary.NativeEndian.Uint32(b[28:]),
			})
		}
		b = b[n:]
	}
	return nil
}

// ReadEvents waits for events and calls f for each page flip. It is os.ErrClosed after Close.
func (c *Card) ReadEvents(f func(Event)) error {
	var b [maxEventBuffer]byte
	n, err := c.dev.read(b[:])
	if err != nil {
		return err
	}
	return parseEvents(b[:n], f)
}
