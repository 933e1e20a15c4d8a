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

// udp returns a packet of a UDP connection from this port.
func udp(port uint16) packet.Info {
	p := tcp(1, port, 0)
	p.Flow.Proto = packet.ProtoUDP
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

// TestBusy: a connection that may be in the fast path is reported again and again until it is there; never while it is
// half-open, closing, or has a timeout too short for late reports.
func TestBusy(t *testing.T) {
	for name, c := range map[string]struct {
		p    packet.Info
		cfg  Config
		want int
	}{
		"TCP":                      {tcp(1, 1, packet.FlagACK), Config{}, 2},
		"TCP over IPv6":            {tcp6(1, packet.FlagACK), Config{}, 2},
		"TCP with a short timeout": {tcp(1, 1, packet.FlagACK), Config{Timeouts: Timeouts{TCP: time.Second}}, 0},
		"UDP":                      {udp(1), Config{}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(c.cfg)
			f := table.Changes(1000, Busy, Left)
			first := c.p
			first.TCPFlags = packet.FlagSYN
			table.Insert(&first, 1, 0, 0)
			packets := func(n int) []ChangeKind {
				for range n {
					table.Packet(&c.p, FromClient, 0)
				}
				got, _ := kinds(f, 0)
				return got
			}
			if got := packets(2*busyEvery - 1); len(got) != c.want {
				t.Fatalf("%v, want %d changes", got, c.want)
			}
			if _, ok := table.SetFast(c.p.Flow, true, 0); ok != (c.want > 0) {
				t.Fatalf("in the fast path: %v", ok)
			} else if !ok {
				return
			}
			if got := packets(2 * busyEvery); got != nil {
				t.Errorf("in the fast path: %v", got)
			}
			table.SetFast(c.p.Flow, false, 0)
			if got := packets(busyEvery); len(got) != 1 {
				t.Errorf("out of the fast path: %v", got)
			}
		})
	}
}

// TestLeft: a connection leaves the fast path once, with the first packet that changes its state, or with its end.
func TestLeft(t *testing.T) {
	for name, end := range map[string]func(View, *packet.Info){
		"FIN": func(table View, p *packet.Info) {
			p.TCPFlags = packet.FlagFIN | packet.FlagACK
			table.Packet(p, FromClient, 1)
			p.TCPFlags = packet.FlagACK
			table.Packet(p, FromClient, 1)
		},
		"RST": func(table View, p *packet.Info) {
			p.TCPFlags = packet.FlagRST
			table.Packet(p, FromClient, 1)
		},
		"RST of the server": func(table View, p *packet.Info) {
			p.TCPFlags = packet.FlagRST
			table.Reply(p, 1, 1)
		},
		"its timeout": func(table View, _ *packet.Info) { table.Sweep(1000 * PerSecond) },
		"a report of its end by another director": func(table View, p *packet.Info) {
			table.Report(Conn{Flow: p.Flow, State: FinWait, Dest: 1, Expires: time.Second}, Ordered, 500*PerSecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(Config{})
			f := table.Changes(1000, Busy, Left)
			p := tcp(1, 1, packet.FlagSYN)
			table.Insert(&p, 1, 0, 0)
			p.TCPFlags = packet.FlagACK
			table.Packet(&p, FromClient, 0)
			if c, ok := table.SetFast(p.Flow, true, 0); !ok || c.Dest != 1 || c.State != Established {
				t.Fatalf("%+v, %v", c, ok)
			}
			if !table.Refresh(p.Flow, 1, 0) {
				t.Error("not in the fast path")
			}
			end(table, &p)
			if got, conns := kinds(f, 1); len(got) != 1 || got[0] != Left || conns[0].Flow != p.Flow {
				t.Errorf("%v of %+v", got, conns)
			}
			if table.Refresh(p.Flow, 1, 1) {
				t.Error("still in the fast path")
			}
			if _, ok := table.SetFast(p.Flow, true, 1); ok {
				t.Error("it may be in the fast path again")
			}
		})
	}
}

// TestRefreshOfReported: a connection whose packets pass another director stays that director's until the fast path has
// a packet of it.
func TestRefreshOfReported(t *testing.T) {
	table := newSmall(Config{})
	p := tcp(1, 1, packet.FlagSYN)
	table.Insert(&p, 1, 0, 0)
	p.TCPFlags = packet.FlagACK
	table.Packet(&p, FromClient, 0)
	table.SetFast(p.Flow, true, 0)
	report := func(now Ticks) {
		table.Report(Conn{Flow: p.Flow, State: Established, Dest: 1, Expires: 900 * time.Second}, Ordered, now)
	}
	check := func(when string, reported bool) {
		t.Helper()
		if c, ok := table.Lookup(p.Flow, 20*PerSecond); !ok || c.Reported != reported {
			t.Errorf("%s: %+v, %v", when, c, ok)
		}
	}
	report(10 * PerSecond)
	check("reported", true)
	table.Refresh(p.Flow, 0, 0)
	check("no packet", true)
	table.Refresh(p.Flow, 0, 11*PerSecond)
	check("a reply", false)
	report(15 * PerSecond)
	check("reported again", true)
	table.Refresh(p.Flow, 1, 14*PerSecond)
	check("a packet", false)
}

// TestShorterTimeout: a connection leaves the fast path when its timeout becomes too short for late reports.
func TestShorterTimeout(t *testing.T) {
	table := newSmall(Config{})
	p := tcp(1, 1, packet.FlagSYN)
	table.Insert(&p, 1, 0, 0)
	p.TCPFlags = packet.FlagACK
	table.Packet(&p, FromClient, 0)
	table.SetFast(p.Flow, true, 0)
	for seconds, stays := range map[time.Duration]bool{10: true, 9: false} {
		table.Configure(Config{Timeouts: Timeouts{TCP: seconds * time.Second}})
		if table.Refresh(p.Flow, 1, PerSecond) != stays {
			t.Errorf("timeout %d s: it stays: %v", seconds, !stays)
		}
	}
}
