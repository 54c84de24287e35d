package output

import (
	"regexp"
	"testing"
)

// monitor returns a base block with the fields that identify a monitor.
func monitor(serial string) []byte {
	e := make([]byte, 128)
	copy(e, []byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0})
	e[8], e[9] = 0x10, 0xac                               // DEL
	e[10], e[11] = 0xb1, 0xa0                             // product
	e[12], e[13], e[14], e[15] = 0x78, 0x56, 0x34, 0x12   // serial number
	copy(e[72:], "\x00\x00\x00\xfc\x00DELL U2412M\n ")    // name
	copy(e[90:], "\x00\x00\x00\xff\x00"+serial+"\n     ") // serial number in ASCII
	return sum(e)
}

// sum makes the base block add up.
func sum(e []byte) []byte {
	var s byte
	for _, v := range e[:127] {
		s += v
	}
	e[127] = -s
	return e
}

func TestIdentity(t *testing.T) {
	damaged := monitor("ABC")
	damaged[20]++
	for name, tt := range map[string]struct {
		edid []byte
		id   string
	}{
		"all":       {monitor("ABC 123"), "DEL-a0b1-12345678-ABC_123"},
		"path":      {monitor("../\x00/x"), "DEL-a0b1-12345678-..___x"},
		"extension": {append(monitor("ABC"), make([]byte, 128)...), "DEL-a0b1-12345678-ABC"},
		"none":      {},
		"short":     {edid: monitor("ABC")[:127]},
		"damaged":   {edid: damaged},
		"zeros":     {edid: make([]byte, 128)},
		"no text":   {sum(append(monitor("")[:54:54], make([]byte, 74)...)), "DEL-a0b1-12345678"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Identity(tt.edid); got != tt.id {
				t.Errorf("identity %q, want %q", got, tt.id)
			}
		})
	}
}

func FuzzIdentity(f *testing.F) {
	f.Add(monitor("ABC 123"))
	f.Add(monitor("\x00\xff"))
	f.Add([]byte{})
	good := regexp.MustCompile(`^([A-Z_]{3}-[0-9a-f]{4}-[0-9a-f]{8}(-[A-Za-z0-9._-]{1,13})?)?$`)
	f.Fuzz(func(t *testing.T, edid []byte) {
		if len(edid) >= 128 {
			sum(edid)
		}
		if id := Identity(edid); !good.MatchString(id) {
			t.Errorf("identity %q", id)
		}
	})
}
