package balancer

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

var (
	vip2 = netip.MustParseAddr("198.51.100.81")
	vip6 = netip.MustParseAddr("2001:db8:80::80")
)

// nat returns realserver n of VS/NAT; port 0: the service's port.
func nat(n int, port uint16) Realserver {
	r := rs(n, 1)
	r.Kind, r.Port = method.NAT, port
	return r
}

// nat6 is nat over IPv6.
func nat6(n int, port uint16) Realserver {
	r := nat(n, port)
	r.Address = netip.AddrFrom16([16]byte{0xfd, 15: byte(n)})
	return r
}

// natService returns a service of VS/NAT.
func natService(name string, proto uint8, vips []netip.Addr, ports []PortRange, realservers ...Realserver) Service {
	return Service{Name: name, VIPs: vips, Protocol: proto, Ports: ports, Scheduler: "rr", Realservers: realservers}
}

// ask opens a connection and returns the flow of its requests at the realserver.
func ask(t *testing.T, b *Balancer, f packet.Flow) packet.Flow {
	t.Helper()
	d, reason := b.Snapshot().Decide(opening(f), 0)
	if reason != drop.Accept {
		t.Fatalf("%v: %v", f, reason)
	}
	return d.Real(f)
}

// opening returns a packet of f that opens a connection.
func opening(f packet.Flow) *packet.Info {
	return &packet.Info{Len: 40, Flow: f, TCPFlags: packet.FlagSYN, SCTPChunk: packet.ChunkInit}
}

// answer lets a realserver answer the request real. It returns the flow of the connection that the reply belongs to,
// and its realserver; without a connection the reply's own flow, and nil.
func answer(b *Balancer, real packet.Flow) (packet.Flow, *Dest) {
	p := &packet.Info{Len: 40, Flow: real.Reverse(), TCPFlags: packet.FlagSYN | packet.FlagACK, Hash: 1}
	s := b.Snapshot()
	from := s.Backend(p)
	if from == nil {
		return p.Flow, nil
	}
	s.Prefetch(p)
	d := s.Reply(p, from, 0)
	return p.Flow, d
}

func from(port uint16, proto uint8, vip netip.Addr, vport uint16) packet.Flow {
	f := packet.Flow{Src: netip.MustParseAddr("192.0.2.7"), SrcPort: port, Dst: vip, DstPort: vport, Proto: proto}
	if vip.Is6() {
		f.Src = netip.MustParseAddr("2001:db8:1::7")
	}
	return f
}

// TestReplies: a reply belongs to the connection whose request has gone to its source, whatever ports lead there. A
// packet of another realserver, port or client belongs to none, and stays what it was. FindTranslated finds the same.
func TestReplies(t *testing.T) {
	both := []netip.Addr{vip, vip2}
	b := newBalancer(t,
		natService("web", packet.ProtoTCP, both, []PortRange{{80, 80}, {443, 443}}, nat(1, 8080), nat(2, 8080)),
		natService("alt", packet.ProtoTCP, both[:1], []PortRange{{81, 81}}, nat(1, 8080)),
		natService("ftp", packet.ProtoTCP, both[:1], []PortRange{{21, 21}, {5000, 5999}}, nat(1, 0)),
		natService("all", packet.ProtoTCP, both[1:], []PortRange{EveryPort}, nat(1, 0), nat(3, 0)),
		natService("dns", packet.ProtoUDP, both, []PortRange{{53, 53}}, nat(1, 0), rs(4, 0)),
		natService("sig", packet.ProtoSCTP, both[:1], []PortRange{{2905, 2906}}, nat(1, 2905)),
		natService("six", packet.ProtoTCP, []netip.Addr{vip6}, []PortRange{{80, 80}}, nat6(1, 8080)),
		natService("tun", packet.ProtoTCP, both[:1], []PortRange{{90, 90}}, rs(1, 1)))
	var asked []packet.Flow
	for _, f := range []packet.Flow{
		from(1, packet.ProtoTCP, vip, 80), from(2, packet.ProtoTCP, vip2, 80), from(3, packet.ProtoTCP, vip, 443),
		from(4, packet.ProtoTCP, vip2, 443), from(5, packet.ProtoTCP, vip, 81), from(6, packet.ProtoTCP, vip, 21),
		from(7, packet.ProtoTCP, vip, 5000), from(8, packet.ProtoTCP, vip, 5999),
		from(9, packet.ProtoTCP, vip2, 8080), from(10, packet.ProtoTCP, vip2, 1),
		from(11, packet.ProtoTCP, vip2, 65535), from(12, packet.ProtoUDP, vip2, 53),
		from(13, packet.ProtoSCTP, vip, 2906), from(14, packet.ProtoSCTP, vip, 2905),
		from(15, packet.ProtoTCP, vip6, 80),
	} {
		real := ask(t, b, f)
		asked = append(asked, real)
		if got, d := answer(b, real); got != f || d == nil || d.Address != real.Dst {
			t.Errorf("%v: the reply from %v:%d belongs to %v, %+v", f, real.Dst, real.DstPort, got, d)
		}
		if d, to := b.Snapshot().FindTranslated(real, 0); d == nil || d.Address != real.Dst ||
			to != netip.AddrPortFrom(f.Dst, f.DstPort) {
			t.Errorf("%v: %v leads to %v, %+v", f, real, to, d)
		}
	}
	for _, real := range asked {
		another, port, client := real, real, real
		another.Dst = rs(4, 1).Address
		if real.Dst.Is6() {
			another.Dst = nat6(4, 0).Address
		}
		port.DstPort++
		client.SrcPort += 1000
		for _, f := range []packet.Flow{another, port, client} {
			if slices.Contains(asked, f) {
				continue
			}
			if got, d := answer(b, f); got != f.Reverse() || d != nil {
				t.Errorf("%v belongs to %v, %+v", f.Reverse(), got, d)
			}
			if d, to := b.Snapshot().FindTranslated(f, 0); d != nil {
				t.Errorf("%v leads to %v", f, to)
			}
		}
	}
	// A realserver as the client of a VIP sends requests, even from the port at which it is one.
	p := opening(packet.Flow{Src: rs(1, 1).Address, SrcPort: 8080, Dst: vip, DstPort: 80, Proto: packet.ProtoTCP})
	if b.Snapshot().Backend(p) != nil {
		t.Error("a request is taken for a reply")
	}
}

