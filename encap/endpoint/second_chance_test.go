package endpoint

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

var other = netip.MustParseAddr("10.0.11.3")

// chanceNet is what a worker with second chances is connected to.
type chanceNet struct {
	w         *Worker
	c         *SecondChance
	has       map[uint16]bool // sockets, by the client's port
	asked     int
	exit      *Exit
	named     *Exit // to the hosts that packets name
	kept      *Exit
	unsettled bool
	before    uint8 // of the last question
	injected  [][]byte
	sent      [][]byte
}

func (n *chanceNet) Other(_, _ netip.AddrPort, before uint8, _ time.Time) (*Exit, bool) {
	n.before = before
	return n.exit, n.unsettled
}

func (n *chanceNet) Hop(_ netip.Addr, before uint8) *Exit {
	if n.kept != nil && n.kept.ID == before {
		return n.kept
	}
	return n.named
}

func (n *chanceNet) Has(remote, local netip.AddrPort) (bool, error) {
	n.asked++
	return n.has[remote.Port()], nil
}

func (n *chanceNet) Send(out []egress.Outgoing) (int, error) {
	for _, o := range out {
		n.sent = append(n.sent, slices.Concat(o.Head, o.Body))
	}
	return len(out), nil
}

func (n *chanceNet) WriteBatch(bufs []*packet.Buf) (int, int, error) {
	for _, b := range bufs {
		n.injected = append(n.injected, slices.Clone(b.Bytes()))
	}
	return len(bufs), 0, nil
}

func newChanceNet(t testing.TB, kind encap.Kind) *chanceNet {
	t.Helper()
	tunnel, err := encap.New(encap.Config{Kind: kind, Source: realserver, Destination: other})
	if err != nil {
		t.Fatal(err)
	}
	n := &chanceNet{has: map[uint16]bool{},
		exit: &Exit{ID: 7, Tunnel: tunnel, Peer: egress.Peer{Dst: other, Src: realserver}, MTU: 1500}}
	p := policy()
	p.peers = []netip.Prefix{netip.MustParsePrefix("10.0.11.0/24")}
	n.w = NewWorker(nil, n, inForce(p), false)
	n.c = NewSecondChance(n, NewFlows(), n, n, egress.NewIDs(1))
	n.w.Give(n.c)
	return n
}

// take gives the worker packets, and returns how many were injected and sent on.
func (n *chanceNet) take(t testing.TB, packets ...[]byte) (injected, sent int) {
	t.Helper()
	i, s := len(n.injected), len(n.sent)
	for _, b := range packets {
		bufs := []packet.Buf{*buf(b)}
		if err := n.w.Take(bufs); err != nil {
			t.Fatal(err)
		}
	}
	return len(n.injected) - i, len(n.sent) - s
}

// from is a TCP packet of a client's port, in a tunnel.
func from(kind encap.Kind, outer netip.Addr, port uint16, flags uint8) []byte {
	return wrap(kind, outer, segment{port: port, n: 10, flags: flags}.bytes())
}

