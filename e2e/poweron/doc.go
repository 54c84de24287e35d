// Package poweron tests that a computer starts from Lodge's images: one that is switched on with nothing but them, under the firmware
// that is in them or Debian's OVMF. The first program is one of its own (init), which tells what it finds.
package poweron
