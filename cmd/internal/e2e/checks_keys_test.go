package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/testdata/testkit"
)

// TestWeightsOfFiles: files on the director's host change weights and take a realserver out. An operator's weight has
// precedence.
func TestWeightsOfFiles(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	dir := t.TempDir()
	for d := dir; d != os.TempDir(); d = filepath.Dir(d) { // the director has a plain user's rights
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(n int, text string) {
		t.Helper()
		path := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	mustHave := func(when, want string) {
		t.Helper()
		is := ""
		defer func() { t.Logf("%s: %s", when, is) }()
		testkit.Within(t, when+": "+want, 2*soon, func() bool {
			is = ""
			svc := s.director.balance().Services[0]
			for _, r := range svc.Realservers {
				is += fmt.Sprintf("%s %d/%d, ", r.Health, r.Effective, r.Weight)
			}
			is += fmt.Sprintf("%s with %d", svc.Health, svc.WeightUp)
			return is == want
		})
	}
	toml := func(interval string) string {
		text := fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\nscheduler = "+
			"\"wrr\"\nquorum = 5\n", s.VIP)
		for i, web := range s.Webs {
			text += fmt.Sprintf("[[service.realserver]]\naddress = %q\nweight = 4\non_failure = %q\n"+
				"check = { type = \"file\", path = %q, interval = %q, timeout = \"100ms\", rise = 1, fall = 1, "+
				"initial = \"up\" }\n",
				web.Addr, []string{"remove", "drain"}[i], filepath.Join(dir, fmt.Sprint(i)), interval)
		}
		return text
	}
	s.startWith(toml("100ms"))
	mustHave("without files", "up 4/4, up 4/4, up with 8")
	write(0, "-3")
	write(1, "10\n")
	mustHave("with files", "up 1/1, up 14/14, up with 15")
	if got := *s.director.balance().Services[0].Realservers[0].Configured; got != 4 {
		t.Errorf("the configured weight is %d", got)
	}
	s.reloadWith(toml("200ms"))
	mustHave("after a reload", "up 1/1, up 14/14, up with 15")
	write(0, "-100")
	write(1, "0")
	mustHave("below 0", "up 0/0, up 4/4, down with 4")
	write(0, "-2147483648")
	write(1, "-2147483648")
	mustHave("failed", "down 0/4, down 0/4, down with 0")
	write(0, "1")
	write(1, "2")
	mustHave("back", "up 5/5, up 6/6, up with 11")
	if got := s.ask("drain", "web", s.Webs[0].Addr.String()); got.code != 0 {
		t.Fatalf("drain: %s", got.stderr)
	}
	mustHave("drained", "up 0/0, up 6/6, up with 6")
	write(0, "7")
	write(1, "3")
	mustHave("still drained", "up 0/0, up 7/7, up with 7")
	if got := s.ask("undrain", "web", s.Webs[0].Addr.String()); got.code != 0 {
		t.Fatalf("undrain: %s", got.stderr)
	}
	mustHave("not drained", "up 11/11, up 7/7, up with 18")
}

// TestSorryRealserver: a sorry server that is also a realserver has its share while the service is up. It has all
// clients while the service is down, even if its own check fails.
func TestSorryRealserver(t *testing.T) {
	t.Parallel()
	s := newSite(t, 3, nil)
	s.startAgents("")
	for _, web := range s.Webs {
		s.echoNamed(web, 53)
	}
	var servers []net.PacketConn
	for _, web := range s.Webs {
		servers = append(servers, s.alive(web))
	}
	toml := fmt.Sprintf("[[service]]\nname = \"dns\"\nvip = %q\nprotocol = \"udp\"\nport = 53\nscheduler = "+
		"\"rr\"\none_packet = true\nquorum = 3\nsorry_server = %q\n"+
		"check = { type = \"udp\", port = 9, send_hex = \"61 6c 69 76 65 3f\", expect_hex = \"79 ?5 7?\", %s "+
		"}\nrealserver = [ { address = %q }, { address = %q }, { address = %q } ]\n",
		s.VIP, s.Webs[2].Addr, quick, s.Webs[0].Addr, s.Webs[1].Addr, s.Webs[2].Addr)
	s.startDirectorWith(toml)
	s.awaitHealth("up up up")
	client := s.dial("udp", 53)
	answeredBy := func() string {
		t.Helper()
		var all []string
		buf := make([]byte, 100)
		for range 12 {
			if err := client.SetDeadline(time.Now().Add(soon)); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write([]byte("who?")); err != nil {
				t.Fatal(err)
			}
			n, err := client.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, string(buf[:n]))
		}
		slices.Sort(all)
		return strings.Join(slices.Compact(all), " ")
	}
	if got := answeredBy(); got != "web1 web2 web3" {
		t.Errorf("up, it is answered by %s", got)
	}
	servers[0].Close()
	testkit.Within(t, "the sorry server is in use", 2*soon, func() bool {
		return s.director.balance().Services[0].Sorry
	})
	if got := answeredBy(); got != "web3" {
		t.Errorf("down, it is answered by %s", got)
	}
	servers[2].Close()
	s.awaitHealth("down up down")
	if got := answeredBy(); got != "web3" {
		t.Errorf("down, with a sorry server whose check fails, it is answered by %s", got)
	}
	if svc := s.director.balance().Services[0]; len(svc.Realservers) != 3 || !svc.Sorry ||
		svc.Realservers[2].Effective != 1 || svc.Realservers[1].Effective != 0 {
		t.Errorf("status has %+v", svc)
	}
	if got := s.ask("explain", s.Client.Addr.String()+":1234", s.VIP.String()+":53", "--protocol",
		"udp"); got.code != 0 || !strings.Contains(got.stdout, s.Webs[2].Addr.String()) {
		t.Errorf("explain: %+v", got)
	}
	servers[0], servers[2] = s.alive(s.Webs[0]), s.alive(s.Webs[2])
	s.awaitHealth("up up up")
	testkit.Within(t, "the sorry server is not in "+
		"use", 2*soon, func() bool { return !s.director.balance().Services[0].Sorry })
	if got := answeredBy(); got != "web1 web2 web3" {
		t.Errorf("up again, it is answered by %s", got)
	}
}

