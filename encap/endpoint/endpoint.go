// Package endpoint is the realserver's loop: receive → unwrap → check → coalesce → write to the TUN device.
package endpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"

	"vstun/encap"
	"vstun/encap/packet"
)

// Source is where tunnel packets come from: a raw socket.
type Source interface {
	// ReadBatch waits for packets and puts them into bufs, outer headers included. It returns os.ErrClosed to end the loop.
	ReadBatch(bufs []packet.Buf) (int, error)
}

// Sink takes the packets that were in the tunnel: a queue of a TUN device.
type Sink interface {
	// WriteBatch returns how many of bufs it took, and their bytes; what their Offload names is left to it. It returns os.ErrClosed to end the
	// loop.
	WriteBatch(bufs []*packet.Buf) (n, bytes int, err error)
}

// batch is the number of packets that are received before any is written.
const batch = 64

// Policy is who may send what through the tunnel.
type Policy struct {
	vips     map[netip.Addr]struct{}
	hosts    map[netip.Addr]struct{} // directors that are one address
	prefixes []netip.Prefix          // directors that are more
}

// NewPolicy accepts tunnel packets from directors, with inner packets to vips.
func NewPolicy(directors []netip.Prefix, vips []netip.Addr) *Policy {
	p := &Policy{vips: map[netip.Addr]struct{}{}, hosts: map[netip.Addr]struct{}{}}
	for _, v := range vips {
		p.vips[v] = struct{}{}
	}
	for _, d := range directors {
		if d.IsSingleIP() {
			p.hosts[d.Addr()] = struct{}{}
		} else {
			p.prefixes = append(p.prefixes, d)
		}
	}
	return p
}

// director tells whether a is a director's address.
func (p *Policy) director(a netip.Addr) bool {
	if _, ok := p.hosts[a]; ok {
		return true
	}
	for _, d := range p.prefixes {
		if d.Contains(a) {
			return true
		}
	}
	return false
}

// udpHeaders is the length of the headers before the payload of a UDP tunnel packet, which has no IP options.
const udpHeaders = packet.IPv4HeaderLen + 8

// Unwrap takes the tunnel's headers off the packet in b and returns Accept when what is left may enter this host. The outer source is judged
// before anything of the inner packet is read. A tunnel packet over UDP, for exits that take such, has been made by wire.UDPReceiver.
func (p *Policy) Unwrap(b *packet.Buf, exit *encap.Exit) packet.Drop {
	outer := packet.IPv4(b.Bytes())
	if len(outer) < packet.IPv4HeaderLen {
		return packet.DropOuter
	}
	if !p.director(outer.Src()) {
		return packet.DropNotDirector
	}
	d := packet.DropOuter
	if !exit.Kind.UDP() {
		d = exit.UnwrapIPv4(b)
	} else if len(outer) >= udpHeaders && outer.Protocol() == packet.ProtoUDP && outer.HeaderLen() == packet.IPv4HeaderLen {
		b.Strip(udpHeaders)
		d = exit.Unwrap(b, packet.ProtoUDP, outer.TOS())
	}
	if d != packet.Accept {
		return d
	}
	inner := packet.IPv4(b.Bytes())
	if inner.Version() != 4 {
		return packet.DropNotIPv4
	}
	if _, ok := p.vips[inner.Dst()]; !ok {
		return packet.DropInnerDestination
	}
	if !p.host(inner.Src()) {
		return packet.DropInnerSource
	}
	switch inner.Protocol() {
	case packet.ProtoIPIP, protoIPv6, protoGRE:
		return packet.DropInnerProtocol
	}
	return packet.Accept
}

// Other protocols that carry packets (IANA).
const (
	protoIPv6 = 41
	protoGRE  = 47
)

// host tells whether a can be the address of a client: one host, and not this one.
func (p *Policy) host(a netip.Addr) bool {
	if _, own := p.vips[a]; own {
		return false
	}
	first := a.As4()[0]
	return first != 0 && first < 224 && !a.IsLoopback() // 224/4 is multicast, 240/4 reserved, with the broadcast address
}

