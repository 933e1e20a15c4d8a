package forward

import (
	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// toNeighbour sends the packet in b to a realserver of VS/DR. A GSO packet stays whole. A packet that is larger than
// the link's MTU leaves in fragments if it does not have DF, as the kernel's does (Linux ip_vs_xmit.c, ip_vs_dr_xmit;
// net/ipv4/ip_output.c, ip_do_fragment).
func (w *Worker) toNeighbour(b *packet.Buf, p *packet.Info, dest *balancer.Dest, now conntab.Ticks) drop.Reason {
	mtu := dest.MTU
	cut, n, d := fit(b, p, mtu)
	if d != drop.Accept {
		return d
	}
	if n > mtu && p.DF && n > minMTU(p) {
		return w.tooBig(b, p, max(mtu, minMTU(p)), now)
	}
	if !dest.Link.Resolved() {
		if n > mtu {
			return drop.Unresolved
		}
		return w.hold(dest, b, now)
	}
	hop := dest.Via.Out(b, p, 0)
	if n > mtu {
		return w.fragments(b, p, dest, &hop, cut)
	}
	dest.Count(w.id, 1, uint64(p.Len))
	w.out.AddWhole(b, &hop)
	return drop.Accept
}

// fit makes the segments of the GSO packet in b, which stays whole, fit mtu bytes if they are TCP's. It returns the Cut
// and the size of the largest segment. A packet that is no GSO packet has no Cut, and its own size.
func fit(b *packet.Buf, p *packet.Info, mtu int) (packet.Cut, int, drop.Reason) {
	if b.Offload.GSO == packet.GSONone {
		return packet.Cut{}, p.Len, drop.Accept
	}
	cut, d := packet.KernelCut(b, p, mtu)
	if d == drop.Accept && b.Offload.GSO == packet.GSOTCP {
		b.Offload.Size = uint16(cut.Payload)
	}
	return cut, cut.Headers + cut.Payload, d
}

// roomyMTU is the smallest MTU for which a packet with IP options is fragmented: the size that every host accepts (RFC
// 791, section 3.1).
const roomyMTU = 576

// fragments sends the packet in b, without DF, to a realserver of VS/DR in fragments. cut describes a GSO packet of UDP
// datagrams.
func (w *Worker) fragments(b *packet.Buf, p *packet.Info, dest *balancer.Dest, hop *egress.Hop,
	cut packet.Cut) drop.Reason {
	in := b.Bytes()
	if packet.Version(in) == 6 {
		// Routers read this header, so it must stand before the fragment header.
		if packet.IPv6(in).NextHeader() == packet.ExtHopByHop || dest.MTU < encap.MinMTU6 {
			return drop.TooBig
		}
	} else if p.Offset > packet.IPv4HeaderLen && dest.MTU < roomyMTU || dest.MTU < encap.MinMTU {
		return drop.TooBig
	}
	if b.Offload.GSO != packet.GSONone {
		if !cut.HasRoom(p.Len) {
			return drop.Offload
		}
		dest.Count(w.id, 1, uint64(p.Len))
		w.out.AddSegments(dest.Via, b, p, hop, cut, dest.MTU)
		return drop.Accept
	}
	if d := b.Finish(); d != drop.Accept {
		return d
	}
	dest.Count(w.id, 1, uint64(p.Len))
	w.out.AddFragments(in, hop, dest.MTU)
	return drop.Accept
}

// neighbour returns a realserver of VS/DR with the address of d and a known MAC address, nil for none.
func neighbour(snap *balancer.Snapshot, d *balancer.Dest) *balancer.Dest {
	for _, now := range snap.DestsByAddr(d.Address) {
		if now.Kind == method.DR && now.Reachable() && now.Link.Resolved() {
			return now
		}
	}
	return nil
}
