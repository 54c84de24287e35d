package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/image/draw"
)

// Limits of thumbnails.
const (
	maxThumbnail   = 1024 // pixels of the longer side
	thumbnailEvery = 500 * time.Millisecond
	pictureLimit   = 2 * time.Second
	pictureSide    = 320 // of those that are kept with saved states
)

// ErrNoScreen is for a guest that has no screen to show, now or ever.
var ErrNoScreen = errors.New("there is no screen to show")

// thumbnail is the newest picture of a guest's screen.
type thumbnail struct {
	mu    sync.Mutex
	image image.Image
	taken time.Time
}

// drop gives the memory back when nobody has looked for a while.
func (t *thumbnail) drop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.taken) >= thumbnailEvery {
		t.image = nil
	}
}

// Thumbnail returns the guest's screen as PNG, no side longer than side pixels. A guest is looked at twice a second at most;
// who asks more often gets the same picture again. A saved guest's is that of when it was saved.
func (m *Manager) Thumbnail(ctx context.Context, name string, side int) ([]byte, error) {
	g, err := m.find(name)
	if err != nil {
		return nil, err
	}
	if side < 1 || side > maxThumbnail {
		return nil, fmt.Errorf("thumbnail of %d pixels: from 1 to %d are possible", side, maxThumbnail)
	}
	p := g.info.Load()
	if p.PID == 0 && !p.Saved.IsZero() {
		b, err := os.ReadFile(g.suspendedDir() + ".png")
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("guest %s: %w", name, ErrNoScreen)
		}
		return b, err
	}
	if m.cfg.Screen == nil || p.Display == "" {
		return nil, fmt.Errorf("guest %s: %w", name, ErrNoScreen)
	}
	g.thumb.mu.Lock()
	defer g.thumb.mu.Unlock()
	if g.thumb.image == nil || time.Since(g.thumb.taken) >= thumbnailEvery {
		img, err := m.screen(ctx, p.Display)
		if err != nil {
			return nil, fmt.Errorf("guest %s: screen: %w", name, err)
		}
		g.thumb.image, g.thumb.taken = img, time.Now()
		time.AfterFunc(2*thumbnailEvery, g.thumb.drop)
	}
	return scaledPNG(g.thumb.image, side)
}

// SnapshotPicture returns the screen of a guest as it was when a snapshot was made, as PNG.
func (m *Manager) SnapshotPicture(name, snapshot string) ([]byte, error) {
	g, err := m.find(name)
	if err != nil {
		return nil, err
	}
	if _, err := g.findSnapshot(snapshot); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(g.snapshotDir(snapshot), pictureName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("guest %s: snapshot %s: %w", name, snapshot, ErrNoScreen)
	}
	return b, err
}

func (m *Manager) screen(ctx context.Context, socket string) (image.Image, error) {
	ctx, cancel := context.WithTimeout(ctx, pictureLimit)
	defer cancel()
	img, err := m.cfg.Screen(ctx, socket)
	if err == nil && img.Bounds().Empty() {
		err = ErrNoScreen
	}
	if err != nil {
		return nil, err
	}
	b := img.Bounds() // what is kept is no larger than what can be asked for
	return scaled(img, maxThumbnail, b), nil
}

// scaled returns img, reduced so that no side is longer than side.
func scaled(img image.Image, side int, b image.Rectangle) image.Image {
	long := max(b.Dx(), b.Dy())
	if long <= side {
		return img
	}
	to := image.NewRGBA(image.Rect(0, 0, max(b.Dx()*side/long, 1), max(b.Dy()*side/long, 1)))
	draw.ApproxBiLinear.Scale(to, to.Bounds(), img, b, draw.Src, nil)
	return to
}

func scaledPNG(img image.Image, side int) ([]byte, error) {
	var buf bytes.Buffer
	err := png.Encode(&buf, scaled(img, side, img.Bounds()))
	return buf.Bytes(), err
}

// keepPicture writes a picture of the screen beside a saved state, if there is one to be had.
func (m *Manager) keepPicture(ctx context.Context, display, path string) {
	if m.cfg.Screen == nil || display == "" {
		return
	}
	img, err := m.screen(ctx, display)
	if err != nil {
		return
	}
	if b, err := scaledPNG(img, pictureSide); err == nil {
		_ = os.WriteFile(path, b, 0o600) // nothing depends on it
	}
}

func copyPicture(from, to string) error {
	b, err := os.ReadFile(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
