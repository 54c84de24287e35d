// Package e2e tests lodge-vmm with whole systems: two unmodified Debian guests, one of 64 and one of 32 bits, side by side
// in the simulated notebook.
//
// A guest takes half a minute to start there. The subtests of TestGuests therefore share one running pair, in the order in
// which they stand, and each starts again what the ones before it have ended: every subtest also runs alone.
package e2e
