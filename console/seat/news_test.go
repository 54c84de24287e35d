package seat

import (
	"testing"

	"github.com/lodgehv/lodge/console/trustbar"
)

// The bar tells of a guest that has become ready while another is on screen, until that guest is looked at.
func TestNews(t *testing.T) {
	r := newRig(t)
	focus := func(name string) {
		t.Helper()
		if err := r.SetFocus(name); err != nil {
			t.Fatal(err)
		}
	}
	focus("Work")
	tells := func(want trustbar.News) {
		t.Helper()
		eventually(t, "the bar tells what it is to", func() bool { return r.news.now() == want })
	}
	r.ready <- "Work" // which is looked at
	r.ready <- "nobody"
	r.ready <- "Home"
	tells(trustbar.News{Guest: r.guests[1].bar, Chord: "Ctrl+Alt+2"})
	focus("Home")
	tells(trustbar.News{})
	r.ready <- "Home"
	r.ready <- "Work"
	tells(trustbar.News{Guest: r.guests[0].bar, Chord: "Ctrl+Alt+1"})
}
