package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap"
	"vstun/encap/packet"
)

// Relay reads the ICMP errors that reach the director itself: those about its tunnel packets, from routers on the way
// to the realservers, or from a realserver's host. What they say of the way's MTU is looked up again at once, and what
// concerns a client is told to it, about its own packet, in the name of the VIP (Linux net/netfilter/ipvs/ip_vs_core.c,
// ip_vs_in_icmp).
//
//	router → [ICMP error [outer IP, tunnel header [client's packet …]]]
//	                                              └ [ICMP error [client's packet …]] → client
//
// Anybody may send such an error, and forge what it quotes. So it has to quote a packet that is of a tunnel of ours,
// and in it one that a client may have sent to a VIP; what it says of sizes is only believed within bounds; and few are
// sent to one client, and not too many to all.
type Relay struct {
	source   Source
	sink     Sink
	balancer *balancer.Balancer
	shared   *Shared
	clock    func() conntab.Ticks
	counters packet.Counters

	bufs    []packet.Buf
	answers answers
	tally   packet.Tally
}

// NewRelay makes a relay of the errors that source gives, whole packets of IPv4 or IPv6, whose answers go to sink.
func NewRelay(source Source, sink Sink, b *balancer.Balancer, shared *Shared, clock func() conntab.Ticks) *Relay {
	r := &Relay{source: source, sink: sink, balancer: b, shared: shared, clock: clock, bufs: packet.NewBufs(8)}
	r.answers.init()
	return r
}

// Read adds what the relay has sent to t. It counts nothing else: what it reads is the host's, and most of it not for
// us.
func (r *Relay) Read(t *packet.Tally) { r.counters.Read(t) }

// Run relays until source or sink is closed.
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
			if answer := r.answer(snap, r.bufs[i].Bytes(), now); answer != nil {
				if err := r.send(answer); errors.Is(err, os.ErrClosed) {
					return nil
				}
			}
		}
		r.counters.Add(&r.tally)
	}
}

func (r *Relay) send(p []byte) error {
	_, err := r.sink.Send([]packet.Segment{{Head: p}})
	if err != nil {
		r.tally.Drop(packet.DropSendError)
		return err
	}
	r.tally.OutPackets++
	r.tally.OutBytes += uint64(len(p))
	return nil
}

// answer returns what a client is to be told of the ICMP error in b, nil for nothing.
func (r *Relay) answer(snap *balancer.Snapshot, b []byte, now conntab.Ticks) []byte {
	outer, d := packet.QuotedFlow(b)
	if d != packet.Accept {
		return nil
	}
	dest, inner := ours(snap, &outer, b)
	if dest == nil {
		return nil
	}
	if outer.TooBig() {
		if !dest.Address.Is4() && outer.MTU < encap.MinMTU6 {
			return nil // no way over IPv6 takes so little (RFC 8201, section 4)
		}
		if outer.MTU < dest.MTU {
			r.shared.tooBig()
		}
	}
	if !dest.Encap.UDP() && portUnreachable(&outer) && from(b) == dest.Address {
		// its kernel has a tunnel driver, which says so also of what the agent beside it takes (Linux
		// net/ipv4/tunnel4.c, ip_gre.c)
		return nil
	}
	in, d := packet.QuotedPacket(inner)
	if d != packet.Accept || len(inner) < in.Payload+8 || !in.Flow.OneToOne() {
		return nil // too little of it for the client to know it by (RFC 792), or nothing to answer
	}
	switch in.Flow.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
	default:
		return nil // of ICMP, only errors are sent through tunnels
	}
	if (outer.TooBig() || !snap.HasVIP(in.Flow.Dst)) && snap.Find(in.Flow, now) == nil {
		// without a connection nobody is told a size, which may be forged: the next packet that is too big is answered
		// anyway
		return nil
	}
	e := relayed(&outer, inner, dest.Via.Overhead())
	if e.kind == 0 {
		return nil
	}
	limit := &r.answers.others
	if outer.TooBig() {
		limit = &r.answers.sizes
	}
	room := r.answers.reserve(limit, in.Flow.Src, now)
	if room == nil {
		return nil
	}
	return room[:packet.ICMPError(room, inner, in.Flow.Dst, e.kind, e.code, e.rest)]
}

