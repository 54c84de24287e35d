package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// sysctl is whether the kernel forwards IPv4 between interfaces.
const sysctl = "/proc/sys/net/ipv4/ip_forward"

// forwardIPv4 turns forwarding on. What it was before is kept in a file first, so that it is known whenever this process ends.
func (h *Host) forwardIPv4() error {
	now, err := os.ReadFile(sysctl)
	if err != nil {
		return fmt.Errorf("IPv4 forwarding: %w", err)
	}
	if bytes.Equal(bytes.TrimSpace(now), []byte("1")) {
		return nil // by us earlier, or by somebody who will want it afterwards
	}
	if err := writeFile(h.State, now); err != nil {
		return fmt.Errorf("IPv4 forwarding: keep what it was: %w", err)
	}
	if err := os.WriteFile(sysctl, []byte("1"), 0); err != nil {
		return fmt.Errorf("IPv4 forwarding: %w", err)
	}
	return nil
}

// restoreIPv4 sets forwarding to what it was, if we have changed it.
func (h *Host) restoreIPv4() error {
	before, err := os.ReadFile(h.State)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("IPv4 forwarding: %w", err)
	}
	if err := os.WriteFile(sysctl, bytes.TrimSpace(before), 0); err != nil {
		return fmt.Errorf("IPv4 forwarding: %w", err)
	}
	return os.Remove(h.State)
}

// writeFile writes a file that is there whole or not at all.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
