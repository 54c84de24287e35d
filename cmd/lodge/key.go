package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/lodgehv/lodge/hypervisor/manager/client"
)

// maxKeyFile is more than any key has, in bytes. The manager says what is too long.
const maxKeyFile = 8 << 10

// giveKeys gives the keys that a guest needs to be started: those of files by disk, and of the other disks what the user types.
func giveKeys(ctx context.Context, k *client.Client, guest string, files map[string]string) error {
	disks, err := k.Keys(ctx, guest)
	if err != nil {
		if errors.Is(err, client.ErrNotFound) || errors.Is(err, client.ErrNotAuthorized) {
			return err
		}
		return nil // the start says what is wrong
	}
	for _, disk := range disks {
		var key []byte
		if file := files[disk]; file != "" {
			key, err = readKey(file)
		} else {
			key, err = askKey(guest, disk)
		}
		if err == nil {
			err = k.GiveKey(ctx, guest, disk, key)
		}
		clear(key)
		if err != nil {
			return err
		}
	}
	return nil
}

func readKey(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxKeyFile))
}

// askKey has the user type a key on the terminal, which does not show it.
func askKey(guest, disk string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("guest %s: disk %s is encrypted: give its key by --key %s=FILE, or on a terminal", guest, disk, disk)
	}
	defer tty.Close()
	fmt.Fprintf(tty, "Key of disk %s of guest %s: ", disk, guest)
	key, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	return key, err
}
