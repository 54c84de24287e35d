package pci

import "fmt"

// Window is a range of addresses that registers are placed in, as firmware would, from Next upwards.
type Window struct{ Next, Last uint64 }

func (w *Window) take(size uint64) (uint64, error) {
	base := (w.Next + size - 1) &^ (size - 1)
	if base < w.Next || base+size < base || base+size-1 > w.Last {
		return 0, fmt.Errorf("no room for %#x bytes up to %#x", size, w.Last)
	}
	w.Next = base + size
	return base, nil
}

// Windows are where the registers of each kind go.
type Windows struct{ IO, Mem32, Mem64 Window }

// Place gives each base address register of f an address and enables it, for guests that start without firmware. The
// expansion ROM is left to the guest: nobody runs it.
func (w *Windows) Place(f *Function) error {
	for i, b := range f.bars[:romBAR] {
		var from *Window
		switch b.Kind {
		case BARNone:
			continue
		case BARIO:
			from = &w.IO
		case BARMem32, BARMem32Prefetch:
			from = &w.Mem32
		case BARMem64, BARMem64Prefetch:
			from = &w.Mem64
		}
		base, err := from.take(b.Size)
		if err != nil {
			return fmt.Errorf("%s bar %d: %w", f.name, i, err)
		}
		f.SetBAR(i, base)
	}
	return nil
}
