package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"vstun/encap/packet/drop"
)

// Flow is the addresses, ports and protocol of the packets that a connection's client sends. It is the key of the
// connection table. Ports are 0 if the protocol has none.
type Flow struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Proto            uint8
}

// String is for people: "tcp 192.0.2.7:4711 -> 198.51.100.80:80".
func (f Flow) String() string {
	return fmt.Sprintf("%s %s -> %s", ProtoName(f.Proto), netip.AddrPortFrom(f.Src, f.SrcPort),
		netip.AddrPortFrom(f.Dst, f.DstPort))
}

// Reverse is the flow of the packets in the other direction.
func (f Flow) Reverse() Flow {
	return Flow{Src: f.Dst, Dst: f.Src, SrcPort: f.DstPort, DstPort: f.SrcPort, Proto: f.Proto}
}

// ProtoName is a protocol number's name, or the number.
func ProtoName(p uint8) string {
	switch p {
	case ProtoICMP:
		return "icmp"
	case ProtoICMPv6:
		return "icmpv6"
	case ProtoTCP:
		return "tcp"
	case ProtoUDP:
		return "udp"
	case ProtoSCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}

// Info is the result of parsing a packet's headers.
type Info struct {
	Flow      Flow
	Len       int    // the packet's length in bytes, by its own header
	Offset    int    // of the transport header, in bytes
	TCPFlags  uint8  // FIN to URG
	SCTPChunk uint8  // type of the chunk that determines the connection's state: see sctpChunk
	DF        bool   // routers won't fragment it: always over IPv6
	Hash      uint64 // of Flow, for a table of flows; 0: not computed yet
}

// Parse fills i from the packet in b, of either family. It returns drop.Accept, or why the packet cannot be balanced:
// it is no whole IP packet, is a fragment, has a TTL of 0 (RFC 1812, section 5.3.1), or lacks the part of its transport
// header that is needed (8 bytes of UDP and ICMP, 20 of TCP, 16 of SCTP). It does not check the transport protocol's
// checksums and lengths. The realserver checks them, as with IPVS. The ports of an unknown protocol are 0.
func (i *Info) Parse(b []byte) drop.Reason {
	h := IPv4(b)
	d := h.Check()
	if d != drop.Accept {
		if d == drop.NotIPv4 && Version(b) == 6 {
			return i.parse6(b)
		}
		return d
	}
	if h.Fragment() {
		return drop.Fragment
	}
	if h.TTL() == 0 {
		return drop.BadHeader
	}
	proto := h.Protocol()
	i.Flow = Flow{Src: h.Src(), Dst: h.Dst(), Proto: proto}
	i.Len, i.Offset, i.DF, i.TCPFlags, i.SCTPChunk, i.Hash = h.TotalLen(), h.HeaderLen(), h.DF(), 0, 0, 0
	if proto == ProtoTCP {
		return i.tcp(h.Payload())
	}
	return i.transport(h.Payload(), ProtoICMP)
}

// parse6 is Parse for IPv6. No router fragments such packets: DF is true.
func (i *Info) parse6(b []byte) drop.Reason {
	h := IPv6(b)
	if d := h.checkHeader(); d != drop.Accept {
		return d
	}
	if h.HopLimit() == 0 {
		return drop.BadHeader
	}
	proto, offset := h.NextHeader(), IPv6HeaderLen
	if extension(proto) {
		t, d := h.Transport()
		if d != drop.Accept {
			return d
		}
		if t.Fragment {
			return drop.Fragment
		}
		proto, offset = t.Proto, t.Offset
	}
	i.Flow = Flow{Src: h.Src(), Dst: h.Dst(), Proto: proto}
	i.Len, i.Offset, i.DF, i.TCPFlags, i.SCTPChunk, i.Hash = h.TotalLen(), offset, true, 0, 0, 0
	if proto == ProtoTCP {
		return i.tcp(b[offset:i.Len])
	}
	return i.transport(b[offset:i.Len], ProtoICMPv6)
}

// tcp fills i from the TCP header at the front of t.
func (i *Info) tcp(t []byte) drop.Reason {
	if len(t) < TCPHeaderLen {
		return drop.Truncated
	}
	h := TCP(t)
	i.TCPFlags = h.Flags() & (FlagFIN | FlagSYN | FlagRST | FlagPSH | FlagACK | FlagURG)
	i.Flow.SrcPort, i.Flow.DstPort = h.SrcPort(), h.DstPort()
	return drop.Accept
}

// transport fills i from the header of another protocol at the front of t. icmp is the family's ICMP. The ICMP of the
// other family is refused.
func (i *Info) transport(t []byte, icmp uint8) drop.Reason {
	switch i.Flow.Proto {
	case ProtoSCTP:
		if len(t) < sctpHeaderLen+chunkHeaderLen {
			return drop.Truncated
		}
		i.SCTPChunk = sctpChunk(t)
	case ProtoUDP:
		if len(t) < UDPHeaderLen {
			return drop.Truncated
		}
	case ProtoICMP, ProtoICMPv6:
		if i.Flow.Proto != icmp {
			return drop.Protocol
		}
		if len(t) < ICMPHeaderLen {
			return drop.Truncated
		}
		return drop.Accept
	default:
		return drop.Accept
	}
	i.Flow.SrcPort, i.Flow.DstPort = binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:])
	return drop.Accept
}
