package health

import (
	"context"
	"fmt"
	"io"
	"net"
	"regexp"
)

// TCP opens a connection, and more where Send or Expect say so.
type TCP struct {
	Send   string // sent at once; "": nothing
	Expect string // regular expression, which must match in the first 64 KB that come back; "": nothing has to
}

type tcpChecker struct {
	send   []byte
	expect *regexp.Regexp
}

func (p TCP) prepare() (checker, error) {
	expect, err := pattern("expect", p.Expect)
	return tcpChecker{send: []byte(p.Send), expect: expect}, err
}

// pattern compiles a regular expression that may be missing.
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

func (c tcpChecker) check(ctx context.Context, at place) (string, error) {
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

// resetAtEnd makes a connection end by RST: a thousand checks a second leave none in TIME_WAIT, here and in the connection table.
func resetAtEnd(conn net.Conn) {
	if l, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
}

// maxAnswer is how much of an answer is looked at, in bytes.
const maxAnswer = 64 << 10

// expectFrom reads until the expression matches.
func expectFrom(from io.Reader, expect *regexp.Regexp) error {
	buf := make([]byte, 0, 1024)
	for {
		if len(buf) == cap(buf) {
			if len(buf) == maxAnswer {
				return fmt.Errorf("expect does not match the first %d KB of the answer: %s", maxAnswer>>10, begin(buf))
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
			return fmt.Errorf("expect does not match the answer: %s", begin(buf))
		case err != nil:
			return err
		}
	}
}

// begin is how an answer begins, quoted.
func begin(answer []byte) string {
	return fmt.Sprintf("%q", answer[:min(len(answer), 64)])
}
