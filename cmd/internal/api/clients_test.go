package api

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// keeperOf is the environment variable that makes the test binary a client that keeps connections to a socket.
const keeperOf = "VSTUN_TEST_KEEPER_OF"

func TestMain(m *testing.M) {
	if socket := os.Getenv(keeperOf); socket != "" {
		if err := keep(socket); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// keep opens more connections than a client may have, sends a request on each, and prints the number of connections
// that the server has closed.
func keep(socket string) error {
	var all []net.Conn
	for range maxClientConns + 10 {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(c, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			return err
		}
		all = append(all, c)
	}
	gone := map[net.Conn]bool{}
	for end := time.Now().Add(20 * time.Second); len(gone) < 10 && time.Now().Before(end); {
		for _, c := range all {
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, c); err == nil {
				gone[c] = true
			}
		}
	}
	fmt.Println(len(gone))
	return nil
}

// TestIdleClientsGiveWay: a process that keeps connections open loses idle ones beyond its bound. The program
// itself has none.
func TestIdleClientsGiveWay(t *testing.T) {
	socket := listen(t, func(s *Server) {
		s.limits.read = time.Hour // so that none ends by itself
		s.Handle("GET /status", JSON(func(url.Values) (any, error) { return 1, nil }))
	})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), keeperOf+"="+socket)
	out, err := cmd.CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != "10" {
		t.Errorf("the server has closed %q of another process's connections, want 10: %v", got, err)
	}
	for range maxConns + 10 {
		dialSocket(t, socket, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
	}
	var n int
	if err := Get(t.Context(), socket, "/status", &n); err != nil {
		t.Errorf("the program itself: %v", err)
	}
}
