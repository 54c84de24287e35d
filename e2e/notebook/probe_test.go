package notebook

import (
	"os"
	"testing"
)

func TestDirectKVM(t *testing.T) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs /dev/kvm:", err)
	}
	f.Close()
	rate, err := ring0Rate()
	if err != nil {
		t.Fatal(err)
	}
	if rate < 1e4 || rate > 1e11 {
		t.Errorf("ring 0 at %g instructions/s is no processor's speed", rate)
	}
	direct, reason := DirectKVM()
	t.Log(direct, reason)
}
