// Command bench measures Lodge's figures beside a peer's: QEMU's, or what the same takes in C. Ours and the peer's runs
// alternate, so that a machine whose speed changes changes both, and medians are compared. It prints a table and writes
// out/bench.json, a list of
//
//	{"name", "unit", "better": "lower" or "higher", "ours", "peer", "peer_name", "ratio": ours/peer, "goal", "runs"}
//
// A figure without peer has none of peer, peer_name and ratio. A goal that is missed is not an error.
package main
