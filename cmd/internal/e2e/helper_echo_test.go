package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"vstun/cmd/internal/lab"
)

// A named echo server is a TCP server that answers each line with its host's name and the line.

// namedEcho starts a named echo server on h, for a port of the VIP.
func (s *site) namedEcho(h *lab.Host, port uint16) {
	s.t.Helper()
	s.namedEchoAt(h, s.behind(h, port))
}

// namedEchoAt starts a named echo server on an address of h. On all addresses (":80") it outlives the VIP.
func (s *site) namedEchoAt(h *lab.Host, address string) {
	s.t.Helper()
	s.serveTCP(h, address, func(c net.Conn) {
		lines := bufio.NewReader(c)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			if _, err := io.WriteString(c, h.Name+" "+line); err != nil {
				return
			}
		}
	})
}

// askName sends a word to a named echo server and returns the server's name.
func askName(c net.Conn, word string) (server string, err error) {
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, word+"\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n') // nothing comes behind the line before the next word
	if err != nil {
		return "", err
	}
	server, back, _ := strings.Cut(strings.TrimSpace(line), " ")
	if back != word {
		return "", fmt.Errorf("sent %q, received %q", word, line)
	}
	return server, nil
}

// mustBeServedBy sends one request to a port of the VIP, on a new connection. It fails the test unless the named server
// answers; "" is any.
func (s *site) mustBeServedBy(port uint16, server string) {
	s.t.Helper()
	c := s.dial("tcp", port)
	defer c.Close()
	got, err := askName(c, "hello")
	if err != nil || server != "" && got != server {
		s.t.Errorf("a request was answered by %q, %v; want %s", got, err, server)
	}
}
