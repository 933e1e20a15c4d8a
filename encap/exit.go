package encap

import (
	"vstun/encap/packet"
)

// Decapsulator is where packets leave tunnels of one kind. It is not changed while it is in use, so that any number of
// goroutines may use it.
type Decapsulator struct {
	Kind   Kind
	Key    uint32 // that GRE packets must have, where HasKey is set; else they must have none
	HasKey bool
}

// Decap takes the tunnel header off the packet in b, which begins behind the outer IP header, and behind UDP's where
// the tunnel has one: the kernel, or the caller, has judged those. protocol is the IP protocol number in the outer IP
// header, class its TOS or traffic class, 0 if it is not known. What is left is one whole, checked IP packet, of the
// version that the tunnel header names, with nothing behind it.
func (e *Decapsulator) Decap(b *packet.Buf, protocol, class byte) packet.Drop {
	var version int // 0: what the packet says
	d := packet.DropOuter
	switch e.Kind {
	case KindIPIP:
		switch protocol {
		case packet.ProtoIPIP:
			version, d = 4, packet.Accept
		case packet.ProtoIPv6:
			version, d = 6, packet.Accept
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
			d = packet.Accept
		}
	}
	if d != packet.Accept {
		return d
	}
	return arrive(b, version, class)
}

// stripGRE takes the GRE header off the packet in b, and returns the IP version that comes behind it.
func (e *Decapsulator) stripGRE(b *packet.Buf) (version int, d packet.Drop) {
	h := gre(b.Bytes())
	if len(h) < greMinLen {
		return 0, packet.DropTunnelHeader
	}
	hasKey := h.flags()&greKey != 0
	switch {
	case h.flags()&^(greChecksum|greKey|greIgnored) != 0 || len(h) < h.len() || h.version() == 0:
		return 0, packet.DropTunnelHeader
	case h.flags()&greChecksum != 0 && packet.Fold(packet.Sum(h, 0)) != 0xffff && !h.unfinished():
		return 0, packet.DropTunnelChecksum
	case hasKey != e.HasKey || hasKey && h.key() != e.Key:
		return 0, packet.DropTunnelKey
	}
	b.Strip(h.len())
	return h.version(), packet.Accept
}

// stripGUE takes the GUE header, if there is one, off the UDP payload in b, and returns the IP version that comes
// behind it, 0 for either.
func stripGUE(b *packet.Buf) (version int, d packet.Drop) {
	h := gue(b.Bytes())
	if len(h) < gueHeaderLen {
		return 0, packet.DropTunnelHeader
	}
	if h.variant() == 1 {
		return 0, packet.Accept
	}
	if !h.plain() || h.version() == 0 {
		return 0, packet.DropTunnelHeader
	}
	b.Strip(gueHeaderLen)
	return h.version(), packet.Accept
}

// arrive checks the packet in b, which has come out of a tunnel with an outer header of this class. version is the one
// it must have, 0 for either.
func arrive(b *packet.Buf, version int, class byte) packet.Drop {
	p := b.Bytes()
	if len(p) == 0 {
		return packet.DropTruncated
	}
	if version == 0 {
		version = int(p[0] >> 4)
	}
	if version == 6 {
		inner := packet.IPv6(p)
		if d := inner.Check(); d != packet.Accept {
			return d
		}
		if inner.TotalLen() != len(inner) {
			return packet.DropTrailing
		}
		return mergeECN6(class, inner)
	}
	inner := packet.IPv4(p)
	if d := inner.Check(); d != packet.Accept {
		return d
	}
	if inner.TotalLen() != len(inner) {
		return packet.DropTrailing
	}
	return mergeECN(class, inner)
}
