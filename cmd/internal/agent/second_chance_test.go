package agent

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"vstun/balancer/secondchance"
	"vstun/cmd/internal/config"
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
