package hid

// The codes of events, by their names in Linux's include/uapi/linux/input-event-codes.h. Of the keys there are those of a
// PC's keyboard here, of the buttons those of mice, touch devices, pens, joysticks and gamepads; KeyName knows the rest.

// Codes of EVSyn events.
const (
	SynReport   = 0x00
	SynConfig   = 0x01
	SynMTReport = 0x02
	SynDropped  = 0x03
)

// Codes of EVKey events: keys. They are the set 1 scan codes of the IBM PC/AT as far as those go.
const (
	KeyReserved         = 0
	KeyEsc              = 1
	Key1                = 2
	Key2                = 3
	Key3                = 4
	Key4                = 5
	Key5                = 6
	Key6                = 7
	Key7                = 8
	Key8                = 9
	Key9                = 10
	Key0                = 11
	KeyMinus            = 12
	KeyEqual            = 13
	KeyBackspace        = 14
	KeyTab              = 15
	KeyQ                = 16
	KeyW                = 17
	KeyE                = 18
	KeyR                = 19
	KeyT                = 20
	KeyY                = 21
	KeyU                = 22
	KeyI                = 23
	KeyO                = 24
	KeyP                = 25
	KeyLeftBrace        = 26
	KeyRightBrace       = 27
	KeyEnter            = 28
	KeyLeftCtrl         = 29
	KeyA                = 30
	KeyS                = 31
	KeyD                = 32
	KeyF                = 33
	KeyG                = 34
	KeyH                = 35
	KeyJ                = 36
	KeyK                = 37
	KeyL                = 38
	KeySemicolon        = 39
	KeyApostrophe       = 40
	KeyGrave            = 41
	KeyLeftShift        = 42
	KeyBackslash        = 43
	KeyZ                = 44
	KeyX                = 45
	KeyC                = 46
	KeyV                = 47
	KeyB                = 48
	KeyN                = 49
	KeyM                = 50
	KeyComma            = 51
	KeyDot              = 52
	KeySlash            = 53
	KeyRightShift       = 54
	KeyKPAsterisk       = 55
	KeyLeftAlt          = 56
	KeySpace            = 57
	KeyCapsLock         = 58
	KeyF1               = 59
	KeyF2               = 60
	KeyF3               = 61
	KeyF4               = 62
	KeyF5               = 63
	KeyF6               = 64
	KeyF7               = 65
	KeyF8               = 66
	KeyF9               = 67
	KeyF10              = 68
	KeyNumLock          = 69
	KeyScrollLock       = 70
	KeyKP7              = 71
	KeyKP8              = 72
	KeyKP9              = 73
	KeyKPMinus          = 74
	KeyKP4              = 75
	KeyKP5              = 76
	KeyKP6              = 77
	KeyKPPlus           = 78
	KeyKP1              = 79
	KeyKP2              = 80
	KeyKP3              = 81
	KeyKP0              = 82
	KeyKPDot            = 83
	KeyZenkakuHankaku   = 85
	Key102nd            = 86
	KeyF11              = 87
	KeyF12              = 88
	KeyRo               = 89
	KeyKatakana         = 90
	KeyHiragana         = 91
	KeyHenkan           = 92
	KeyKatakanaHiragana = 93
	KeyMuhenkan         = 94
	KeyKPJPComma        = 95
	KeyKPEnter          = 96
	KeyRightCtrl        = 97
	KeyKPSlash          = 98
	KeySysRq            = 99
	KeyRightAlt         = 100
	KeyLinefeed         = 101
	KeyHome             = 102
	KeyUp               = 103
	KeyPageUp           = 104
	KeyLeft             = 105
	KeyRight            = 106
	KeyEnd              = 107
	KeyDown             = 108
	KeyPageDown         = 109
	KeyInsert           = 110
	KeyDelete           = 111
	KeyMacro            = 112
	KeyMute             = 113
	KeyVolumeDown       = 114
	KeyVolumeUp         = 115
	KeyPower            = 116
	KeyKPEqual          = 117
	KeyKPPlusMinus      = 118
	KeyPause            = 119
	KeyScale            = 120
	KeyKPComma          = 121
	KeyHangeul          = 122
	KeyHanja            = 123
	KeyYen              = 124
	KeyLeftMeta         = 125
	KeyRightMeta        = 126
	KeyCompose          = 127
	KeyStop             = 128
	KeyAgain            = 129
	KeyProps            = 130
	KeyUndo             = 131
	KeyFront            = 132
	KeyCopy             = 133
	KeyOpen             = 134
	KeyPaste            = 135
	KeyFind             = 136
	KeyCut              = 137
	KeyHelp             = 138
	KeyMenu             = 139
	KeyCalc             = 140
	KeySetup            = 141
	KeySleep            = 142
	KeyWakeUp           = 143
	KeyFile             = 144
	KeySendFile         = 145
	KeyDeleteFile       = 146
	KeyXfer             = 147
	KeyProg1            = 148
	KeyProg2            = 149
	KeyWWW              = 150
	KeyMSDOS            = 151
	KeyCoffee           = 152
	KeyRotateDisplay    = 153
	KeyCycleWindows     = 154
	KeyMail             = 155
	KeyBookmarks        = 156
	KeyComputer         = 157
	KeyBack             = 158
	KeyForward          = 159
	KeyCloseCD          = 160
	KeyEjectCD          = 161
	KeyEjectCloseCD     = 162
	KeyNextSong         = 163
	KeyPlayPause        = 164
	KeyPreviousSong     = 165
	KeyStopCD           = 166
	KeyRecord           = 167
	KeyRewind           = 168
	KeyPhone            = 169
	KeyISO              = 170
	KeyConfig           = 171
	KeyHomePage         = 172
	KeyRefresh          = 173
	KeyExit             = 174
	KeyMove             = 175
	KeyEdit             = 176
	KeyScrollUp         = 177
	KeyScrollDown       = 178
	KeyKPLeftParen      = 179
	KeyKPRightParen     = 180
	KeyNew              = 181
	KeyRedo             = 182
	KeyF13              = 183
	KeyF14              = 184
	KeyF15              = 185
	KeyF16              = 186
	KeyF17              = 187
	KeyF18              = 188
	KeyF19              = 189
	KeyF20              = 190
	KeyF21              = 191
	KeyF22              = 192
	KeyF23              = 193
	KeyF24              = 194
	KeyPlayCD           = 200
	KeyPauseCD          = 201
	KeyProg3            = 202
	KeyProg4            = 203
	KeyAllApplications  = 204
	KeySuspend          = 205
	KeyClose            = 206
	KeyPlay             = 207
	KeyFastForward      = 208
	KeyBassBoost        = 209
	KeyPrint            = 210
	KeyHP               = 211
	KeyCamera           = 212
	KeySound            = 213
	KeyQuestion         = 214
	KeyEmail            = 215
	KeyChat             = 216
	KeySearch           = 217
	KeyConnect          = 218
	KeyFinance          = 219
	KeySport            = 220
	KeyShop             = 221
	KeyAltErase         = 222
	KeyCancel           = 223
	KeyBrightnessDown   = 224
	KeyBrightnessUp     = 225
	KeyMedia            = 226
	KeySwitchVideoMode  = 227
	KeyKbdIllumToggle   = 228
	KeyKbdIllumDown     = 229
	KeyKbdIllumUp       = 230
	KeySend             = 231
	KeyReply            = 232
	KeyForwardMail      = 233
	KeySave             = 234
	KeyDocuments        = 235
	KeyBattery          = 236
	KeyBluetooth        = 237
	KeyWLAN             = 238
	KeyUWB              = 239
	KeyUnknown          = 240
	KeyVideoNext        = 241
	KeyVideoPrev        = 242
	KeyBrightnessCycle  = 243
	KeyBrightnessAuto   = 244
	KeyDisplayOff       = 245
	KeyWWAN             = 246
	KeyRFKill           = 247
	KeyMicMute          = 248
)

