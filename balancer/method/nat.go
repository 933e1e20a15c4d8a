package method

import (
	"net/netip"

	"vstun/encap/egress"
	"vstun/encap/packet"
)

// nat is the method NAT (Linux ip_vs_xmit.c, ip_vs_nat_xmit). Its packets are written back into the TUN device. The
// kernel has lowered their TTL on the way into the device and lowers it again behind it: it is raised by one.
type nat struct {
	realserver netip.AddrPort // port 0: the packet's
}

func newNAT(address netip.Addr, c Config) (Method, error) {
	return &nat{netip.AddrPortFrom(address, c.Port)}, nil
}

func (n *nat) Kind() Kind { return NAT }

func (n *nat) Overhead() int { return 0 }

func (n *nat) Out(b *packet.Buf, p *packet.Info, _ uint16) egress.Hop {
	packet.ReplaceDst(b, p, n.realserver)
	packet.RaiseTTL(b.Bytes())
	return egress.Hop{Kind: egress.TUN}
}

func (n *nat) Back(b *packet.Buf, p *packet.Info, vip netip.AddrPort) {
	packet.ReplaceSrc(b, p, vip)
	packet.RaiseTTL(b.Bytes())
}

func (n *nat) Seal(packet.Segment) {}

func (n *nat) Quoted([]byte, int) ([]byte, bool) { return nil, false }
