package virtiogpu_test

import (
	"fmt"
	"image"
	"testing"

	"github.com/lodgehv/lodge/vgpu/display"
	"github.com/lodgehv/lodge/vgpu/virtiogpu/virtiogputest"
)

// viewer is one who does not look.
type viewer struct{ updates int }

func (*viewer) Scanout(*display.Surface) {}
func (k *viewer) Update(image.Rectangle) { k.updates++ }
func (*viewer) Cursor(*display.Cursor)   {}
func (*viewer) MoveCursor(image.Point)   {}

// bench measures what prepare returns for a card that shows something to a viewer.
func bench(b *testing.B, size int64, prepare func(k *virtiogputest.Desk) (func() error, error)) (updates int) {
	var v viewer
	screen := display.NewScreen(display.Monitor{Connected: true, Width: virtiogputest.Width, Height: virtiogputest.Height})
	screen.Attach(&v)
	k, err := virtiogputest.NewDesk(screen)
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	do, err := prepare(k)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if err := do(); err != nil {
			b.Fatal(err)
		}
	}
	return v.updates
}

const wholeSize = display.BytesPerPixel * virtiogputest.Width * virtiogputest.Height

// BenchmarkUpdate measures TRANSFER_TO_HOST_2D with RESOURCE_FLUSH, from the kick to the answer.
func BenchmarkUpdate(b *testing.B) {
	for _, scattered := range []bool{false, true} {
		for _, r := range []image.Rectangle{image.Rect(0, 0, virtiogputest.Width, virtiogputest.Height), image.Rect(300, 200, 556, 456), image.Rect(10, 10, 26, 26)} {
			b.Run(fmt.Sprintf("%dx%d/scattered=%t", r.Dx(), r.Dy(), scattered), func(b *testing.B) {
				updates := bench(b, int64(display.BytesPerPixel*r.Dx()*r.Dy()), func(k *virtiogputest.Desk) (func() error, error) {
					if err := k.Show2D(scattered); err != nil {
						return nil, err
					}
					return k.Update(r)
				})
				if updates == 0 {
					b.Error("nobody was told")
				}
			})
		}
	}
}

// BenchmarkBlob measures RESOURCE_FLUSH of a blob in scattered pages: where they can be shared there is no copy.
func BenchmarkBlob(b *testing.B) {
	for _, scattered := range []bool{false, true} {
		b.Run(fmt.Sprintf("scattered=%t", scattered), func(b *testing.B) {
			bench(b, wholeSize, func(k *virtiogputest.Desk) (func() error, error) {
				if err := k.ShowBlob(scattered); err != nil {
					return nil, err
				}
				return k.Flush()
			})
		})
	}
}

// BenchmarkAttach measures what a new buffer in single pages costs.
func BenchmarkAttach(b *testing.B) {
	bench(b, wholeSize, func(k *virtiogputest.Desk) (func() error, error) {
		if err := k.Show2D(true); err != nil {
			return nil, err
		}
		return k.Reattach(true)
	})
}
