package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// drainTOML returns the service of the tests here, with these [connections] and realservers.
func drainTOML(connections, realservers string) string {
	return fmt.Sprintf(`
connections = { timeouts = { tcp_fin = "1s" }, %s }
[[service]]
name = "web"
vip = "198.51.100.80"
protocol = "tcp"
port = 80
scheduler = "rr"
realserver = [ %s ]
`, connections, realservers)
}

const (
	web1       = `{ address = "10.0.11.2" }`
	web2       = `{ address = "10.0.12.2" }`
	web1Drains = `{ address = "10.0.11.2", weight = 0 }`
)

// twoConnections starts a director with two web servers and returns a connection to each.
func twoConnections(t *testing.T, connections string) (s *site, to1, to2 net.Conn) {
	t.Helper()
	s = newSite(t, 2, nil)
	s.startWith(drainTOML(connections, web1+", "+web2))
	for range 2 {
		switch c, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80)); server {
		case "web1":
			to1 = c
		case "web2":
			to2 = c
		}
	}
	if to1 == nil || to2 == nil {
		t.Fatal("two connections are at one realserver")
	}
	return s, to1, to2
}

// mustStay fails the test unless a connection is answered by server.
func mustStay(t *testing.T, c net.Conn, server string) {
	t.Helper()
	if got, err := askName(c, "still there?"); err != nil || got != server {
		t.Errorf("the connection to %s is answered by %q, %v", server, got, err)
	}
}

// TestWeightZero drains a realserver by the weight 0: its connection goes on, and new ones go to the other realserver
// until it has a weight again.
func TestWeightZero(t *testing.T) {
	t.Parallel()
	s, to1, to2 := twoConnections(t, "")
	s.reloadWith(drainTOML("", web1Drains+", "+web2))
	for range 20 {
		s.mustBeServedBy(80, "web2")
	}
	mustStay(t, to1, "web1")
	mustStay(t, to2, "web2")
	if r := s.director.balance().Services[0].Realservers[0]; r.Weight != 0 || r.Active != 1 {
		t.Errorf("status has %+v, want weight 0 and one active connection", r)
	}
	s.reloadWith(drainTOML("", web1+", "+web2))
	_, first := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	_, second := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
	if first == second {
		t.Errorf("with its weight back both of two new connections went to %s", first)
	}
}

// TestRemovedDrains removes a realserver with on_removal = "drain": its connection goes on until it ends, and status
// lists it.
func TestRemovedDrains(t *testing.T) {
	t.Parallel()
	s, to1, to2 := twoConnections(t, `on_removal = "drain"`)
	s.reloadWith(drainTOML(`on_removal = "drain"`, web2))
	for range 20 {
		s.mustBeServedBy(80, "web2")
	}
	mustStay(t, to1, "web1")
	mustStay(t, to2, "web2")
	leaving := func() (l api.Leaving) {
		var st api.DirectorStatus
		got := s.ask("status", "--json")
		if err := json.Unmarshal([]byte(got.stdout), &st); got.code != 0 || err != nil {
			t.Fatalf("status: exit status %d, %v: %s", got.code, err, got.stderr)
		}
		return st.Leaving
	}
	want := api.LeavingRealserver{Service: "web", Address: "10.0.11.2", Forward: "tun", Encap: "ipip", Active: 1}
	if l := leaving(); l.Realservers != 1 || l.Connections != 1 || len(l.List) != 1 || l.List[0] != want {
		t.Errorf("leaving are %+v, want %+v", l, want)
	}
	if all := s.connections("--realserver", "10.0.11.2"); len(all) != 1 || all[0].Service != "web" ||
		all[0].State != "ESTABLISHED" {
		t.Errorf("connections of removed realservers are %+v", all)
	}
	to1.Close()
	testkit.Within(t, "nothing leaves any more", soon, func() bool { return leaving().Realservers == 0 })
	if l := leaving(); l.Connections != 0 || len(l.List) != 0 {
		t.Errorf("leaving are %+v, want none", l)
	}
	mustStay(t, to2, "web2")
	if st := s.director.balance(); len(st.Drops) != 0 {
		t.Errorf("dropped %v", st.Drops)
	}
}

