package kms

import "runtime"

// Request is a set of properties that take effect together, or not at all (DRM_IOCTL_MODE_ATOMIC). It is made once and used
// again; it allocates nothing then.
type Request struct {
	objs, counts, props []uint32
	values              []uint64
	arg                 atomicArg
	pin                 runtime.Pinner
}

// maxProps is how many properties a Request has room for.
const maxProps = 512

// NewRequest returns an empty request.
func NewRequest() *Request {
	return &Request{
		objs: make([]uint32, 0, maxProps), counts: make([]uint32, 0, maxProps),
		props: make([]uint32, 0, maxProps), values: make([]uint64, 0, maxProps),
	}
}

// Reset empties the request.
func (r *Request) Reset() {
	r.objs, r.counts, r.props, r.values = r.objs[:0], r.counts[:0], r.props[:0], r.values[:0]
}

// Set sets a property of an object. All those of one object have to follow each other. A property that the object does not
// have (id 0) is left out; what there is no room for too, and then Commit fails, since the kernel misses it.
func (r *Request) Set(obj, prop uint32, value uint64) {
	if prop == 0 || len(r.props) == maxProps {
		return
	}
	if n := len(r.objs); n == 0 || r.objs[n-1] != obj {
		r.objs, r.counts = append(r.objs, obj), append(r.counts, 0)
	}
	r.counts[len(r.counts)-1]++
	r.props, r.values = append(r.props, prop), append(r.values, value)
}

// Commit makes it so.
func (c *Card) Commit(r *Request, flags uint32, user uint64) error {
	defer r.pin.Unpin()
	r.arg = atomicArg{
		flags: flags, userData: user, countObjs: uint32(len(r.objs)),
		objs: address(&r.pin, r.objs), countProps: address(&r.pin, r.counts),
		props: address(&r.pin, r.props), values: address(&r.pin, r.values),
	}
	return ioctl(c.dev, "DRM_IOCTL_MODE_ATOMIC", nrAtomic, &r.arg)
}
