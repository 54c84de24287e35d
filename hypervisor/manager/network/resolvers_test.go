package network

import (
	"net/netip"
	"slices"
	"testing"
)

func TestResolvers(t *testing.T) {
	got := Resolvers("# nameserver 1.1.1.1\nsearch x\nnameserver 9.9.9.9\n nameserver\tfe80::1%eth0 \nnameserver nonsense\n")
	want := []netip.AddrPort{netip.MustParseAddrPort("9.9.9.9:53"), netip.MustParseAddrPort("[fe80::1%eth0]:53")}
	if !slices.Equal(got, want) {
		t.Error(got)
	}
	if got := Resolvers(""); len(got) != 1 || got[0].String() != "127.0.0.1:53" {
		t.Error(got)
	}
}
