package endpoint

import (
	"net/netip"
	"sync/atomic"
	"time"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// Elsewhere finds the host to which a connection was given earlier.
type Elsewhere interface {
	// Other returns the way to the host that may have the connection of a client, nil if there is none. before is the
	// ID of the exit that its packets have had, 0 for none: they keep it, since the host that has a connection does not
	// change. unsettled reports that a way may become known soon.
	Other(client, server netip.AddrPort, before uint8, now time.Time) (to *Exit, unsettled bool)
	// Hop returns the way to next, a host that a packet with hops names, or the one with the ID before, if hops can
	// lead there. nil: it is not known.
	Hop(next netip.Addr, before uint8) *Exit
}

// Sockets reports whether this host has a TCP connection. One goroutine uses it.
type Sockets interface {
	Has(remote, local netip.AddrPort) (bool, error)
}

// Exit is a tunnel to another realserver. It does not change.
type Exit struct {
	ID     uint8 // unique to the tunnel; 0: it has none
	Tunnel encap.Tunnel
	Peer   egress.Peer
	MTU    int // of the path, in bytes
}

// Bounds of what a worker spends on packets of unknown connections: questions to the kernel in a second, and the time
// for which it holds such a connection's packets while tables may come.
const (
	queriesASecond = 20_000
	holdFor        = uint32(3 * time.Second / flowTick) // at least 2 s: directors call restarted agents every second
)

// SecondChance sends packets of TCP connections that this host does not have on to the host that may have them: see
// package secondchance of the balancer. It belongs to one worker.
//
//	SYN ─────────────────────────→ this host, and its connection is noted
//	of a noted connection ───────→ this host, or on
//	of another one → socket? ─yes→ this host
//	                         ─no─→ on, if there is another host; else this one, which answers with a RST
//
// ICMP errors follow the packet that they quote. Everything else, and what another realserver has sent on, is for this
// host.
type SecondChance struct {
	elsewhere Elsewhere
	flows     *Flows
	sockets   Sockets
	out       egress.Output
	start     time.Time

	now      time.Time // of this batch
	tick     uint32
	left     int       // questions until refill
	refilled time.Time // when left was filled up
	info     packet.Info
	copies   []packet.Buf // one, of a packet without room in front
	hopPeer  egress.Peer  // of that packet
	tally    stats.Tally
	sent     stats.Counters
	queries  atomic.Uint64
	unasked  atomic.Uint64
}

// NewSecondChance makes the second chances of one worker. All workers of a host share flows. port sends the packets.
func NewSecondChance(elsewhere Elsewhere, flows *Flows, sockets Sockets, port egress.Port,
	ids *egress.IDs) *SecondChance {
	c := &SecondChance{elsewhere: elsewhere, flows: flows, sockets: sockets, start: time.Now(),
		copies: packet.NewBufs(1)}
	c.out.Init(egress.Config{Raw: port, IDs: ids, Tally: &c.tally, TooBig: func() {}})
	return c
}

// Give makes the worker give second chances; nil: none. It may be called at any time. The worker loads c once a batch.
func (w *Worker) Give(c *SecondChance) { w.chances.Store(c) }

// Read adds the counts of packets that were sent on to t.
func (c *SecondChance) Read(t *stats.Tally) { c.sent.Read(t) }

// Queries returns the number of questions to the kernel, and of packets beyond their bound.
func (c *SecondChance) Queries() (asked, unasked uint64) { return c.queries.Load(), c.unasked.Load() }

// LastError is the kernel's error for the last packet that it refused to send, nil if there was none.
func (c *SecondChance) LastError() error { return c.out.LastError() }

// begin begins a batch.
func (c *SecondChance) begin() {
	c.now = time.Now()
	c.tick = uint32(c.now.Sub(c.start) / flowTick)
	if c.now.Sub(c.refilled) >= time.Second {
		c.left, c.refilled = queriesASecond, c.now
	}
}

// end sends the packets of a batch.
func (c *SecondChance) end() {
	c.out.Flush()
	c.sent.Add(&c.tally)
}

// takes decides about the packet in b, which the policy has accepted. It returns false if the packet is for this host.
// Otherwise it has taken it, or dropped it for a reason. b is in use until end.
func (c *SecondChance) takes(b *packet.Buf, in inside, t *arrival, p *Policy) (taken bool, d drop.Reason) {
	client, server, flags, ok := c.connection(b, in)
	if !ok {
		return false, drop.Accept
	}
	hash := c.flows.hash(client, server)
	state, since, exit := c.flows.look(hash, c.tick)
	if flags&(packet.FlagSYN|packet.FlagACK) == packet.FlagSYN {
		if state != flowLocal {
			c.flows.put(hash, flowBegun, 0, c.tick)
		}
		return false, drop.Accept
	}
	switch state {
	case flowLocal, flowAbsent:
		return false, drop.Accept
	case flowBegun:
		c.flows.put(hash, flowLocal, 0, c.tick)
		return false, drop.Accept
	case flowUnknown:
		if c.left == 0 {
			c.unasked.Add(1)
			return false, drop.Accept
		}
		c.left--
		c.queries.Add(1)
		if has, err := c.sockets.Has(client, server); has || err != nil {
			if has {
				c.flows.put(hash, flowLocal, 0, c.tick)
			}
			return false, drop.Accept
		}
	}
	if t.hops > 0 {
		return c.alongHops(b, in, t, p, known{hash, state, exit})
	}
	to, unsettled := c.elsewhere.Other(client, server, exit, c.now)
	switch {
	case to != nil:
		if state != flowElsewhere || to.ID != exit {
			c.flows.put(hash, flowElsewhere, to.ID, c.tick)
		}
		return true, c.send(b, in, t, to, p.mss(b), hash)
	case !unsettled:
		c.flows.put(hash, flowAbsent, 0, c.tick)
		return false, drop.Accept
	case state == flowHeld && flowAge(since, c.tick) >= holdFor:
		// Once: a server that the kernel does not find may have it.
		c.flows.put(hash, flowLocal, 0, c.tick)
		return false, drop.Accept
	case state != flowHeld:
		c.flows.put(hash, flowHeld, 0, c.tick)
	}
	return true, drop.Unsettled
}

// known is what Flows have of a connection: its hash, its state, and the exit that it has had.
type known struct {
	hash  uint64
	state flowState
	exit  uint8
}

// alongHops is takes for a packet of the connection k, which this host does not have, with hops in front of it.
func (c *SecondChance) alongHops(b *packet.Buf, in inside, t *arrival, p *Policy, k known) (taken bool,
	d drop.Reason) {
	hops := encap.Hops(b.Before(int(t.hops)))
	next, ok := p.hop(hops)
	id := uint8(0)
	if to := c.elsewhere.Hop(next, k.exit); to != nil {
		next, ok, id = to.Peer.Dst, true, to.ID
	}
	if !ok {
		c.flows.put(k.hash, flowAbsent, 0, c.tick)
		return false, drop.Accept
	}
	if k.state != flowElsewhere || k.exit != id {
		c.flows.put(k.hash, flowElsewhere, id, c.tick)
	}
	if d := offloaded(b, in, p.mss(b)); d != drop.Accept {
		return true, d
	}
	if b.Offload.GSO != packet.GSONone { // a UDP socket gets none
		return true, drop.Offload
	}
	if d := b.Finish(); d != drop.Accept {
		return true, d
	}
	copied := &c.copies[0]
	if d := hops.Forward(copied, b.Bytes(), next, encap.SourcePort(k.hash), p.port); d != drop.Accept {
		return true, d
	}
	c.hopPeer = egress.Peer{Dst: next, Src: netip.IPv4Unspecified()}
	c.out.Add(copied.Bytes(), &egress.Hop{To: &c.hopPeer})
	c.out.Flush()
	return true, drop.Accept
}

// connection returns the TCP connection of the packet in b, or of the packet that it quotes. ok is false for any other
// packet.
func (c *SecondChance) connection(b *packet.Buf, in inside) (client, server netip.AddrPort, flags uint8, ok bool) {
	f := &c.info.Flow
	switch {
	case in.fragment || c.info.Parse(b.Bytes()) != drop.Accept:
		return client, server, 0, false
	case in.proto == packet.ProtoTCP:
		flags = c.info.TCPFlags
	case in.proto == packet.ProtoICMP || in.proto == packet.ProtoICMPv6:
		q, d := packet.QuotedFlow(b.Bytes())
		if d != drop.Accept || q.Flow.Proto != packet.ProtoTCP {
			return client, server, 0, false
		}
		r := q.Flow.Reverse()
		f, flags = &r, packet.FlagACK
	default:
		return client, server, 0, false
	}
	return netip.AddrPortFrom(f.Src, f.SrcPort), netip.AddrPortFrom(f.Dst, f.DstPort), flags, true
}

// send sends the packet in b to another host. mss is the size of the segments of a GSO packet, hash that of its
// connection.
func (c *SecondChance) send(b *packet.Buf, in inside, t *arrival, to *Exit, mss int, hash uint64) drop.Reason {
	if d := offloaded(b, in, mss); d != drop.Accept {
		return d
	}
	if t.decap.Kind.UDP() { // the packets before it may be in the memory in front of it
		copied := &c.copies[0]
		n := copy(copied.Room(), b.Bytes())
		copied.SetLen(n)
		copied.Offload, b = b.Offload, copied
		defer c.out.Flush()
	}
	hop := egress.Hop{To: &to.Peer}
	if b.Offload.GSO == packet.GSONone {
		if d := b.Finish(); d != drop.Accept {
			return d
		}
		if b.Len()+to.Tunnel.Overhead() > packet.MaxLen {
			return drop.TooBig
		}
		to.Tunnel.Wrap(b, encap.SourcePort(hash))
		c.out.AddWrapped(b, &c.info, &hop, to.MTU)
		return drop.Accept
	}
	cut, d := packet.NewCut(b, &c.info, to.MTU-to.Tunnel.Overhead())
	if d != drop.Accept {
		return d
	}
	cut.Overhead = to.Tunnel.Overhead()
	to.Tunnel.Wrap(b, encap.SourcePort(hash))
	c.out.AddSegments(&to.Tunnel, b, &c.info, &hop, cut, to.MTU)
	return drop.Accept
}
