package encap

import (
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// Decapsulator takes packets out of tunnels of one kind. It does not change while it is in use: any number of
// goroutines may use it.
type Decapsulator struct {
	Kind   Kind
	Key    uint32 // GRE packets must have this key if HasKey is set, and no key otherwise
	HasKey bool
	// Ethernet: the tunnel carries Ethernet frames, behind a GRE header.
	Ethernet bool
}

// Decap takes the tunnel header off the packet in b. b begins behind the outer IP header, and behind the UDP header of
// a tunnel that has one. The kernel or the caller has checked them. protocol is the IP protocol number in the outer IP
// header, class its TOS or traffic class, 0 if it is not known. If Decap returns drop.Accept, b holds one whole,
// checked IP packet of the version that the tunnel header names, with nothing behind it. With Ethernet it holds an
// Ethernet frame, of which only the header's presence has been checked.
func (e *Decapsulator) Decap(b *packet.Buf, protocol, class byte) drop.Reason {
	if e.Ethernet {
		return e.decapFrame(b, protocol, class)
	}
	var version int // 0: the version in the inner header
	d := drop.Outer
	switch e.Kind {
	case KindIPIP, KindWireGuard:
		switch protocol {
		case packet.ProtoIPIP:
			version, d = 4, drop.Accept
		case packet.ProtoIPv6:
			version, d = 6, drop.Accept
		}
	case KindGRE:
		if protocol == packet.ProtoGRE {
			version, d = e.stripGRE(b)
		}
	case KindGUE:
		if protocol == packet.ProtoUDP {
			version, d = stripGUE(b)
		}
	case KindFOU:
		if protocol == packet.ProtoUDP {
			d = drop.Accept
		}
	}
	if d != drop.Accept {
		return d
	}
	return checkInner(b, version, class)
}

// decapFrame is Decap with Ethernet.
func (e *Decapsulator) decapFrame(b *packet.Buf, protocol, class byte) drop.Reason {
	outer := byte(packet.ProtoGRE)
	if e.Kind.UDP() {
		outer = packet.ProtoUDP
	}
	if protocol != outer {
		return drop.Outer
	}
	if e.Kind == KindGUE {
		h := packet.GUE(b.Bytes())
		if len(h) < packet.GUEHeaderLen || h.Variant() != 0 || !h.Plain() || h.Proto() != packet.ProtoGRE {
			return drop.TunnelHeader
		}
		b.Strip(packet.GUEHeaderLen)
	}
	if _, d := e.stripGRE(b); d != drop.Accept {
		return d
	}
	if b.Len() < packet.EthernetHeaderLen {
		return drop.Truncated
	}
	return mergeFrameECN(class, b.Bytes())
}

// stripGRE takes the GRE header off the packet in b, and returns the IP version that comes behind it, 0 for a frame.
func (e *Decapsulator) stripGRE(b *packet.Buf) (version int, d drop.Reason) {
	h := packet.GRE(b.Bytes())
	if len(h) < packet.GREMinLen {
		return 0, drop.TunnelHeader
	}
	flags := h.Flags()
	hasKey := flags&packet.GREKey != 0
	right := h.Version() != 0
	if e.Ethernet {
		right = h.Type() == packet.EtherTypeTEB
	}
	switch {
	case flags&^(packet.GREChecksum|packet.GREKey|packet.GREIgnored) != 0 || len(h) < h.HeaderLen() || !right:
		return 0, drop.TunnelHeader
	case flags&packet.GREChecksum != 0 && packet.Fold(packet.Sum(h, 0)) != 0xffff && !unfinishedGRE(h):
		return 0, drop.TunnelChecksum
	case hasKey != e.HasKey || hasKey && h.Key() != e.Key:
		return 0, drop.TunnelKey
	}
	version = h.Version()
	b.Strip(h.HeaderLen())
	return version, drop.Accept
}

// stripGUE takes the GUE header, if there is one, off the UDP payload in b, and returns the IP version that comes
// behind it, 0 for either.
func stripGUE(b *packet.Buf) (version int, d drop.Reason) {
	h := packet.GUE(b.Bytes())
	if len(h) < packet.GUEHeaderLen {
		return 0, drop.TunnelHeader
	}
	if h.Variant() == 1 {
		return 0, drop.Accept
	}
	if !h.Plain() || h.Version() == 0 {
		return 0, drop.TunnelHeader
	}
	b.Strip(packet.GUEHeaderLen)
	return h.Version(), drop.Accept
}

// checkInner checks the inner packet in b and merges the ECN bits of class, the outer header's TOS or traffic class.
// version is the IP version that it must have, 0 for either.
func checkInner(b *packet.Buf, version int, class byte) drop.Reason {
	p := b.Bytes()
	if len(p) == 0 {
		return drop.Truncated
	}
	if version == 0 {
		version = packet.Version(p)
	}
	if version == 6 {
		inner := packet.IPv6(p)
		if d := inner.Check(); d != drop.Accept {
			return d
		}
		if inner.TotalLen() != len(inner) {
			return drop.Trailing
		}
		return mergeECN6(class, inner)
	}
	inner := packet.IPv4(p)
	if d := inner.Check(); d != drop.Accept {
		return d
	}
	if inner.TotalLen() != len(inner) {
		return drop.Trailing
	}
	return mergeECN(class, inner)
}
