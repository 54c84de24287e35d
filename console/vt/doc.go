// Package vt takes a virtual terminal of Linux for a program that draws on the whole screen, shares it with the text
// consoles, and gives it back as it was on every exit (drivers/tty/vt; man 2 ioctl_console, man 4 console_codes).
//
// A terminal of its own is put into graphics mode (the kernel does not draw), its keyboard off (what is typed on it goes
// nowhere, neither to a shell nor to the kernel's own chords), and its switching under control of the program: when
// the user wants another terminal, the kernel asks by a signal, and the screen is released first.
//
// # After a crash
//
// The kernel cleans up nothing of that when the program dies. It notices that nobody answers when the next change of
// terminals is asked for, but with the keyboard off nobody can ask: the screen stays dark. So Open starts a guardian, the
// same program once more (see RunGuardian), which sleeps until the first has ended and then puts the terminal back. It
// is in a session of its own and ignores the signals that end programs; SIGKILL to a whole control group ends both, and
// then only another program that opens the terminal helps. What the graphics card shows is not its business: the kernel
// draws the text when the last descriptor of the card is closed, which is the case before the guardian wakes.
//
// A machine may have no virtual terminals (a serial console, a container, a kernel without them): Open says ErrNone, and
// there is nothing to take and to give back.
package vt
