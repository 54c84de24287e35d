package hid

// US returns the characters of a key on a US keyboard, without and with Shift; of a letter's key Caps Lock exchanges them. A key
// of the keypad has the one that it has with Num Lock. It returns false for keys without characters.
func US(code uint16) (plain, shifted rune, ok bool) {
	for _, r := range usRows {
		if code < r.first || int(code-r.first) >= len(r.plain) {
			continue
		}
		i := code - r.first
		return rune(r.plain[i]), rune(r.shifted[i]), true
	}
	return 0, 0, false
}

// usRows are runs of keys with their characters.
var usRows = [...]struct {
	first          uint16
	plain, shifted string
}{
	{Key1, "1234567890-=", "!@#$%^&*()_+"},
	{KeyQ, "qwertyuiop[]", "QWERTYUIOP{}"},
	{KeyA, "asdfghjkl;'`", "ASDFGHJKL:\"~"},
	{KeyBackslash, `\zxcvbnm,./`, "|ZXCVBNM<>?"},
	{KeyKPAsterisk, "*", "*"},
	{KeySpace, " ", " "},
	{KeyKP7, "789-456+1230.", "789-456+1230."},
	{KeyKPSlash, "/", "/"},
}
