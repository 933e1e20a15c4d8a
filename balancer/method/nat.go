package method

import (
	"net/netip"

	"vstun/encap/egress"
	"vstun/encap/packet"
)

// nat is the method NAT (Linux ip_vs_xmit.c, ip_vs_nat_xmit). As from IPVS, a request leaves as a packet of the
// director's own host, and the kernel routes it by its destination alone. A request to an address of this host is
// written back into the TUN device: the kernel takes none with another host's source from a socket.
type nat struct {
	realserver netip.AddrPort // port 0: the packet's
	to         egress.Peer
	kind       egress.Kind
}

func newNAT(address netip.Addr, c Config) (Method, error) {
	n := &nat{realserver: netip.AddrPortFrom(address, c.Port), to: egress.Peer{Dst: address}}
	if c.Own {
		n.kind = egress.TUN
	}
	return n, nil
}

func (n *nat) Kind() Kind { return NAT }

func (n *nat) Overhead() int { return 0 }

func (n *nat) Out(b *packet.Buf, p *packet.Info, _ uint16) egress.Hop {
	packet.ReplaceDst(b, p, n.realserver)
	return egress.Hop{To: &n.to, Kind: n.kind}
}

func (n *nat) Back(b *packet.Buf, p *packet.Info, vip netip.AddrPort) {
	packet.ReplaceSrc(b, p, vip)
}

func (n *nat) Seal(packet.Segment) {}

func (n *nat) Quoted([]byte, int) ([]byte, bool) { return nil, false }
