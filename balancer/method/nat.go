package method

import (
	"net/netip"

	"vstun/encap/egress"
	"vstun/encap/packet"
)

// nat is the method NAT (Linux ip_vs_xmit.c, ip_vs_nat_xmit).
type nat struct {
	realserver egress.Peer // Dst, and DstPort; 0: the packet's
}

func newNAT(address netip.Addr, c Config) (Method, error) {
	return &nat{egress.Peer{Dst: address, DstPort: c.Port}}, nil
}

func (n *nat) Kind() Kind { return NAT }

func (n *nat) Overhead() int { return 0 }

func (n *nat) Out(b *packet.Buf, p *packet.Info, _ uint16) egress.Hop {
	return egress.Hop{To: &n.realserver, Kind: egress.TUN}
}

func (n *nat) Seal(packet.Segment) {}

func (n *nat) Quoted([]byte, int) ([]byte, bool) { return nil, false }
