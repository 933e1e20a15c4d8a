package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Relay reads the ICMP errors that reach the director itself: those about its tunnel packets, from routers on the path
// to the realservers, or from a realserver's host. If one names a smaller MTU, the path is looked up again at once. If
// one concerns a client, the client gets an error about its own packet, from the VIP (Linux
// net/netfilter/ipvs/ip_vs_core.c, ip_vs_in_icmp).
//
//	router → [ICMP error [outer IP, tunnel header [client's packet …]]]
//	                                              └ [ICMP error [client's packet …]] → client
//
// Any host may send such an error with a forged quotation. So the error must quote a tunnel packet of this director,
// and in it a packet that a client may have sent to a VIP. MTUs count only within bounds. The rate of errors is
// bounded, for one client and in total.
type Relay struct {
	source   Source
	port     egress.Port
	balancer *balancer.Balancer
	shared   *Shared
	clock    func() conntab.Ticks
	counters stats.Counters

	bufs    []packet.Buf
	answers answers
	tally   stats.Tally
	sealed  uint16 // UDP port from which tunnels that encrypt send; 0: none
}

// NewRelay makes a relay. source returns the errors as whole IP packets. The relay sends its own errors to port.
func NewRelay(source Source, port egress.Port, b *balancer.Balancer, shared *Shared,
	clock func() conntab.Ticks) *Relay {
	r := &Relay{source: source, port: port, balancer: b, shared: shared, clock: clock, bufs: packet.NewBufs(8)}
	r.answers.init()
	return r
}

// WatchSealed makes errors about datagrams from a UDP port of this host, in which tunnels hide their packets, let the
// director ask for the paths' MTUs again. It is called before Run.
func (r *Relay) WatchSealed(port uint16) { r.sealed = port }

// Read adds the relay's counts of sent packets and send errors to t. The relay does not count packets that it reads:
// most are of no concern to the director.
func (r *Relay) Read(t *stats.Tally) { r.counters.Read(t) }

// Run relays errors until source or port is closed.
func (r *Relay) Run() error {
	for {
		n, err := r.source.ReadBatch(r.bufs)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ICMP errors: %w", err)
		}
		snap, now := r.balancer.Snapshot(), r.clock()
		r.answers.free = r.answers.room
		for i := range r.bufs[:n] {
			answer, hop := r.answer(snap, r.bufs[i].Bytes(), now)
			if answer == nil {
				continue
			}
			if err := r.send(answer, hop); errors.Is(err, os.ErrClosed) {
				return nil
			}
		}
		r.counters.Add(&r.tally)
	}
}

func (r *Relay) send(p []byte, hop egress.Hop) error {
	_, err := r.port.Send([]egress.Outgoing{{Segment: packet.Segment{Head: p}, Hop: hop}})
	if err != nil {
		r.tally.Drop(drop.SendError)
		return err
	}
	r.tally.OutPackets++
	r.tally.OutBytes += uint64(len(p))
	return nil
}

// answer returns the ICMP error that a client gets for the error in b, and its hop; nil: none.
func (r *Relay) answer(snap *balancer.Snapshot, b []byte, now conntab.Ticks) (_ []byte, to egress.Hop) {
	outer, d := packet.QuotedFlow(b)
	if d != drop.Accept {
		return nil, to
	}
	dest, inner := ours(snap, &outer, b)
	if dest == nil {
		if f := &outer.Flow; outer.TooBig() && f.Proto == packet.ProtoUDP && f.SrcPort == r.sealed && r.sealed != 0 {
			r.shared.tooBig()
		}
		return nil, to
	}
	if outer.TooBig() {
		if !dest.Address.Is4() && outer.MTU < encap.MinMTU6 {
			return nil, to // every IPv6 path has a larger MTU (RFC 8201, section 4)
		}
		if outer.MTU < dest.MTU {
			r.shared.tooBig()
		}
	}
	if !dest.Encap.UDP() && portUnreachable(&outer) && from(b) == dest.Address {
		// The realserver's kernel has a tunnel driver. It sends this error even if the agent on the same host takes the
		// packet (Linux net/ipv4/tunnel4.c, ip_gre.c).
		return nil, to
	}
	in, d := packet.QuotedPacket(inner)
	if d != drop.Accept || len(inner) < in.Payload+8 || !in.Flow.OneToOne() {
		return nil, to // the quotation is too short to identify the flow (RFC 792), or an address is not unicast
	}
	switch in.Flow.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
	default:
		return nil, to // ICMP in a tunnel is an error or a ping of the director's own checks: neither gets an answer
	}
	if (outer.TooBig() || !snap.HasVIP(in.Flow.Dst)) && snap.Find(in.Flow, now) == nil {
		// An MTU may be forged. Without a connection it is not relayed: the worker answers the next packet that is too
		// big.
		return nil, to
	}
	e := relayed(&outer, inner, dest.Overhead())
	if e.Type == 0 {
		return nil, to
	}
	limit := &r.answers.others
	if outer.TooBig() {
		limit = &r.answers.sizes
	}
	room := r.answers.reserve(limit, in.Flow.Src, now)
	if room == nil {
		return nil, to
	}
	client := &egress.Peer{Dst: in.Flow.Src, Src: in.Flow.Dst}
	return room[:packet.ICMPError(room, inner, in.Flow.Dst, e)], egress.Hop{To: client}
}

