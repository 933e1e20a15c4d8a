package health

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func addrOf(s *httptest.Server) netip.AddrPort {
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// site is a real web server with a page for each behaviour.
func site() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "welcome to %s, %s", r.Host, r.URL.RawQuery)
	})
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code := 0
		_, _ = fmt.Sscan(r.PathValue("code"), &code)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(code)
	})
	mux.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusProcessing)
		w.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		for i := range 1000 {
			w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
		}
	})
	mux.HandleFunc("/long", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begin"+strings.Repeat(".", 100_000)+"end")
	})
	mux.HandleFunc("/drip", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, "drop "); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	return mux
}

func TestHTTP(t *testing.T) {
	plain := httptest.NewServer(site())
	t.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(site())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(secure.Close)
	usual := []StatusRange{{200, 399}}
	get := func(path string) HTTP { return HTTP{Path: path, Status: usual} }
	body := func(path, pattern string) HTTP { return HTTP{Path: path, Status: usual, Body: pattern} }
	raw := func(answer string) netip.AddrPort { return listen(t, says(answer)) }
	at := addrOf(plain)
	for _, o := range []outcome{
		{"fine", get("/"), at, true, "HTTP status 200"},
		{"query and port", body("/?a=b", fmt.Sprintf("^welcome to 127.0.0.1:%d, a=b$", at.Port())), at, true,
			"HTTP status 200"},
		{"host", HTTP{Path: "/", Host: "www.example.com", Status: usual, Body: "to www.example.com,"}, at, true,
			"HTTP status 200"},
		{"broken", get("/status/503"), at, false, "HTTP status 503, want 200-399"},
		{"not followed", get("/status/302"), at, true, "HTTP status 302"},
		{"no redirect wanted", HTTP{Path: "/status/302", Status: []StatusRange{{200, 299}, {404, 404}}}, at, false,
			"HTTP status 302, want 200-299, 404"},
		{"404 wanted", HTTP{Path: "/status/404", Status: []StatusRange{{200, 299}, {404, 404}}}, at, true,
			"HTTP status 404"},
		{"early hints", get("/early"), at, true, "HTTP status 200"},
		{"body differs", body("/", "goodbye"), at, false, "body does not match in its first…"},
		{"in the first 64 KB", body("/long", "^begin"), at, true, "HTTP status 200"},
		{"behind 64 KB", body("/long", "end$"), at, false, "body does not match in its first 65536 bytes"},
		{"slow body matches", body("/drip", "drop drop"), at, true, "HTTP status 200"},
		{"slow body does not", body("/drip", "never"), at, false, "no answer within 300ms"},
		{"endless body", get("/drip"), at, true, "HTTP status 200"},
		{"hangs", get("/hang"), at, false, "no answer within 300ms"},
		{"closed", get("/"), closed(t), false, "connection refused"},
		{"huge headers", get("/headers"), at, false, "no end of the HTTP header after 256 KB"},
		{"endless header", get("/"), raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 300_000)), false,
			"no end of the HTTP header after 256 KB"},
		{"garbage", get("/"), raw("\x16\x03\xff\x00\r\n\r\n"), false, "no HTTP answer: malformed HTTP response…"},
		{"nothing", get("/"), raw(""), false, "connection closed without an answer"},
		{"half an answer", get("/"), raw("HTTP/1.1 200 OK\r\nConte"), false, "no HTTP answer: malformed MIME header…"},
		{"half a body", body("/", "x"), raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nyyy"), false,
			"body does not match in its first 3 bytes"},
		{"HTTP/1.0", body("/", "^yyy$"), raw("HTTP/1.0 200 OK\r\n\r\nyyy"), true, "HTTP status 200"},
		{"bad chunks", body("/", "x"), raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), false,
			"body does not match in its first 0 bytes"},
		{"TLS there", get("/"), addrOf(secure), false, "HTTP status 400, want 200-399"},
		{"resets", get("/"), listen(t, reset), false, "connected, then: connection reset by peer"},
	} {
		o.test(t)
	}
}

// authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, cert: &x509.Certificate{SerialNumber: big.NewInt(1),
		Subject: pkix.Name{CommonName: "authority"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}}
	der := a.sign(t, a.cert)
	a.pem = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func (a *authority) sign(t *testing.T, c *x509.Certificate) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// serve starts a web server that has a certificate for names, valid from and to then.
func (a *authority) serve(t *testing.T, from, to time.Time, names ...string) netip.AddrPort {
	t.Helper()
	c := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: to}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_,
			_ = io.WriteString(w, "sni "+r.TLS.ServerName)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{a.sign(t, c)}, PrivateKey: a.key}}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return addrOf(s)
}

