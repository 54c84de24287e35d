// Package target says what the probe is to try to reach.
package target

// Target is what is there to be reached, outside of the cell.
type Target struct {
	File, Dir           string // a file, and a directory to make things in
	TCP, Unix, Abstract string // where somebody listens: an address, a path, a name
	PID                 int    // of a process
	SHM                 int    // of a System V segment
	Key                 string // description of a key in the session keyring
}
