package health

import (
	"context"
	"errors"
	"os"
	"syscall"
)

// MaxDatagram is the largest size of a UDP datagram's payload over IPv4, in bytes (RFC 768, RFC 791).
const MaxDatagram = 65535 - 20 - 8

// UDP sends a datagram. Without an expectation, any answer is a success, and so is silence until the timeout. An ICMP
// port unreachable is a failure.
type UDP struct {
	Send      string // the datagram's bytes
	Expect    string // regular expression, which must match an answer; "": no answer is needed
	ExpectHex string // in place of Expect: what an answer must begin with, as ParseBytePattern reads it
}

type udpChecker struct {
	send   []byte
	expect *expectation
	room   int // bytes for an answer; each check in flight allocates them
}

func (p UDP) prepare() (checker, error) {
	expect, err := newExpectation(p.Expect, p.ExpectHex)
	c := udpChecker{send: []byte(p.Send), expect: expect, room: 1}
	if expect != nil {
		c.room = maxAnswer
	}
	return c, err
}

func (c udpChecker) check(ctx context.Context, at endpoint) (string, error) {
	conn, end, err := at.dial(ctx, "udp")
	if err != nil {
		return "", err
	}
	defer end()
	switch _, err := conn.Write(c.send); {
	case errors.Is(err, syscall.EMSGSIZE): // this host's kernel has sent nothing
		return "", localError{err}
	case err != nil:
		return "", err
	}
	buf := make([]byte, c.room)
	for wrong := error(nil); ; {
		n, err := conn.Read(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && c.expect == nil:
			return "no answer, and no port unreachable", nil
		case err != nil && wrong != nil:
			return "", wrong
		case err != nil:
			return "", err
		case c.expect == nil:
			return "answered", nil
		case c.expect.Match(buf[:n]):
			return "answer as expected", nil
		}
		wrong = c.expect.mismatch("the answer", buf[:n])
	}
}
