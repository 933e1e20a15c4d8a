package encap

import (
	"net/netip"

	"vstun/encap/packet"
)

// IPIPOverhead is what IPv4 in IPv4 (RFC 2003) adds to a packet, in bytes.
const IPIPOverhead = packet.IPv4HeaderLen

// IPIP is the ready-made outer header towards one realserver (RFC 2003, section 3.1). It is not changed after NewIPIP, so that any number of
// goroutines may use it.
type IPIP struct{ header [packet.IPv4HeaderLen]byte }

// NewIPIP makes the header from src to dst, both IPv4. With the zero Addr as src the kernel puts in the address that its route gives.
func NewIPIP(src, dst netip.Addr) IPIP {
	var t IPIP
	from := [4]byte{}
	if src.IsValid() {
		from = src.As4()
	}
	packet.PutIPv4(t.header[:], 0, 0, 0, packet.ProtoIPIP, from, dst.As4())
	return t
}

// Wrap puts the outer header before the IPv4 packet in b, which has been checked. DSCP and ECN are copied (RFC 6040, section 4.1, normal
// mode), so are TTL and DF, as IPVS does. ID and checksum are left to the kernel, which fills them in on a raw socket (raw(7)).
func (t *IPIP) Wrap(b *packet.Buf) {
	inner := packet.IPv4(b.Bytes())
	tos, ttl, df := inner.TOS(), inner.TTL(), inner[6]&0x40
	outer := packet.IPv4(b.Prepend(IPIPOverhead))
	copy(outer, t.header[:])
	outer.SetTOS(tos)
	outer.SetTotalLen(b.Len())
	outer[6] = df
	outer[8] = ttl
}

// UnwrapIPIP takes the outer header off the packet in b, of at least 20 bytes, as a raw socket of protocol 4 delivers it. What is left is
// one whole, checked IPv4 packet, with nothing behind it.
func UnwrapIPIP(b *packet.Buf) packet.Drop {
	outer := packet.IPv4(b.Bytes())
	n := outer.HeaderLen()
	if outer.Version() != 4 || n < packet.IPv4HeaderLen || n > len(outer) || outer.TotalLen() != len(outer) ||
		outer.Protocol() != packet.ProtoIPIP {
		return packet.DropOuter
	}
	b.Strip(n)
	inner := packet.IPv4(b.Bytes())
	if d := inner.Check(); d != packet.Accept {
		return d
	}
	if inner.TotalLen() != len(inner) {
		return packet.DropTrailing
	}
	return mergeECN(outer.TOS(), inner)
}