// Codes of EVKey events: buttons. BtnMisc is where they begin.
const (
	BtnMisc          = 0x100
	Btn0             = 0x100
	Btn1             = 0x101
	Btn2             = 0x102
	Btn3             = 0x103
	Btn4             = 0x104
	Btn5             = 0x105
	Btn6             = 0x106
	Btn7             = 0x107
	Btn8             = 0x108
	Btn9             = 0x109
	BtnLeft          = 0x110
	BtnRight         = 0x111
	BtnMiddle        = 0x112
	BtnSide          = 0x113
	BtnExtra         = 0x114
	BtnForward       = 0x115
	BtnBack          = 0x116
	BtnTask          = 0x117
	BtnTrigger       = 0x120
	BtnThumb         = 0x121
	BtnThumb2        = 0x122
	BtnTop           = 0x123
	BtnTop2          = 0x124
	BtnPinkie        = 0x125
	BtnBase          = 0x126
	BtnBase2         = 0x127
	BtnBase3         = 0x128
	BtnBase4         = 0x129
	BtnBase5         = 0x12a
	BtnBase6         = 0x12b
	BtnDead          = 0x12f
	BtnSouth         = 0x130
	BtnEast          = 0x131
	BtnC             = 0x132
	BtnNorth         = 0x133
	BtnWest          = 0x134
	BtnZ             = 0x135
	BtnTL            = 0x136
	BtnTR            = 0x137
	BtnTL2           = 0x138
	BtnTR2           = 0x139
	BtnSelect        = 0x13a
	BtnStart         = 0x13b
	BtnMode          = 0x13c
	BtnThumbL        = 0x13d
	BtnThumbR        = 0x13e
	BtnToolPen       = 0x140
	BtnToolRubber    = 0x141
	BtnToolBrush     = 0x142
	BtnToolPencil    = 0x143
	BtnToolAirBrush  = 0x144
	BtnToolFinger    = 0x145
	BtnToolMouse     = 0x146
	BtnToolLens      = 0x147
	BtnToolQuintTap  = 0x148
	BtnStylus3       = 0x149
	BtnTouch         = 0x14a
	BtnStylus        = 0x14b
	BtnStylus2       = 0x14c
	BtnToolDoubleTap = 0x14d
	BtnToolTripleTap = 0x14e
	BtnToolQuadTap   = 0x14f
	BtnGearDown      = 0x150
	BtnGearUp        = 0x151
)