// ours returns the realserver whose tunnel packet the error in b quotes, nil for none, and the quoted part of the
// packet inside.
func ours(snap *balancer.Snapshot, outer *packet.Quoted, b []byte) (*balancer.Dest, []byte) {
	for _, d := range snap.DestsByAddr(outer.Flow.Dst) {
		if !d.Reachable() {
			continue
		}
		if inner, ok := d.Via.Quoted(b[outer.Offset:], outer.Payload-outer.Offset); ok {
			return d, inner
		}
	}
	return nil, nil
}

// portUnreachable reports whether q is port unreachable: the tunnel's far end has no receiver for the packet.
func portUnreachable(q *packet.Quoted) bool {
	if q.Flow.Src.Is4() {
		return q.Type == packet.ICMPUnreachable && q.Code == packet.ICMPCodePort
	}
	return q.Type == packet.ICMPv6Unreachable && q.Code == packet.ICMPv6CodePort
}

// from returns the source of the packet b.
func from(b []byte) netip.Addr {
	if packet.Version(b) == 6 {
		return packet.IPv6(b).Src()
	}
	return packet.IPv4(b).Src()
}

// relayed translates an error about a tunnel packet into an ICMP error about inner, the packet inside, in inner's
// family; type 0: none.
func relayed(outer *packet.Quoted, inner []byte, overhead int) packet.ICMPFields {
	six, outer6 := packet.Version(inner) == 6, !outer.Flow.Src.Is4()
	if outer.TooBig() {
		return size(inner, six, outer.MTU-overhead)
	}
	switch {
	case !six && !outer6 && (outer.Type == packet.ICMPUnreachable || outer.Type == packet.ICMPTimeExceeded):
		return packet.ICMPFields{Type: outer.Type, Code: outer.Code}
	case six && outer6 && (outer.Type == packet.ICMPv6Unreachable || outer.Type == packet.ICMPv6TimeExceeded):
		return packet.ICMPFields{Type: outer.Type, Code: outer.Code}
	case six && !outer6 && outer.Type == packet.ICMPUnreachable && outer.Code == packet.ICMPCodePort:
		return packet.ICMPFields{Type: packet.ICMPv6Unreachable, Code: packet.ICMPv6CodePort}
	case six && !outer6 && outer.Type == packet.ICMPUnreachable:
		return packet.ICMPFields{Type: packet.ICMPv6Unreachable, Code: packet.ICMPv6CodeAddress}
	case six && !outer6 && outer.Type == packet.ICMPTimeExceeded:
		return packet.ICMPFields{Type: packet.ICMPv6TimeExceeded}
	case !six && outer6 && outer.Type == packet.ICMPv6Unreachable && outer.Code == packet.ICMPv6CodePort:
		return packet.ICMPFields{Type: packet.ICMPUnreachable, Code: packet.ICMPCodePort}
	case !six && outer6 && outer.Type == packet.ICMPv6Unreachable:
		return packet.ICMPFields{Type: packet.ICMPUnreachable, Code: packet.ICMPCodeHost}
	case !six && outer6 && outer.Type == packet.ICMPv6TimeExceeded:
		return packet.ICMPFields{Type: packet.ICMPTimeExceeded}
	}
	return packet.ICMPFields{}
}

// size returns the ICMP error about inner for a path with an MTU of mtu. It returns type 0, none, if inner fits, if it
// is IPv4 without DF, or if an IPv4 mtu is below encap.MinMTU.
func size(inner []byte, six bool, mtu int) packet.ICMPFields {
	if six {
		mtu = max(mtu, encap.MinMTU6)
		if packet.IPv6(inner).TotalLen() <= mtu {
			return packet.ICMPFields{}
		}
		return packet.ICMPFields{Type: packet.ICMPv6TooBig, Rest: uint32(mtu)}
	}
	if h := packet.IPv4(inner); mtu < encap.MinMTU || !h.DF() || h.TotalLen() <= mtu {
		return packet.ICMPFields{}
	}
	return packet.ICMPFields{Type: packet.ICMPUnreachable, Code: packet.ICMPCodeFragNeeded, Rest: uint32(mtu)}
}