func TestHTTPS(t *testing.T) {
	now := time.Now()
	a, other := newAuthority(t), newAuthority(t)
	valid := a.serve(t, now.Add(-time.Hour), now.Add(time.Hour), "www.example.com", "127.0.0.1")
	named := a.serve(t, now.Add(-time.Hour), now.Add(time.Hour), "www.example.com")
	expired := a.serve(t, time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		"127.0.0.1")
	early := a.serve(t, now.Add(time.Hour), time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC), "127.0.0.1")
	plain := httptest.NewServer(site())
	t.Cleanup(plain.Close)
	usual := []StatusRange{{200, 399}}
	get := HTTP{TLS: true, Path: "/", Status: usual, CA: a.pem, Verify: true}
	with := func(change func(*HTTP)) HTTP {
		p := get
		change(&p)
		return p
	}
	for _, o := range []outcome{
		{"by address", get, valid, true, "HTTP status 200"},
		{"by host", with(func(p *HTTP) { p.Host, p.Body = "www.example.com:8443", "^sni www.example.com$" }), named,
			true, "HTTP status 200"},
		{"by SNI", with(func(p *HTTP) { p.Host, p.SNI, p.Body = "other", "www.example.com", "^sni www.example.com$" }),
			named, true, "HTTP status 200"},
		{"another name", with(func(p *HTTP) { p.Host = "ftp.example.com" }), named, false,
			"x509: certificate is valid for www.example.com, not ftp.example.com"},
		{"no address", get, named, false, "x509: cannot validate certificate for 127.0.0.1 because it doesn't " +
			"contain any IP SANs"},
		{"expired", get, expired, false, "certificate has expired: it was valid until 2020-01-01 00:00 UTC"},
		{"early", get, early, false, "certificate is not valid yet: from…"},
		{"another authority", with(func(p *HTTP) { p.CA = other.pem }), valid, false,
			"x509: certificate signed by unknown authority…"},
		{"the system's authorities", with(func(p *HTTP) { p.CA = "" }), valid, false,
			"x509: certificate signed by unknown authority…"},
		{"not verified", with(func(p *HTTP) { p.CA, p.Verify = "", false }), expired, true, "HTTP status 200"},
		{"no TLS", get, addrOf(plain), false, "the server does not speak TLS here"},
		{"silent", get, listen(t, silence), false, "no answer within 300ms"},
		{"garbage", get, listen(t, says("\x00\x01\x02\x03\x04\x05\x06\x07")), false,
			"the server does not speak TLS here"},
		{"closes", get, listen(t, says("")), false, "connection closed without an answer"},
	} {
		o.test(t)
	}
}

// TestClientCertificate: a server that asks for a certificate gets the check's, whichever authority the server names.
func TestClientCertificate(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	own := func(a *authority) (cert, key string) {
		der, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: "director"},
			NotBefore: time.Now().Add(-time.Hour),
			NotAfter:  time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.sign(t,
			c)})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	asks := func(auth tls.ClientAuthType) netip.AddrPort {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for _, c := range r.TLS.PeerCertificates {
				_, _ = io.WriteString(w, "welcome, "+c.Subject.CommonName)
			}
		}))
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = &tls.Config{ClientAuth: auth, ClientCAs: x509.NewCertPool()}
		s.TLS.ClientCAs.AppendCertsFromPEM([]byte(ours.pem))
		s.StartTLS()
		t.Cleanup(s.Close)
		return addrOf(s)
	}
	strict, lax := asks(tls.RequireAndVerifyClientCert), asks(tls.RequestClientCert)
	get := HTTP{TLS: true, Path: "/", Status: []StatusRange{{200, 299}}}
	with := get
	with.Cert, with.Key = own(ours)
	with.Body = "^welcome, director$"
	other := get
	other.Cert, other.Key = own(theirs)
	for _, o := range []outcome{
		{"has none", get, strict, false, "remote error: tls: certificate required"},
		{"has one", with, strict, true, "HTTP status 200"},
		{"has another authority's", other, strict, false, "remote error: tls: …"},
		{"has another authority's where any will do", HTTP{TLS: true, Path: "/", Status: get.Status, Body: "director",
			Cert: other.Cert, Key: other.Key}, lax, true, "HTTP status 200"},
	} {
		o.test(t)
	}
	mixed := with
	mixed.Key = other.Key
	if _, err := mixed.prepare(); err == nil {
		t.Error("a key of another certificate is taken")
	}
}
