package forward

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// segments is a port of UDP sockets that keeps all packets, or refuses them.
type segments struct {
	calls int
	out   [][]byte
	err   error
}

func (s *segments) Ports() []uint16 { return []uint16{40001, 40002, 40003} }

func (s *segments) Send(out []egress.Outgoing) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	s.calls++
	n := min(len(out), 20) // a short count
	for _, seg := range out[:n] {
		s.out = append(s.out, append(bytes.Clone(seg.Head), seg.Body...))
	}
	return n, nil
}

// TestSegmentsOverUDP: a GSO packet for a tunnel over UDP goes to the segment sink as it would go out by itself, with
// the source port that the flow's other packets have; where the kernel refuses that, it goes out packet by packet. Each
// of its packets has the hop of its connection.
func TestSegmentsOverUDP(t *testing.T) {
	for i, refuse := range []error{nil, unix.EIO, nil, unix.EIO} {
		hop := i >= 2
		var s script
		udp := &segments{err: refuse}
		w := newWorker(t, &s, 1500)
		if err := w.balancer.Apply(balancer.Config{Services: []balancer.Service{{Name: "web",
			VIPs: w.balancer.Snapshot().Status()[0].VIPs, Protocol: packet.ProtoTCP,
			Ports: []balancer.PortRange{{First: 80, Last: 80}}, Scheduler: "rr",
			Realservers: []balancer.Realserver{{Address: real1, Weight: 1,
				Config: method.Config{Source: source, Encap: encap.KindGUE, EncapPort: 6080, Hop: hop,
					MTU: 1500}}}}}}); err != nil {
			t.Fatal(err)
		}
		w.balancer.SetFormer("web", &former{netip.AddrPortFrom(client, 4711), netip.MustParseAddr("10.0.11.3")})
		w.out = egress.Output{}
		w.out.Init(egress.Config{Raw: &s, UDP: udp, UDPPorts: udp.Ports(), IDs: w.shared.ids, Tally: &w.tally})
		w.bufs[0].SetLen(copy(w.bufs[0].Room(), tcp(80, packet.FlagSYN, 0)))
		const n = 50_000
		w.bufs[1].SetLen(copy(w.bufs[1].Room(), tcp(80, packet.FlagACK, n)))
		w.bufs[1].Offload = packet.Offload{GSO: packet.GSOTCP, Size: 1400, Partial: true, CsumStart: 20, CsumOffset: 16}
		w.forward(w.bufs[:2])
		out := s.out
		if refuse == nil {
			if len(s.out) != 1 || udp.calls != 2 {
				t.Fatalf("%d packets by themselves, %d calls", len(s.out), udp.calls)
			}
			out = append(out, udp.out...)
		}
		if len(out) != 1+(n+1399)/1400 {
			t.Fatalf("refused %v: %d packets", refuse, len(out))
		}
		exit, total := encap.Decapsulator{Kind: encap.KindGUE}, 0
		port := binary.BigEndian.Uint16(out[0][20:])
		for i, p := range out {
			h := packet.IPv4(p)
			if h.Dst() != real1 || h.Protocol() != packet.ProtoUDP || h.TotalLen() != len(p) &&
				(refuse != nil || i == 0) || len(p) > 1500 ||
				binary.BigEndian.Uint16(p[20:]) != port || port < 40001 || port > 40003 ||
				binary.BigEndian.Uint16(p[22:]) != 6080 {
				t.Fatalf("refused %v, packet %d: %x", refuse, i, p[:32])
			}
			b := &packet.NewBufs(1)[0]
			b.SetLen(copy(b.Room(), p[28:]))
			if n, d := exit.DecapHops(b, packet.ProtoUDP, h.TOS()); d != drop.Accept || (n > 0) != hop ||
				hop && !bytes.Equal(b.Before(len(glbHop)), glbHop) {
				t.Fatalf("packet %d: %v, %x", i, d, p[28:48])
			}
			in := packet.IPv4(b.Bytes())
			if packet.Fold(packet.Sum(in.Payload(), in.PseudoSum(len(in.Payload())))) != 0xffff && i > 0 {
				t.Fatalf("packet %d has a wrong checksum", i)
			}
			total += len(in) - 40
		}
		if total != n {
			t.Errorf("%d bytes came out, want %d", total, n)
		}
	}
}

// TestDatagramsStayApart: of four datagrams of a flow in a row, or of a GSO packet, no two have the same outer TTL,
// where UDP is not the tunnel's own; nothing else is lowered, and no TTL that is small.
func TestDatagramsStayApart(t *testing.T) {
	for _, c := range []struct {
		kind    encap.Kind
		six     bool // outside
		tcp     bool
		ttl     byte
		lowered bool
	}{
		{encap.KindIPIP, false, false, 63, true},
		{encap.KindIPIP, true, false, 63, true},
		{encap.KindGRE, false, false, 33, true},
		{encap.KindGRE, true, false, 32, false},
		{encap.KindGUE, false, false, 63, false},
		{encap.KindFOU, true, false, 63, false},
		{encap.KindIPIP, false, true, 63, false},
	} {
		rs := balancer.Realserver{Address: real1, Weight: 1,
			Config: method.Config{Source: source, Encap: c.kind, MTU: 1500}}
		if c.six {
			rs.Address, rs.Source = netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd00::1")
		}
		if c.kind.UDP() {
			rs.EncapPort = 6080
		}
		var s script
		w := newWorker(t, &s, 1500)
		if err := w.balancer.Apply(balancer.Config{Services: []balancer.Service{{Name: "web", VIPs: []netip.Addr{vip},
			Protocol: packet.ProtoTCP,
			Ports:    []balancer.PortRange{{First: 80, Last: 80}}, Scheduler: "rr",
			Realservers: []balancer.Realserver{rs}}, {Name: "dns", VIPs: []netip.Addr{vip},
			Protocol: packet.ProtoUDP, Ports: []balancer.PortRange{{First: 53, Last: 53}}, Scheduler: "rr",
			Realservers: []balancer.Realserver{rs}}}}); err != nil {
			t.Fatal(err)
		}
		one, super := udp(53, true, 100), udp(53, true, 4*1000)
		gso := packet.Offload{GSO: packet.GSOUDP, Size: 1000, Partial: true, CsumStart: 20, CsumOffset: 6}
		if c.tcp {
			one, super = tcp(80, packet.FlagSYN, 0), tcp(80, packet.FlagACK, 4*1000)
			gso.GSO, gso.CsumOffset = packet.GSOTCP, 16
		}
		for i := range 5 {
			p := one
			if i == 4 {
				p = super
			}
			p[8] = c.ttl
			p.SetChecksum()
			w.bufs[i].SetLen(copy(w.bufs[i].Room(), p))
		}
		w.bufs[4].Offload = gso
		w.forward(w.bufs[:5])
		if len(s.out) != 8 {
			t.Fatalf("%+v: %d packets", c, len(s.out))
		}
		for i, p := range s.out {
			ttl, want := p[8], c.ttl
			if c.six {
				ttl = p[7]
			}
			if c.lowered {
				want -= byte(i % 4)
			}
			if ttl != want {
				t.Errorf("%+v: packet %d has the outer TTL %d, want %d", c, i, ttl, want)
			}
		}
	}
}
