package compose

import (
	"context"
	"fmt"
	"image"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lodgehv/lodge/console/output"
	"github.com/lodgehv/lodge/vgpu/display"
)

// instant is a screen without refreshes: a frame is on it at once.
type instant struct{ *screen }

func (o *instant) Present(*output.Buffer, []image.Rectangle) error {
	o.flips <- output.Flip{}
	return nil
}

// BenchmarkSwitch measures a switch between guests on a screen of 1920×1080, from Switch to Present, while all of them draw:
// 256×256 pixels, or everything, 60 times a second.
func BenchmarkSwitch(b *testing.B) {
	for _, guests := range []int{2, 4, 16} {
		for name, damage := range map[string]image.Rectangle{"small": image.Rect(100, 100, 356, 356), "full": image.Rect(0, 0, 1920, 1046)} {
			b.Run(fmt.Sprintf("guests=%d/damage=%s", guests, name), func(b *testing.B) {
				var took []time.Duration
				done := make(chan struct{}, 1)
				c := New(Config{Buffers: 20, OnSwitch: func(s Switched) {
					took = append(took, s.Took)
					done <- struct{}{}
				}})
				ctx, cancel := context.WithCancel(b.Context())
				h, err := c.Add(&instant{newScreen(1920, 1080)})
				if err != nil {
					b.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() { _ = h.Run(ctx) })
				<-done
				var all []*Source
				for i := range guests {
					s := c.NewSource(guest(fmt.Sprint("guest ", i), i, "blue"))
					s.Scanout(plain(1920, 1046, uint32(i)))
					all = append(all, s)
				}
				wg.Go(func() {
					tick := time.NewTicker(time.Second / 60)
					defer tick.Stop()
					for {
						select {
						case <-ctx.Done():
							return
						case <-tick.C:
							for _, s := range all {
								s.Update(damage)
							}
						}
					}
				})
				time.Sleep(time.Duration(guests+2) * prepareEvery) // all are ready
				took = nil
				for i := 0; b.Loop(); i++ {
					c.Switch(all[i%guests])
					<-done
					time.Sleep(20 * time.Millisecond)
				}
				cancel()
				wg.Wait()
				slices.Sort(took)
				b.ReportMetric(0, "ns/op") // it would be of the time between switches
				b.ReportMetric(float64(took[len(took)/2])/1e3, "p50-µs")
				b.ReportMetric(float64(took[len(took)*99/100])/1e3, "p99-µs")
			})
		}
	}
}

// BenchmarkDamage measures a frame in which a part of the guest's picture has changed, on a screen of 1920×1080.
func BenchmarkDamage(b *testing.B) {
	for _, d := range []image.Rectangle{image.Rect(100, 100, 101, 101), image.Rect(100, 100, 356, 356), image.Rect(0, 0, 1920, 1046)} {
		for _, f := range []display.Format{display.XRGB8888, display.XBGR8888} {
			b.Run(fmt.Sprintf("%dx%d/%v", d.Dx(), d.Dy(), f), func(b *testing.B) {
				r := newRig(b, Config{}, 1920, 1080)
				r.h.out = &quiet{r.out}
				s := r.c.NewSource(guest("a", 1, "blue"))
				surface := plain(1920, 1046, red)
				surface.Format = f
				s.Scanout(surface)
				r.c.Switch(s)
				r.settle()
				b.ReportAllocs()
				for b.Loop() {
					s.Update(d)
					r.step()
				}
			})
		}
	}
}
