package health

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// maxReason is the number of characters of a reason that are kept.
const maxReason = 200

// oneLine makes one printable line of the output of a server or a program.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "\uFFFD"),
		func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if r := []rune(s); len(r) > maxReason {
		return string(r[:maxReason]) + "…"
	}
	return s
}

// explain returns the reason of a failed check in a few words.
func explain(err error, timeout time.Duration) string {
	var expired x509.CertificateInvalidError
	var number syscall.Errno
	switch {
	case errors.As(err, &expired) && expired.Reason == x509.Expired:
		return expiry(expired.Cert, time.Now())
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return late(err, timeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed without an answer"
	case isLocal(err):
		return "not checked, for a fault of this machine: " + err.Error()
	case errors.As(err, &number):
		return networkReason(err, number)
	}
	return strings.TrimPrefix(err.Error(), "tls: failed to verify certificate: ")
}

// late returns the reason of a check that took longer than timeout.
func late(err error, timeout time.Duration) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Sprintf("no connection within %v", timeout)
	}
	return fmt.Sprintf("no answer within %v", timeout)
}

// networkReason returns the reason of an error of the network, and how far the check had come.
func networkReason(err error, number syscall.Errno) string {
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case ok && strings.HasPrefix(op.Net, "udp") && number == syscall.ECONNREFUSED:
		return "port unreachable"
	case ok && op.Op != "dial" && strings.HasPrefix(op.Net, "tcp"):
		return "connected, then: " + number.Error()
	}
	return number.Error()
}

func expiry(c *x509.Certificate, now time.Time) string {
	const day = "2006-01-02 15:04 MST"
	if now.Before(c.NotBefore) {
		return "certificate is not valid yet: from " + c.NotBefore.UTC().Format(day) + " on"
	}
	return "certificate has expired: it was valid until " + c.NotAfter.UTC().Format(day)
}

// isLocal reports whether an error is this machine's fault. Such an error says nothing about the realserver.
func isLocal(err error) bool {
	if _, ok := errors.AsType[localError](err); ok {
		return true
	}
	for _, own := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EAGAIN} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}

// localError is an error of this machine, not of the realserver.
type localError struct{ error }

// Unwrap returns the error without the mark.
func (f localError) Unwrap() error { return f.error }
