package forward

import (
	"net/netip"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// answers are the ICMP errors that a worker sends to clients, with the VIP as source. The limiters bound their rate.
// room bounds their number in a batch; the next batch uses it again.
type answers struct {
	// limits "fragmentation needed" and "packet too big": connections stall without them, and other errors must not use
	// up their limit
	sizes  limiter
	others limiter
	room   []byte
	free   []byte
}

// answersInBatch is the largest number of errors that a worker sends in a batch.
const answersInBatch = 16

func (a *answers) init() {
	a.sizes.init(10, 20) // one address may be that of many clients behind a NAT
	a.others.init(1, 6)  // Linux's icmp_ratelimit, with XRLIM_BURST_FACTOR
	a.room = make([]byte, answersInBatch*packet.ICMPRoom)
	a.free = a.room
}

// reserve returns room for an answer to client. It returns nil if no answer may be sent now.
func (a *answers) reserve(l *limiter, client netip.Addr, now conntab.Ticks) []byte {
	if len(a.free) < packet.ICMPRoom || !l.allow(client, now) {
		return nil
	}
	room := a.free[:packet.ICMPRoom:packet.ICMPRoom]
	a.free = a.free[packet.ICMPRoom:]
	return room
}

// tooBig sends the sender of the packet in b an ICMP error with the MTU.
func (w *Worker) tooBig(b *packet.Buf, p *packet.Info, mtu int, now conntab.Ticks) drop.Reason {
	if !packet.MayAnswer(b.Bytes()) {
		return drop.TooBig
	}
	if room := w.answers.reserve(&w.answers.sizes, p.Flow.Src, now); room != nil {
		w.answer(room[:putTooBig(room, b.Bytes(), p.Flow.Dst, mtu)], b, p)
	}
	return drop.TooBig
}

// putTooBig writes "fragmentation needed" or "packet too big" to room, and returns its length. The choice depends on
// from's family, which is that of b.
func putTooBig(room, b []byte, from netip.Addr, mtu int) int {
	if from.Is4() {
		return packet.FragmentationNeeded(room, b, from, mtu)
	}
	return packet.PacketTooBig(room, b, from, mtu)
}

// refuse answers the packet in b, which Decide refuses for the reason d. d and the configuration decide whether there
// is an answer.
//
//	no_connection   TCP: RST
//	no_service      if it is for a VIP: to TCP without SYN a RST, which ends the connection; else port unreachable
//	no_realserver   ICMP port unreachable, as IPVS (Linux net/netfilter/ipvs/ip_vs_core.c, ip_vs_leave)
//	unreachable     ICMP host or address unreachable, as IPVS (ip_vs_xmit.c, __ip_vs_get_out_rt)
//
// A RST is never answered. Former VIPs (balancer.Config.LeftVIPs) count as VIPs here.
func (w *Worker) refuse(snap *balancer.Snapshot, d drop.Reason, b *packet.Buf, p *packet.Info, now conntab.Ticks) {
	switch d {
	case drop.NoConnection:
		if !snap.NoResets() {
			w.reset(b, p, now)
		}
	case drop.NoService:
		switch {
		case snap.Silent() || !snap.HasVIP(p.Flow.Dst) && !snap.WasVIP(p.Flow.Dst):
		case p.Flow.Proto == packet.ProtoTCP && p.TCPFlags&packet.FlagSYN == 0:
			w.reset(b, p, now)
		default:
			w.unreachable(b, p, packet.PortUnreachable, now)
		}
	case drop.NoRealserver:
		if !snap.Silent() {
			w.unreachable(b, p, packet.PortUnreachable, now)
		}
	case drop.Unreachable:
		if !snap.Silent() {
			w.unreachable(b, p, packet.HostUnreachable, now)
		}
	}
}

// unreachable sends the sender of the packet in b the ICMP error that write writes: destination unreachable.
func (w *Worker) unreachable(b *packet.Buf, p *packet.Info, write func(dst, b []byte, from netip.Addr) int,
	now conntab.Ticks) {
	if p.Flow.Proto == packet.ProtoTCP && p.TCPFlags&packet.FlagRST != 0 || !packet.MayAnswer(b.Bytes()) {
		return
	}
	if room := w.answers.reserve(&w.answers.others, p.Flow.Src, now); room != nil {
		w.answer(room[:write(room, b.Bytes(), p.Flow.Dst)], b, p)
	}
}

// timeExceeded sends the sender of the packet in b, whose TTL is used up, an ICMP time exceeded (Linux
// net/netfilter/ipvs/ip_vs_xmit.c, decrement_ttl).
func (w *Worker) timeExceeded(b *packet.Buf, p *packet.Info, now conntab.Ticks) drop.Reason {
	if packet.MayAnswer(b.Bytes()) {
		if room := w.answers.reserve(&w.answers.others, p.Flow.Src, now); room != nil {
			w.answer(room[:packet.TimeExceeded(room, b.Bytes(), p.Flow.Dst)], b, p)
		}
	}
	return drop.TTL
}

// minMTU returns the smallest MTU of any path for p. No ICMP error names a smaller one. A packet that is no larger and
// still doesn't fit a tunnel is sent in outer fragments, DF or not (RFC 2473, section 7.1).
func minMTU(p *packet.Info) int {
	if p.Flow.Dst.Is4() {
		return encap.MinMTU
	}
	return encap.MinMTU6
}