// issueCertificate writes a self-signed certificate for name, and its private key, as PEM files. It returns the
// certificate.
func issueCertificate(t *testing.T, name, cert, key string) []byte {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for path, text := range map[string][]byte{cert: certificate,
		key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs})} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate
}

// TestClientCertificates: a server that requires a client certificate gets the director's. A reload brings a renewed
// one, and refuses one that the director cannot read.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1, nil)
	s.startAgents("")
	cert, key, names := filepath.Join(s.dir, "client.pem"), filepath.Join(s.dir, "client.key"), x509.NewCertPool()
	issue := func(name string) { names.AppendCertsFromPEM(issueCertificate(t, name, cert, key)) }
	issue("first")
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAnyClientCert}
	s.serveTCP(s.Webs[0], "[::]:443", func(c net.Conn) {
		server := tls.Server(c, config)
		defer server.Close()
		if server.Handshake() != nil {
			return
		}
		name := server.ConnectionState().PeerCertificates[0].DNSNames[0]
		_, _ = io.ReadAtLeast(server, make([]byte, 1024), 4)
		_, _ = fmt.Fprintf(server, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
	})
	toml := func(body, keys string) string {
		return fmt.Sprintf("[[service]]\nname = \"web\"\nvip = %q\nprotocol = \"tcp\"\nport = 443\n"+
			"check = { type = \"https\", verify = false, body = %q, %s, interval = \"500ms\", timeout = \"500ms\" "+
			"}\nrealserver = [ { address = %q } ]\n", s.VIP, body, keys, s.Webs[0].Addr)
	}
	both := fmt.Sprintf("cert = %q, key = %q", cert, key)
	s.startDirectorWith(toml("^first$", both))
	s.awaitHealth("up")
	s.reloadWith(toml("^first$", `sni = "none"`))
	s.awaitHealth("down")
	issue("second")
	s.reloadWith(toml("^second$", both))
	s.awaitHealth("up")
	issue("third")
	if changes := strings.Join(s.reloadWith(toml("^third$", both)), "\n"); !strings.Contains(changes,
		"cert "+cert+" -> "+cert+" with another certificate") || !strings.Contains(changes,
		"key "+key+" -> "+key+" with another key") {
		t.Errorf("the reload prints %s", changes)
	}
	testkit.Within(t, "the server sees the third certificate", 2*soon, func() bool {
		r := s.director.balance().Services[0].Realservers[0]
		return r.Health == "up" && r.Check.Reason == "HTTP status 200"
	})
	// another user's file: the director has dropped the right to read it
	if err := os.Chown(key, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	s.director.configure(s.fileWith(toml("^third$", both+", rise = 1")))
	if got := s.ask("reload"); got.code != 1 || !strings.Contains(got.stderr,
		"key: open "+key+": permission denied: want the absolute path of a PEM file with the private key of cert") {
		t.Errorf("a key that it cannot read: exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	s.awaitHealth("up")
}
