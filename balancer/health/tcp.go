package health

import (
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
)

// TCP opens a connection, sends Send and waits for Expect.
type TCP struct {
	Send      string // bytes to send at once; "": none
	Expect    string // regular expression, which must match in the first 64 KB of the answer; "": none
	ExpectHex string // in place of Expect: the answer's beginning, as ParseBytePattern reads it
}

type tcpChecker struct {
	send   []byte
	expect *expectation
}

func (p TCP) prepare() (checker, error) {
	expect, err := newExpectation(p.Expect, p.ExpectHex)
	return tcpChecker{send: []byte(p.Send), expect: expect}, err
}

// expectation is a pattern that an answer must match.
type expectation struct {
	key string // in the configuration
	matcher
	format string // for the beginning of an answer
}

// matcher is a *regexp.Regexp or a *BytePattern.
type matcher interface{ Match(answer []byte) bool }

// newExpectation returns the expectation of an answer that matches hex or, if hex is empty, expression. It returns nil
// if both are empty.
func newExpectation(expression, hex string) (*expectation, error) {
	if hex == "" {
		r, err := pattern("expect", expression)
		if r == nil {
			return nil, err
		}
		return &expectation{"expect", r, "%q"}, nil
	}
	p, err := ParseBytePattern(hex)
	if err != nil {
		return nil, fmt.Errorf("expect_hex: %w", err)
	}
	return &expectation{"expect_hex", p, "% x"}, nil
}

// mismatch returns the error for what, the answer or a part of it, that does not match.
func (e *expectation) mismatch(what string, answer []byte) error {
	return fmt.Errorf("%s does not match %s: "+e.format, e.key, what, answer[:min(len(answer), 64)])
}

// pattern compiles a regular expression. It returns nil for "".
func pattern(key, expression string) (*regexp.Regexp, error) {
	if expression == "" {
		return nil, nil
	}
	r, err := regexp.Compile(expression)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return r, nil
}

func (c tcpChecker) check(ctx context.Context, at endpoint) (string, error) {
	conn, end, err := at.dial(ctx, "tcp")
	if err != nil {
		return "", err
	}
	defer end()
	resetAtEnd(conn)
	if len(c.send) > 0 {
		if _, err := conn.Write(c.send); err != nil {
			return "", err
		}
	}
	if c.expect == nil {
		return "connected", nil
	}
	return "answer as expected", expectFrom(conn, c.expect)
}

// resetAtEnd makes a connection end by RST. So even a thousand checks a second leave no connection in TIME_WAIT, here
// and in the connection table.
func resetAtEnd(conn net.Conn) {
	if l, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
}

// maxAnswer bounds the bytes of an answer that are read.
const maxAnswer = 64 << 10

// expectFrom reads until the bytes read so far match, or returns why they don't.
func expectFrom(from io.Reader, expect *expectation) error {
	buf := make([]byte, 0, 1024)
	for {
		if len(buf) == cap(buf) {
			if len(buf) == maxAnswer {
				return expect.mismatch(fmt.Sprintf("the first %d KB of the answer", maxAnswer>>10), buf)
			}
			buf = append(make([]byte, 0, min(4*cap(buf), maxAnswer)), buf...)
		}
		n, err := from.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n > 0 && expect.Match(buf) {
			return nil
		}
		switch {
		case err != nil && len(buf) > 0:
			return expect.mismatch("the answer", buf)
		case err != nil:
			return err
		}
	}
}
