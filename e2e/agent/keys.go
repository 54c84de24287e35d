package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An inputEvent is the kernel's struct input_event (linux/input.h); its time takes two words.
const inputEventSize = int(unsafe.Sizeof(uintptr(0)))*2 + 8

const (
	evKey = 1
	evLED = 17
)

// keys prints what the machine's input devices say of keys and buttons, a line "CODE VALUE" each, until it is ended. It reads
// beside whoever else does.
func keys(ctx context.Context, args []string) error {
	if err := need(args); err != nil {
		return err
	}
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil || len(devices) == 0 {
		return errors.Join(errors.New("no input devices"), err)
	}
	lines := make(chan string)
	failed := make(chan error)
	for _, d := range devices {
		f, err := os.Open(d)
		if err != nil {
			return err
		}
		go func() { failed <- follow(f, lines) }()
	}
	fmt.Println("ready")
	for {
		select {
		case l := <-lines:
			fmt.Println(l)
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

func follow(f *os.File, lines chan<- string) error {
	for buf := make([]byte, 64*inputEventSize); ; {
		n, err := f.Read(buf)
		if err != nil {
			return err
		}
		for b := range slices.Chunk(buf[:n], inputEventSize) {
			b = b[inputEventSize-8:]
			typ, code, value := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), int32(binary.LittleEndian.Uint32(b[4:]))
			switch {
			case typ == evKey:
				lines <- fmt.Sprint(code, value)
			case typ == 0 && code == 3: // SYN_DROPPED
				return fmt.Errorf("%s: events were lost", f.Name())
			}
		}
	}
}

// followFile prints what is appended to a file, until it is ended.
func followFile(_ context.Context, args []string) error {
	if err := need(args, "PATH"); err != nil {
		return err
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.InotifyAddWatch(watch, args[0], unix.IN_MODIFY); err != nil {
		return err
	}
	fmt.Println("ready")
	for buf := make([]byte, 4096); ; {
		if _, err := io.Copy(os.Stdout, f); err != nil {
			return err
		}
		if _, err := unix.Read(watch, buf); err != nil {
			return err
		}
	}
}

// blink switches the lights of the machine's keyboards on and off as fast as it can, until it is ended or time is over.
func blink(ctx context.Context, args []string) error {
	if err := need(args, "DURATION"); err != nil {
		return err
	}
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	devices, err := filepath.Glob("/sys/class/leds/input*::capslock")
	if err != nil || len(devices) == 0 {
		return errors.Join(errors.New("no keyboard has a light"), err)
	}
	var files []*os.File
	for _, led := range devices {
		event, err := filepath.Glob(filepath.Join(led, "device", "event*"))
		if err != nil || len(event) != 1 {
			continue
		}
		f, err := os.OpenFile(filepath.Join("/dev/input", filepath.Base(event[0])), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	count := 0
	for ; ctx.Err() == nil; count++ {
		var buf bytes.Buffer
		for _, e := range [][3]uint32{{evLED, 1, uint32(count & 1)}, {0, 0, 0}} {
			buf.Write(make([]byte, inputEventSize-8))
			buf.Write(binary.LittleEndian.AppendUint32(nil, e[0]|e[1]<<16))
			buf.Write(binary.LittleEndian.AppendUint32(nil, e[2]))
		}
		for _, f := range files {
			if _, err := f.Write(buf.Bytes()); err != nil && !errors.Is(err, unix.EAGAIN) {
				return err
			}
		}
	}
	fmt.Println(count)
	return nil
}
