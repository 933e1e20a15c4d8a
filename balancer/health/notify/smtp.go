package notify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/wneessen/go-mail/smtp"
)

// maxAnswers bounds what a server may send in one connection, in bytes.
const maxAnswers = 1 << 20

// refusal is an error that is the message's own: another attempt at it can't succeed.
type refusal struct{ err error }

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// isRefusal reports whether another attempt can't succeed.
func isRefusal(err error) bool {
	_, ok := errors.AsType[*refusal](err)
	return ok
}

// refused makes a refusal of the server's answer to a message, if it is one of class 5 (RFC 5321, section 4.2.1).
func refused(err error) error {
	if answer, ok := errors.AsType[*textproto.Error](err); ok && answer.Code >= 500 {
		return &refusal{err}
	}
	return err
}

// deliver sends the mail of r. ctx bounds it. delivered reports whether a recipient gets the mail. With delivered, err
// names the recipients that the server has refused, and later are those that it may take at another time.
func deliver(ctx context.Context, c *Mail, r *report) (delivered bool, later []string, err error) {
	message, err := r.message(c)
	if err != nil {
		return false, nil, &refusal{err}
	}
	conn, err := dial(ctx, c.Server)
	if err != nil {
		return false, nil, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	client, err := c.connect(ctx, conn, r.host)
	if err != nil {
		return false, nil, err
	}
	refusals, later, err := c.envelope(client, r.recipients(c))
	if err != nil {
		return false, nil, err
	}
	w, err := client.Data()
	if err != nil {
		return false, nil, c.failed("message", err)
	}
	if _, err := message.WriteTo(w); err != nil {
		return false, nil, c.failed("message", err)
	}
	if err := w.Close(); err != nil {
		return false, nil, refused(c.failed("message", err))
	}
	// The server has the mail, whether it answers the goodbye or not.
	_ = conn.SetDeadline(time.Now().Add(byeTime))
	_ = client.Quit()
	return true, later, refusals
}

// byeTime bounds the wait for the answer to QUIT.
const byeTime = time.Second

// failed adds to an error in which step of the exchange the server has caused it, and what to do. An answer with a
// status says that itself.
func (c *Mail) failed(step string, err error) error {
	if answer, ok := errors.AsType[*textproto.Error](err); ok {
		return fmt.Errorf("%s: %w", step, answer)
	}
	malformed, isMalformed := errors.AsType[textproto.ProtocolError](err)
	late := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
	switch {
	case late && step == "greeting" && c.TLS != TLSDirect:
		return fmt.Errorf(`%s: %w: want the port of an SMTP server, and tls = "tls" for one that begins with TLS`, step,
			os.ErrDeadlineExceeded)
	case late:
		return fmt.Errorf("%s: %w: look at the server's log", step, os.ErrDeadlineExceeded)
	case errors.Is(err, errTooLong):
		return fmt.Errorf("%s: %w: want the port of an SMTP server", step, errTooLong)
	case isMalformed:
		return fmt.Errorf("%s: %w: want the port of an SMTP server", step, malformed)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET),
		errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%s: the server closes the connection: look at its log", step)
	}
	return fmt.Errorf("%s: %w", step, c.advised(err))
}

// dial connects to an SMTP server within the time of ctx.
func dial(ctx context.Context, server string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end)
	}
	return &boundedConn{Conn: conn, left: maxAnswers}, nil
}

// errTooLong is the error of a connection with more than maxAnswers.
var errTooLong = fmt.Errorf("the server's answers are longer than %d KiB", maxAnswers>>10)

// boundedConn bounds what is read from a connection.
type boundedConn struct {
	net.Conn
	left int
}

func (c *boundedConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTooLong
	}
	n, err := c.Conn.Read(b)
	c.left -= n
	return n, err
}

