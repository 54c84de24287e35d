package desk

import (
	"context"
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

// Press presses keys of the notebook's keyboard together, by QEMU's names ("ctrl", "a", "ret"), and releases them.
func (d *Desk) Press(ctx context.Context, keys ...string) error {
	var all []keyEvent
	for _, k := range keys {
		all = append(all, event(k, true))
	}
	for i := len(keys) - 1; i >= 0; i-- {
		all = append(all, event(keys[i], false))
	}
	return d.send(ctx, all)
}

// Type types lower-case letters, digits, spaces, dots, slashes and line ends.
func (d *Desk) Type(ctx context.Context, text string) error {
	names := map[rune]string{' ': "spc", '\n': "ret", '.': "dot", '/': "slash"}
	for _, r := range text {
		name := names[r]
		if name == "" {
			name = string(r)
		}
		if err := d.Press(ctx, name); err != nil {
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

func (d *Desk) send(ctx context.Context, events []keyEvent) error {
	_, err := d.Notebook.QMP(ctx, "input-send-event", map[string]any{"events": events})
	return err
}

// Move moves the notebook's pointer to a place on its screen, in pixels.
func (d *Desk) Move(ctx context.Context, x, y int) error {
	axis := func(name string, value, size int) map[string]any {
		const most = 0x7fff // of QEMU's axes
		return map[string]any{"type": "abs", "data": map[string]any{"axis": name, "value": value * most / size}}
	}
	_, err := d.Notebook.QMP(ctx, "input-send-event", map[string]any{"events": []any{axis("x", x, Width), axis("y", y, Height+Bar)}})
	return err
}

// Click moves the pointer to a place on the screen, as Move does, and clicks there.
func (d *Desk) Click(ctx context.Context, x, y int) error {
	if err := d.Move(ctx, x, y); err != nil {
		return err
	}
	for _, down := range []bool{true, false} {
		if err := pause(ctx, clickPause); err != nil {
			return err
		}
		button := map[string]any{"type": "btn", "data": map[string]any{"button": "left", "down": down}}
		if _, err := d.Notebook.QMP(ctx, "input-send-event", map[string]any{"events": []any{button}}); err != nil {
			return err
		}
	}
	return nil
}
