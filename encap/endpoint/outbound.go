package endpoint

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"sync/atomic"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// A Remote is the far end of a point-to-point tunnel, for the packets that go to it. It is immutable.
type Remote struct {
	Tunnel encap.Tunnel
	// Peer is the outer addresses, and the UDP port.
	Peer     egress.Peer
	Kind     egress.Kind // Raw, UDP or WireGuard
	MTU      int         // of the path to the peer: the largest packet with all headers, in bytes
	Ethernet bool        // the device is a TAP device
	MSS4     int         // largest MSS in SYNs over IPv4, in bytes; 0: any
	MSS6     int         // the same over IPv6
	Sizes    *Sizes
	// Loops drops all packets, as drop.Unreachable: the route to the peer leads back into the tunnel (as Linux
	// net/ipv4/ip_tunnel.c, tdev == dev).
	Loops bool
}

// Outbound sends the packets of one queue of a point-to-point tunnel's device to the peer.
//
//	queue → ReadBatch → clamp MSS → Wrap → (Split, Fragment) → Send → peer
//	  ↑                      └ too big for the path, with DF: ICMP error
//	  └──────────────────────────────┘
//
// It is one hop for the packets of a TUN device, whose TTL the kernel has lowered already where it has forwarded them.
// A TAP device's frames leave unchanged: those that are larger than the path takes leave in outer fragments.
type Outbound struct {
	source   Source
	tun      Sink // for ICMP errors
	remote   *atomic.Pointer[Remote]
	counters *stats.Counters
	batches  stats.Batches
	out      egress.Output

	to     *Remote // of this batch
	bufs   []packet.Buf
	info   packet.Info // of the current packet; a local variable would escape to the heap
	tally  stats.Tally
	seed   maphash.Seed
	errors int          // ICMP errors in this batch
	spare  []packet.Buf // one: an ICMP error
	errs   []*packet.Buf
}

// OutboundConfig has the parameters of an Outbound.
type OutboundConfig struct {
	Source   Source
	Errors   Sink // of a TUN device: takes ICMP errors for this host and those behind it
	Raw      egress.Port
	UDP      egress.Port // nil: none
	UDPPorts []uint16    // source ports of UDP
	Sealed   egress.Port // of WireGuard; nil: none
	IDs      *egress.IDs
	Remote   *atomic.Pointer[Remote]
	// Counters counts the packets that were read (In), those that were sent (Out), and those that were dropped.
	Counters *stats.Counters
	TooBig   func() // called when the kernel refuses a packet that is larger than the path MTU
}

// NewOutbound makes the Outbound that c describes. It loads the Remote once a batch.
func NewOutbound(c OutboundConfig) *Outbound {
	w := &Outbound{source: c.Source, tun: c.Errors, remote: c.Remote, counters: c.Counters,
		bufs: packet.NewBufs(batch), spare: packet.NewBufs(1), seed: maphash.MakeSeed()}
	w.errs = []*packet.Buf{&w.spare[0]}
	w.out.Init(egress.Config{Raw: c.Raw, UDP: c.UDP, UDPPorts: c.UDPPorts, Sealed: c.Sealed, IDs: c.IDs,
		Tally: &w.tally, TooBig: c.TooBig})
	return w
}

// Batches returns the sizes of the worker's batches.
func (w *Outbound) Batches() *stats.Batches { return &w.batches }

// LastError returns the kernel's error for the last packet that it refused to send, nil for none.
func (w *Outbound) LastError() error { return w.out.LastError() }

// Run sends packets until the source is closed. It waits in the source's system call.
func (w *Outbound) Run() error {
	for {
		n, err := w.source.ReadBatch(w.bufs)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tunnel: %w", err)
		}
		w.move(w.bufs[:n])
	}
}

// move processes one batch.
func (w *Outbound) move(bufs []packet.Buf) {
	w.batches.Begin(len(bufs))
	w.to, w.errors = w.remote.Load(), 0
	for i := range bufs {
		b := &bufs[i]
		w.tally.InPackets++
		w.tally.InBytes += uint64(b.Len())
		if d := w.packet(b); d != drop.Accept {
			w.tally.Drop(d)
		}
	}
	w.out.Flush()
	w.counters.Add(&w.tally)
	w.batches.End()
}

