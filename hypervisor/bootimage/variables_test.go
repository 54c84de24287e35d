package bootimage

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

// The boot option is the first variable of an empty store, and behind what is there in another; all else stays.
func TestBootFlashFirst(t *testing.T) {
	const file, first = "/usr/share/OVMF/OVMF_VARS_4M.fd", 0x64
	vars, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	once, err := bootFlashFirst(vars)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := bootFlashFirst(once)
	if err != nil {
		t.Fatal(err)
	}
	n := bytes.Index(twice[first+4:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}) + 4
	if len(once) != len(vars) || !bytes.Equal(once[:first], vars[:first]) || n < 200 {
		t.Fatalf("%d bytes of %d, %d of variables", len(once), len(vars), n)
	}
	size := alignUp(n, 4) / 2
	if !bytes.Equal(twice[first:first+size], once[first:first+size]) || !bytes.Equal(twice[first+size:first+2*size], once[first:first+size]) {
		t.Error("what was there is not as it was, or what was added is not behind it")
	}
	for _, name := range []string{"Boot0000", "BootOrder", "Lodge"} {
		if !bytes.Contains(once[first:first+size], ucs2(name)) {
			t.Errorf("no %s", name)
		}
	}
	full := bytes.Clone(vars)
	binary.LittleEndian.PutUint16(full[first:], variableStart)
	binary.LittleEndian.PutUint32(full[first+40:], binary.LittleEndian.Uint32(full[0x48+16:])-200)
	for what, bad := range map[string][]byte{"no volume": make([]byte, 1000), "cut": vars[:0x60], "full": full, "empty": nil} {
		if _, err := bootFlashFirst(bad); err == nil || !strings.HasPrefix(err.Error(), "the firmware's variables: no ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzVariables(f *testing.F) {
	vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(vars[:1<<10])
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := bootFlashFirst(b); err == nil && len(out) != len(b) {
			t.Errorf("%d bytes became %d", len(b), len(out))
		}
	})
}
