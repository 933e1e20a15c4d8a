// Package egress is the sending half of a tunnel end. It cuts GSO packets into segments, fragments packets that are
// larger than their path takes, and sends packets in batches.
//
//	decision → Hop ┐
//	wrapped packet ┴→ Output: (Split, Fragment) → batch ─┬→ packets of one five-tuple → Port of UDP sockets (GSO)
//	                                                     ├→ packets one by one ──────→ Port of raw sockets
//	                                                     └→ packets one by one ──────→ Port of WireGuard
//	packet without tunnel → Output: whole ───────→ batches → Port of packet sockets, Writer of the TUN device
//
// A Hop is the decision about a packet. Output does not read these fields from the packet's bytes again.
package egress

import (
	"net/netip"
	"sync/atomic"

	"vstun/encap/packet"
)

// Kind is the kind of socket by which a packet leaves.
type Kind uint8

const (
	// Raw packets leave by raw sockets, with the IP header that they have.
	Raw Kind = iota
	// UDP packets are whole IP packets with a UDP header. Packets of one five-tuple may leave together by a UDP socket;
	// the kernel then makes the IP and UDP headers. Otherwise they leave like Raw packets.
	UDP
	// Link packets leave by a packet socket, to the link-layer address of a neighbour. GSO packets leave whole.
	Link
	// TUN packets are written back into the TUN device, GSO packets whole. The kernel routes them.
	TUN
	// WireGuard packets leave inside WireGuard, to the peer that has their destination. They have the IP header of the
	// tunnel, as Raw packets. A packet that is larger than the path takes is not sent in fragments: the kernel sends
	// the encrypted datagram in fragments.
	WireGuard
)

// Peer is the receiver of packets: the end of a tunnel, or a client. It is immutable while a Hop refers to it.
type Peer struct {
	Dst     netip.Addr
	Src     netip.Addr // of Dst's family; the kernel replaces an unspecified one by the source of its route
	DstPort uint16     // of UDP
	Device  int        // of Link: the index of the neighbour's interface
	MAC     [6]byte    // of Link: the neighbour's link-layer address; all zero: not known yet
	OwnMAC  [6]byte    // of Link: the interface's own
}

// Hop is a packet's receiver, and fields of its outermost headers.
type Hop struct {
	To         *Peer // nil for Kind TUN: the kernel routes the packet
	Kind       Kind
	SrcPort    uint16 // SrcPort, Class, TTL and DF are only for Kind UDP
	Class, TTL uint8  // TOS or traffic class; TTL or hop limit
	DF         bool   // routers won't fragment the packet: always over IPv6
}

// sameTuple reports whether packets with the hops h and o, of Kind UDP, have one five-tuple.
func (h *Hop) sameTuple(o *Hop) bool {
	return h.SrcPort == o.SrcPort && (h.To == o.To || *h.To == *o.To)
}

// Outgoing is a packet to send. Its bytes are borrowed until it is sent.
type Outgoing struct {
	packet.Segment
	Hop
	// Buf is, for Link and TUN, the whole packet with its Offload; Segment.Head is its bytes. It is nil for a fragment,
	// which has no work left.
	Buf  *packet.Buf
	Mark bool // Output.Mark at the time of Add
}

// Packet returns the packet b as Outgoing, with the addresses of its IP header. It is for packets without a Hop, such
// as probes.
func Packet(b []byte) Outgoing {
	var to Peer
	if h := packet.IPv6(b); h.Version() == 6 {
		to.Src, to.Dst = h.Src(), h.Dst()
	} else {
		h := packet.IPv4(b)
		to.Src, to.Dst = h.Src(), h.Dst()
	}
	return Outgoing{Segment: packet.Segment{Head: b}, Hop: Hop{To: &to}}
}

// Port sends packets by sockets. One goroutine uses it.
type Port interface {
	// Send sends the first packets of out, which is not empty, and returns how many it sent. If the kernel refuses the
	// first packet, Send returns 0 and an unwrapped unix.Errno: EMSGSIZE for a packet that is larger than the path MTU.
	// It returns os.ErrClosed after Close.
	//
	// A port of UDP sockets takes packets of Kind UDP with the same five-tuple, class and TTL. They have the same
	// length, except that the last may be shorter. An error applies to all of them: EOPNOTSUPP or EIO if they cannot be
	// sent together.
	Send(out []Outgoing) (int, error)
}

// A Writer takes whole packets, as a queue of a TUN device does.
type Writer interface {
	// Write writes packets in order, and returns the number of packets that it wrote. It ends at the first packet that
	// the kernel refuses, with an unwrapped unix.Errno. Another error means that the device can no longer be used.
	Write(bufs []*packet.Buf) (int, error)
}

// A Tunnel completes the outer headers of the segments of a wrapped GSO packet: lengths and checksums.
type Tunnel interface{ Seal(s packet.Segment) }

// IDs assigns IP IDs to packets that are sent in fragments. All outputs of a host share it. If two packets had the same
// ID at the same time, the receiver would mix their fragments.
type IDs struct{ four, six atomic.Uint32 }

// NewIDs returns an IDs whose IPv6 IDs begin at seed. With a random seed, hosts that see none of them cannot predict
// them (RFC 7739).
func NewIDs(seed uint32) *IDs {
	i := &IDs{}
	i.six.Store(seed)
	return i
}

// next is the next ID over IPv4. It is never 0, which the kernel would replace.
func (i *IDs) next() uint16 {
	for {
		if id := uint16(i.four.Add(1)); id != 0 {
			return id
		}
	}
}

// next6 is the next ID over IPv6.
func (i *IDs) next6() uint32 { return i.six.Add(1) }
