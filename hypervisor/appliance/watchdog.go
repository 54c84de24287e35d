package appliance

import (
	"context"
	"time"
)

// dog is /dev/watchdog: a machine that it is not fed in time is reset by the hardware.
type dog interface {
	KeepAlive() error
	MagicClose() error // it sleeps from then on, if the kernel lets it
}

// feedEvery is less than half of the shortest time that drivers start with, which is 10 s or more.
const feedEvery = 4 * time.Second

// feed keeps the watchdog quiet as long as alive says that all is well, until ctx is done; then it is put to sleep.
func feed(ctx context.Context, w dog, every time.Duration, alive func() bool) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if alive() {
			if err := w.KeepAlive(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return w.MagicClose()
		case <-t.C:
		}
	}
}
