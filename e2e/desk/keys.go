package desk

import (
	"context"
	"encoding/json"
	"time"
)

// keyPause is between a key and the next, as of somebody in a hurry. Linux keeps 64 events of a keyboard for a compositor and
// drops all of them when there are more, for which an emulated guest's compositor is slow enough.
const keyPause = 50 * time.Millisecond

// clickPause is between a move of the pointer, the press of its button, and its release: enough for a guest to draw what is under it.
const clickPause = 300 * time.Millisecond

// lookPause is between a look at the screen and the next.
const lookPause = 200 * time.Millisecond

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Hands are on a machine's keyboard and mouse.
type Hands struct {
	// QMP executes a command of QEMU's.
	QMP func(ctx context.Context, command string, args any) (json.RawMessage, error)
}

// Press presses keys of the keyboard together, by QEMU's names ("ctrl", "a", "ret"), and releases them.
func (h Hands) Press(ctx context.Context, keys ...string) error {
	var all []keyEvent
	for _, k := range keys {
		all = append(all, event(k, true))
	}
	for i := len(keys) - 1; i >= 0; i-- {
		all = append(all, event(keys[i], false))
	}
	return h.send(ctx, all)
}

// Type types lower-case letters, digits, spaces, dots, colons, slashes and line ends.
func (h Hands) Type(ctx context.Context, text string) error {
	names := map[rune]string{' ': "spc", '\n': "ret", '.': "dot", '/': "slash"}
	for _, r := range text {
		keys := []string{names[r]}
		switch {
		case r == ':':
			keys = []string{"shift", "semicolon"}
		case keys[0] == "":
			keys[0] = string(r)
		}
		if err := h.Press(ctx, keys...); err != nil {
			return err
		}
		if err := pause(ctx, keyPause); err != nil {
			return err
		}
	}
	return nil
}

// keyEvent is QEMU's InputEvent for a key.
type keyEvent struct {
	Type string `json:"type"`
	Data struct {
		Down bool `json:"down"`
		Key  struct {
			Type string `json:"type"`
			Data string `json:"data"`
		} `json:"key"`
	} `json:"data"`
}

func event(key string, down bool) keyEvent {
	e := keyEvent{Type: "key"}
	e.Data.Down, e.Data.Key.Type, e.Data.Key.Data = down, "qcode", key
	return e
}

func (h Hands) send(ctx context.Context, events []keyEvent) error {
	_, err := h.QMP(ctx, "input-send-event", map[string]any{"events": events})
	return err
}

// Move moves the pointer to a place on a screen of 1024x768 pixels.
func (h Hands) Move(ctx context.Context, x, y int) error {
	axis := func(name string, value, size int) map[string]any {
		const most = 0x7fff // of QEMU's axes
		return map[string]any{"type": "abs", "data": map[string]any{"axis": name, "value": value * most / size}}
	}
	_, err := h.QMP(ctx, "input-send-event", map[string]any{"events": []any{axis("x", x, Width), axis("y", y, Height+Bar)}})
	return err
}

// Click moves the pointer to a place on the screen, as Move does, and clicks there.
func (h Hands) Click(ctx context.Context, x, y int) error {
	if err := h.Move(ctx, x, y); err != nil {
		return err
	}
	for _, down := range []bool{true, false} {
		if err := pause(ctx, clickPause); err != nil {
			return err
		}
		button := map[string]any{"type": "btn", "data": map[string]any{"button": "left", "down": down}}
		if _, err := h.QMP(ctx, "input-send-event", map[string]any{"events": []any{button}}); err != nil {
			return err
		}
	}
	return nil
}
