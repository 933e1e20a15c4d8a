package secondchance

import (
	"net/netip"
	"slices"
	"testing"

	"vstun/encap"
)

// byGUE returns t with tunnels of gue to all members.
func (t *Table) byGUE() *Table {
	for i := range t.Members {
		t.Members[i].Kind = encap.KindGUE
	}
	return t
}

// TestNextHop: packets to a realserver name the choice of the newest table before the one that has led the connection
// there, or else of the newest of all; never the realserver itself, and none by another tunnel.
func TestNextHop(t *testing.T) {
	n := newNet(t)
	tables := []*Table{tableOf(1, 2, 3).byGUE(), tableOf(1, 2, 4).byGUE(), tableOf(2, 4, 5).byGUE()}
	if n.director.Choices("web") != nil {
		t.Error("a service without tables has choices")
	}
	for i, table := range tables {
		if n.set(table); !slices.Equal(n.director.Fresh(), []string{"web"}) {
			t.Errorf("table %d changes nothing", i)
		}
		n.after(Every)
	}
	if n.set(tables[2]); n.director.Fresh() != nil {
		t.Error("the same table is a change")
	}
	c := n.director.Choices("web")
	for i := range 200 {
		var led []netip.Addr // the newest first
		for _, table := range tables {
			led = append([]netip.Addr{choiceOf(table, client(i))}, led...)
		}
		for _, to := range append(led, host(9)) {
			other := func(a netip.Addr) bool { return a != to }
			before := led[slices.Index(led, to)+1:] // all if to is not there
			at := slices.IndexFunc(before, other)
			if at < 0 {
				before, at = led, slices.IndexFunc(led, other)
			}
			if next, ok := c.NextHop(client(i), to); ok != (at >= 0) || ok && next != before[at] {
				t.Fatalf("a client led to %v, now to %v: %v %v", led, to, next, ok)
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() { c.NextHop(client(1), host(2)) }); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
	n.set(tableOf(7))
	if next, ok := n.director.Choices("web").NextHop(client(1), host(9)); ok {
		t.Errorf("%v, which has no tunnel of gue, is named", next)
	}
	n.after(2 * Remember)
	n.director.Fresh()
	if n.director.Send(n.now, n.deliver); n.director.Fresh() == nil {
		t.Error("the end of old tables is no change")
	}
	if next, ok := n.director.Choices("web").NextHop(client(1), host(7)); ok {
		t.Errorf("%v of an old table is named", next)
	}
}

// BenchmarkNextHop is the choice for a packet, of four tables.
func BenchmarkNextHop(b *testing.B) {
	d := NewDirector(key)
	for i := range MaxTables {
		d.Set([]*Table{tableOf(1, 2, 3, 4+i).byGUE()}, all, start.Add(Every))
	}
	c := d.Choices("web")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c.NextHop(client(i&0xff), host(2))
	}
}
