package network

import (
	"net/netip"
	"strings"
)

// Resolvers returns the resolvers that a file names as resolv.conf(5) has them; the one on this machine if it names none.
func Resolvers(conf string) (list []netip.AddrPort) {
	for line := range strings.Lines(conf) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, netip.AddrPortFrom(a, 53))
		}
	}
	if len(list) == 0 {
		list = append(list, netip.MustParseAddrPort("127.0.0.1:53"))
	}
	return list
}