// connect greets the server on conn, encrypts the connection and logs in, as c says.
func (c *Mail) connect(ctx context.Context, conn net.Conn, host string) (*smtp.Client, error) {
	name, _, err := net.SplitHostPort(c.Server)
	if err != nil {
		return nil, err
	}
	secure := &tls.Config{ServerName: name, MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		secure.RootCAs = x509.NewCertPool()
		secure.RootCAs.AppendCertsFromPEM([]byte(c.CA))
	}
	if c.TLS == TLSDirect {
		encrypted := tls.Client(conn, secure)
		if err := encrypted.HandshakeContext(ctx); err != nil {
			return nil, c.failed("TLS", err)
		}
		conn = encrypted
	}
	client, err := smtp.NewClient(conn, name)
	if err != nil {
		return nil, c.failed("greeting", err)
	}
	client.SkipSMTPUTF8(true)
	if c.Helo != "" {
		host = c.Helo
	}
	if err := client.Hello(host); err != nil {
		return nil, c.failed("EHLO", err)
	}
	if c.TLS == TLSStart {
		if has, _ := client.Extension("STARTTLS"); !has {
			return nil, errors.New(`the server offers no STARTTLS: want tls = "tls" or "none", or another port`)
		}
		if err := client.StartTLS(secure); err != nil {
			return nil, c.failed("STARTTLS", err)
		}
	}
	if c.User == "" {
		return client, nil
	}
	return client, c.login(client, name)
}

// login proves to the server that the client is User. The connection is encrypted.
func (c *Mail) login(client *smtp.Client, name string) error {
	_, list := client.Extension("AUTH")
	offered := strings.Fields(strings.ToUpper(list))
	var by smtp.Auth
	switch {
	case slices.Contains(offered, "PLAIN"):
		by = smtp.PlainAuth("", c.User, c.Password, name, false)
	case slices.Contains(offered, "LOGIN"):
		by = smtp.LoginAuth(c.User, c.Password, name, false)
	case slices.Contains(offered, "CRAM-MD5"):
		by = smtp.CRAMMD5Auth(c.User, c.Password)
	default:
		return fmt.Errorf("the server offers no login by PLAIN, LOGIN or CRAM-MD5, but %q: leave user out, or take "+
			"another port", list)
	}
	err := client.Auth(by)
	if _, answered := errors.AsType[*textproto.Error](err); answered {
		return fmt.Errorf("the server refuses the login as %q: %w: look at user and password_file", c.User, err)
	}
	if err != nil {
		return c.failed("login", err)
	}
	return nil
}

// envelope names the sender and recipients to the server. refusals is nil, or names the recipients that the server
// refuses. later are those that it refuses for now: class 4 of RFC 5321, section 4.2.1. err is the error of the sender,
// of the connection, or of all recipients.
func (c *Mail) envelope(client *smtp.Client, recipients []string) (refusals error, later []string, err error) {
	from, err := ParseAddress(c.From)
	if err != nil {
		return nil, nil, err
	}
	if err := client.Mail("<" + from + ">"); err != nil {
		return nil, nil, c.failed("from "+from, err)
	}
	var all []error
	for _, text := range recipients {
		to, err := ParseAddress(text)
		if err != nil {
			return nil, nil, err
		}
		if err := client.Rcpt("<" + to + ">"); err != nil {
			err = c.failed("to "+to, err)
			answer, answered := errors.AsType[*textproto.Error](err)
			if !answered {
				return nil, nil, err
			}
			if answer.Code < 500 {
				later = append(later, text)
			}
			all = append(all, err)
		}
	}
	if refusals = errors.Join(all...); len(all) == len(recipients) {
		return nil, nil, refusals
	}
	return refusals, later, nil
}

// advised adds the remedy to an error of TLS.
func (c *Mail) advised(err error) error {
	remedy := ""
	_, isNoTLS := errors.AsType[tls.RecordHeaderError](err)
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	if isNoTLS && c.TLS == TLSDirect {
		remedy = `the server does not speak TLS first: want tls = "starttls", or its port for TLS`
	} else if isNoTLS {
		remedy = "the server does not speak TLS after STARTTLS: look at its log"
	} else if strings.Contains(err.Error(), "protocol version") {
		remedy = "want a server with TLS 1.2 or later"
	} else if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		remedy = "name its authority, or its own certificate, as ca"
	} else if _, ok := errors.AsType[x509.HostnameError](err); ok {
		remedy = "write the name in its certificate as server"
	} else if isInvalid && invalid.Reason == x509.Expired {
		remedy = "renew the server's certificate, or set this host's clock"
	} else if isInvalid {
		remedy = "give the server another certificate"
	}
	if remedy == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, remedy)
}