// KeyMax is the largest code that an EVKey event can have.
const KeyMax = 0x2ff

// Codes of EVRel events. A wheel's distance is in notches, away from the person or to the right if positive; the "hi-res"
// codes tell the same movement in 1/120 of a notch.
const (
	RelX           = 0x00
	RelY           = 0x01
	RelZ           = 0x02
	RelRX          = 0x03
	RelRY          = 0x04
	RelRZ          = 0x05
	RelHWheel      = 0x06
	RelDial        = 0x07
	RelWheel       = 0x08
	RelMisc        = 0x09
	RelWheelHiRes  = 0x0b
	RelHWheelHiRes = 0x0c
)

// Codes of EVAbs events. Those of the MT group are of one contact, that of the slot which the last AbsMTSlot named.
const (
	AbsX             = 0x00
	AbsY             = 0x01
	AbsZ             = 0x02
	AbsRX            = 0x03
	AbsRY            = 0x04
	AbsRZ            = 0x05
	AbsThrottle      = 0x06
	AbsRudder        = 0x07
	AbsWheel         = 0x08
	AbsGas           = 0x09
	AbsBrake         = 0x0a
	AbsHat0X         = 0x10
	AbsHat0Y         = 0x11
	AbsHat1X         = 0x12
	AbsHat1Y         = 0x13
	AbsHat2X         = 0x14
	AbsHat2Y         = 0x15
	AbsHat3X         = 0x16
	AbsHat3Y         = 0x17
	AbsPressure      = 0x18
	AbsDistance      = 0x19
	AbsTiltX         = 0x1a
	AbsTiltY         = 0x1b
	AbsToolWidth     = 0x1c
	AbsVolume        = 0x20
	AbsProfile       = 0x21
	AbsMisc          = 0x28
	AbsMTSlot        = 0x2f
	AbsMTTouchMajor  = 0x30
	AbsMTTouchMinor  = 0x31
	AbsMTWidthMajor  = 0x32
	AbsMTWidthMinor  = 0x33
	AbsMTOrientation = 0x34
	AbsMTPositionX   = 0x35
	AbsMTPositionY   = 0x36
	AbsMTToolType    = 0x37
	AbsMTBlobID      = 0x38
	AbsMTTrackingID  = 0x39
	AbsMTPressure    = 0x3a
	AbsMTDistance    = 0x3b
	AbsMTToolX       = 0x3c
	AbsMTToolY       = 0x3d
)

// Codes of EVMsc events.
const (
	MscSerial    = 0x00
	MscPulseLED  = 0x01
	MscGesture   = 0x02
	MscRaw       = 0x03
	MscScan      = 0x04
	MscTimestamp = 0x05
)

// Codes of EVLED events. LEDs has a bit for each.
const (
	LEDNumL     = 0x00
	LEDCapsL    = 0x01
	LEDScrollL  = 0x02
	LEDCompose  = 0x03
	LEDKana     = 0x04
	LEDSleep    = 0x05
	LEDSuspend  = 0x06
	LEDMute     = 0x07
	LEDMisc     = 0x08
	LEDMail     = 0x09
	LEDCharging = 0x0a
)

// Codes of EVRep events, whose values are in milliseconds.
const (
	RepDelay  = 0x00
	RepPeriod = 0x01
)

// Properties of devices, which say how their events are meant.
const (
	PropPointer       = 0x00
	PropDirect        = 0x01
	PropButtonPad     = 0x02
	PropSemiMT        = 0x03
	PropTopButtonPad  = 0x04
	PropPointingStick = 0x05
	PropAccelerometer = 0x06
)
