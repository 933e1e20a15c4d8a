package conntab

import (
	"net/netip"
	"testing"

	"vstun/encap/packet"
)

// TestPinned: a pinned flow has its destination before its first packet, and no packet changes it. It ends with Unpin.
// It does not count as a connection.
func TestPinned(t *testing.T) {
	six := tcp(1, 1, packet.FlagSYN)
	six.Flow.Src, six.Flow.Dst = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("2001:db8::80")
	udp := tcp(2, 1, 0)
	udp.Flow.Proto = packet.ProtoUDP
	for _, first := range []packet.Info{tcp(1, 1, packet.FlagSYN), six, udp} {
		table := newSmall(Config{HalfOpenMax: 8, DropRemoved: true})
		if r := table.Pin(first.Flow, 7, false, 0); r != Inserted {
			t.Fatalf("%v: Pin says %d", first.Flow, r)
		}
		if r := table.Pin(first.Flow, 8, false, 1); r != Hit {
			t.Errorf("%v: a second Pin says %d", first.Flow, r)
		}
		for i, flags := range []uint8{packet.FlagSYN, packet.FlagACK, packet.FlagACK | packet.FlagPSH, packet.FlagFIN,
			packet.FlagRST, packet.FlagSYN, 0} {
			p := first
			p.TCPFlags = flags
			if dest, r := table.Packet(&p, FromClient, Ticks(i)*600*PerSecond/10); r != Hit || dest != 7 {
				t.Errorf("%v: packet %d: destination %d, result %d", first.Flow, i, dest, r)
			}
		}
		if table.Len() != 0 || table.HalfOpen() != 0 || table.Counts(7).Active() != 0 ||
			table.Counts(7).Inactive() != 1 {
			t.Errorf("%v: %d connections, %d half-open, %d active", first.Flow, table.Len(), table.HalfOpen(),
				table.Counts(7).Active())
		}
		for c := range table.All(1) {
			t.Errorf("%v is listed: %+v", first.Flow, c)
		}
		const now, rest = 1000, 10 * PerSecond
		table.Unpin(first.Flow, now, rest)
		p := first
		if dest, r := table.Packet(&p, FromClient, now+rest-1); r != Hit || dest != 7 {
			t.Errorf("%v: while it rests: destination %d, result %d", first.Flow, dest, r)
		}
		if r := table.Pin(first.Flow, 8, false, now+rest-1); r != Hit {
			t.Errorf("%v: while it rests, Pin says %d", first.Flow, r)
		}
		if _, r := table.Packet(&p, FromClient, now+rest); r != Miss {
			t.Errorf("%v: afterwards: result %d", first.Flow, r)
		}
		table.Sweep(now + rest + sweepGranularity + 1)
		if c := table.Counts(7); c.Inactive() != 0 {
			t.Errorf("%v: %d left", first.Flow, c.Inactive())
		}
		if r := table.Pin(first.Flow, 8, false, now+rest); r != Inserted {
			t.Errorf("%v: afterwards Pin says %d", first.Flow, r)
		}
	}
}

// TestPinnedInAFullTable: a flow can be pinned in a full table and in a SYN flood, and is not evicted.
func TestPinnedInAFullTable(t *testing.T) {
	const maximum, pins = 20_000, 2000
	table := newSmall(Config{Max: maximum, HalfOpenMax: maximum / 4})
	pin := func(from uint32) {
		for i := range uint32(pins) {
			p := tcp(from+i, 2, 0)
			if r := table.Pin(p.Flow, 1, false, 0); r != Inserted {
				t.Fatalf("Pin %d says %d in a table of %d", i, r, table.Len())
			}
		}
	}
	pin(1 << 24)
	for i := range uint32(maximum) {
		p := tcp(i, 1, packet.FlagSYN)
		table.Packet(&p, FromClient, 0)
		table.Insert(&p, 2, 0, 0)
		p.TCPFlags = packet.FlagACK // established: only a SYN flood can be driven out
		table.Packet(&p, FromClient, 0)
	}
	for i := range uint32(4 * maximum) {
		p := tcp(1<<30+i, 1, packet.FlagSYN)
		if _, r := table.Packet(&p, FromClient, 0); r == Miss {
			table.Insert(&p, 2, 0, 0)
		}
	}
	if table.Len() != maximum {
		t.Errorf("%d connections, want %d", table.Len(), maximum)
	}
	pin(1 << 25)
	for _, from := range []uint32{1 << 24, 1 << 25} {
		for i := range uint32(pins) {
			p := tcp(from+i, 2, packet.FlagACK)
			if dest, r := table.Packet(&p, FromClient, 1); r != Hit || dest != 1 {
				t.Fatalf("pinned flow %d: destination %d, result %d", i, dest, r)
			}
		}
	}
}

