package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Certificate returns a certificate that authorises itself, for names and addresses, and its PEM text.
func Certificate(t testing.TB, names ...string) (tls.Certificate, string) {
	t.Helper()
	return certificate(t, time.Now().Add(time.Hour), names)
}

// ExpiredCertificate returns a Certificate that has expired.
func ExpiredCertificate(t testing.TB, names ...string) (tls.Certificate, string) {
	t.Helper()
	return certificate(t, time.Now().Add(-time.Minute), names)
}

func certificate(t testing.TB, end time.Time, names []string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:  x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: end}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// SMTPOptions are the settings of an SMTP server.
type SMTPOptions struct {
	TLS            string // "none", "starttls" or "tls"
	Certificate    tls.Certificate
	User, Password string           // who may send; "": everybody
	Mechanisms     []string         // of logins: "PLAIN", "LOGIN"; none: PLAIN
	Refused        map[string]error // answers to recipients
	Greylisted     map[string]error // answers to recipients, the first time
	Message        error            // answer to every message; nil: it is taken
}

// SMTPServer is a running server and the mails that it has taken.
type SMTPServer struct {
	options SMTPOptions
	mu      sync.Mutex
	mails   []SMTPMail
	logins  int
}

// SMTPMail is a mail that a server has taken.
type SMTPMail struct {
	From    string   // of the envelope
	To      []string // of the envelope
	TLS     bool     // it came over an encrypted connection
	User    string   // of the login
	Message *mail.Message
	Body    string // as it came
}

// Subject returns the subject, decoded.
func (m SMTPMail) Subject(t testing.TB) string {
	t.Helper()
	s, err := new(mime.WordDecoder).DecodeHeader(m.Message.Header.Get("Subject"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Text returns the body, decoded, with the ends of lines that Go has.
func (m SMTPMail) Text(t testing.TB) string {
	t.Helper()
	if got := m.Message.Header.Get("Content-Transfer-Encoding"); got != "quoted-printable" {
		t.Fatalf("encoding %q", got)
	}
	b, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(m.Body)))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}

// ServeSMTP runs a server on a listener until the test ends.
func ServeSMTP(t testing.TB, ln net.Listener, o SMTPOptions) *SMTPServer {
	t.Helper()
	s := &SMTPServer{options: o}
	server := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		session := &smtpSession{server: s, conn: c}
		if o.User == "" {
			return session, nil
		}
		return &smtpLogin{session}, nil
	}))
	server.Domain = "mail.example.com"
	server.ErrorLog = discard{}
	secure := &tls.Config{Certificates: []tls.Certificate{o.Certificate}}
	switch o.TLS {
	case "tls":
		ln = tls.NewListener(ln, secure)
	case "starttls":
		server.TLSConfig = secure
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln) // ends with the listener
	}()
	t.Cleanup(func() {
		_ = server.Close()
		_ = ln.Close()
		<-done
	})
	return s
}

// Mails returns the mails so far.
func (s *SMTPServer) Mails() []SMTPMail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

// Logins returns the number of logins so far, refused ones included.
func (s *SMTPServer) Logins() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins
}

// smtpSession is a connection to a server.
type smtpSession struct {
	server *SMTPServer
	conn   *smtp.Conn
	mail   SMTPMail
	user   string
}

func (s *smtpSession) Mail(from string, _ *smtp.MailOptions) error {
	if s.server.options.User != "" && s.user == "" {
		return smtp.ErrAuthRequired
	}
	_, encrypted := s.conn.TLSConnectionState()
	s.mail = SMTPMail{From: from, TLS: encrypted, User: s.user}
	return nil
}

func (s *smtpSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	if err := s.server.options.Refused[to]; err != nil {
		return err
	}
	s.server.mu.Lock()
	err := s.server.options.Greylisted[to]
	delete(s.server.options.Greylisted, to)
	s.server.mu.Unlock()
	if err != nil {
		return err
	}
	s.mail.To = append(s.mail.To, to)
	return nil
}

func (s *smtpSession) Data(r io.Reader) error {
	m, err := mail.ReadMessage(r)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(m.Body)
	if err != nil {
		return err
	}
	if s.server.options.Message != nil {
		return s.server.options.Message
	}
	s.mail.Message, s.mail.Body = m, string(body)
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	s.server.mails = append(s.server.mails, s.mail)
	return nil
}

func (s *smtpSession) Reset()        { s.mail = SMTPMail{} }
func (s *smtpSession) Logout() error { return nil }

// smtpLogin is an smtpSession that asks for a login.
type smtpLogin struct{ *smtpSession }

func (s *smtpLogin) AuthMechanisms() []string {
	if m := s.server.options.Mechanisms; m != nil {
		return m
	}
	return []string{sasl.Plain}
}

func (s *smtpLogin) Auth(mechanism string) (sasl.Server, error) {
	if mechanism == sasl.Login {
		return &loginServer{check: s.check}, nil
	}
	return sasl.NewPlainServer(func(_, user, password string) error { return s.check(user, password) }), nil
}

func (s *smtpLogin) check(user, password string) error {
	s.server.mu.Lock()
	s.server.logins++
	s.server.mu.Unlock()
	if o := s.server.options; user != o.User || password != o.Password {
		return smtp.ErrAuthFailed
	}
	s.user = user
	return nil
}

// loginServer is the server of the mechanism LOGIN, which asks for the name and then for the password.
type loginServer struct {
	check func(user, password string) error
	step  int
	user  string
}

func (s *loginServer) Next(answer []byte) (challenge []byte, done bool, err error) {
	s.step++
	switch s.step {
	case 1:
		return []byte("Username:"), false, nil
	case 2:
		s.user = string(answer)
		return []byte("Password:"), false, nil
	case 3:
		return nil, true, s.check(s.user, string(answer))
	}
	return nil, false, errors.New("too many answers")
}

// discard is a log that is not kept: clients that break off are what tests want.
type discard struct{}

func (discard) Printf(string, ...any) {}
func (discard) Println(...any)        {}
