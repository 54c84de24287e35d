package virtiopci

// fdOf returns the descriptor of queue i's eventfd. Fd() would switch the file to blocking mode.
func (t *Transport) fdOf(i int) int {
	fd := -1
	if raw, err := t.queues[i].kick.SyscallConn(); err == nil {
		_ = raw.Control(func(u uintptr) { fd = int(u) })
	}
	return fd
}