// TestRemovedDrops removes a realserver with on_removal = "drop": packets of its connection are dropped, other
// connections go on.
func TestRemovedDrops(t *testing.T) {
	t.Parallel()
	const drop = `on_removal = "drop"`
	s, to1, to2 := twoConnections(t, drop)
	s.reloadWith(drainTOML(drop, web2))
	if _, err := to1.Write([]byte("anybody?\n")); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "packets to the removed realserver are dropped", soon,
		func() bool { return s.director.balance().Drops["realserver_removed"] > 1 })
	mustStay(t, to2, "web2")
	s.mustBeServedBy(80, "web2")
	if drops := s.director.balance().Drops; len(drops) != 1 {
		t.Errorf("dropped %v, want realserver_removed only", drops)
	}
	// The lost bytes are sent again once the realserver is back.
	s.reloadWith(drainTOML(drop, web1+", "+web2))
	if err := to1.SetReadDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	if n, err := to1.Read(got); err != nil || string(got[:n]) != "web1 anybody?\n" {
		t.Errorf("after its return the realserver answers %q, %v", got[:n], err)
	}
}

// TestExpireNodest removes a realserver with expire_nodest = true: its connections are removed from the table, and a
// new connection from the same port goes to the other realserver.
func TestExpireNodest(t *testing.T) {
	t.Parallel()
	const expire = "expire_nodest = true"
	s, to1, to2 := twoConnections(t, expire)
	s.reloadWith(drainTOML(expire, web2))
	vanish(t, to1)
	from := to1.LocalAddr().(*net.TCPAddr).AddrPort()
	if _, server := s.whoAnswers(from, s.at(80)); server != "web2" {
		t.Errorf("a new connection from the port of the one to web1 is at %s", server)
	}
	mustStay(t, to2, "web2")
	for _, c := range s.connections() {
		if c.Realserver == "10.0.11.2" {
			t.Errorf("of the removed realserver there is %+v", c)
		}
	}
	if drops := s.director.balance().Drops; len(drops) != 0 {
		t.Errorf("dropped %v, want nothing", drops)
	}

	// A packet that begins no connection is dropped.
	s.reloadWith(drainTOML(expire, web1))
	if _, err := to2.Write([]byte("anybody?\n")); err != nil {
		t.Fatal(err)
	}
	testkit.Within(t, "packets of a forgotten connection are dropped", soon,
		func() bool { return s.director.balance().Drops["no_connection"] > 0 })
}

// vanish ends a connection without a packet, as a client that loses power does (TCP_REPAIR: Linux tcp_close).
func vanish(t *testing.T, c net.Conn) {
	t.Helper()
	onSocket(t, c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, 1) })
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestVIPLeaves removes one of a service's VIPs: its connection goes on, and new ones to it are refused.
func TestVIPLeaves(t *testing.T) {
	t.Parallel()
	s, doors := startShop(t, `timeout = "1s"`)
	old, _ := s.whoAnswers(anyPort(s.Client.Addr), doors[2])
	_, home := s.whoAnswers(anyPort(s.Client.Addr), doors[2])
	toml := strings.Replace(persistentTOML(`timeout = "1s"`), `["198.51.100.80", "198.51.100.81"]`, `"198.51.100.80"`,
		1)
	s.reloadWith(toml)
	if _, err := askName(old, "still there?"); err != nil {
		t.Errorf("the connection to the VIP that has left: %v (%s)", err, home)
	}
	s.reloadWith(toml) // nothing changed
	if _, err := askName(old, "still there?"); err != nil {
		t.Errorf("the connection to the VIP that has left, after another reload: %v", err)
	}
	if c, err := s.dialFrom(anyPort(s.Client.Addr), doors[2]); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a new connection to the VIP that has left: %v, want %v", err, unix.ECONNREFUSED)
		if err == nil {
			c.Close()
		}
	}
	if _, err := askName(old, "still there?"); err != nil {
		t.Errorf("the connection to the VIP that has left, after a refused one: %v", err)
	}
}
