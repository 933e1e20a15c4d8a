package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/testdata/testkit"
)

// mustBeReset fails the test unless a client's packet on an established connection is answered with a RST.
func mustBeReset(t *testing.T, what string, c net.Conn, payload []byte) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Write(payload)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("%s: %v, want %v", what, err, unix.ECONNRESET)
	}
}

// TestUnknownConnectionsAreReset: after the director's restart, or after the idle timeout, the next packet of a
// client's connection, small or a GSO packet, is answered with a RST. After a reload with no_connection = "drop" it
// is dropped.
func TestUnknownConnectionsAreReset(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newSite(t, 1, nil)
		s.speak(ipv6)
		s.startAgents("")
		s.namedEcho(s.Webs[0], 80)
		const timeouts = "[connections]\nkeep = \"\"\ntimeouts = { tcp = \"1s\", tcp_syn = \"1s\" }\n"
		web := service{"tcp", "80", "rr", []int{1}}
		s.startDirector("", web)
		var old []net.Conn
		for range 2 {
			c, _ := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
			old = append(old, c)
		}

		s.director.stop()
		s.director.configure(s.directorTOML(s.director.socket, timeouts, web))
		s.director.start()
		mustBeReset(t, "after a restart", old[0], []byte("anybody?\n"))
		mustBeReset(t, "after a restart, many bytes", old[1], make([]byte, 1<<20))

		forgotten := func() net.Conn {
			c, _ := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
			testkit.Within(t, "the director has forgotten an idle connection", 2*soon, func() bool {
				return s.director.balance().Connections.Count == 0
			})
			return c
		}
		mustBeReset(t, "after the idle timeout", forgotten(), []byte("anybody?\n"))
		st := s.director.balance()
		if st.Resets < 3 || st.Drops["no_connection"] < st.Resets {
			t.Errorf("%d resets were sent, dropped %v", st.Resets, st.Drops)
		}
		if got := s.ask("status"); !strings.Contains(got.stdout, "TCP resets sent") {
			t.Errorf("status does not tell the resets:\n%s%s", got.stdout, got.stderr)
		}

		s.director.configure(s.directorTOML(s.director.socket, "no_connection = \"drop\"\n"+timeouts, web))
		if changes := s.mustReload(); fmt.Sprint(changes) != "[no_connection reset -> drop]" {
			t.Errorf("changes are %q", changes)
		}
		c := forgotten()
		before := s.director.balance()
		if _, err := c.Write([]byte("anybody?\n")); err != nil {
			t.Fatal(err)
		}
		testkit.Within(t, "the director has dropped the packet", soon, func() bool {
			return s.director.balance().Drops["no_connection"] > before.Drops["no_connection"]
		})
		if now := s.director.balance(); now.Out != before.Out || now.Resets != before.Resets {
			t.Errorf("with no_connection = \"drop\" it was answered: %d resets, %d before", now.Resets, before.Resets)
		}
	})
}