// TestReplyOfAnother: a reply changes its connection's state. A packet of a realserver without the connection changes
// nothing, nor does one of a pinned flow.
func TestReplyOfAnother(t *testing.T) {
	b := newBalancer(t, natService("web", packet.ProtoTCP, []netip.Addr{vip}, []PortRange{{80, 80}}, nat(1, 8080),
		nat(2, 8080)))
	f := from(1, packet.ProtoTCP, vip, 80)
	real := ask(t, b, f)
	state := func() conntab.Conn {
		c, _ := b.table.Lookup(f, 0)
		return c
	}
	was, other := state(), real
	other.Dst = rs(1, 1).Address
	if other.Dst == real.Dst {
		other.Dst = rs(2, 1).Address
	}
	reply := func(real packet.Flow, flags uint8) *Dest {
		p := &packet.Info{Len: 40, Flow: real.Reverse(), TCPFlags: flags}
		s := b.Snapshot()
		return s.Reply(p, s.Backend(p), 0)
	}
	if reply(other, packet.FlagRST) != nil || state() != was {
		t.Errorf("a stranger's RST made %+v of %+v", state(), was)
	}
	if reply(real, packet.FlagRST) == nil || state().State != conntab.Close || state().Packets != was.Packets {
		t.Errorf("a RST made %+v of %+v", state(), was)
	}
}

// TestFrontendsThatLeft: replies of existing connections find their way while a VIP, a port, a port at the realserver,
// the realserver and the service leave. Without connections nothing stays.
func TestFrontendsThatLeft(t *testing.T) {
	both := []netip.Addr{vip, vip2}
	web := func(vips []netip.Addr, ports []PortRange, list ...Realserver) Service {
		return natService("web", packet.ProtoTCP, vips, ports, list...)
	}
	old := web(both, []PortRange{{80, 80}, {82, 82}}, nat(1, 0))
	for name, now := range map[string][]Service{
		"a VIP":       {web(both[:1], old.Ports, nat(1, 0))},
		"a port":      {web(both, old.Ports[:1], nat(1, 0))},
		"the mapping": {web(both, old.Ports, nat(1, 8080))},
		"realserver":  {web(both, old.Ports, nat(2, 0))},
		"the method":  {web(both, old.Ports, rs(1, 1))},
		"the service": nil,
	} {
		b := newBalancer(t, old)
		f := from(1, packet.ProtoTCP, vip2, 82)
		real := ask(t, b, f)
		for range 3 {
			apply(t, b, now...)
			b.Reroute(map[netip.Addr]Path{rs(1, 1).Address: {MTU: 1400}})
			if got, d := answer(b, real); got != f || d == nil {
				t.Errorf("%s: a reply belongs to %v, %+v", name, got, d)
			}
			if !b.Snapshot().Translates() {
				t.Errorf("%s: nothing is translated", name)
			}
			apply(t, b, append(now, natService("other", packet.ProtoTCP, both[:1], []PortRange{{99, 99}}, rs(9, 1)))...)
		}
		b.table.Sweep(1 << 30)
		apply(t, b, web(both[:1], []PortRange{{1, 1}}, nat(7, 0)))
		for _, l := range b.retired {
			l.since = l.since.Add(-2 * forgetAfter)
		}
		apply(t, b, web(both[:1], []PortRange{{1, 1}}, nat(7, 1)))
		if got := b.Snapshot().Backend(&packet.Info{Flow: real.Reverse()}); got != nil {
			t.Errorf("%s: its realserver is still known: %+v", name, got)
		}
	}
}

