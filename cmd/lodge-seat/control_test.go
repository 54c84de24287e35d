package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lodgehv/lodge/internal/seatctl"
)

// A seat without a screen serves its control socket, which is the owner's alone and gone afterwards.
func TestControl(t *testing.T) {
	dir := t.TempDir()
	file, path := filepath.Join(dir, "seat.toml"), filepath.Join(dir, "seat.ctl")
	text := "control = \"seat.ctl\"\n[[guest]]\nname = \"work\"\ncolor = \"blue\"\nslot = 1\ndisplay = \"work.display\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var out, errOut bytes.Buffer
	go func() { done <- run(ctx, []string{"--output", "rfb:127.0.0.1:0", file}, &out, &errOut) }()
	var st seatctl.Status
	var err error
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if st, err = seatctl.Look(t.Context(), path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, errOut.String())
		}
	}
	if st.Focus != "Lodge" || len(st.Guests) != 1 || st.Guests[0] != (seatctl.Guest{Name: "work", Slot: 1}) {
		t.Errorf("%+v", st)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := seatctl.Focus(t.Context(), path, "work"); err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("%v", err)
	}
	if err := seatctl.Focus(t.Context(), path, "Lodge"); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := seatctl.Look(t.Context(), path); !errors.Is(err, seatctl.ErrNone) {
		t.Errorf("%v", err)
	}
}
