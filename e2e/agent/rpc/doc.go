// Package rpc runs commands in another machine over any byte stream: a
// virtio-serial port, a serial line, a vsock connection or a Unix socket.
//
// One stream carries many commands at once, each with its own standard input,
// output and error. The stream is cut into frames; a frame is a header of
// [headerSize] bytes and a payload of at most [MaxPayload]:
//
//	offset size
//	0      2    magic "LA"
//	2      1    frame type
//	3      1    zero
//	4      4    stream number, chosen by the client, little endian
//	8      4    length of the payload, little endian
//	12     4    CRC-32 (IEEE) of the 12 bytes before
//
// The checksum lets a reader find the next frame after noise, which a port can
// hold after its machine has been saved and brought back. A client opens a
// session with a hello frame of its own number and ignores all that comes before
// the echo of it; a hello ends the session before, with its commands.
//
// Who sends standard input waits for its acknowledgement after [window] frames, so
// a command that does not read never stops the others. Output has no such limit:
// the client holds what its caller has not taken yet.
package rpc
