package seat

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lodgehv/lodge/console/compose"
	"github.com/lodgehv/lodge/console/trustbar"
	"github.com/lodgehv/lodge/internal/uevent"
)

// status keeps the bar's clock, battery and news right until ctx is done: it wakes when the clock's text changes, when the
// kernel says that a power supply has changed, and when there are news.
func (s *Seat) status(ctx context.Context) {
	changed := make(chan struct{}, 1)
	if conn, err := uevent.Listen(); err != nil {
		s.opt.Log.Warn("the bar's battery is as old as its clock", "err", err)
	} else {
		defer conn.Close()
		go func() {
			_ = conn.Follow(ctx, "power_supply", func(*uevent.Event) { // ends with ctx
				select {
				case changed <- struct{}{}:
				default:
				}
			})
		}()
	}
	for {
		text, next := trustbar.Clock(time.Now())
		s.SetStatus(compose.Status{Clock: text, Battery: battery(powerSupplies), Hint: s.hint, News: s.news.now()})
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-s.news.changed:
		case <-time.After(next):
		}
	}
}

const powerSupplies = "/sys/class/power_supply"

// battery reads the first battery of a directory of power supplies (Documentation/ABI/testing/sysfs-class-power).
func battery(dir string) trustbar.Battery {
	supplies, err := os.ReadDir(dir)
	if err != nil {
		return trustbar.Battery{}
	}
	for _, e := range supplies {
		read := func(name string) string {
			b, err := os.ReadFile(filepath.Join(dir, e.Name(), name))
			if err != nil {
				return ""
			}
			return strings.TrimSpace(string(b))
		}
		percent, err := strconv.Atoi(read("capacity"))
		if read("type") != "Battery" || read("scope") == "Device" || err != nil {
			continue
		}
		status := read("status")
		return trustbar.Battery{Present: true, Percent: min(max(percent, 0), 100), Charging: status == "Charging" || status == "Full"}
	}
	return trustbar.Battery{}
}
