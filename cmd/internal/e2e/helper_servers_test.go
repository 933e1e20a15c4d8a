package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// at returns the address of a port of the VIP.
func (s *site) at(port uint16) string { return netip.AddrPortFrom(s.VIP, port).String() }

// nginx starts the web server on h, and returns its directory. The server answers / with the host's name, and serves
// the directory's files.
func (s *site) nginx(h *lab.Host) string {
	s.t.Helper()
	s.nginxProcess(h)
	return filepath.Join(s.nginxDir(h), "files")
}

func (s *site) nginxDir(h *lab.Host) string { return filepath.Join(s.dir, h.Name+"-nginx") }

func (s *site) nginxProcess(h *lab.Host) *lab.Process {
	s.t.Helper()
	dir := s.nginxDir(h)
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o755); err != nil {
		s.t.Fatal(err)
	}
	// One process in the foreground: a worker would survive a test that is killed.
	config := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log stderr;
worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http {
  access_log off; keepalive_timeout 60; sendfile on; default_type application/octet-stream;
  client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s;
  scgi_temp_path %[1]s;
  server {
    listen [::]:%[3]d ipv6only=off backlog=512;
    location = / { return 200 "%[2]s"; }
    location / { root %[1]s/files; }
  }
}
`, dir, h.Name, s.realPort(80))
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		s.t.Fatal(err)
	}
	address := netip.AddrPortFrom(h.Addr, s.realPort(80))
	return s.server(h, address, exec.Command("nginx", "-e", "stderr", "-p", dir, "-c", path))
}

// server starts a server on h and waits until it accepts connections on an address of the host.
func (s *site) server(h *lab.Host, address netip.AddrPort, cmd *exec.Cmd) *lab.Process {
	s.t.Helper()
	p, err := h.Start(cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("the end of what %s wrote on %s:\n%s", cmd.Path, h.Name, p.Output())
		}
	})
	testkit.Within(s.t, fmt.Sprintf("%s on %s accepts connections", cmd.Path, h.Name), soon, func() bool {
		select {
		case <-p.Done():
			s.t.Fatalf("%s on %s ended: %v\n%s", cmd.Path, h.Name, p.Wait(), p.Output())
		default:
		}
		c, err := h.Dial("tcp", address.String())
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return p
}

// serveTCP calls handle for each connection to an address on h, until the test ends.
func (s *site) serveTCP(h *lab.Host, address string, handle func(net.Conn)) {
	s.t.Helper()
	ln, err := h.Listen("tcp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return // closed
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			running.Go(func() {
				handle(c)
				c.Close()
				mu.Lock()
				delete(conns, c)
				mu.Unlock()
			})
		}
	})
	s.t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
}

// answerUDP answers each datagram to a port of the VIP that reaches h.
func (s *site) answerUDP(h *lab.Host, port uint16, answer func([]byte) []byte) net.PacketConn {
	s.t.Helper()
	c := s.listenUDP(h, s.behind(h, port))
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteTo(answer(buf[:n]), from) // the client notices
			}
		}
	})
	s.t.Cleanup(func() {
		c.Close()
		running.Wait()
	})
	return c
}

// echoUDP answers each datagram to a port of the VIP on h with its own bytes, until the test ends.
func (s *site) echoUDP(h *lab.Host, port uint16) {
	s.t.Helper()
	s.answerUDP(h, port, func(datagram []byte) []byte { return datagram })
}

// listenUDP opens a socket until the end of the test.
func (s *site) listenUDP(h *lab.Host, address string) net.PacketConn {
	s.t.Helper()
	c, err := h.ListenPacket("udp", address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// dial connects from the client to a port of the VIP.
func (s *site) dial(network string, port uint16) net.Conn {
	s.t.Helper()
	c, err := s.Client.Dial(network, s.at(port))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// browser returns an HTTP client on the client.
func (s *site) browser() *http.Client {
	return &http.Client{Timeout: soon, Transport: &http.Transport{DialContext: s.Client.DialContext}}
}

// fetch sends a request on a new connection and returns the body of the answer. The client closes the connection first,
// so that its port is not reused soon.
func fetch(c *http.Client, url string) (string, error) {
	defer c.CloseIdleConnections()
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}
