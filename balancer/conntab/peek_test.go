package conntab

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"vstun/encap/packet"
)

// TestPeek: under every Config, Peek returns what Packet returns next, and changes nothing.
func TestPeek(t *testing.T) {
	fates := map[Fate]int{}
	for _, c := range []Config{
		{}, {Reuse: ReuseNever}, {Reuse: ReuseClosing, SloppyTCP: true}, {ExpireNodest: true}, {DropRemoved: true},
	} {
		c.Max = 1024
		table := New(c)
		v := table.View()
		rnd := rand.New(rand.NewPCG(1, 2))
		for step := range Ticks(5000) {
			now := step * 20
			p := packet.Info{TCPFlags: uint8(rnd.IntN(32)), Flow: packet.Flow{
				SrcPort: uint16(rnd.IntN(50)), DstPort: 80,
				Proto: []uint8{packet.ProtoTCP, packet.ProtoUDP}[rnd.IntN(2)]}}
			p.Flow.Src, p.Flow.Dst = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.80")
			if rnd.IntN(2) == 0 {
				p.Flow.Src, p.Flow.Dst = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::80")
			}
			table.Counts(uint32(rnd.IntN(4))).SetState(rnd.IntN(8) == 0, rnd.IntN(8) == 0)
			var before []Conn
			looks := step%100 == 0
			if looks {
				before = slices.Collect(table.All(now))
			}
			q := p
			conn, fate, r := v.Peek(&q, now)
			if looks && !slices.Equal(before, slices.Collect(table.All(now))) {
				t.Fatalf("%+v, step %d: the table has changed", c, step)
			}
			fates[fate]++
			dest, result := v.Packet(&p, FromClient, now)
			if result != r || (r == Hit || r == Gone) && dest != conn.Dest {
				t.Fatalf("%+v, step %d: Peek has %v of %d, Packet %v of %d", c, step, r, conn.Dest, result, dest)
			}
			if result == Miss {
				v.Insert(&p, uint32(rnd.IntN(4)), 0, now)
			}
		}
	}
	for f := NoConnection; f <= Removed; f++ {
		if fates[f] == 0 {
			t.Errorf("no connection has the fate %d", f)
		}
	}
}
