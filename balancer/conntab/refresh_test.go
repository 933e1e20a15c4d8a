package conntab

import (
	"testing"
	"time"

	"vstun/encap/packet"
)

// tcp6 returns a packet of an IPv6 connection from this port.
func tcp6(port uint16, flags uint8) packet.Info {
	p := tcp(1, port, flags)
	p.Flow.Src, p.Flow.Dst = address6(1), address6(2)
	return p
}

// TestRefresh counts packets that another path has forwarded, and keeps their connection.
func TestRefresh(t *testing.T) {
	for name, p := range map[string]packet.Info{"IPv4": tcp(1, 1, packet.FlagSYN), "IPv6": tcp6(1, packet.FlagSYN)} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(Config{})
			table.Refresh(p.Flow, 5, 0) // of no connection
			table.Insert(&p, 1, 0, 0)
			p.TCPFlags = packet.FlagACK
			table.Packet(&p, FromClient, 0)
			table.Refresh(p.Flow, 1000, 500*PerSecond)
			table.Refresh(p.Flow, 10, 400*PerSecond) // a late report
			c, ok := table.Lookup(p.Flow, 600*PerSecond)
			if !ok || c.Packets != 1012 || c.State != Established || c.Expires != 800*time.Second {
				t.Errorf("%+v, %v", c, ok)
			}
			table.Sweep(1399 * PerSecond)
			if table.Len() != 1 {
				t.Error("it is gone before its end")
			}
			table.Refresh(p.Flow, 1, 1401*PerSecond) // after it
			if _, ok := table.Lookup(p.Flow, 1401*PerSecond); ok {
				t.Error("it lives after its end")
			}
		})
	}
}

// TestRefreshOfEnded: a connection that a SYN has ended stays ended after a Refresh with earlier packets.
func TestRefreshOfEnded(t *testing.T) {
	table := newSmall(Config{})
	p := tcp(1, 1, packet.FlagSYN)
	table.Insert(&p, 1, 0, 0)
	for _, flags := range []uint8{packet.FlagACK, packet.FlagRST} {
		p.TCPFlags = flags
		table.Packet(&p, FromClient, 0)
	}
	p.TCPFlags = packet.FlagSYN
	if _, r := table.Packet(&p, FromClient, 200); r != Miss {
		t.Fatalf("a SYN of a closed connection: result %d", r)
	}
	table.Refresh(p.Flow, 3, 199)
	if dest, r := table.Insert(&p, 2, 0, 200); dest != 2 || r != Inserted {
		t.Errorf("the new connection: destination %d, result %d", dest, r)
	}
}