// Worker brings the packets of one source into this host.
type Worker struct {
	source   Source
	exit     encap.Exit
	sink     Sink
	policy   *Policy
	mss      *atomic.Int64
	counters packet.Counters

	bufs     []packet.Buf
	out      []*packet.Buf
	accepted uint64 // packets of out, segments of super-packets each
	spares   []packet.Buf
	used     int // of spares
	tally    packet.Tally
	coalesce coalescer
}

// NewWorker makes a worker that moves what policy accepts from source, where tunnels end at exit, to sink. mss is what this host's servers advertise, in bytes.
func NewWorker(source Source, exit encap.Exit, sink Sink, policy *Policy, mss *atomic.Int64) *Worker {
	return &Worker{source: source, exit: exit, sink: sink, policy: policy, mss: mss, bufs: packet.NewBufs(batch), spares: packet.NewBufs(batch),
		out: make([]*packet.Buf, 0, 2*batch)}
}

// Read adds what the worker has counted to t.
func (w *Worker) Read(t *packet.Tally) { w.counters.Read(t) }

// Run moves packets until source or sink is closed. It waits in the source's system call, so that the thread that the kernel wakes goes on with it.
func (w *Worker) Run() error {
	for {
		n, err := w.source.ReadBatch(w.bufs)
		if err == nil {
			err = w.move(w.bufs[:n])
		}
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tunnel: %w", err)
		}
	}
}

// move treats one batch.
func (w *Worker) move(bufs []packet.Buf) error {
	mss := int(w.mss.Load())
	var err error
	for i := range bufs {
		b := &bufs[i]
		if b.Offload.GSO == packet.GSOUDP {
			err = w.datagrams(b, mss)
		} else {
			w.packet(b, mss)
		}
		if err != nil {
			break
		}
	}
	err = errors.Join(err, w.flush())
	w.counters.Add(&w.tally)
	return err
}

// packet treats one tunnel packet, and tells whether b is in use until flush.
func (w *Worker) packet(b *packet.Buf, mss int) (kept bool) {
	w.tally.InPackets++
	w.tally.InBytes += uint64(b.Len())
	if d := w.policy.Unwrap(b, &w.exit); d != packet.Accept {
		w.tally.Drop(d)
		return false
	}
	w.accepted++
	in := packet.IPv4(b.Bytes())
	if !in.Fragment() {
		t := in.Payload()
		offloaded(b, in, t, mss)
		if in.Protocol() == packet.ProtoTCP && w.coalesce.add(b, in, t) {
			return false
		}
	}
	w.out = append(w.out, b)
	return true
}

// datagrams treats what the kernel has made of UDP tunnel packets of one flow (UDP_GRO): the headers of one, and the payloads of all.
func (w *Worker) datagrams(b *packet.Buf, mss int) error {
	const headers = udpHeaders
	whole, size := b.Bytes(), int(b.Offload.Size)
	for payload := whole[headers:]; len(payload) > 0; {
		n := min(size, len(payload))
		if w.used == len(w.spares) || len(w.out) == cap(w.out) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		s := &w.spares[w.used]
		room := s.Room()
		copy(room, whole[:headers])
		copy(room[headers:], payload[:n])
		s.SetLen(headers + n)
		packet.IPv4(s.Bytes()).SetTotalLen(headers + n)
		binary.BigEndian.PutUint16(s.Bytes()[packet.IPv4HeaderLen+4:], uint16(8+n))
		payload = payload[n:]
		if w.packet(s, mss) {
			w.used++
		}
	}
	return nil
}

// flush writes what waits.
func (w *Worker) flush() error {
	w.coalesce.finish()
	var err error
	if len(w.out) > 0 {
		var n, bytes int
		n, bytes, err = w.sink.WriteBatch(w.out)
		refused := len(w.out) - n
		w.tally.OutPackets += w.accepted - uint64(refused)
		w.tally.OutBytes += uint64(bytes)
		for range refused {
			w.tally.Drop(packet.DropTUNError)
		}
	}
	w.out, w.accepted, w.used = w.out[:0], 0, 0
	return err
}
