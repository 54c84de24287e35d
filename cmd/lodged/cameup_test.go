package main

import "testing"

// There is always some memory in use, and not all of it.
func TestMemoryInUse(t *testing.T) {
	used, total, err := memoryInUse()
	if err != nil || used < 16<<20 || used >= total {
		t.Errorf("%d of %d bytes: %v", used, total, err)
	}
}