// TestFrontendLeavesWhileInUse: a worker opens a connection under a snapshot that has just been replaced. Its replies
// find their way, though the realserver has had no connections when the frontend left.
func TestFrontendLeavesWhileInUse(t *testing.T) {
	web := natService("web", packet.ProtoTCP, []netip.Addr{vip}, []PortRange{{80, 80}, {82, 82}}, nat(1, 8080))
	b := newBalancer(t, web)
	f := from(1, packet.ProtoTCP, vip, 82)
	worker := b.Snapshot()
	web.Ports = web.Ports[:1]
	apply(t, b, web)
	d, reason := worker.Decide(opening(f), 0)
	if reason != drop.Accept {
		t.Fatal(reason)
	}
	for _, scheduler := range []string{"rr", "wrr", "wlc"} {
		if got, by := answer(b, d.Real(f)); got != f || by == nil {
			t.Errorf("a reply belongs to %v, %+v", got, by)
		}
		web.Scheduler = scheduler
		b.forget(time.Now().Add(2 * forgetAfter))
		apply(t, b, web)
	}
	b.table.Sweep(1 << 30)
	b.forget(time.Now().Add(2 * forgetAfter))
	web.Scheduler = "rr"
	apply(t, b, web)
	if got := b.Snapshot().backends.find(d.Address, packet.ProtoTCP, 8080).frontends; len(got) != 1 {
		t.Errorf("long after its last connection the frontends are %+v", got)
	}
}

// TestOneClientPortToSeveralFrontends: of two connections of one client port to one realserver's port, the newer one
// gets the replies, as from IPVS. With its end the older one gets them. Wrong hints do no harm.
func TestOneClientPortToSeveralFrontends(t *testing.T) {
	var services []Service
	for i := range uint16(20) {
		services = append(services, natService(fmt.Sprint(i), packet.ProtoTCP, []netip.Addr{vip},
			[]PortRange{{80 + i, 80 + i}}, nat(1, 8080)))
	}
	b := newBalancer(t, services...)
	first, second := from(1, packet.ProtoTCP, vip, 95), from(1, packet.ProtoTCP, vip, 83)
	for _, f := range []packet.Flow{first, second} {
		real := ask(t, b, f)
		for _, tag := range []uint32{0, 1, 1 << 31} {
			if got, d := answer(b, real); got != f || d == nil {
				t.Errorf("after %v a reply belongs to %v", f, got)
			}
			if f == first { // nothing else can be meant
				b.hints.put(b.table.Hash(real), tag)
			}
		}
	}
	real := ask(t, b, from(2, packet.ProtoTCP, vip, 99))
	if got, _ := answer(b, real); got != from(2, packet.ProtoTCP, vip, 99) {
		t.Errorf("a reply belongs to %v", got)
	}
	real.SrcPort = 1
	p := &packet.Info{Len: 40, Flow: real.Reverse(), TCPFlags: packet.FlagRST}
	s := b.Snapshot()
	s.Reply(p, s.Backend(p), 0)
	b.table.Sweep(30 * conntab.PerSecond) // CLOSE lasts 10 s, SYN_RECV 60 s
	if got, d := answer(b, real); got != first || d == nil {
		t.Errorf("after the end of the newer connection a reply belongs to %v", got)
	}
}