// TestPinnedAreSweptTogether: flows that are pinned and end all the time have a shard swept once in some seconds, and
// not in each turn.
func TestPinnedAreSweptTogether(t *testing.T) {
	table := newSmall(Config{Max: 1024})
	const flows, step = 500, 7
	for i := range Ticks(flows) {
		f := tcp(uint32(i), 1, 0).Flow
		if r := table.Pin(f, 1, false, i*step); r != Inserted {
			t.Fatalf("Pin says %d", r)
		}
		table.Unpin(f, i*step, 1000)
	}
	looks := map[Ticks]bool{}
	end := Ticks(flows*step + 1000 + sweepGranularity + 1)
	for now := Ticks(0); now <= end; now++ {
		for i := range table.four.shards {
			if sh := &table.four.shards[i]; sh.used > 0 && sh.next.reached(now) {
				looks[now] = true
			}
		}
		table.Sweep(now)
	}
	if most := flows*step/(sweepGranularity+1) + 3; len(looks) > most || len(looks) == 0 {
		t.Errorf("%d ticks have a shard swept, want at most %d", len(looks), most)
	}
	if n := table.Counts(1).Inactive(); n != 0 {
		t.Errorf("%d are left", n)
	}
}

// TestPinOver: a flow is pinned in place of a connection, whose count goes with it; never in place of another pinned
// one, even at rest.
func TestPinOver(t *testing.T) {
	for _, flags := range [][]uint8{{packet.FlagSYN}, {packet.FlagSYN, packet.FlagACK}} {
		table := newSmall(Config{HalfOpenMax: 8})
		p := tcp(1, 1, 0)
		for _, p.TCPFlags = range flags {
			if _, r := table.Packet(&p, FromClient, 0); r == Miss {
				table.Insert(&p, 2, 0, 0)
			}
		}
		if r := table.Pin(p.Flow, 7, false, 1); r != Hit {
			t.Errorf("Pin says %d", r)
		}
		if r := table.Pin(p.Flow, 7, true, 1); r != Inserted {
			t.Errorf("Pin in place of the connection says %d", r)
		}
		if c := table.Counts(2); table.Len() != 0 || table.HalfOpen() != 0 || c.Active()+c.Inactive() != 0 {
			t.Errorf("%d connections, %d half-open, of the former destination %d", table.Len(), table.HalfOpen(),
				c.Active()+c.Inactive())
		}
		if dest, r := table.Packet(&p, FromClient, 1); r != Hit || dest != 7 {
			t.Errorf("destination %d, result %d", dest, r)
		}
		if r := table.Pin(p.Flow, 8, true, 1); r != Hit {
			t.Errorf("Pin in place of a pinned one says %d", r)
		}
		table.Unpin(p.Flow, 1, 10)
		if r := table.Pin(p.Flow, 8, true, 10); r != Hit {
			t.Errorf("Pin in place of one at rest says %d", r)
		}
	}
}

// TestLeave: Leave removes Movable connections only.
func TestLeave(t *testing.T) {
	udp := tcp(1, 1, 0)
	udp.Flow.Proto = packet.ProtoUDP
	init := tcp(1, 1, 0)
	init.Flow.Proto, init.SCTPChunk = packet.ProtoSCTP, packet.ChunkInit
	cookie := init
	cookie.SCTPChunk = packet.ChunkCookieEcho
	syn, ack, rst := tcp(1, 1, packet.FlagSYN), tcp(1, 1, packet.FlagACK), tcp(1, 1, packet.FlagRST)
	for name, c := range map[string]struct {
		before []packet.Info
		last   packet.Info
		leaves bool
	}{
		"a datagram":              {[]packet.Info{udp, udp}, udp, true},
		"a SYN again":             {[]packet.Info{syn}, syn, true},
		"the client's answer":     {[]packet.Info{syn}, ack, false},
		"established":             {[]packet.Info{syn, ack}, ack, false},
		"a SYN in an established": {[]packet.Info{syn, ack}, syn, false},
		"a RST":                   {[]packet.Info{syn}, rst, false},
		"an INIT again":           {[]packet.Info{init}, init, true},
		"an association":          {[]packet.Info{init, cookie}, init, false},
		"its data":                {[]packet.Info{init, cookie}, cookie, false},
	} {
		table := newSmall(Config{})
		for _, p := range append(c.before, c.last) {
			if _, r := table.Packet(&p, FromClient, 0); r == Miss {
				table.Insert(&p, 1, 0, 0)
			}
		}
		if !table.Leave(&c.last, 2) && c.leaves || table.Len() != 1 {
			t.Errorf("%s: it leaves a destination that it does not have any more, and %d connections remain", name,
				table.Len())
		}
		if got := table.Leave(&c.last, 1); got != c.leaves || table.Len() == 1 == c.leaves {
			t.Errorf("%s: leaves %v, and %d connections remain", name, got, table.Len())
		}
	}
}