func TestSecondChance(t *testing.T) {
	const syn, ack = packet.FlagSYN, packet.FlagACK
	n := newChanceNet(t, encap.KindIPIP)
	n.has[2] = true
	for i, c := range []struct {
		what           string
		outer          netip.Addr
		port           uint16
		flags          uint8
		injected, sent int
		asked          int // all questions so far
	}{
		{"a SYN", director, 1, syn, 1, 0, 0},
		{"after the SYN", director, 1, ack, 1, 0, 0},
		{"of a socket", director, 2, ack, 1, 0, 1},
		{"of a socket again", director, 2, ack, 1, 0, 1},
		{"unknown", director, 3, ack, 0, 1, 2},
		{"unknown again", director, 3, ack, 0, 1, 2},
		{"unknown, a RST", director, 3, packet.FlagRST, 0, 1, 2},
		{"a SYN of an unknown one", director, 3, syn, 1, 0, 2},
		{"after that", director, 3, ack, 1, 0, 2},
		{"sent on by another realserver", other, 4, ack, 1, 0, 2},
	} {
		if injected, sent := n.take(t, from(encap.KindIPIP, c.outer, c.port, c.flags)); injected != c.injected ||
			sent != c.sent || n.asked != c.asked {
			t.Errorf("%d, %s: %d injected, %d sent on, %d questions, want %d, %d, %d", i, c.what, injected, sent,
				n.asked, c.injected, c.sent, c.asked)
		}
	}
	if n.before != 7 {
		t.Errorf("packets of a connection do not keep their exit: %d", n.before)
	}
	if n.w.FromPeers() != 1 {
		t.Errorf("%d packets from peers", n.w.FromPeers())
	}
	for _, b := range n.sent {
		h := packet.IPv4(b)
		if h.Src() != realserver || h.Dst() != other || h.Protocol() != packet.ProtoIPIP ||
			packet.IPv4(h.Payload()).Src() != client {
			t.Errorf("sent on: %x", b)
		}
	}
	n.exit = nil
	if injected, sent := n.take(t, from(encap.KindIPIP, director, 5, ack)); injected != 1 || sent != 0 {
		t.Error("without another host a packet is not for this one")
	}
}

// TestSecondChanceHeld: while tables may come, packets of unknown connections are dropped, for a second.
func TestSecondChanceHeld(t *testing.T) {
	n := newChanceNet(t, encap.KindGRE)
	exit := n.exit
	n.exit, n.unsettled = nil, true
	p := from(encap.KindGRE, director, 1, packet.FlagACK)
	if injected, sent := n.take(t, p, p); injected+sent != 0 {
		t.Error("a packet is not held")
	}
	var tally stats.Tally
	if n.w.Read(&tally); tally.Drops[drop.Unsettled] != 2 {
		t.Errorf("%d packets are counted", tally.Drops[drop.Unsettled])
	}
	n.c.start = n.c.start.Add(-3 * time.Second)
	if injected, _ := n.take(t, p, p); injected != 2 {
		t.Error("a packet is held for more than a second")
	}
	n.exit = exit
	p = from(encap.KindGRE, director, 2, packet.FlagACK)
	if injected, sent := n.take(t, p); injected != 0 || sent != 1 {
		t.Error("a known exit is not used")
	}
}

// TestSecondChanceICMP: an ICMP error follows the packet that it quotes, and UDP is for this host.
func TestSecondChanceICMP(t *testing.T) {
	n := newChanceNet(t, encap.KindIPIP)
	n.has[7] = true
	tooBig := func(port uint16) []byte {
		reply := segment{port: port, n: 10, flags: packet.FlagACK}.bytes()
		packet.IPv4(reply).Encode(packet.IPv4Fields{TotalLen: len(reply), TTL: 60, Protocol: packet.ProtoTCP,
			Src: vip.As4(), Dst: client.As4()})
		tcp := reply[20:]
		tcp[0], tcp[1], tcp[2], tcp[3] = tcp[2], tcp[3], tcp[0], tcp[1]
		message := append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, reply[:28]...)
		packet.ICMP(message).SetChecksum(0)
		return wrap(encap.KindIPIP, director, ip(netip.MustParseAddr("203.0.113.1"), vip, packet.ProtoICMP, message))
	}
	if injected, sent := n.take(t, tooBig(7)); injected != 1 || sent != 0 {
		t.Errorf("of a socket: %d injected, %d sent on", injected, sent)
	}
	if injected, sent := n.take(t, tooBig(8)); injected != 0 || sent != 1 {
		t.Errorf("unknown: %d injected, %d sent on", injected, sent)
	}
	udp := wrap(encap.KindIPIP, director, ip(client, vip, packet.ProtoUDP, []byte{0, 1, 0, 2, 0, 8, 0, 0}))
	if injected, sent := n.take(t, udp); injected != 1 || sent != 0 {
		t.Errorf("UDP: %d injected, %d sent on", injected, sent)
	}
}