// TestBackendsAgainstModel compares the index of random mappings with a search through all of them.
func TestBackendsAgainstModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		b := New(conntab.New(conntab.Config{Max: 1024}), 1)
		b.mappings = map[uint32][]mapping{}
		for n := range uint32(1 + rnd.IntN(4)) {
			b.numbers = append(b.numbers, &Dest{Realserver: nat(int(n/2), 0), number: n})
			for range rnd.IntN(6) {
				m := mapping{vip: netip.AddrFrom4([4]byte{198, 51, 100, byte(rnd.IntN(3))}), proto: packet.ProtoTCP}
				if rnd.IntN(3) == 0 {
					m.proto = packet.ProtoUDP
				}
				if m.ports.First = uint16(1 + rnd.IntN(30)); rnd.IntN(2) == 0 {
					m.ports.Last = m.ports.First + uint16(rnd.IntN(10))
				} else if m.ports.Last = m.ports.First; rnd.IntN(3) == 0 {
					m.ports = EveryPort
				}
				if m.ports != EveryPort && rnd.IntN(2) == 0 {
					m.port = uint16(1 + rnd.IntN(40))
				}
				b.mappings[n] = append(b.mappings[n], m)
			}
		}
		index := b.index()
		for port := range uint16(45) {
			for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP, packet.ProtoICMP} {
				for addr := range 3 {
					a := nat(addr, 0).Address
					got := map[frontend]bool{}
					if f := index.find(a, proto, port); f != nil {
						for _, o := range f.frontends {
							if o.port == 0 {
								o.port = port
							}
							o.tag = 0
							got[o] = true
						}
					}
					if want := b.frontendsOf(a, proto, port); !maps.Equal(got, want) {
						t.Fatalf("%v %d %d: %+v, want %+v; %+v", a, proto, port, got, want, b.mappings)
					}
				}
			}
		}
	}
}

// frontendsOf is the obvious search for the frontends that lead to a realserver's port.
func (b *Balancer) frontendsOf(a netip.Addr, proto uint8, port uint16) map[frontend]bool {
	all := map[frontend]bool{}
	for n, list := range b.mappings {
		for _, m := range list {
			if b.numbers[n].Address != a || m.proto != proto {
				continue
			}
			for v := range uint16(100) {
				in := m.ports == EveryPort || m.ports.First <= v && v <= m.ports.Last
				if to := m.port; in && (to == port && to != 0 || to == 0 && v == port) {
					all[frontend{vip: m.vip, port: v, dest: n}] = true
				}
			}
		}
	}
	return all
}

// TestRepliesAllocateNothing: nor do errors about requests.
func TestRepliesAllocateNothing(t *testing.T) {
	b := newBalancer(t,
		natService("web", packet.ProtoTCP, []netip.Addr{vip, vip2}, []PortRange{{80, 80}}, nat(1, 8080)),
		natService("six", packet.ProtoTCP, []netip.Addr{vip6}, []PortRange{{80, 80}}, nat6(1, 8080)))
	for _, f := range []packet.Flow{from(1, packet.ProtoTCP, vip2, 80), from(1, packet.ProtoTCP, vip6, 80)} {
		real := ask(t, b, f)
		s := b.Snapshot()
		p := &packet.Info{Len: 40, TCPFlags: packet.FlagACK}
		if n := testing.AllocsPerRun(100, func() {
			p.Flow, p.Hash = real.Reverse(), 0
			if s.Reply(p, s.Backend(p), 0) == nil {
				t.Fatal("no connection")
			}
			if d, _ := s.FindTranslated(real, 0); d == nil {
				t.Fatal("no connection")
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// TestNATWithoutRoute: a realserver of VS/NAT without a route is unreachable. Its replies still get to clients.
func TestNATWithoutRoute(t *testing.T) {
	web := natService("web", packet.ProtoTCP, []netip.Addr{vip}, []PortRange{{80, 80}}, nat(1, 8080))
	b := newBalancer(t, web)
	f := from(1, packet.ProtoTCP, vip, 80)
	real := ask(t, b, f)
	web.Realservers = slices.Clone(web.Realservers)
	web.Realservers[0].MTU = 0
	apply(t, b, web)
	if _, reason := b.Snapshot().Decide(opening(f), 0); reason != drop.Unreachable {
		t.Error(reason)
	}
	if got, d := answer(b, real); got != f || d == nil {
		t.Errorf("a reply belongs to %v, %+v", got, d)
	}
}

// TestOnePacketByNAT: a datagram to a realserver of VS/NAT is a connection's, since its reply needs one.
func TestOnePacketByNAT(t *testing.T) {
	dns := natService("dns", packet.ProtoUDP, []netip.Addr{vip}, []PortRange{{53, 53}}, nat(1, 5353), rs(2, 1))
	dns.OnePacket = true
	b := newBalancer(t, dns)
	kept := 0
	for n := range uint16(8) {
		f := from(n, packet.ProtoUDP, vip, 53)
		real := ask(t, b, f)
		if real.Dst != rs(1, 1).Address {
			continue
		}
		kept++
		if got, d := answer(b, real); got != f || d == nil {
			t.Errorf("the reply belongs to %v, %+v", got, d)
		}
	}
	if n := b.table.Len(); kept != 4 || n != 4 {
		t.Errorf("%d datagrams to VS/NAT, %d connections", kept, n)
	}
}
