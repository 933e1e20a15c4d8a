package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/lab"
)

// Tests of the configuration write it out as TOML, without the key control, which differs from site to site. The VIP is
// 198.51.100.80. The web servers are 10.0.11.2, 10.0.12.2, ….

// fileWith returns the director's file with this TOML: it adds the key control.
func (s *site) fileWith(config string) string {
	return fmt.Sprintf("director.control = %q\n%s", s.director.socket, config)
}

// startWith starts the agents, a named echo server on port 80 of the VIP at each web server, and a director with this
// TOML.
func (s *site) startWith(config string) {
	s.t.Helper()
	s.startAgents("")
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
	}
	s.startDirectorWith(config)
}

func (s *site) startDirectorWith(config string) {
	s.t.Helper()
	s.director = s.prepare(s.Director, "director")
	s.director.configure(s.fileWith(config))
	s.director.start()
}

// ask runs a command of the director, such as `director status --json`.
func (s *site) ask(command ...string) result {
	s.t.Helper()
	return run(s.t, s.Director, exec.Command(programPath("director"), append(command, "-c", s.director.config)...))
}

// reloadWith replaces the running director's TOML, runs `director reload` and returns the changes that it prints.
func (s *site) reloadWith(config string) (changes []string) {
	s.t.Helper()
	s.director.configure(s.fileWith(config))
	return s.mustReload()
}

// mustReload runs `director reload` and returns the changes that it prints.
func (s *site) mustReload() (changes []string) {
	s.t.Helper()
	got := s.ask("reload")
	if got.code != 0 || got.stderr != "" {
		s.t.Fatalf("director reload: exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	return strings.Split(strings.TrimSuffix(got.stdout, "\n"), "\n")
}

// connections returns the connections that `director connections --json` prints with these filters.
func (s *site) connections(filters ...string) (all []api.Connection) {
	s.t.Helper()
	got := s.ask(append([]string{"connections", "--json"}, filters...)...)
	if got.code != 0 || got.stderr != "" {
		s.t.Fatalf("director connections %v: exit status %d: %s", filters, got.code, got.stderr)
	}
	for line := range strings.Lines(got.stdout) {
		var c api.Connection
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			s.t.Fatalf("director connections %v: %v: %s", filters, err, line)
		}
		all = append(all, c)
	}
	return all
}

// addVIP adds a VIP to the site. It must be called before the agents start.
func (s *site) addVIP(vip netip.Addr) {
	s.t.Helper()
	if err := s.Router.Route(vip, s.Director.Addr); err != nil {
		s.t.Fatal(err)
	}
	s.vips = append(s.vips, vip)
}

// addClients gives the client all addresses of a network, so that it may dial from each.
func (s *site) addClients(network netip.Prefix) {
	s.t.Helper()
	dst := &net.IPNet{IP: network.Addr().AsSlice(), Mask: net.CIDRMask(network.Bits(), network.Addr().BitLen())}
	for host, route := range map[*lab.Host]*netlink.Route{
		// lo
		s.Client: {Dst: dst, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, LinkIndex: 1},
		s.Router: {Dst: dst, Gw: s.Client.Addr.AsSlice()},
	} {
		if err := host.Do(func() error { return netlink.RouteAdd(route) }); err != nil {
			s.t.Fatalf("route to %s on %s: %v", network, host.Name, err)
		}
	}
}

// dialFrom connects from an address of the client to an address of the site. Port 0 means any.
func (s *site) dialFrom(from netip.AddrPort, to string) (net.Conn, error) {
	var c net.Conn
	err := s.Client.Do(func() (err error) {
		c, err = (&net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Timeout: soon}).Dial("tcp", to)
		return err
	})
	return c, err
}

// whoAnswers opens a connection until the end of the test, and returns it with the name of its server.
func (s *site) whoAnswers(from netip.AddrPort, to string) (net.Conn, string) {
	s.t.Helper()
	c, err := s.dialFrom(from, to)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c, mustAnswer(s.t, c)
}

// mustAnswer returns the name of the named echo server at the other end of c.
func mustAnswer(t *testing.T, c net.Conn) string {
	t.Helper()
	server, err := askName(c, "hello")
	if err != nil {
		t.Fatalf("the connection from %v: %v", c.LocalAddr(), err)
	}
	return server
}

// anyPort returns the address with port 0.
func anyPort(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }

// quoted returns addresses as a TOML array.
func quoted(all []netip.Addr) string {
	var words []string
	for _, a := range all {
		words = append(words, fmt.Sprintf("%q", a))
	}
	return strings.Join(words, ", ")
}
