// Package usermode carries a network of guests without the host's kernel knowing of it: it takes their frames from stream
// sockets, is their gateway, DHCP and DNS server, and opens the connections that they make to the outside anew, as this process.
// It runs in a process of its own (cmd/lodge-net), one for each network, since all that it reads comes from guests.
//
// Between a guest's socket and everything else stands the port (port.go, filter.go): what a guest sends under a MAC or IP
// address that is not its own, or what the firewall does not allow, ends there. Behind it are gVisor's TCP/IP (stack.go), and
// the other guests' ports, if the network has peers.
//
// Of a network that the host's kernel carries (nat), it is the DHCP and DNS server only, over sockets of the kernel's.
//
// Guests get IPv4 and ARP, nothing else: no IPv6, fragments, IP options, multicast, or protocols other than TCP, UDP and ICMP
// (which reaches the gateway and peers only).
package usermode
