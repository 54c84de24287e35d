// Package textui is Lodge's management console in text: the guests with what they do and cost, their devices and logs, and the
// commands that start, stop, pause, save and switch to them. It is for the keyboard alone, from 80×24 characters up, and needs
// no colours.
//
// The same program runs in a terminal, on a serial line and on the seat's own screen: it draws on a Screen, which tcell's are,
// and so is fbscreen's. What there is to manage it learns from a System. Neither is waited for: all that could take time happens
// in goroutines, and the console redraws when something has changed.
//
// Names, log lines and error messages come from guests and files. They are shown as text and cannot reach the terminal as
// anything else: see Line and Lines.
package textui
