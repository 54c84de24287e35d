package peer

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds on a handshake.
const (
	maxLine  = 1024 // bytes of a line
	maxLines = 32
)

// Accept makes a connection of a socket whose other side begins the handshake (D-Bus specification, "Authentication
// Protocol"). It takes the socket over: after an error it is closed.
//
// The mechanism is EXTERNAL, but who the other side says to be does not matter: whoever holds the other end of the socket may
// use it, and the two may live in user namespaces that number users differently.
func Accept(sock *net.UnixConn, cfg Config) (*Conn, error) {
	return handshake(sock, cfg, (*Conn).accept)
}

// Connect makes a connection of a socket whose other side waits for the handshake. It takes the socket over: after an error
// it is closed.
func Connect(sock *net.UnixConn, cfg Config) (*Conn, error) {
	return handshake(sock, cfg, (*Conn).connect)
}

func handshake(sock *net.UnixConn, cfg Config, side func(*Conn) error) (*Conn, error) {
	c := newConn(sock, cfg)
	sock.SetDeadline(time.Now().Add(c.cfg.Timeout))
	if err := side(c); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		c.finish()
		return nil, fmt.Errorf("handshake: %w", err)
	}
	sock.SetDeadline(time.Time{})
	return c, nil
}

func (c *Conn) accept() error {
	if err := c.fill(1); err != nil {
		return err
	}
	if c.buf[c.begin] != 0 {
		return errors.New("the first byte is not zero")
	}
	c.begin++
	var data, ok bool // the mechanism's data is awaited; the other side is accepted
	for range maxLines {
		line, err := c.line()
		if err != nil {
			return err
		}
		command, arg, _ := bytes.Cut(line, []byte(" "))
		answer := `ERROR "not now"`
		switch string(command) {
		case "AUTH":
			mechanism, response, given := bytes.Cut(arg, []byte(" "))
			data, ok = false, false
			switch {
			case string(mechanism) != "EXTERNAL":
				answer = "REJECTED EXTERNAL"
			case !given:
				data, answer = true, "DATA"
			default:
				ok, answer = external(response)
			}
		case "DATA":
			if data {
				data = false
				ok, answer = external(arg)
			}
		case "CANCEL", "ERROR":
			data, ok, answer = false, false, "REJECTED EXTERNAL"
		case "NEGOTIATE_UNIX_FD":
			if ok {
				c.fds, answer = true, "AGREE_UNIX_FD"
			}
		case "BEGIN":
			if ok {
				return nil
			}
			return errors.New("BEGIN without an accepted AUTH")
		}
		if _, err := c.sock.Write([]byte(answer + "\r\n")); err != nil {
			return err
		}
	}
	return fmt.Errorf("no end after %d lines", maxLines)
}

// external answers the response of a client of EXTERNAL: a user's number or nothing, in hexadecimal.
func external(response []byte) (ok bool, answer string) {
	if _, err := hex.DecodeString(string(response)); err != nil {
		return false, "REJECTED EXTERNAL"
	}
	var guid [16]byte
	rand.Read(guid[:])
	return true, "OK " + hex.EncodeToString(guid[:])
}

func (c *Conn) connect() error {
	// GLib's servers take the first byte with the sender's credentials, or not at all.
	creds := unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})
	if _, _, err := c.sock.WriteMsgUnix([]byte{0}, creds, nil); err != nil {
		return err
	}
	user := hex.EncodeToString(strconv.AppendInt(nil, int64(os.Getuid()), 10))
	answer, err := c.ask("AUTH EXTERNAL " + user)
	if err != nil {
		return err
	}
	if answer != "OK" {
		return fmt.Errorf("the other side answers %q to our user number", answer)
	}
	if answer, err = c.ask("NEGOTIATE_UNIX_FD"); err != nil {
		return err
	}
	c.fds = answer == "AGREE_UNIX_FD"
	_, err = c.sock.Write([]byte("BEGIN\r\n"))
	return err
}

// ask sends a line and returns the first word of the answer.
func (c *Conn) ask(line string) (string, error) {
	if _, err := c.sock.Write([]byte(line + "\r\n")); err != nil {
		return "", err
	}
	answer, err := c.line()
	word, _, _ := bytes.Cut(answer, []byte(" "))
	return string(word), err
}

// line returns the next line, which is valid until the next one, without its end.
func (c *Conn) line() ([]byte, error) {
	for seen := 0; ; {
		have := c.buf[c.begin:c.end]
		if i := bytes.Index(have[seen:], []byte("\r\n")); i >= 0 {
			c.begin += seen + i + 2
			return have[:seen+i], nil
		}
		if len(have) > maxLine {
			return nil, fmt.Errorf("a line of more than %d bytes", maxLine)
		}
		seen = max(0, len(have)-1)
		if err := c.fill(len(have) + 1); err != nil {
			return nil, err
		}
	}
}