// ours returns the realserver to which the packet that the error in b quotes was sent through a tunnel of ours, nil for
// none, and as much as is there of the packet inside.
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

// portUnreachable reports whether the error says that nobody takes what is for the tunnel's end.
func portUnreachable(q *packet.Quoted) bool {
	if q.Flow.Src.Is4() {
		return q.Type == packet.ICMPUnreachable && q.Code == packet.ICMPCodePort
	}
	return q.Type == packet.ICMPv6Unreachable && q.Code == packet.ICMPv6CodePort
}

// from is the source of the packet b.
func from(b []byte) netip.Addr {
	if b[0]>>4 == 6 {
		return packet.IPv6(b).Src()
	}
	return packet.IPv4(b).Src()
}

// told is type, code and third field of an ICMP error.
type told struct {
	kind, code uint8
	rest       uint32
}

// relayed is what the sender of inner is told, in its family's words, of an error about the tunnel packet that it was
// in; type 0: nothing.
func relayed(outer *packet.Quoted, inner []byte, overhead int) told {
	six, outer6 := inner[0]>>4 == 6, !outer.Flow.Src.Is4()
	if outer.TooBig() {
		return size(inner, six, outer.MTU-overhead)
	}
	switch {
	case !six && !outer6 && (outer.Type == packet.ICMPUnreachable || outer.Type == packet.ICMPTimeExceeded):
		return told{kind: outer.Type, code: outer.Code}
	case six && outer6 && (outer.Type == packet.ICMPv6Unreachable || outer.Type == packet.ICMPv6TimeExceeded):
		return told{kind: outer.Type, code: outer.Code}
	case six && !outer6 && outer.Type == packet.ICMPUnreachable && outer.Code == packet.ICMPCodePort:
		return told{kind: packet.ICMPv6Unreachable, code: packet.ICMPv6CodePort}
	case six && !outer6 && outer.Type == packet.ICMPUnreachable:
		return told{kind: packet.ICMPv6Unreachable, code: addressUnreachable}
	case six && !outer6 && outer.Type == packet.ICMPTimeExceeded:
		return told{kind: packet.ICMPv6TimeExceeded}
	case !six && outer6 && outer.Type == packet.ICMPv6Unreachable && outer.Code == packet.ICMPv6CodePort:
		return told{kind: packet.ICMPUnreachable, code: packet.ICMPCodePort}
	case !six && outer6 && outer.Type == packet.ICMPv6Unreachable:
		return told{kind: packet.ICMPUnreachable, code: hostUnreachable}
	case !six && outer6 && outer.Type == packet.ICMPv6TimeExceeded:
		return told{kind: packet.ICMPTimeExceeded}
	}
	return told{}
}

const (
	hostUnreachable    = 1 // code of ICMPUnreachable
	addressUnreachable = 3 // code of ICMPv6Unreachable
)

// size is what the sender of inner is told of a way that takes mtu bytes of it: nothing if it may be fragmented, or is
// no larger than that, or than every way takes.
func size(inner []byte, six bool, mtu int) told {
	if six {
		mtu = max(mtu, encap.MinMTU6)
		if packet.IPv6(inner).TotalLen() <= mtu {
			return told{}
		}
		return told{kind: packet.ICMPv6TooBig, rest: uint32(mtu)}
	}
	if h := packet.IPv4(inner); mtu < encap.MinMTU || !h.DF() || h.TotalLen() <= mtu {
		return told{}
	}
	return told{kind: packet.ICMPUnreachable, code: packet.ICMPCodeFragNeeded, rest: uint32(mtu)}
}
