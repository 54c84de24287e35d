package control

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// Listen makes a Unix socket at path that only the owner reaches. A socket that nobody serves any more is replaced.
func Listen(path string) (*net.UnixListener, error) {
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if err != nil {
		if conn, e := net.Dial("unix", path); e == nil {
			conn.Close()
			return nil, fmt.Errorf("socket %s: another process serves it: is this guest running already?", path)
		}
		if st, e := os.Lstat(path); e != nil || st.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("socket %s: %w", path, err)
		}
		if e := os.Remove(path); e != nil {
			return nil, fmt.Errorf("socket %s: %w", path, e)
		}
		if l, err = net.ListenUnix("unix", addr); err != nil {
			return nil, fmt.Errorf("socket %s: %w", path, err)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("socket %s: %w", path, err), l.Close())
	}
	return l, nil
}
