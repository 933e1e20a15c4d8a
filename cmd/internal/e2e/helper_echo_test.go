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

// A parrot is a TCP server: every line comes back after the name of its host.

// parrot starts a parrot on a port of the VIP on h.
func (s *site) namedEcho(h *lab.Host, port uint16) {
	s.t.Helper()
	s.namedEchoAt(h, s.at(port))
}

// namedEchoAt starts a parrot on h on an address that it has, or on all (":80"): then it outlives the VIP.
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

// askName says a word to a parrot and returns the name of the server which repeats it.
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
		return "", fmt.Errorf("said %q, and it came back as %q", word, line)
	}
	return server, nil
}

// mustBeServedBy makes one request to the parrot behind a port of the VIP, on a new connection, and wants the answer of
// this server; "" is any.
func (s *site) mustBeServedBy(port uint16, server string) {
	s.t.Helper()
	c := s.dial("tcp", port)
	defer c.Close()
	got, err := askName(c, "hello")
	if err != nil || server != "" && got != server {
		s.t.Errorf("a request was answered by %q, %v; want %s", got, err, server)
	}
}
