package forward

import (
	"net/netip"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// request sends the packet in b to dest, a realserver of VS/NAT. It adds no header, so a GSO packet stays whole. The
// kernel would report a packet that is too big by its translated headers, which the client does not know.
//
// A packet that leaves as it is takes the shorter way, by a raw socket. The TUN device takes what still needs the
// kernel's work.
func (w *Worker) request(b *packet.Buf, p *packet.Info, dest *balancer.Dest, now conntab.Ticks) drop.Reason {
	mtu := dest.MTU
	_, n, d := fit(b, p, mtu)
	if d != drop.Accept {
		return d
	}
	if n > mtu && p.DF && n > minMTU(p) {
		return w.tooBig(b, p, max(mtu, minMTU(p)), now)
	}
	if !w.written || dest.Address.Is4() != p.Flow.Dst.Is4() {
		return drop.Unreachable // a configuration that is checked does not mix families
	}
	dest.Count(w.id, 1, uint64(p.Len))
	hop := dest.Via.Out(b, p, 0)
	if hop.Kind == egress.Raw && n <= mtu && b.Offload.GSO == packet.GSONone && w.largest == 0 {
		return w.leave(b, &hop)
	}
	w.requests = true
	packet.RaiseTTL(b.Bytes())
	return w.writeBack(b, p, mtu)
}

// leave sends the request in b by hop, after those that wait for the TUN device. The kernel gives an ID to an IPv4
// packet without one (RFC 6864, section 4.1).
func (w *Worker) leave(b *packet.Buf, hop *egress.Hop) drop.Reason {
	if d := b.Finish(); d != drop.Accept {
		return d
	}
	if w.requests {
		w.out.Flush()
		w.requests = false
	}
	w.out.Add(b.Bytes(), hop)
	return drop.Accept
}

// reply sends the packet in b, a reply of dest, a realserver of VS/NAT, to its client. p.Flow is the connection's.
func (w *Worker) reply(b *packet.Buf, p *packet.Info, dest *balancer.Dest) drop.Reason {
	if !w.written {
		return drop.Unreachable
	}
	dest.CountReplies(w.id, 1, uint64(p.Len))
	dest.Back.Back(b, p, netip.AddrPortFrom(p.Flow.Dst, p.Flow.DstPort))
	packet.RaiseTTL(b.Bytes())
	return w.writeBack(b, p, packet.MaxLen)
}

// foreign reports whether p is of no concern to the director: rules for VS/NAT have brought it here, and it is not for
// a VIP.
func (w *Worker) foreign(snap *balancer.Snapshot, p *packet.Info) bool {
	return w.written && (snap.Translates() || w.shared.ExpectsOthers()) && !snap.HasVIP(p.Flow.Dst) &&
		!snap.WasVIP(p.Flow.Dst)
}

// early reports whether p, a packet of a VS/NAT realserver that belongs to no known connection, may belong to one that
// another director is about to report. Its client would end the connection if it got p untranslated; the realserver
// repeats p if it gets no answer. Packets that begin a connection do not belong to one.
func early(snap *balancer.Snapshot, p *packet.Info) bool {
	if !snap.Incomplete() {
		return false
	}
	switch p.Flow.Proto {
	case packet.ProtoTCP:
		return p.TCPFlags&packet.FlagACK != 0
	case packet.ProtoSCTP:
		return p.SCTPChunk != packet.ChunkInit
	}
	return false
}

// plain sends the packet in b, which is foreign, on its way as it came.
func (w *Worker) plain(b *packet.Buf, p *packet.Info, now conntab.Ticks) drop.Reason {
	if !w.loops.again(b.Bytes()[:p.Len], now) {
		packet.RaiseTTL(b.Bytes())
	}
	return w.writeBack(b, p, packet.MaxLen)
}

// writeBack gives the packet in b back to the kernel, which routes it. The kernel has lowered its TTL on the way into
// the TUN device and lowers it again behind it: it has been raised by one. mtu is the MTU of its
// path, if that is known, else packet.MaxLen. The kernel fragments IPv4 without DF. A packet that came in fragments is
// sent in fragments, DF or not. Over IPv6 only the director can do that: it makes them as large as the largest that
// came.
func (w *Worker) writeBack(b *packet.Buf, p *packet.Info, mtu int) drop.Reason {
	if b.Offload.GSO == packet.GSOUnknown {
		return drop.Offload
	}
	if w.largest > 0 {
		if ip := packet.IPv4(b.Bytes()); ip.Version() == 4 {
			ip.SetDF(false)
			ip.SetChecksum()
		} else if size := max(min(w.largest, mtu), minMTU(p)); p.Len > size {
			return w.refragment(b, p, size)
		}
	}
	w.out.AddWhole(b, &egress.Hop{Kind: egress.TUN})
	return drop.Accept
}

// refragment sends the IPv6 packet in b, whose TTL has been raised, in fragments of at most size bytes.
func (w *Worker) refragment(b *packet.Buf, p *packet.Info, size int) drop.Reason {
	ip := packet.IPv6(b.Bytes())
	if ip.NextHeader() == packet.ExtHopByHop {
		return drop.TooBig // routers read this header, so it must stand before the fragment header
	}
	if ip.HopLimit() > 1 {
		ip.SetHopLimit(ip.HopLimit() - 1) // fragments do not pass the TUN device again
	}
	hop := w.hop(ip.Dst(), ip.Src())
	w.out.AddFragments(ip, &hop, size)
	return drop.Accept
}

// errorToServer sends the ICMP error in b to dest, a realserver of VS/NAT, whose reply it is about. q is its contents.
// It does not leave by the TUN device: it may have been made by the director's own kernel, for example about a reply
// that is too big, and the kernel takes no packet with a source of its own from a device.
func (w *Worker) errorToServer(b *packet.Buf, p *packet.Info, q *packet.Quoted, dest *balancer.Dest,
	mtu int) drop.Reason {
	if dest.Address.Is4() != p.Flow.Dst.Is4() {
		return drop.Unreachable
	}
	f := dest.Real(q.Flow.Reverse())
	packet.ReplaceQuotedSrc(b.Bytes(), q, netip.AddrPortFrom(f.Dst, f.DstPort))
	dest.Count(w.id, 1, uint64(p.Len))
	hop := w.hop(dest.Address, p.Flow.Src)
	w.sendWhole(b, p, &hop, mtu)
	return drop.Accept
}

// errorToClient sends the ICMP error in b to the client whose translated request it is about. q is its contents. As
// from IPVS, its source becomes the VIP, to which the client has sent the request. It returns false if there is no such
// connection.
func (w *Worker) errorToClient(snap *balancer.Snapshot, b *packet.Buf, p *packet.Info, q *packet.Quoted, mtu int,
	now conntab.Ticks) bool {
	dest, vip := snap.FindTranslated(q.Flow, now)
	if dest == nil {
		return false
	}
	if w.capture != nil {
		f := q.Flow
		f.Dst, f.DstPort = vip.Addr(), vip.Port()
		w.lookAt(f, dest, b.Bytes())
	}
	packet.ReplaceQuotedDst(b.Bytes(), q, vip)
	hop := w.hop(p.Flow.Dst, vip.Addr())
	w.sendWhole(b, p, &hop, mtu)
	return true
}

// loops finds packets that the kernel routes back into the TUN device each time that they are written there, as faulty
// rules of routing make it do. Their TTL must not be raised, so that it ends them. The counters are of one tick, by a
// hash of the packet. Different packets that share a counter do no harm: they lose one of TTL.
type loops struct {
	tick conntab.Ticks
	seen [256]uint8
}

// sameInTick is the number of times that a packet may come in a tick: the last of seen.
const sameInTick = 255

// again reports whether the packet p has come too often in this tick.
func (l *loops) again(p []byte, now conntab.Ticks) bool {
	if now != l.tick {
		l.tick, l.seen = now, [256]uint8{}
	}
	n := &l.seen[packet.Fold(packet.Sum(p[min(len(p), packet.IPv4HeaderLen):min(len(p), 64)], 0))%256]
	if *n == sameInTick {
		return true
	}
	*n++
	return false
}
