// Package tap makes a TAP device the director's port to an Ethernet network: it separates IP packets from Ethernet
// headers, and puts the headers on again.
//
//	          ┌─ ARP, neighbour discovery → Neighbours
//	TAP queue ┼─ IP packet for the port's MAC address → worker ─┐
//	   ↑      └─ other frames: counted as drop.Frame            │
//	   └──────────────── Ethernet header ←──────────────────────┘ to realservers and clients
//
// Frames with a VLAN tag are other frames: the network's switch takes the tag off for this port.
package tap

import (
	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
	"vstun/tundev"
)

// Neighbours gets the frames by which the hosts of the network find each other: ARP, neighbour discovery and queries
// for multicast listeners.
type Neighbours interface {
	// Receive gets the payload of a frame, and reports whether it is such a message. A frame that is refused counts as
	// drop.Frame. The payload is borrowed until Receive returns. Several goroutines call it.
	Receive(src, dst [6]byte, etherType uint16, payload []byte) bool
}

// Port is one queue of the TAP device. One goroutine may read while another sends.
type Port struct {
	queue      *tundev.Queue
	mac        [6]byte
	neighbours Neighbours
	senders    *Senders
	counters   stats.Counters
	tally      stats.Tally

	header [packet.EthernetHeaderLen]byte // of the frame to send
	plain  []packet.Buf                   // one, of a packet that is in no Buf
}

// NewPort returns the port for a queue. mac is the port's address, which differs from the device's own: a bridge passes
// frames for that one to its host. A port that only sends needs no neighbours.
func NewPort(q *tundev.Queue, mac [6]byte, neighbours Neighbours, senders *Senders) *Port {
	return &Port{queue: q, mac: mac, neighbours: neighbours, senders: senders, plain: packet.NewBufs(1)}
}

// Read adds the counts of dropped frames to t.
func (p *Port) Read(t *stats.Tally) { p.counters.Read(t) }

// ReadBatch waits for IP packets that were sent to the port's MAC address, and puts them into bufs, with the Ethernet
// header in front (packet.Buf.Before). It returns how many it read, at least 1 if there is no error. It returns
// os.ErrClosed after the device's Close and StopReading.
func (p *Port) ReadBatch(bufs []packet.Buf) (int, error) {
	for {
		n, err := p.queue.ReadBatch(bufs)
		kept := 0
		for i := range bufs[:n] {
			if !p.accepts(&bufs[i]) {
				continue
			}
			if i != kept {
				bufs[kept], bufs[i] = bufs[i], bufs[kept]
			}
			kept++
		}
		if kept < n {
			p.counters.Add(&p.tally)
		}
		if kept > 0 || err != nil {
			return kept, err
		}
	}
}

// accepts reports whether the frame in b has an IP packet for the worker.
func (p *Port) accepts(b *packet.Buf) bool {
	h := packet.Ethernet(b.Before(packet.EthernetHeaderLen))
	src, dst, kind := h.Src(), h.Dst(), h.Type()
	group := dst[0]&1 != 0
	switch {
	case dst != p.mac && !group, src[0]&1 != 0, src == p.mac:
	case kind == packet.EtherTypeARP, kind == packet.EtherTypeIPv6 && isDiscovery(b.Bytes()):
		if p.neighbours.Receive(src, dst, kind, b.Bytes()) {
			return false
		}
	case kind != packet.EtherTypeIPv4 && kind != packet.EtherTypeIPv6, group:
	default:
		p.senders.note(b.Bytes(), src)
		return true
	}
	p.tally.Drop(drop.Frame)
	return false
}

// isDiscovery reports whether the IPv6 packet p is a message of neighbour discovery (RFC 4861) or a query for multicast
// listeners, which has a hop-by-hop header of 8 bytes (RFC 2710, RFC 3810).
func isDiscovery(p packet.IPv6) bool {
	const hopByHop, hopByHopLen, query, first, last = 0, 8, 130, 133, 137
	if len(p) <= packet.IPv6HeaderLen+hopByHopLen {
		return false
	}
	switch p.NextHeader() {
	case packet.ProtoICMPv6:
		kind := p[packet.IPv6HeaderLen]
		return kind >= first && kind <= last
	case hopByHop:
		h := p[packet.IPv6HeaderLen:]
		return h[0] == packet.ProtoICMPv6 && h[1] == 0 && h[hopByHopLen] == query
	}
	return false
}

// Send sends packets in order to their hops' MAC addresses, GSO packets whole. A hop without a MAC address leads to the
// host from which the last packet of its destination came. Send returns how many packets it sent. It ends at the first
// packet that the kernel refuses, with an unwrapped unix.Errno: EHOSTUNREACH if the MAC address is not known, EIO while
// the device is down. It returns os.ErrClosed after the device's Close.
func (p *Port) Send(out []egress.Outgoing) (int, error) {
	for i := range out {
		if err := p.send(&out[i]); err != nil {
			return i, err
		}
	}
	return len(out), nil
}

func (p *Port) send(o *egress.Outgoing) error {
	to := o.To.MAC
	if to == ([6]byte{}) {
		var known bool
		if to, known = p.senders.find(o.To.Dst); !known {
			return unix.EHOSTUNREACH
		}
	}
	b := o.Buf
	if b == nil {
		b = p.copy(o.Head, o.Body)
	}
	return p.write(to, packet.EtherType(packet.Version(o.Head)), b)
}

// copy puts a complete packet into a Buf. It is for answers and fragments, which are rare.
func (p *Port) copy(head, body []byte) *packet.Buf {
	b := &p.plain[0]
	room := b.Room()
	n := copy(room, head)
	b.SetLen(n + copy(room[n:], body))
	return b
}

func (p *Port) write(to [6]byte, etherType uint16, b *packet.Buf) error {
	h := packet.Ethernet(p.header[:])
	h.SetDst(to)
	h.SetSrc(p.mac)
	h.SetType(etherType)
	return p.queue.Send(h, b)
}

// SendFrame sends a frame with the port's MAC address as its source.
func (p *Port) SendFrame(to [6]byte, etherType uint16, payload []byte) error {
	return p.write(to, etherType, p.copy(payload, nil))
}
