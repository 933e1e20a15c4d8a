package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"net/textproto"
	"strings"
)

// SMTP makes a dialogue with a mail server: 220, EHLO or HELO, QUIT (RFC 5321).
type SMTP struct {
	Helo string // the director's name; "": its address, as in section 4.1.3
}

func (p SMTP) prepare() (checker, error) {
	if strings.ContainsFunc(p.Helo, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("helo: %q is not a host's name", p.Helo)
	}
	return p, nil
}

func (p SMTP) check(ctx context.Context, at endpoint) (string, error) {
	conn, end, err := at.dial(ctx, "tcp")
	if err != nil {
		return "", err
	}
	defer end()
	bound := &limit{left: maxAnswer}
	client, err := smtp.NewClient(limited{conn, bound}, at.to.String())
	if err != nil {
		return "", refused("greeting", err, bound)
	}
	helo := p.Helo
	if helo == "" {
		helo = literal(conn.LocalAddr())
	}
	if err := client.Hello(helo); err != nil {
		return "", refused("HELO", err, bound)
	}
	_ = client.Text.PrintfLine("QUIT") // without waiting for its answer: the check is done
	return "250 to HELO", nil
}

// refused returns the error of a step of the dialogue.
func refused(what string, err error, bound *limit) error {
	if bound.left == 0 {
		return fmt.Errorf("%s: no end of a line after %d KB", what, maxAnswer>>10)
	}
	if p, ok := errors.AsType[*textproto.Error](err); ok {
		return fmt.Errorf("%s: %d %s", what, p.Code, p.Msg)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// literal returns the address literal of a (RFC 5321, section 4.1.3).
func literal(a net.Addr) string {
	host, _, _ := net.SplitHostPort(a.String())
	if strings.Contains(host, ":") {
		return "[IPv6:" + host + "]"
	}
	return "[" + host + "]"
}
