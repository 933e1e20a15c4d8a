package health

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// HTTP sends GET and examines the first answer. It follows no redirect.
type HTTP struct {
	TLS    bool
	Path   string // "/", with a query if need be
	Host   string // header; "": the address that is checked, with a port other than the default
	Status []StatusRange
	Body   string // regular expression, which must match in the first 64 KB of the body; "": the body does not matter
	SNI    string // server name, and the name that the certificate must be for; "": Host's name, or else the address
	CA     string // PEM of the authorities to trust; "": the system's
	Verify bool   // verify the certificate
	Cert   string // PEM of the client's certificate, and of intermediate ones; "": none
	Key    string // PEM of the private key of Cert
}

// StatusRange is status codes from First to Last.
type StatusRange struct{ First, Last int }

func (r StatusRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

type httpChecker struct {
	HTTP
	url  *url.URL
	body *regexp.Regexp
	tls  *tls.Config
}

func (p HTTP) prepare() (checker, error) {
	path, err := url.ParseRequestURI(p.Path)
	if err != nil || !strings.HasPrefix(p.Path, "/") {
		return nil, fmt.Errorf("path: %q is not a path", p.Path)
	}
	body, err := pattern("body", p.Body)
	if err != nil {
		return nil, err
	}
	c := httpChecker{HTTP: p, url: path, body: body}
	if !p.TLS {
		return c, nil
	}
	c.tls = &tls.Config{ServerName: p.SNI, InsecureSkipVerify: !p.Verify, NextProtos: []string{"http/1.1"}}
	if c.tls.ServerName == "" {
		c.tls.ServerName = hostname(p.Host)
	}
	if p.CA != "" {
		c.tls.RootCAs = x509.NewCertPool()
		if !c.tls.RootCAs.AppendCertsFromPEM([]byte(p.CA)) {
			return nil, errors.New("ca: holds no certificate")
		}
	}
	if p.Cert != "" {
		own, err := tls.X509KeyPair([]byte(p.Cert), []byte(p.Key))
		if err != nil {
			return nil, fmt.Errorf("cert: %w", err)
		}
		// The field Certificates would send it only to servers that name its authority.
		c.tls.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	}
	return c, nil
}

// hostname returns a Host header without its port.
func hostname(host string) string {
	return (&url.URL{Host: host}).Hostname()
}

// check writes the request and reads the answer without http.Client, which costs twice as much if each connection has
// one request.
func (c httpChecker) check(ctx context.Context, at endpoint) (string, error) {
	conn, end, err := at.dial(ctx, "tcp")
	if err != nil {
		return "", err
	}
	defer end()
	resetAtEnd(conn)
	server := conn
	if c.tls != nil {
		if server, err = c.shake(ctx, conn, at.to); err != nil {
			return "", err
		}
	}
	request := &http.Request{Method: http.MethodGet, URL: c.url, Host: c.host(at), Proto: "HTTP/1.1", ProtoMajor: 1,
		ProtoMinor: 1, Close: true,
		Header: http.Header{"User-Agent": {"vstun"}, "Accept": {"*/*"}}}
	bound := &limit{left: maxHead}
	buffers := buffered.Get().(*bufio.ReadWriter)
	defer func() {
		buffers.Writer.Reset(nil)
		buffers.Reader.Reset(nil)
		buffered.Put(buffers)
	}()
	buffers.Writer.Reset(server)
	buffers.Reader.Reset(limited{server, bound})
	if err := errors.Join(request.Write(buffers), buffers.Flush()); err != nil {
		return "", err
	}
	answer, err := readAnswer(buffers.Reader, request)
	if bound.left == 0 {
		return "", fmt.Errorf("no end of the HTTP header after %d KB", maxHead>>10)
	}
	if err != nil {
		return "", notHTTP(err)
	}
	// The body is not closed: closing would read it to its end.
	if !c.takes(answer.StatusCode) {
		return "", fmt.Errorf("HTTP status %d, want %s", answer.StatusCode, ranges(c.Status))
	}
	if c.body != nil {
		bound.left = 2 * maxAnswer // the body, and the overhead of its encoding
		if err := c.match(answer.Body); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("HTTP status %d", answer.StatusCode), nil
}

// buffered is a pool of buffers. New ones for each check would be most of the garbage.
var buffered = sync.Pool{New: func() any { return bufio.NewReadWriter(bufio.NewReader(nil), bufio.NewWriter(nil)) }}

// shake makes the TLS handshake.
func (c httpChecker) shake(ctx context.Context, conn net.Conn, to netip.Addr) (net.Conn, error) {
	config := c.tls
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName = to.String()
	}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
			return nil, errors.New("the server does not speak TLS here")
		}
		return nil, err
	}
	return secured, nil
}

// host returns the Host header.
func (c httpChecker) host(at endpoint) string {
	if c.Host != "" {
		return c.Host
	}
	return Host(at.to, at.port, c.TLS)
}

// Host returns the Host header for an address and a port: RFC 9110, section 7.2.
func Host(a netip.Addr, port uint16, tls bool) string {
	switch {
	case !tls && port != 80, tls && port != 443:
		return netip.AddrPortFrom(a, port).String()
	case a.Is6():
		return "[" + a.String() + "]"
	}
	return a.String()
}

// readAnswer reads the header of the final answer. It skips interim answers (RFC 9110, section 15.2).
func readAnswer(in *bufio.Reader, request *http.Request) (*http.Response, error) {
	for {
		answer, err := http.ReadResponse(in, request)
		if err != nil || answer.StatusCode >= 200 || answer.StatusCode == http.StatusSwitchingProtocols {
			return answer, err
		}
	}
}

// notHTTP marks an error of net/http about a malformed answer. Other errors are unchanged.
func notHTTP(err error) error {
	if isNetwork(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return fmt.Errorf("no HTTP answer: %w", err)
}

func isNetwork(err error) bool {
	_, ok := errors.AsType[net.Error](err)
	return ok
}

func (c httpChecker) takes(status int) bool {
	for _, r := range c.Status {
		if r.First <= status && status <= r.Last {
			return true
		}
	}
	return false
}

// match looks for the expression in the body.
func (c httpChecker) match(body io.Reader) error {
	text, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	switch {
	case c.body.Match(text): // even if reading failed afterwards
		return nil
	case err != nil && isNetwork(err):
		return fmt.Errorf("body: %w", err)
	}
	return fmt.Errorf("body does not match in its first %d bytes", len(text))
}

func ranges(list []StatusRange) string {
	var all []string
	for _, r := range list {
		all = append(all, r.String())
	}
	return strings.Join(all, ", ")
}

// maxHead bounds the headers of an answer, in bytes.
const maxHead = 256 << 10

// limited is a connection from which at most limit.left bytes can be read.
type limited struct {
	net.Conn
	*limit
}

type limit struct{ left int }

// Read implements net.Conn. At the limit it returns io.EOF.
func (l limited) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, io.EOF
	}
	n, err := l.Conn.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}
