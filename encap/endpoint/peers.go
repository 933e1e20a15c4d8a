package endpoint

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/stats"
)

// An End is this host's end of a point-to-point tunnel, for the packets that come from its peer. It is immutable, but
// for its counters.
type End struct {
	Remote netip.Addr // outer source of the peer's packets
	Decap  encap.Decapsulator
	Port   uint16 // this end's UDP port, of GUE and FOU
	MSS4   int    // largest MSS in SYNs over IPv4, in bytes; 0: any
	MSS6   int    // the same over IPv6
	MTU    int    // of the device, in bytes
	Sinks  []EndSink
	// Counters counts the packets and bytes that came from the peer with their outer headers (In), those that the
	// device took (Out), and those that were dropped.
	Counters *stats.Counters
	Sizes    *Sizes
}

// EndSink writes the packets of a point-to-point tunnel: a queue of its device. One goroutine uses it.
type EndSink interface {
	Sink
	// Send writes one packet behind a link-layer header. Its error is the kernel's, an unwrapped unix.Errno.
	Send(link []byte, b *packet.Buf) error
}

// Peers finds the End of a received packet. It is immutable.
type Peers struct {
	ends          map[arrivesAs][]*End
	ports         map[uint16]bool // of UDP, that are the tunnels' alone
	plain, sealed bool            // there are ends outside of WireGuard, and in it
}

// any reports whether a packet that WireGuard has brought, or has not, can belong to an end.
func (p *Peers) any(sealed bool) bool { return p != nil && (sealed && p.sealed || !sealed && p.plain) }

// arrivesAs is the part of a packet's outer headers that most tunnels differ in.
type arrivesAs struct {
	from   netip.Addr
	proto  uint8  // packet.ProtoIPIP: that, or packet.ProtoIPv6
	port   uint16 // of UDP
	sealed bool   // WireGuard has brought it
}

// NewPeers makes the table of ends. No two of them are the same. shared is a UDP port that has other packets, too; 0:
// none.
func NewPeers(ends []*End, shared uint16) *Peers {
	p := &Peers{ends: map[arrivesAs][]*End{}, ports: map[uint16]bool{}}
	for _, e := range ends {
		at := arrivesAs{from: e.Remote, proto: packet.ProtoIPIP, sealed: e.Decap.Kind.Sealed()}
		switch {
		case e.Decap.Kind.UDP():
			at.proto, at.port = packet.ProtoUDP, e.Port
			p.ports[e.Port] = e.Port != shared
		case e.Decap.Kind == encap.KindGRE || e.Decap.Ethernet:
			at.proto = packet.ProtoGRE
		}
		p.ends[at] = append(p.ends[at], e)
		p.sealed, p.plain = p.sealed || at.sealed, p.plain || !at.sealed
	}
	return p
}

// found is the tunnel of a received packet.
type found struct {
	end          *End
	stranger     bool // it came to a port of a tunnel, and not from its peer
	proto, class byte // of the outer header
}

// find finds the tunnel of the packet in b, which begins with an outer IP header. sealed reports whether WireGuard has
// brought it: an outer source is proven only then. If there is a tunnel, find takes the IP header off, and the UDP
// header behind it. Otherwise b stays as it is.
func (p *Peers) find(b *packet.Buf, sealed bool) (f found) {
	whole := b.Bytes()
	at := arrivesAs{sealed: sealed}
	n := packet.IPv6HeaderLen
	switch h, h6 := packet.IPv4(whole), packet.IPv6(whole); {
	case len(whole) >= packet.IPv4HeaderLen && h.Version() == 4:
		at.from, at.proto, f.class, n = h.Src(), h.Protocol(), h.TOS(), h.HeaderLen()
		if n < packet.IPv4HeaderLen || n > len(h) || h.TotalLen() != len(h) || h.Fragment() {
			return found{}
		}
	case len(whole) >= packet.IPv6HeaderLen && h6.Version() == 6 && h6.TotalLen() == len(h6):
		at.from, at.proto, f.class = h6.Src(), h6.NextHeader(), h6.TrafficClass()
	default:
		return found{}
	}
	f.proto = at.proto
	switch at.proto {
	case packet.ProtoIPv6:
		at.proto = packet.ProtoIPIP
	case packet.ProtoUDP:
		if len(whole) < n+packet.UDPHeaderLen {
			return found{}
		}
		at.port = packet.UDP(whole[n:]).DstPort()
		n += packet.UDPHeaderLen
	}
	ends := p.ends[at]
	if len(ends) == 0 {
		return found{stranger: at.port != 0 && p.ports[at.port]}
	}
	b.Strip(n)
	f.end = ends[0]
	if len(ends) > 1 {
		if i := slices.IndexFunc(ends, func(e *End) bool { return e.selects(b.Bytes()) }); i >= 0 {
			f.end = ends[i]
		}
	}
	return f
}

// selects reports whether the tunnel header in h is one of e, and not of another end with the same outer headers.
func (e *End) selects(h []byte) bool {
	switch e.Decap.Kind {
	case encap.KindGRE:
		g := packet.GRE(h)
		if len(g) < packet.GREMinLen || len(g) < g.HeaderLen() ||
			(g.Type() == packet.EtherTypeTEB) != e.Decap.Ethernet {
			return false
		}
		hasKey := g.Flags()&packet.GREKey != 0
		return hasKey == e.Decap.HasKey && (!hasKey || g.Key() == e.Decap.Key)
	case encap.KindGUE:
		g := packet.GUE(h)
		return len(g) >= packet.GUEHeaderLen && (g.Variant() == 0 && g.Proto() == packet.ProtoGRE) == e.Decap.Ethernet
	}
	return true
}

// Sizes is the segment sizes of recent TCP connections through a tunnel: the MSS that their SYNs have advertised. GRO
// merges the segments of a packet of IPIP or GRE before a raw socket gets it, and does not report their size. A
// connection can take the place of another one. Any number of goroutines may use it.
type Sizes struct{ slots [2048]atomic.Uint64 }

// note notes the MSS that this side of the connection with the packet p, an IP packet with the TCP header at offset,
// has advertised.
func (s *Sizes) note(p []byte, offset, mss int) {
	h := connection(p, offset, false)
	s.slots[h%uint64(len(s.slots))].Store(h&^0xffff | uint64(mss))
}

// find returns the noted MSS that the sender of the packet p respects, 0 for none.
func (s *Sizes) find(p []byte, offset int) int {
	h := connection(p, offset, true)
	if v := s.slots[h%uint64(len(s.slots))].Load(); v&^0xffff == h&^0xffff {
		return int(v & 0xffff)
	}
	return 0
}

// connection returns a hash of addresses and ports. reverse exchanges source and destination.
func connection(p []byte, offset int, reverse bool) uint64 {
	const factor = 0x9e3779b97f4a7c15
	fold := func(b []byte) (h uint64) {
		for _, c := range b {
			h = (h ^ uint64(c)) * 0x100000001b3 // as FNV-1a
		}
		return h
	}
	var addrs []byte
	if packet.Version(p) == 6 {
		addrs = packet.IPv6(p).Addrs()
	} else {
		addrs = packet.IPv4(p).Addrs()
	}
	half := len(addrs) / 2
	src, dst := fold(addrs[:half]), fold(addrs[half:])
	from, to := fold(p[offset:offset+2]), fold(p[offset+2:offset+4])
	if reverse {
		src, dst, from, to = dst, src, to, from
	}
	h := ((src*3+dst)*5+from)*7 + to
	h ^= h >> 29
	h *= factor
	return h ^ h>>32
}
