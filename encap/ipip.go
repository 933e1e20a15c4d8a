package encap

import (
	"net/netip"

	"vstun/encap/packet"
)

// IPIPOverhead is what IPv4 in IPv4 (RFC 2003) adds to a packet, in bytes.
const IPIPOverhead = packet.IPv4HeaderLen

// IPIP is a Tunnel of KindIPIP over IPv4.
type IPIP struct{ t Tunnel }

// NewIPIP makes the header from src to dst, both IPv4. With the zero Addr as src the kernel puts in the address that its route gives.
func NewIPIP(src, dst netip.Addr) IPIP {
	t, err := New(Config{Kind: KindIPIP, Source: src, Destination: dst})
	if err != nil {
		panic(err)
	}
	return IPIP{t}
}

// Wrap puts the outer header before the packet in b.
func (t *IPIP) Wrap(b *packet.Buf) { t.t.Wrap(b, 0) }

// UnwrapIPIP takes the outer header off the packet in b, as a raw socket of protocol 4 delivers it.
func UnwrapIPIP(b *packet.Buf) packet.Drop {
	if outer := packet.IPv4(b.Bytes()); len(outer) < packet.IPv4HeaderLen || outer.Protocol() != packet.ProtoIPIP {
		return packet.DropOuter
	}
	e := Exit{Kind: KindIPIP}
	return e.UnwrapIPv4(b)
}
