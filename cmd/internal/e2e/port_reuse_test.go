package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestPortReuse makes connections from the same port, each as soon as the server has closed the one before. The
// director still has the former connection in its table, the server has it in TIME_WAIT, and the client has none. Each
// must be served.
func TestPortReuse(t *testing.T) {
	t.Parallel()
	const rounds = 50
	s := newRunningSite(t, 2, service{"tcp", "80", "rr", []int{1, 1}})
	for _, web := range s.Webs {
		s.serveTCP(web, s.at(80), func(c net.Conn) { // hangs up after one line
			if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
				_, _ = fmt.Fprintf(c, "%s %s", web.Name, line) // the client notices
			}
		})
	}
	from := &net.TCPAddr{IP: s.Client.Addr.AsSlice(), Port: 40_000}
	for i := range rounds {
		testkit.Within(t, "the kernel has let go of the port", soon, func() bool {
			err := s.oneLiner(s.Client, from)
			if errors.Is(err, unix.EADDRINUSE) { // until the server has acknowledged the last FIN
				return false
			}
			if err != nil {
				t.Fatalf("connection %d from %v: %v", i+1, from, err)
			}
			return true
		})
	}
	if st := s.director.balance(); st.Connections.Count != 1 || len(st.Drops) != 0 {
		t.Errorf("%d connections in the table, dropped %v; want 1 and nothing", st.Connections.Count, st.Drops)
	}
}

// oneLiner sends one request to the named echo server on the VIP, from a given port, and waits until the server closes
// the connection.
func (s *site) oneLiner(h *lab.Host, from *net.TCPAddr) error {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	return h.Do(func() error {
		c, err := (&net.Dialer{LocalAddr: from}).DialContext(ctx, "tcp4", s.at(80))
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := askName(c, "hello"); err != nil {
			return err
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			return fmt.Errorf("%d more bytes, %v; want the end", n, err)
		}
		return nil
	})
}
