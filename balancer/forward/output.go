package forward

import (
	"errors"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/packet"
)

// Sink is where packets go: a raw socket.
type Sink interface {
	// Send sends the first packets of segs and returns how many went out; 0 and an error when the first was refused.
	Send(segs []packet.Segment) (int, error)
}

// sendBatch is the number of packets that wait for one system call.
const sendBatch = 64

// output is what a worker has to send. What is added stays where it is until flush, and is cut no sooner than it is added.
type output struct {
	sink    Sink
	tally   *packet.Tally
	shared  *Shared
	lastErr atomic.Int32 // errno of the last packet that the kernel refused

	segs []packet.Segment
	room []byte // for the headers of pieces
	free []byte // what is left of it

	large [packet.MaxPieces]packet.Segment // datagrams of a super-packet that have to be fragmented each
	spare []packet.Buf                     // one of them
}

func (o *output) init(sink Sink, tally *packet.Tally, shared *Shared) {
	o.sink, o.tally, o.shared = sink, tally, shared
	o.segs = make([]packet.Segment, 0, sendBatch+packet.MaxPieces)
	o.room = make([]byte, packet.PieceRoom)
	o.free = o.room
	o.spare = packet.NewBufs(1)
}

// add appends a packet.
func (o *output) add(p []byte) {
	if len(o.segs) >= sendBatch {
		o.flush()
	}
	o.segs = append(o.segs, packet.Segment{Head: p})
}

// fragment appends the wrapped packet in b as pieces of at most mtu bytes.
func (o *output) fragment(b *packet.Buf, mtu int) {
	o.reserve(packet.MaxPieces * packet.IPv4HeaderLen)
	before := len(o.segs)
	o.segs = encap.Fragment(o.segs, b.Bytes(), mtu, o.shared.nextID(), o.free)
	o.free = o.free[(len(o.segs)-before-1)*packet.IPv4HeaderLen:]
}

// segment appends the wrapped super-packet in b as packets of so many bytes of headers and payload.
func (o *output) segment(b *packet.Buf, p *packet.Info, headers, payload int) {
	pieces := (p.Len-headers+payload-1)/payload + 1
	o.reserve(pieces * (encap.IPIPOverhead + headers))
	o.segs, o.free = packet.Split(o.segs, b, p, encap.IPIPOverhead, headers, payload, o.free)
}

// segmentAndFragment is segment for datagrams that are larger than mtu: each goes out in fragments. That is rare enough for a copy.
func (o *output) segmentAndFragment(b *packet.Buf, p *packet.Info, headers, payload, mtu int) {
	o.flush()
	o.segment(b, p, headers, payload)
	datagrams := o.large[:copy(o.large[:], o.segs)]
	o.segs = o.segs[:0]
	for _, d := range datagrams {
		s := &o.spare[0]
		room := s.Room()
		n := copy(room, d.Head)
		s.SetLen(n + copy(room[n:], d.Body))
		o.segs = encap.Fragment(o.segs, s.Bytes(), mtu, o.shared.nextID(), o.free)
		o.send()
	}
	o.flush()
}

// reserve makes sure that there is room for so many bytes of headers.
func (o *output) reserve(n int) {
	if len(o.segs) >= sendBatch || len(o.free) < n {
		o.flush()
	}
}

// flush sends what waits.
func (o *output) flush() {
	o.send()
	o.free = o.room
}

// send sends all of segs, and counts it. A packet that the kernel refuses costs that packet alone.
func (o *output) send() {
	for segs := o.segs; len(segs) > 0; {
		n, err := o.sink.Send(segs)
		for i := range segs[:n] {
			o.tally.OutPackets++
			o.tally.OutBytes += uint64(segs[i].Len())
		}
		segs = segs[n:]
		if err == nil {
			continue
		}
		if errors.Is(err, os.ErrClosed) {
			break
		}
		var errno unix.Errno
		if errors.As(err, &errno) {
			o.lastErr.Store(int32(errno))
		}
		if errno == unix.EMSGSIZE {
			o.tally.Drop(packet.DropTooBig)
			o.shared.tooBig()
		} else {
			o.tally.Drop(packet.DropSendError)
		}
		segs = segs[1:]
	}
	o.segs = o.segs[:0]
}