// packet wraps the packet in b and adds it to w.out. A frame's Ethernet header stands in front of it.
func (w *Outbound) packet(b *packet.Buf) drop.Reason {
	if w.to.Loops {
		return drop.Unreachable
	}
	link := 0
	if w.to.Ethernet {
		link = w.skipLink(b)
	}
	d := w.parse(b)
	if d != drop.Accept && link == 0 {
		return d
	}
	p := &w.info
	whole := d == drop.Accept && p.Flow.Proto != 0 // its transport header is known
	if b.Offload.GSO != packet.GSONone && !whole {
		return drop.Offload
	}
	if whole {
		if b.Offload.Misplaced(p) {
			return drop.Offload
		}
		w.clamp(b, p)
		if p.Flow.Proto == packet.ProtoUDP || w.to.Kind == egress.UDP {
			h := b.Bytes()
			p.Hash = maphash.Bytes(w.seed, h[p.Offset:min(p.Offset+4, len(h))]) ^ w.addresses(h)
		}
	} else if w.to.Kind == egress.UDP && d == drop.Accept {
		p.Hash = w.addresses(b.Bytes())
	}
	if b.Offload.GSO != packet.GSONone {
		return w.segments(b, link)
	}
	if d := b.Finish(); d != drop.Accept {
		return d
	}
	return w.send(b, link)
}

// skipLink takes VLAN tags off the front of a frame's payload in b, and returns the length of the link-layer header in
// front of b then, in bytes.
func (w *Outbound) skipLink(b *packet.Buf) int {
	b.Prepend(packet.EthernetHeaderLen)
	link, _ := packet.Ethernet(b.Bytes()).IP()
	b.Strip(link)
	if b.Offload.Partial {
		b.Offload.CsumStart -= uint16(link - packet.EthernetHeaderLen)
	}
	return link
}

// parse describes the IP packet in b by w.info. A packet whose transport header is not known, such as a fragment, has
// the protocol 0 there.
func (w *Outbound) parse(b *packet.Buf) drop.Reason {
	p, h := &w.info, b.Bytes()
	d := p.Parse(h)
	if d == drop.Accept {
		if w.to.Ethernet {
			return d // padding is part of the frame
		}
		b.SetLen(p.Len)
		return d
	}
	switch ip, ip6 := packet.IPv4(h), packet.IPv6(h); {
	case ip.Check() == drop.Accept:
		*p = packet.Info{Len: ip.TotalLen(), Offset: ip.HeaderLen(), DF: ip.DF()}
		p.Flow.Src, p.Flow.Dst = ip.Src(), ip.Dst()
	case packet.Version(h) == 6 && ip6.Check() == drop.Accept:
		*p = packet.Info{Len: ip6.TotalLen(), Offset: packet.IPv6HeaderLen, DF: true}
		p.Flow.Src, p.Flow.Dst = ip6.Src(), ip6.Dst()
	default:
		*p = packet.Info{Len: len(h)}
		return d
	}
	if !w.to.Ethernet {
		b.SetLen(p.Len)
	}
	return drop.Accept
}

// addresses returns a hash of the addresses in the IP header h.
func (w *Outbound) addresses(h []byte) uint64 {
	if packet.Version(h) == 6 {
		return maphash.Bytes(w.seed, packet.IPv6(h).Addrs())
	}
	return maphash.Bytes(w.seed, packet.IPv4(h).Addrs())
}

// clamp lowers the MSS of a SYN, and notes it.
func (w *Outbound) clamp(b *packet.Buf, p *packet.Info) {
	if p.TCPFlags&packet.FlagSYN == 0 || p.Flow.Proto != packet.ProtoTCP {
		return
	}
	most := w.to.MSS4
	if p.Flow.Dst.Is6() {
		most = w.to.MSS6
	}
	if mss := packet.ClampMSS(b, p.Offset, most); mss > 0 {
		w.to.Sizes.note(b.Bytes(), p.Offset, mss)
	}
}

