package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// recordSize is the size of a record, which a disk writes as a whole, in bytes.
const recordSize = 4096

// records writes records 1, 2, 3 … to a device, to its blocks in turn and again from the first, and prints "record N" when the
// device has said that it will be there after a power cut.
func records(ctx context.Context, args []string) error {
	if err := need(args, "DEVICE"); err != nil {
		return err
	}
	f, err := os.OpenFile(args[0], os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	blocks := uint64(size / recordSize)
	if blocks == 0 {
		return fmt.Errorf("%s: smaller than a record", args[0])
	}
	p := aligned(recordSize)
	for n := uint64(1); ctx.Err() == nil; n++ {
		makeRecord(p, n)
		if _, err := f.WriteAt(p, int64(n%blocks)*recordSize); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if _, err := fmt.Println("record", n); err != nil {
			return err
		}
	}
	return nil
}

// makeRecord fills p with record n: its number all over, and a checksum at the end.
func makeRecord(p []byte, n uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n)
	}
	sum := crc32.ChecksumIEEE(p[:len(p)-4])
	binary.LittleEndian.PutUint32(p[len(p)-4:], sum)
}

// recorded prints, for each block of a device or file that records were written to, the number of the record there: 0 if there is
// none, -1 if it is none that was written.
func recorded(_ context.Context, args []string) error {
	if err := need(args, "PATH"); err != nil {
		return err
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	list, err := recordsIn(f)
	for _, n := range list {
		fmt.Println(n)
	}
	return err
}

func recordsIn(r io.Reader) (list []int64, err error) {
	p, want := make([]byte, recordSize), make([]byte, recordSize)
	for {
		_, err := io.ReadFull(r, p)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		n := int64(binary.LittleEndian.Uint64(p))
		if makeRecord(want, uint64(n)); !bytes.Equal(p, want) {
			n = -1
			if bytes.Equal(p, make([]byte, recordSize)) {
				n = 0
			}
		}
		list = append(list, n)
	}
}
