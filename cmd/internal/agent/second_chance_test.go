package agent

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"vstun/balancer/secondchance"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/endpoint"
	"vstun/encap/packet"
	"vstun/routing/query"
)

// TestNoSecondChanceHere: a realserver of a table that is this host gets no packets by a tunnel, also before the agent
// knows its address: they would come back.
func TestNoSecondChanceHere(t *testing.T) {
	key := make([]byte, secondchance.MinKey)
	self, vip := netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("198.51.100.80")
	c := &chances{log: slog.Default(), tables: secondchance.NewAgent(key), own: []netip.Addr{self}}
	c.cfg = config.SecondChance{Peers: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	table := func(hosts ...string) []*secondchance.Table {
		web := &secondchance.Table{Service: "web", VIPs: []netip.Addr{vip}, Ports: []secondchance.Ports{{}}}
		for _, h := range hosts {
			web.Members = append(web.Members, secondchance.Member{Weight: 1, Available: true,
				Via: secondchance.Via{Address: netip.MustParseAddr(h)}})
		}
		return []*secondchance.Table{web}
	}
	d := secondchance.NewDirector(key)
	var deliver func(to netip.Addr, b []byte)
	deliver = func(to netip.Addr, b []byte) {
		answers, _ := c.tables.Take(b, netip.AddrPort{}, c.owns, time.Now())
		for _, a := range answers {
			d.Take(a, time.Now(), deliver)
		}
	}
	d.Set(table("10.0.11.2", "127.0.0.2"), func(m *secondchance.Member) bool { return m.Address == self }, time.Now())
	d.Send(time.Now(), deliver)
	c.refresh()
	r := c.routes.Load()
	if len(r.view.Vias()) != 1 || len(r.exits) != 0 {
		t.Errorf("exits %v of %v", r.exits, r.view.Vias())
	}
	for i := range 100 {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 40000)
		if to, _ := c.Other(client, netip.AddrPortFrom(vip, 80), 0, time.Now()); to != nil {
			t.Fatalf("a packet of %v goes to %+v", client, to)
		}
	}
}

// TestManyTables: an agent makes its choices once for all tables that wait, and answers those then. It did so for each
// one, which took 14 s of CPU time for three tables of each of 1,000 services.
func TestManyTables(t *testing.T) {
	const services, rounds = 300, 3
	key := make([]byte, secondchance.MinKey)
	self := netip.MustParseAddr("10.0.11.2")
	c := &chances{log: slog.Default(), own: []netip.Addr{self}}
	directors, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer directors.Close()
	here := netip.MustParseAddrPort(directors.LocalAddr().String())
	c.tables, c.socket = secondchance.NewAgent(key), directors // it answers to itself
	c.refresh()
	d := secondchance.NewDirector(key)
	tables := func(round int) (all []*secondchance.Table) {
		for i := range services {
			one := &secondchance.Table{Service: fmt.Sprint(i), VIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 9,
				byte(i >> 8), byte(i)})}, Ports: []secondchance.Ports{{}}}
			for _, a := range []netip.Addr{self, netip.AddrFrom4([4]byte{127, 0, 0, byte(round + 2)})} {
				one.Members = append(one.Members, secondchance.Member{Weight: 1, Available: true,
					Via: secondchance.Via{Address: a}})
			}
			all = append(all, one)
		}
		return all
	}
	var sent []datagram
	note := func(_ netip.Addr, b []byte) { sent = append(sent, datagram{b, here}) }
	for round := range rounds {
		d.Set(tables(round), func(m *secondchance.Member) bool { return m.Address == self }, time.Now())
		d.SendChanged(time.Now(), note)
	}
	made := c.routes.Load()
	for range 2 { // the answer to the first datagram has the challenge
		all := sent
		sent = nil
		c.take(directors, all)
		b := make([]byte, secondchance.MaxDatagram)
		n, err := directors.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		d.Take(b[:n], time.Now(), note)
	}
	is := c.routes.Load()
	if is == made || len(c.tables.Status().Services) != services {
		t.Errorf("%d services", len(c.tables.Status().Services))
	}
	for i := range services {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 80)
		if via, _ := is.view.Other(netip.MustParseAddrPort("192.0.2.1:1"), to, time.Now()); !via.Address.IsValid() {
			t.Fatalf("no choice for %v", to)
		}
	}
}

// TestSecondChanceSwitchedOn: a reload that switches second chances on changes no port.
func TestSecondChanceSwitchedOn(t *testing.T) {
	var all []api.Change
	chanceChanges(&all, &config.SecondChance{}, &config.SecondChance{On: true, Port: 8849, Key: "key"})
	if len(all) != 1 || all[0].Text != "second_chance: enabled false -> true" {
		t.Errorf("%+v", all)
	}
}

// TestHopsFindExits: a hop leads to the realserver of the tables that has its address, but the packets of a connection
// keep the one that they have had. Its tunnel has the port of this agent.
func TestHopsFindExits(t *testing.T) {
	one, two := netip.MustParseAddr("10.0.11.2"), netip.MustParseAddr("10.0.11.3")
	self := netip.MustParseAddr("10.0.11.1")
	c := &chances{port: 19523, cfg: config.SecondChance{Peers: []netip.Prefix{netip.MustParsePrefix("10.0.11.0/31"),
		netip.PrefixFrom(one, 32)}}}
	paths := map[netip.Addr]query.Path{one: {Source: self, MTU: 1500}, two: {Source: self, MTU: 1500}}
	exit, err := c.exit(secondchance.Via{Address: one, Kind: encap.KindGUE, Checksum: true}, paths)
	if err != nil {
		t.Fatal(err)
	}
	if h := packet.UDP(exit.Tunnel.Header(4)[packet.IPv4HeaderLen:]); h.DstPort() != 19523 ||
		exit.Tunnel.Kind() != encap.KindGUE {
		t.Errorf("a tunnel by %v to port %d", exit.Tunnel.Kind(), h.DstPort())
	}
	if _, err := c.exit(secondchance.Via{Address: two, Kind: encap.KindGUE}, paths); err == nil {
		t.Error("a realserver that is not in peers has a tunnel")
	}
	exit.ID = 1
	byIPIP := &endpoint.Exit{ID: 2, Peer: egress.Peer{Dst: two}}
	r := &routes{byHop: map[netip.Addr]*endpoint.Exit{one: exit}}
	r.byID[1], r.byID[2] = exit, byIPIP
	c.routes.Store(r)
	for _, row := range []struct {
		next   netip.Addr
		before uint8
		want   *endpoint.Exit
	}{{one, 0, exit}, {two, 0, nil}, {two, 1, exit}, {one, 2, exit}, {netip.Addr{}, 1, exit}, {netip.Addr{}, 0, nil}} {
		if got := c.Hop(row.next, row.before); got != row.want {
			t.Errorf("to %v after %d: %+v", row.next, row.before, got)
		}
	}
}
