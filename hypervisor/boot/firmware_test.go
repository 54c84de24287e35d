package boot

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFirmware(t *testing.T) {
	blob := noise(256 << 10)
	vars := BytesImage("vars", make([]byte, 64<<10))
	for name, c := range map[string]struct {
		code []byte
		vars *Image
		want []FirmwareRegion
	}{
		"256 KiB": {blob, nil, []FirmwareRegion{
			{Shadow, 0xe0000, 0x20000, blob[128<<10:]},
			{ROM, 0xfffc0000, 0x40000, blob},
		}},
		"small": {blob[:4096], nil, []FirmwareRegion{
			{Shadow, 0xff000, 0x1000, blob[:4096]},
			{ROM, 0xfffff000, 0x1000, blob[:4096]},
		}},
		"with variables": {blob, &vars, []FirmwareRegion{
			{Shadow, 0xe0000, 0x20000, blob[128<<10:]},
			{ROM, 0xfffc0000, 0x40000, blob},
			{Variables, 0xfffb0000, 0x10000, nil},
		}},
	} {
		got, err := LoadFirmware(BytesImage("code", c.code), c.vars)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(Firmware{Regions: c.want, Entry: Entry{Mode: Reset, RIP: 0xfff0}}, got, cmp.Comparer(bytes.Equal)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestFirmwareErrors(t *testing.T) {
	page := BytesImage("code", make([]byte, 4096))
	odd := BytesImage("vars", make([]byte, 4095))
	huge := Image{Name: "huge", R: bytes.NewReader(nil), Size: maxFirmware + 4096}
	rest := Image{Name: "vars", R: bytes.NewReader(nil), Size: maxFirmware}
	for name, c := range map[string]struct {
		code Image
		vars *Image
		want string
	}{
		"empty":          {BytesImage("code", nil), nil, "code: firmware: 0 bytes"},
		"odd":            {odd, nil, "4095 bytes"},
		"negative":       {Image{Name: "code", Size: -4096}, nil, "0 bytes"},
		"huge":           {huge, nil, "at most 16 MiB"},
		"cut":            {Image{Name: "code", R: bytes.NewReader(nil), Size: 4096}, nil, "unexpected EOF"},
		"odd variables":  {page, &odd, "vars: firmware variables: 4095 bytes"},
		"huge variables": {page, &rest, "at most 16 MiB"},
	} {
		if _, err := LoadFirmware(c.code, c.vars); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.want)
		}
	}
}