// TestSecondChanceHops: a packet with hops goes on to the next one, if that is a peer and another host. The packets of
// a connection keep the host to which they went on.
func TestSecondChanceHops(t *testing.T) {
	n := newChanceNet(t, encap.KindIPIP)
	n.has[9] = true
	self := realserver.As4()
	tunnel, err := encap.New(encap.Config{Kind: encap.KindGUE, Source: director, Destination: realserver, Port: port,
		Hop: true})
	if err != nil {
		t.Fatal(err)
	}
	written := buf(segment{port: 8, n: 10, flags: packet.FlagACK}.bytes()) // by vstun's director
	tunnel.WrapHop(written, 40000, other.As4())
	packet.IPv4(written.Bytes()).SetChecksum()
	if _, sent := n.take(t, written.Bytes()); sent != 1 || packet.IPv4(n.sent[0]).Dst() != other ||
		encap.Hops(n.sent[0][28:])[6] != 1 {
		t.Errorf("a packet of vstun's director is not sent on: %x", n.sent)
	}
	for _, c := range []struct {
		what           string
		port           uint16
		index          byte
		hops           [][4]byte
		injected, sent int
	}{
		{"known here", 9, 0, [][4]byte{other.As4()}, 1, 0},
		{"the first of two", 1, 0, [][4]byte{other.As4(), self}, 0, 1},
		{"the second of two", 2, 1, [][4]byte{self, other.As4()}, 0, 1},
		{"none left", 3, 1, [][4]byte{other.As4()}, 1, 0},
		{"none at all", 4, 0, nil, 1, 0},
		{"this host", 5, 0, [][4]byte{self}, 1, 0},
		{"no peer", 6, 0, [][4]byte{{10, 0, 99, 1}}, 1, 0},
		{"a known host", 7, 0, [][4]byte{other.As4()}, 0, 1},
		{"another host, later", 7, 0, [][4]byte{{10, 0, 11, 9}}, 0, 1},
		{"this host, later", 7, 0, [][4]byte{self}, 0, 1},
	} {
		n.kept, n.named = &Exit{ID: 9, Peer: egress.Peer{Dst: other}}, nil
		if c.what == "a known host" {
			n.named = n.kept
		}
		inner := segment{port: c.port, n: 10, flags: packet.FlagACK}.bytes()
		gue := []byte{byte(1 + len(c.hops)), packet.ProtoIPIP, 0, 0, 0, 0, c.index, byte(len(c.hops))}
		for _, h := range c.hops {
			gue = append(gue, h[:]...)
		}
		u := []byte{0x9c, 0x40, port >> 8, port & 0xff, 0, 0, 0, 0}
		binary.BigEndian.PutUint16(u[4:], uint16(len(u)+len(gue)+len(inner)))
		injected, sent := n.take(t, ip(director, realserver, packet.ProtoUDP, slices.Concat(u, gue, inner)))
		if injected != c.injected || sent != c.sent {
			t.Errorf("%s: %d injected, %d sent on", c.what, injected, sent)
			continue
		}
		if sent == 0 {
			if got := n.injected[len(n.injected)-1]; !slices.Equal(got, inner) {
				t.Errorf("%s: injected %x, want %x", c.what, got, inner)
			}
			continue
		}
		got := packet.IPv4(n.sent[len(n.sent)-1])
		gue[6]++
		if got.Dst() != other || got.Protocol() != packet.ProtoUDP || packet.UDP(got.Payload()).DstPort() != port ||
			!slices.Equal(got.Payload()[packet.UDPHeaderLen:], slices.Concat(gue, inner)) {
			t.Errorf("%s: sent on %x, want %x behind UDP", c.what, []byte(got), slices.Concat(gue, inner))
		}
	}
}