// inner returns the largest IP packet that the path takes in the tunnel, in bytes, behind link bytes.
func (w *Outbound) inner(link int) int { return w.to.MTU - w.to.Tunnel.Overhead() - link }

// smallest returns the size up to which the packet leaves in outer fragments, DF or not (RFC 2473, section 7.1).
func (w *Outbound) smallest(b *packet.Buf) int {
	if packet.Version(b.Bytes()) == 6 {
		return encap.MinMTU6
	}
	return encap.MinMTU
}

// send wraps the packet in b, which has no work left, and adds it to w.out.
func (w *Outbound) send(b *packet.Buf, link int) drop.Reason {
	p, inner := &w.info, w.inner(link)
	if link == 0 && p.Len > inner && p.DF && p.Len > w.smallest(b) {
		return w.tooBig(b, max(inner, w.smallest(b)))
	}
	if b.Len()+link+w.to.Tunnel.Overhead() > packet.MaxLen {
		return drop.TooBig
	}
	hop := w.wrap(b, link)
	w.out.AddWrapped(b, p, &hop, w.to.MTU)
	return drop.Accept
}

// segments is send for a GSO packet.
func (w *Outbound) segments(b *packet.Buf, link int) drop.Reason {
	p, inner := &w.info, w.inner(link)
	if b.Len() != p.Len { // bytes behind the IP packet would be segments, too: Linux pads no GSO packet
		return drop.Offload
	}
	cut, d := packet.NewCut(b, p, inner)
	if d != drop.Accept {
		return d
	}
	n := cut.Headers + cut.Payload
	if link == 0 && n > inner && p.DF && n > w.smallest(b) {
		return w.tooBig(b, max(inner, w.smallest(b)))
	}
	cut.Overhead = w.to.Tunnel.Overhead() + link
	if cut.Overhead+n > packet.MaxLen {
		return drop.TooBig
	}
	hop := w.wrap(b, link)
	w.out.AddSegments(&w.to.Tunnel, b, p, &hop, cut, w.to.MTU)
	return drop.Accept
}

// wrap puts the tunnel's headers before the packet in b, with the link bytes in front of it, and returns its hop.
func (w *Outbound) wrap(b *packet.Buf, link int) egress.Hop {
	port := w.out.SourcePort(w.info.Hash)
	var o encap.Outer
	if link == 0 {
		o = w.to.Tunnel.Wrap(b, port)
	} else {
		class := byte(0)
		switch h := b.Bytes(); {
		case w.info.Offset == 0: // no IP packet
		case packet.Version(h) == 6:
			class = packet.IPv6(h).TrafficClass()
		default:
			class = packet.IPv4(h).TOS()
		}
		b.Prepend(link)
		o = w.to.Tunnel.WrapFrame(b, port, class)
	}
	return egress.Hop{To: &w.to.Peer, Kind: w.to.Kind, SrcPort: port, Class: o.Class, TTL: o.TTL, DF: o.DF}
}

// tooBig sends the sender of the packet in b an ICMP error with the MTU, as if a router next to the packet's
// destination had sent it.
func (w *Outbound) tooBig(b *packet.Buf, mtu int) drop.Reason {
	if w.errors >= errorsInBatch || b.Finish() != drop.Accept || !packet.MayAnswer(b.Bytes()) {
		return drop.TooBig
	}
	w.errors++
	p, e := &w.info, &w.spare[0]
	if room := e.Room(); p.Flow.Dst.Is4() {
		e.SetLen(packet.FragmentationNeeded(room, b.Bytes(), p.Flow.Dst, mtu))
	} else {
		e.SetLen(packet.PacketTooBig(room, b.Bytes(), p.Flow.Dst, mtu))
	}
	_, _, _ = w.tun.WriteBatch(w.errs) // the reader of the device reports its end
	return drop.TooBig
}
