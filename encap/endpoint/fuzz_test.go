package endpoint

import (
	"bytes"
	"net/netip"
	"testing"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
	"vstun/encap/query"
)

// FuzzWorker: whatever a director sends, as packets or as datagrams that the kernel has put together, each packet comes
// out once or is counted as refused, and what comes out is whole packets that a TUN device can take.
func FuzzWorker(f *testing.F) {
	for _, from := range []netip.Addr{director, director6} {
		for _, six := range []bool{false, true} {
			s := segment{port: 1, n: 100, flags: packet.FlagACK, six: six}
			f.Add(wrap(encap.KindGRE, from, s.bytes()), uint16(0))
			f.Add(wrap(encap.KindIPIP, from, s.bytes()), uint16(0))
			train := wrap(encap.KindGUE, from, s.bytes())
			for s.seq < 500 {
				s.seq += 100
				train = append(train, gue(s.bytes())...)
			}
			f.Add(train, uint16(len(gue(s.bytes()))))
		}
	}
	f.Add(wrap(encap.KindIPIP, director, question(director, realserver, query.Question{Version: query.Version}, 1)),
		uint16(0))
	// One worker for all: a batch must leave nothing behind in it.
	w := NewWorker(nil, nil, inForce(policy()), true)
	questions := make(chan Asked, 1)
	w.SendQuestions(questions)
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		if len(b) < 68 || len(b) > 60000 || size > 0 && size < 44 {
			return
		}
		b = bytes.Clone(b)
		comesFromDirector(b, size > 0)
		for at := ipHeaderLen(b) + packet.UDPHeaderLen; size > 0 && at < len(b); at += int(size) {
			finishInner(b[at:min(at+int(size), len(b))])
		}
		want := uint64(0)
		for i := range 2 { // the second is a repetition
			q := &w.bufs[i]
			q.SetLen(copy(q.Room(), b))
			if headers := ipHeaderLen(b) + packet.UDPHeaderLen; size > 0 && int(size) < len(b)-headers {
				q.Offload = packet.Offload{GSO: packet.GSOUDP, Size: size}
			}
			want += datagramsIn(q)
		}
		w.sink = inspector{t}
		var before, after stats.Tally
		w.Read(&before)
		if err := w.move(w.bufs[:2]); err != nil {
			t.Fatal(err)
		}
		w.Read(&after)
		in, out, drops := after.InPackets-before.InPackets, after.OutPackets-before.OutPackets, uint64(len(questions))
		for len(questions) > 0 {
			<-questions
		}
		for i := range after.Drops {
			drops += after.Drops[i] - before.Drops[i]
		}
		if in != want || in != out+drops {
			t.Fatalf("in %d, want %d; out %d, refused %d", in, want, out, drops)
		}
	})
}

// datagramsIn is the number of packets in what the kernel has delivered.
func datagramsIn(b *packet.Buf) uint64 {
	if b.Offload.GSO == packet.GSONone {
		return 1
	}
	n := b.Len() - ipHeaderLen(b.Bytes()) - packet.UDPHeaderLen
	return uint64((n + int(b.Offload.Size) - 1) / int(b.Offload.Size))
}

// comesFromDirector makes b's outer header that of a director, with lengths that agree, and with udp one of the agent's
// UDP tunnel.
func comesFromDirector(b []byte, udp bool) {
	if b[0]>>4 == 6 {
		from := director6.As16()
		copy(b[8:], from[:])
		packet.IPv6(b).SetPayloadLen(len(b) - packet.IPv6HeaderLen)
		if udp {
			b[6] = packet.ProtoUDP
		}
		return
	}
	from := director.As4()
	b[0] = 0x45
	copy(b[12:], from[:])
	packet.IPv4(b).SetTotalLen(len(b))
	if udp {
		b[9] = packet.ProtoUDP
	}
}

// finishInner makes lengths and checksums of the TCP packet behind a GUE header right, if there is one.
func finishInner(b []byte) {
	if len(b) < 4+packet.IPv6HeaderLen+20 {
		return
	}
	switch p := b[4:]; {
	case p[0] == 0x45 && p[9] == packet.ProtoTCP:
		packet.IPv4(p).SetTotalLen(len(p))
		refinish(p, packet.IPv4HeaderLen)
	case p[0]>>4 == 6 && p[6] == packet.ProtoTCP:
		packet.IPv6(p).SetPayloadLen(len(p) - packet.IPv6HeaderLen)
		refinish(p, packet.IPv6HeaderLen)
	}
}

// inspector is a Sink that takes everything and looks at it.
type inspector struct{ t *testing.T }

func (s inspector) WriteBatch(bufs []*packet.Buf) (n, size int, err error) {
	for _, b := range bufs {
		p, o := whole(b), b.Offload
		switch {
		case len(p) >= packet.IPv6HeaderLen && p[0]>>4 == 6:
			if packet.IPv6(p).TotalLen() != len(p) {
				s.t.Errorf("says %d bytes: %x", packet.IPv6(p).TotalLen(), p)
			}
		case packet.IPv4(p).Check() != drop.Accept || packet.IPv4(p).TotalLen() != len(p):
			s.t.Errorf("%v: %x", packet.IPv4(p).Check(), p)
		}
		if o.Partial && int(o.CsumStart)+int(o.CsumOffset)+2 > b.Len() {
			s.t.Errorf("a checksum outside the packet: %+v: %x", o, p)
		}
		if b.Next != nil && (o.GSO != packet.GSOTCP || o.Size == 0 || !o.Partial || b.Pieces() > packet.MaxChain) {
			s.t.Errorf("%d pieces with %+v: %x", b.Pieces(), o, p)
		}
		for next := b.Next; next != nil; next = next.Next {
			if next.Len() == 0 || next.Len() > int(o.Size) || next.Len() < int(o.Size) && next.Next != nil {
				s.t.Errorf("a piece of %d bytes with %+v", next.Len(), o)
			}
		}
		n, size = n+b.Pieces(), size+len(p)
	}
	return n, size, nil
}
