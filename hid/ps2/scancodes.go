package ps2

import "github.com/lodgehv/lodge/hid"

// Prefixes of scan codes.
const (
	scanExtended = 0xe0
	scanPause    = 0xe1
	scanBreak    = 0xf0 // in sets 2 and 3, before the code of a key that was released
	scanBreakBit = 0x80 // in set 1, in that code
)

// form says what else sets 1 and 2 send of a key.
type form uint8

const (
	plain    form = iota
	extended      // 0xe0 before each code
	makeOnly      // nothing when it is released
)

// scan has a key's codes in sets 1, 2 and 3; 0 where the key has none.
type scan struct {
	set1, set2, set3 uint8
	form             form
}

// scanOf returns the codes of a key.
func scanOf(key uint16) scan {
	if int(key) < len(scans) {
		return scans[key]
	}
	return scan{}
}

// scans holds the codes by keys: those of the IBM PS/2 keyboards, and those of later keys as Microsoft's "Keyboard Scan Code
// Specification" (revision 1.3a) and its table from USB to PS/2 have them. Keys that stand for the same thing share a code.
// Print Screen and Pause are special in sets 1 and 2.
var scans = [...]scan{
	hid.KeyEsc:              {0x01, 0x76, 0x08, plain},
	hid.Key1:                {0x02, 0x16, 0x16, plain},
	hid.Key2:                {0x03, 0x1e, 0x1e, plain},
	hid.Key3:                {0x04, 0x26, 0x26, plain},
	hid.Key4:                {0x05, 0x25, 0x25, plain},
	hid.Key5:                {0x06, 0x2e, 0x2e, plain},
	hid.Key6:                {0x07, 0x36, 0x36, plain},
	hid.Key7:                {0x08, 0x3d, 0x3d, plain},
	hid.Key8:                {0x09, 0x3e, 0x3e, plain},
	hid.Key9:                {0x0a, 0x46, 0x46, plain},
	hid.Key0:                {0x0b, 0x45, 0x45, plain},
	hid.KeyMinus:            {0x0c, 0x4e, 0x4e, plain},
	hid.KeyEqual:            {0x0d, 0x55, 0x55, plain},
	hid.KeyBackspace:        {0x0e, 0x66, 0x66, plain},
	hid.KeyTab:              {0x0f, 0x0d, 0x0d, plain},
	hid.KeyQ:                {0x10, 0x15, 0x15, plain},
	hid.KeyW:                {0x11, 0x1d, 0x1d, plain},
	hid.KeyE:                {0x12, 0x24, 0x24, plain},
	hid.KeyR:                {0x13, 0x2d, 0x2d, plain},
	hid.KeyT:                {0x14, 0x2c, 0x2c, plain},
	hid.KeyY:                {0x15, 0x35, 0x35, plain},
	hid.KeyU:                {0x16, 0x3c, 0x3c, plain},
	hid.KeyI:                {0x17, 0x43, 0x43, plain},
	hid.KeyO:                {0x18, 0x44, 0x44, plain},
	hid.KeyP:                {0x19, 0x4d, 0x4d, plain},
	hid.KeyLeftBrace:        {0x1a, 0x54, 0x54, plain},
	hid.KeyRightBrace:       {0x1b, 0x5b, 0x5b, plain},
	hid.KeyEnter:            {0x1c, 0x5a, 0x5a, plain},
	hid.KeyLeftCtrl:         {0x1d, 0x14, 0x11, plain},
	hid.KeyA:                {0x1e, 0x1c, 0x1c, plain},
	hid.KeyS:                {0x1f, 0x1b, 0x1b, plain},
	hid.KeyD:                {0x20, 0x23, 0x23, plain},
	hid.KeyF:                {0x21, 0x2b, 0x2b, plain},
	hid.KeyG:                {0x22, 0x34, 0x34, plain},
	hid.KeyH:                {0x23, 0x33, 0x33, plain},
	hid.KeyJ:                {0x24, 0x3b, 0x3b, plain},
	hid.KeyK:                {0x25, 0x42, 0x42, plain},
	hid.KeyL:                {0x26, 0x4b, 0x4b, plain},
	hid.KeySemicolon:        {0x27, 0x4c, 0x4c, plain},
	hid.KeyApostrophe:       {0x28, 0x52, 0x52, plain},
	hid.KeyGrave:            {0x29, 0x0e, 0x0e, plain},
	hid.KeyLeftShift:        {0x2a, 0x12, 0x12, plain},
	hid.KeyBackslash:        {0x2b, 0x5d, 0x5c, plain},
	hid.KeyZ:                {0x2c, 0x1a, 0x1a, plain},
	hid.KeyX:                {0x2d, 0x22, 0x22, plain},
	hid.KeyC:                {0x2e, 0x21, 0x21, plain},
	hid.KeyV:                {0x2f, 0x2a, 0x2a, plain},
	hid.KeyB:                {0x30, 0x32, 0x32, plain},
	hid.KeyN:                {0x31, 0x31, 0x31, plain},
	hid.KeyM:                {0x32, 0x3a, 0x3a, plain},
	hid.KeyComma:            {0x33, 0x41, 0x41, plain},
	hid.KeyDot:              {0x34, 0x49, 0x49, plain},
	hid.KeySlash:            {0x35, 0x4a, 0x4a, plain},
	hid.KeyRightShift:       {0x36, 0x59, 0x59, plain},
	hid.KeyKPAsterisk:       {0x37, 0x7c, 0x7e, plain},
	hid.KeyLeftAlt:          {0x38, 0x11, 0x19, plain},
	hid.KeySpace:            {0x39, 0x29, 0x29, plain},
	hid.KeyCapsLock:         {0x3a, 0x58, 0x14, plain},
	hid.KeyF1:               {0x3b, 0x05, 0x07, plain},
	hid.KeyF2:               {0x3c, 0x06, 0x0f, plain},
	hid.KeyF3:               {0x3d, 0x04, 0x17, plain},
	hid.KeyF4:               {0x3e, 0x0c, 0x1f, plain},
	hid.KeyF5:               {0x3f, 0x03, 0x27, plain},
	hid.KeyF6:               {0x40, 0x0b, 0x2f, plain},
	hid.KeyF7:               {0x41, 0x83, 0x37, plain},
	hid.KeyF8:               {0x42, 0x0a, 0x3f, plain},
	hid.KeyF9:               {0x43, 0x01, 0x47, plain},
	hid.KeyF10:              {0x44, 0x09, 0x4f, plain},
	hid.KeyNumLock:          {0x45, 0x77, 0x76, plain},
	hid.KeyScrollLock:       {0x46, 0x7e, 0x5f, plain},
	hid.KeyKP7:              {0x47, 0x6c, 0x6c, plain},
	hid.KeyKP8:              {0x48, 0x75, 0x75, plain},
	hid.KeyKP9:              {0x49, 0x7d, 0x7d, plain},
	hid.KeyKPMinus:          {0x4a, 0x7b, 0x84, plain},
	hid.KeyKP4:              {0x4b, 0x6b, 0x6b, plain},
	hid.KeyKP5:              {0x4c, 0x73, 0x73, plain},
	hid.KeyKP6:              {0x4d, 0x74, 0x74, plain},
	hid.KeyKPPlus:           {0x4e, 0x79, 0x7c, plain},
	hid.KeyKP1:              {0x4f, 0x69, 0x69, plain},
	hid.KeyKP2:              {0x50, 0x72, 0x72, plain},
	hid.KeyKP3:              {0x51, 0x7a, 0x7a, plain},
	hid.KeyKP0:              {0x52, 0x70, 0x70, plain},
	hid.KeyKPDot:            {0x53, 0x71, 0x71, plain},
	hid.KeyZenkakuHankaku:   {0x76, 0x5f, 0x00, plain},
	hid.Key102nd:            {0x56, 0x61, 0x13, plain},
	hid.KeyF11:              {0x57, 0x78, 0x56, plain},
	hid.KeyF12:              {0x58, 0x07, 0x5e, plain},
	hid.KeyRo:               {0x73, 0x51, 0x51, plain},
	hid.KeyKatakana:         {0x78, 0x63, 0x00, plain},
	hid.KeyHiragana:         {0x77, 0x62, 0x00, plain},
	hid.KeyHenkan:           {0x79, 0x64, 0x86, plain},
	hid.KeyKatakanaHiragana: {0x70, 0x13, 0x87, plain},
	hid.KeyMuhenkan:         {0x7b, 0x67, 0x85, plain},
	hid.KeyKPJPComma:        {0x5c, 0x27, 0x00, plain},
	hid.KeyKPEnter:          {0x1c, 0x5a, 0x79, extended},
	hid.KeyRightCtrl:        {0x1d, 0x14, 0x58, extended},
	hid.KeyKPSlash:          {0x35, 0x4a, 0x77, extended},
	hid.KeySysRq:            {0x37, 0x7c, 0x57, extended},
	hid.KeyRightAlt:         {0x38, 0x11, 0x39, extended},
	hid.KeyHome:             {0x47, 0x6c, 0x6e, extended},
	hid.KeyUp:               {0x48, 0x75, 0x63, extended},
	hid.KeyPageUp:           {0x49, 0x7d, 0x6f, extended},
	hid.KeyLeft:             {0x4b, 0x6b, 0x61, extended},
	hid.KeyRight:            {0x4d, 0x74, 0x6a, extended},
	hid.KeyEnd:              {0x4f, 0x69, 0x65, extended},
	hid.KeyDown:             {0x50, 0x72, 0x60, extended},
	hid.KeyPageDown:         {0x51, 0x7a, 0x6d, extended},
	hid.KeyInsert:           {0x52, 0x70, 0x67, extended},
	hid.KeyDelete:           {0x53, 0x71, 0x64, extended},
	hid.KeyMute:             {0x20, 0x23, 0x00, extended},
	hid.KeyVolumeDown:       {0x2e, 0x21, 0x00, extended},
	hid.KeyVolumeUp:         {0x30, 0x32, 0x00, extended},
	hid.KeyPower:            {0x5e, 0x37, 0x00, extended},
	hid.KeyKPEqual:          {0x59, 0x0f, 0x00, plain},
	hid.KeyKPPlusMinus:      {0x4e, 0x79, 0x00, extended},
	hid.KeyPause:            {0x00, 0x00, 0x62, plain},
	hid.KeyKPComma:          {0x7e, 0x6d, 0x00, plain},
	hid.KeyHangeul:          {0xf2, 0xf2, 0x00, makeOnly},
	hid.KeyHanja:            {0xf1, 0xf1, 0x00, makeOnly},
	hid.KeyYen:              {0x7d, 0x6a, 0x5d, plain},
	hid.KeyLeftMeta:         {0x5b, 0x1f, 0x8b, extended},
	hid.KeyRightMeta:        {0x5c, 0x27, 0x8c, extended},
	hid.KeyCompose:          {0x5d, 0x2f, 0x8d, extended},
	hid.KeyStop:             {0x68, 0x28, 0x00, extended},
	hid.KeyMenu:             {0x5d, 0x2f, 0x8d, extended},
	hid.KeyCalc:             {0x21, 0x2b, 0x00, extended},
	hid.KeySleep:            {0x5f, 0x3f, 0x00, extended},
	hid.KeyWakeUp:           {0x63, 0x5e, 0x00, extended},
	hid.KeyFile:             {0x6b, 0x40, 0x00, extended},
	hid.KeyWWW:              {0x32, 0x3a, 0x00, extended},
	hid.KeyMail:             {0x6c, 0x48, 0x00, extended},
	hid.KeyBookmarks:        {0x66, 0x18, 0x00, extended},
	hid.KeyComputer:         {0x6b, 0x40, 0x00, extended},
	hid.KeyBack:             {0x6a, 0x38, 0x00, extended},
	hid.KeyForward:          {0x69, 0x30, 0x00, extended},
	hid.KeyNextSong:         {0x19, 0x4d, 0x00, extended},
	hid.KeyPlayPause:        {0x22, 0x34, 0x00, extended},
	hid.KeyPreviousSong:     {0x10, 0x15, 0x00, extended},
	hid.KeyStopCD:           {0x24, 0x3b, 0x00, extended},
	hid.KeyConfig:           {0x6d, 0x50, 0x00, extended},
	hid.KeyHomePage:         {0x32, 0x3a, 0x00, extended},
	hid.KeyRefresh:          {0x67, 0x20, 0x00, extended},
	hid.KeyF13:              {0x64, 0x08, 0x00, plain},
	hid.KeyF14:              {0x65, 0x10, 0x00, plain},
	hid.KeyF15:              {0x66, 0x18, 0x00, plain},
	hid.KeyF16:              {0x67, 0x20, 0x00, plain},
	hid.KeyF17:              {0x68, 0x28, 0x00, plain},
	hid.KeyF18:              {0x69, 0x30, 0x00, plain},
	hid.KeyF19:              {0x6a, 0x38, 0x00, plain},
	hid.KeyF20:              {0x6b, 0x40, 0x00, plain},
	hid.KeyF21:              {0x6c, 0x48, 0x00, plain},
	hid.KeyF22:              {0x6d, 0x50, 0x00, plain},
	hid.KeyF23:              {0x6e, 0x57, 0x00, plain},
	hid.KeyF24:              {0x76, 0x5f, 0x00, plain},
	hid.KeyEmail:            {0x6c, 0x48, 0x00, extended},
	hid.KeySearch:           {0x65, 0x10, 0x00, extended},
	hid.KeyMedia:            {0x6d, 0x50, 0x00, extended},
}
