package hid

import (
	"bufio"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// header is the independent source: libc6-dev brings it.
const header = "/usr/include/linux/input-event-codes.h"

// kernelCodes returns what the kernel's header defines.
func kernelCodes(t *testing.T) map[string]uint16 {
	t.Helper()
	f, err := os.Open(header)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	codes := make(map[string]uint16)
	for s := bufio.NewScanner(f); s.Scan(); {
		words := strings.Fields(s.Text())
		if len(words) < 3 || words[0] != "#define" {
			continue
		}
		if v, err := strconv.ParseUint(words[2], 0, 16); err == nil {
			codes[words[1]] = uint16(v)
		} else if v, ok := codes[words[2]]; ok { // an older name
			codes[words[1]] = v
		}
	}
	if len(codes) < 600 {
		t.Fatalf("%s: only %d codes", header, len(codes))
	}
	return codes
}

// Every constant of codes.go has the value that the header gives to the name without its underscores.
func TestCodes(t *testing.T) {
	want := make(map[string]uint16)
	for name, v := range kernelCodes(t) {
		name = strings.TrimPrefix(name, "INPUT_")
		want[strings.ReplaceAll(name, "_", "")] = v
	}
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, d := range file.Decls {
		for _, spec := range d.(*ast.GenDecl).Specs {
			v := spec.(*ast.ValueSpec)
			lit := v.Values[0].(*ast.BasicLit)
			got, _ := constant.Uint64Val(constant.MakeFromLiteral(lit.Value, lit.Kind, 0))
			name := v.Names[0].Name
			if code, ok := want[strings.ToUpper(name)]; !ok || uint64(code) != got {
				t.Errorf("%s is %#x, the kernel has %#x (%v)", name, got, code, ok)
			}
			n++
		}
	}
	if n < 300 {
		t.Errorf("only %d constants were found", n)
	}
}

func TestKeyNames(t *testing.T) {
	n := 0
	for name, want := range kernelCodes(t) {
		if !strings.HasPrefix(name, "KEY_") && !strings.HasPrefix(name, "BTN_") {
			continue
		}
		got, ok := KeyByName(name)
		if !ok {
			continue // a range's mark, or newer than our table
		}
		if n++; got != want {
			t.Errorf("%s is %#x, want %#x", name, got, want)
		}
	}
	if n < 580 {
		t.Errorf("only %d names are known", n)
	}
	for code := range uint16(KeyMax + 1) {
		if got, ok := KeyByName(KeyName(code)); !ok || got != code {
			t.Errorf("key %#x is called %q, which is %#x (%v)", code, KeyName(code), got, ok)
		}
	}
	for name, want := range map[string]uint16{
		"a": KeyA, "leftctrl": KeyLeftCtrl, "1": Key1, "BTN_LEFT": BtnLeft, "btn_a": BtnSouth, "Key_F13": KeyF13,
		"hanguel": KeyHangeul, "0x1d": KeyLeftCtrl, "0x2ff": KeyMax,
	} {
		if got, ok := KeyByName(name); !ok || got != want {
			t.Errorf("%q is %#x (%v), want %#x", name, got, ok, want)
		}
	}
	for _, name := range []string{"", "key_", "control", "0x", "0x300", "0x10000", "left ctrl", "btn_"} {
		if got, ok := KeyByName(name); ok {
			t.Errorf("%q is %#x", name, got)
		}
	}
	for code, want := range map[uint16]string{KeyHangeul: "hangeul", BtnSouth: "btn_south", BtnLeft: "btn_left", 0x2fe: "0x2fe", 0: "0x0"} {
		if got := KeyName(code); got != want {
			t.Errorf("%#x is called %q, want %q", code, got, want)
		}
	}
}
