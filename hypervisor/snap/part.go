package snap

// Part carries the state of something inside a component that has a version of its own, such as the device behind a
// transport. A newer version than this code's is refused; state sees the version that is read.
func (c *Codec) Part(name string, version uint16, state func(*Codec)) {
	v := version
	c.U16(&v)
	if v == 0 {
		c.Fail("%s: state version 0", name)
	}
	if v > version {
		c.Fail("%s: state version %d is newer than this program's %d", name, v, version)
	}
	if c.err != nil {
		return
	}
	outer := c.version
	c.version = v
	state(c)
	c.version = outer
}