// TestHopsWithoutSecondChance: a worker without second chances takes hops off, as Linux does.
func TestHopsWithoutSecondChance(t *testing.T) {
	n := newChanceNet(t, encap.KindIPIP)
	n.w.Give(nil)
	inner := segment{port: 1, n: 10, flags: packet.FlagACK}.bytes()
	tunnel, err := encap.New(encap.Config{Kind: encap.KindGUE, Source: director, Destination: realserver, Port: port,
		Hop: true})
	if err != nil {
		t.Fatal(err)
	}
	b := buf(inner)
	tunnel.WrapHop(b, 40000, other.As4())
	packet.IPv4(b.Bytes()).SetChecksum()
	if injected, sent := n.take(t, b.Bytes()); injected != 1 || sent != 0 || !slices.Equal(n.injected[0], inner) {
		t.Errorf("%d injected, %d sent on: %x", injected, sent, n.injected)
	}
}

// TestSecondChanceBound: beyond its questions a worker leaves packets of unknown connections to the host.
func TestSecondChanceBound(t *testing.T) {
	n := newChanceNet(t, encap.KindIPIP)
	n.c.begin()
	n.c.left = 1
	a, b := from(encap.KindIPIP, director, 1, packet.FlagACK), from(encap.KindIPIP, director, 2, packet.FlagACK)
	if injected, sent := n.take(t, a, b); injected != 1 || sent != 1 {
		t.Errorf("%d injected, %d sent on", injected, sent)
	}
	if asked, unasked := n.c.Queries(); asked != 1 || unasked != 1 {
		t.Errorf("%d asked, %d unasked", asked, unasked)
	}
}

// TestFlows: connections of this host outlive a flood of SYNs, and everything ends.
func TestFlows(t *testing.T) {
	f := NewFlows()
	at := func(n int) uint64 {
		return f.hash(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 1),
			netip.AddrPortFrom(vip, 80))
	}
	for n := range 10_000 {
		f.put(at(n), flowLocal, 0, 0)
	}
	for n := range 1_000_000 {
		f.put(at(1<<20+n), flowBegun, 0, 1)
	}
	lost := 0
	for n := range 10_000 {
		if state, _, _ := f.look(at(n), 1); state != flowLocal {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of 10000 connections are forgotten", lost)
	}
	f.put(at(0), flowElsewhere, 9, 2)
	if state, _, exit := f.look(at(0), 2+absentFor); state != flowElsewhere || exit != 9 {
		t.Error("an entry ends early")
	}
	if state, _, exit := f.look(at(0), 3+absentFor); state != flowUnknown || exit != 9 {
		t.Error("a connection of another host is never asked for again")
	}
	f.put(at(0), flowLocal, 0, 2)
	if state, _, _ := f.look(at(0), 3+localFor); state != flowUnknown {
		t.Error("an idle connection is never forgotten")
	}
}

// BenchmarkWorker processes a batch of TCP packets of 64 connections: without second chances, and with them, of
// connections that are known here, and of ones that are sent on.
func BenchmarkWorker(b *testing.B) {
	for _, c := range []struct {
		name  string
		with  bool
		local bool
	}{{"off", false, false}, {"local", true, true}, {"elsewhere", true, false}} {
		b.Run(c.name, func(b *testing.B) {
			n := newChanceNet(b, encap.KindIPIP)
			if !c.with {
				p := policy()
				n.w.inForce.Store(p)
				n.w.Give(nil)
			}
			n.w.sink, n.c.sockets = discard{}, anySocket(c.local)
			n.c.out.Init(egress.Config{Raw: nowhere{}, IDs: egress.NewIDs(1), Tally: &n.c.tally, TooBig: func() {}})
			var packets [][]byte
			for i := range batch {
				packets = append(packets, from(encap.KindIPIP, director, uint16(1000+i), packet.FlagACK))
			}
			bufs := packet.NewBufs(batch)
			b.ReportAllocs()
			for b.Loop() {
				for i := range bufs {
					bufs[i].SetLen(copy(bufs[i].Room(), packets[i]))
				}
				if err := n.w.Take(bufs); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/packet")
		})
	}
}

type anySocket bool

func (s anySocket) Has(netip.AddrPort, netip.AddrPort) (bool, error) { return bool(s), nil }

type nowhere struct{}

func (nowhere) Send(out []egress.Outgoing) (int, error) { return len(out), nil }
