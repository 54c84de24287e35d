// Package guest brings what a person does to the input devices of one guest. A guest has several: firmware and installers
// know a PS/2 keyboard and mouse, its own drivers find better ones over virtio. Whoever sends need not know which the guest
// uses at the moment.
//
//	keys              virtio keyboard, or the PS/2 one while that has no driver
//	relative motion   virtio mouse, or the PS/2 one
//	positions         tablet, or as relative motion to the mouse
//	contacts          touch screen
//	buttons, wheels   with the motion beside them, or to where the last motion went
//
// A key is released in the device in which it was pressed. When keys go to another device from now on, what is held is
// released in the old one and not pressed in the new.
package guest

import (
	"sync"

	"github.com/lodgehv/lodge/hid"
	"github.com/lodgehv/lodge/hid/ps2"
	"github.com/lodgehv/lodge/hid/virtioinput"
	"github.com/lodgehv/lodge/hypervisor/virtio"
)

// device is an input device as Input sees it.
type device interface {
	hid.Sink
	// ReleaseAll releases what is down.
	ReleaseAll()
	// Active reports whether a driver of the guest's takes events.
	Active() bool
}

// place is one of the devices that a guest may have.
type place uint8

const (
	nowhere place = iota
	virtioKeyboard
	virtioMouse
	virtioTablet
	virtioTouch
	ps2Keyboard
	ps2Mouse
	places
)

// Input is a hid.Sink for one guest, through all of its reboots: each machine's devices are made by its methods and take the
// place of those before. Its zero value is a guest without devices.
//
// The functions of OnLEDs and OnWantsAbsolute are called in turn and with Input locked: they may not call it, nor wait.
type Input struct {
	mu      sync.Mutex
	devices [places]device
	lights  [places]hid.LEDs
	holder  [hid.KeyMax + 1]place // the device in which a key or button is down

	// Where events go to.
	keyboard, mouse, tablet, touch place
	pointer                        place // where the last motion went to

	width, height int32    // of the screen, in pixels; 0 is not known
	at            [2]int32 // last position, in pixels
	atKnown       [2]bool  // since when it counts
	wheels        [2]wheel // vertical, horizontal
	out           [places][]hid.Event

	leds       hid.LEDs // of keyboard
	onLEDs     map[*func(hid.LEDs)]struct{}
	onAbsolute map[*func(bool)]struct{}
}

// Virtio returns what makes a virtio device of the guest's, for machine.Virtio.
func (g *Input) Virtio(kind virtioinput.Kind) func() (virtio.Device, error) {
	return func() (virtio.Device, error) {
		p := virtioKeyboard + place(kind)
		var d *virtioinput.Device
		d, err := virtioinput.New(kind, virtioinput.Config{Changed: g.changed, LEDs: func(l hid.LEDs) { g.light(p, d, l) }})
		if err != nil {
			return nil, err
		}
		g.plug(p, d)
		return d, nil
	}
}

// PS2Keyboard makes the guest's PS/2 keyboard, for machine.Config.
func (g *Input) PS2Keyboard(ready func()) *ps2.Keyboard {
	var k *ps2.Keyboard
	k = ps2.NewKeyboard(ready, func(l hid.LEDs) { g.light(ps2Keyboard, k, l) })
	g.plug(ps2Keyboard, k)
	return k
}

// PS2Mouse makes the guest's PS/2 mouse, for machine.Config.
func (g *Input) PS2Mouse(ready func()) *ps2.Mouse {
	m := ps2.NewMouse(ready, g.changed)
	g.plug(ps2Mouse, m)
	return m
}

// plug puts d into its place. What was there belongs to a machine that is gone.
func (g *Input) plug(p place, d device) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(p)
	g.devices[p], g.lights[p] = d, 0
	g.route()
}

// SetSize says how large the guest's screen is, in pixels: positions become relative motion by it where there is no tablet.
func (g *Input) SetSize(width, height int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.width, g.height = int32(min(max(width, 0), 1<<15)), int32(min(max(height, 0), 1<<15))
	g.atKnown = [2]bool{}
}

// LEDs returns the lights of the keyboard that the guest uses.
func (g *Input) LEDs() hid.LEDs {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.leds
}

// OnLEDs has f called when the lights change, until stop has returned.
func (g *Input) OnLEDs(f func(hid.LEDs)) (stop func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.onLEDs == nil {
		g.onLEDs = make(map[*func(hid.LEDs)]struct{})
	}
	g.onLEDs[&f] = struct{}{}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.onLEDs, &f)
	}
}

// WantsAbsolute reports whether the guest takes positions as such: then its pointer is where the sender's is.
func (g *Input) WantsAbsolute() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.tablet != nowhere
}

// OnWantsAbsolute has f called when WantsAbsolute changes, until stop has returned.
func (g *Input) OnWantsAbsolute(f func(bool)) (stop func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.onAbsolute == nil {
		g.onAbsolute = make(map[*func(bool)]struct{})
	}
	g.onAbsolute[&f] = struct{}{}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.onAbsolute, &f)
	}
}

// ReleaseAll releases everything that is held, as when the person turns to another guest.
func (g *Input) ReleaseAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, d := range g.devices {
		if d != nil {
			d.ReleaseAll()
		}
	}
	g.holder = [hid.KeyMax + 1]place{}
	g.atKnown, g.wheels = [2]bool{}, [2]wheel{}
}

// changed is called by a device whose Active has changed.
func (g *Input) changed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.route()
}

// light is called by a keyboard whose lights have changed.
func (g *Input) light(p place, d device, leds hid.LEDs) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.devices[p] == d { // or it is of a machine that is gone
		g.lights[p] = leds
		g.tellLEDs()
	}
}

func (g *Input) tellLEDs() {
	if leds := g.lights[g.keyboard]; leds != g.leds {
		g.leds = leds
		for f := range g.onLEDs {
			(*f)(leds)
		}
	}
}

// active returns p if its device is active, or else another place.
func (g *Input) active(p, other place) place {
	if d := g.devices[p]; d != nil && d.Active() {
		return p
	}
	return other
}

// there returns p if it has a device.
func (g *Input) there(p place) place {
	if g.devices[p] == nil {
		return nowhere
	}
	return p
}

// route decides where events go to from now on.
func (g *Input) route() {
	absolute := g.tablet != nowhere
	for _, r := range []struct {
		now  *place
		next place
	}{
		{&g.keyboard, g.active(virtioKeyboard, g.there(ps2Keyboard))},
		{&g.mouse, g.active(virtioMouse, g.there(ps2Mouse))},
		{&g.tablet, g.active(virtioTablet, nowhere)},
		{&g.touch, g.active(virtioTouch, nowhere)},
	} {
		old := *r.now
		if old == r.next {
			continue
		}
		*r.now = r.next
		g.atKnown = [2]bool{}
		if d := g.devices[old]; d != nil {
			d.ReleaseAll()
		}
		g.forget(old)
	}
	g.tellLEDs()
	if now := g.tablet != nowhere; now != absolute {
		for f := range g.onAbsolute {
			(*f)(now)
		}
	}
}

// forget forgets what is held in a device.
func (g *Input) forget(p place) {
	for code, h := range g.holder {
		if h == p {
			g.holder[code] = nowhere
		}
	}
}
