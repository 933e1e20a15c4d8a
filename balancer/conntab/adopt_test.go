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

// TestPut adds a connection of another director. It has the reported destination, state and time.
func TestPut(t *testing.T) {
	for name, p := range map[string]packet.Info{"IPv4": tcp(1, 1, packet.FlagACK), "IPv6": tcp6(1, packet.FlagACK)} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(Config{})
			c := Conn{Flow: p.Flow, State: Established, Dest: 7, Expires: 100 * time.Second, Packets: 41}
			if r := table.Put(c, 1000); r != Inserted {
				t.Fatalf("result %d", r)
			}
			if got, ok := table.Lookup(p.Flow, 1000); !ok || got != c {
				t.Errorf("%+v, want %+v", got, c)
			}
			if n := table.Counts(7); n.Active() != 1 || table.HalfOpen() != 0 || table.Len() != 1 {
				t.Errorf("%d active, %d half-open, %d in all", n.Active(), table.HalfOpen(), table.Len())
			}
			if dest, r := table.Packet(&p, FromClient, 1000); dest != 7 || r != Hit {
				t.Errorf("its packet: %d, result %d", dest, r)
			}
			c.State, c.Expires, c.Packets = FinWait, 50*time.Second, 43
			if r := table.Put(c, 1000); r != Hit {
				t.Errorf("an update: result %d", r)
			}
			if got, _ := table.Lookup(p.Flow, 1000); got != c || table.Counts(7).Inactive() != 1 ||
				table.Counts(7).Active() != 0 {
				t.Errorf("updated: %+v", got)
			}
			table.Sweep(1000 + 51*PerSecond)
			empty(t, table)
		})
	}
}

// TestPutElsewhere: an active connection to another destination replaces the known one; an inactive one does not.
func TestPutElsewhere(t *testing.T) {
	table := newSmall(Config{})
	p := tcp(1, 1, packet.FlagSYN)
	table.Insert(&p, 1, 0, 0)
	c := Conn{Flow: p.Flow, State: Close, Dest: 2, Expires: time.Second}
	if r := table.Put(c, 0); r != Hit || table.Counts(1).Active() != 1 || table.Counts(2).Inactive() != 0 {
		t.Errorf("a closed one: result %d", r)
	}
	c.State = Established
	if r := table.Put(c, 0); r != Inserted || table.Counts(1).Active() != 0 || table.Counts(2).Active() != 1 ||
		table.HalfOpen() != 0 {
		t.Errorf("an established one: result %d", r)
	}
}

// TestPutNonsense: Put refuses impossible states and destinations, and bounds times.
func TestPutNonsense(t *testing.T) {
	table := newSmall(Config{})
	flow := tcp(1, 1, 0).Flow
	for name, c := range map[string]Conn{
		"UDP's state": {Flow: flow, State: UDP}, "template": {Flow: flow, State: TemplateState},
		"no state": {Flow: flow, State: numStates}, "empty": {Flow: flow}, "pinned": {Flow: flow, State: Pinned},
		"destination": {Flow: flow, State: Established, Dest: MaxDests}, "no timeout": {Flow: flow, Template: true},
	} {
		if r := table.Put(c, 0); r != Refused || table.Len() != 0 {
			t.Errorf("%s: result %d", name, r)
		}
	}
	table.Put(Conn{Flow: flow, State: Close, Expires: 1000 * time.Hour}, 0)
	if got, ok := table.Lookup(flow, 0); !ok || got.Expires != 10*time.Second {
		t.Errorf("a long time: %+v", got)
	}
	check := tcp(2, 1, 0).Flow
	table.Pin(check, 3, false, 0)
	if r := table.Put(Conn{Flow: check, State: Established, Dest: 4}, 0); r != Hit || table.Counts(4).Active() != 0 {
		t.Errorf("a check's flow: result %d", r)
	}
}

// TestPutTemplate adds a client's persistence.
func TestPutTemplate(t *testing.T) {
	for name, p := range map[string]packet.Info{"IPv4": tcp(1, 1, packet.FlagSYN), "IPv6": tcp6(1, packet.FlagSYN)} {
		t.Run(name, func(t *testing.T) {
			table := newSmall(Config{})
			c := Conn{Flow: packet.Flow{Src: p.Flow.Src}, Template: true, State: TemplateState, Service: 70_000,
				Dest:    7,
				Timeout: time.Minute, Expires: 20 * time.Second}
			if r := table.Put(c, 0); r != Inserted || table.HalfOpen() != 0 {
				t.Fatalf("result %d, %d half-open", r, table.HalfOpen())
			}
			if got, ok := table.LookupTemplate(p.Flow.Src, 70_000, 0); !ok || got != c {
				t.Errorf("%+v, want %+v", got, c)
			}
			dest, number, r := table.Template(p.Flow.Src, 70_000, 0)
			if dest != 7 || r != Hit {
				t.Errorf("a client's connection: %d, result %d", dest, r)
			}
			table.Release(number)
			for n := range Ticks(3) {
				table.Sweep(n * 61 * PerSecond)
			}
			empty(t, table)
		})
	}
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

// TestPutEndedTemplate: a template without time left gets no new timeout, and the feed has the time that it gets.
func TestPutEndedTemplate(t *testing.T) {
	table := newSmall(Config{})
	f := table.Changes(1000)
	c := Conn{Flow: packet.Flow{Src: tcp(1, 1, 0).Flow.Src}, Template: true, State: TemplateState, Service: 1,
		Timeout: 300 * time.Second, Expires: -time.Second}
	table.Put(c, 0)
	got, ok := table.LookupTemplate(c.Flow.Src, 1, 0)
	if _, conns := kinds(f, 0); !ok || got.Expires > time.Second || len(conns) != 1 || conns[0].Expires != got.Expires {
		t.Errorf("%+v, %v; in the feed %+v", got, ok, conns)
	}
	c.Timeout, c.Service = time.Millisecond, 2
	if r := table.Put(c, 0); r != Refused {
		t.Errorf("a timeout of less than a tick: result %d", r)
	}
}
