package endpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// link is an AnswerSink whose paths take mtu bytes. It keeps what it has sent.
type link struct {
	mtu    int
	err    error // with which it refuses everything
	asked  int   // how often a path's MTU was asked
	mtuErr error // of PathMTU
	sent   [][]byte
}

func (l *link) Send(out []egress.Outgoing) (n int, err error) {
	for _, s := range out {
		err = l.err
		if err == nil && s.Len() > l.mtu {
			err = unix.EMSGSIZE
		}
		if err != nil {
			break
		}
		b := slices.Concat(s.Head, s.Body)
		if b[0]>>4 == 4 {
			packet.IPv4(b).SetChecksum() // as the kernel does
		}
		l.sent = append(l.sent, b)
		n++
	}
	if n > 0 {
		err = nil
	}
	return n, err
}

func (l *link) PathMTU(_, _ netip.Addr) (int, error) {
	l.asked++
	return l.mtu, l.mtuErr
}

// answerWorker is a worker on a path of mtu bytes, what it sends, and what it writes to the TUN device.
func answerWorker(mtu int) (*AnswerWorker, *link, *gro) {
	out, tun := &link{mtu: mtu}, &gro{}
	return NewAnswerWorker(nil, out, tun, inForce(policy()), NewSent(), 4711), out, tun
}

// moved is what the worker has counted after packets.
func moved(t *testing.T, w *AnswerWorker, bufs ...packet.Buf) (tally stats.Tally) {
	t.Helper()
	if err := w.move(bufs); err != nil {
		t.Fatal(err)
	}
	w.Read(&tally)
	return tally
}

// dropped is the only reason in tally, and how often it occurred.
func dropped(t *testing.T, tally stats.Tally) (d drop.Reason, n uint64) {
	t.Helper()
	for i, count := range tally.Drops {
		if count > 0 && n > 0 {
			t.Errorf("dropped %v, and %v", d, drop.Reason(i))
		}
		if count > 0 {
			d, n = drop.Reason(i), count
		}
	}
	return d, n
}

// answerOf is a UDP or TCP packet with n bytes of payload and a right checksum; of TCP without DF where df is false.
func answerOf(src, dst netip.Addr, proto byte, n int, df bool) []byte {
	header, at := 8, 6
	if proto == packet.ProtoTCP {
		header, at = 20, 16
	}
	t := append(make([]byte, header), bytes.Repeat([]byte{7}, n)...)
	binary.BigEndian.PutUint16(t, 443)
	binary.BigEndian.PutUint16(t[2:], 50000)
	if proto == packet.ProtoTCP {
		t[12], t[13] = 5<<4, packet.FlagACK
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	}
	b := ip(src, dst, proto, t)
	if h := packet.IPv4(b); h.Version() == 4 {
		if binary.BigEndian.PutUint16(b[4:], 99); df {
			b[6] = 0x40
		}
		h.SetChecksum()
	}
	offset := ipHeaderLen(b)
	pseudo := packet.PseudoSum(b, proto, len(t))
	packet.PutChecksum(b[offset+at:], packet.Sum(b[offset:], pseudo), proto == packet.ProtoUDP)
	return b
}

// TestAnswers: packets from a VIP to a client are forwarded with the TTL decremented. All others are refused.
func TestAnswers(t *testing.T) {
	addr := netip.MustParseAddr
	for name, c := range map[string]struct {
		b    []byte
		want drop.Reason
	}{
		"UDP":              {answerOf(vip, client, packet.ProtoUDP, 9, true), drop.Accept},
		"TCP":              {answerOf(vip, client, packet.ProtoTCP, 9, true), drop.Accept},
		"6 UDP":            {answerOf(vip6, client6, packet.ProtoUDP, 9, true), drop.Accept},
		"6 TCP":            {answerOf(vip6, client6, packet.ProtoTCP, 9, true), drop.Accept},
		"another protocol": {ip(vip, client, 50, make([]byte, 9)), drop.Accept},
		"from the host":    {answerOf(realserver, client, packet.ProtoUDP, 9, true), drop.NotAnswer},
		"6 from the host":  {answerOf(realserver6, client6, packet.ProtoUDP, 9, true), drop.NotAnswer},
		"to the host":      {answerOf(vip, realserver, packet.ProtoUDP, 9, true), drop.NotAnswer},
		"to a VIP":         {answerOf(vip, addr("198.51.100.81"), packet.ProtoUDP, 9, true), drop.NotAnswer},
		"6 to a VIP":       {answerOf(vip6, addr("2001:db8:f::81"), packet.ProtoUDP, 9, true), drop.NotAnswer},
		"to loopback":      {answerOf(vip, addr("127.0.0.1"), packet.ProtoUDP, 9, true), drop.NotAnswer},
		"to a group":       {answerOf(vip, addr("224.0.0.1"), packet.ProtoUDP, 9, true), drop.NotAnswer},
		"to all":           {answerOf(vip, addr("255.255.255.255"), packet.ProtoUDP, 9, true), drop.NotAnswer},
		"6 to a group":     {answerOf(vip6, addr("ff02::1"), packet.ProtoUDP, 9, true), drop.NotAnswer},
		"6 to link-local":  {answerOf(vip6, addr("fe80::1"), packet.ProtoUDP, 9, true), drop.NotAnswer},
		"6 solicitation": {ip(addr("::"), addr("ff02::2"), packet.ProtoICMPv6, make([]byte, 8)),
			drop.NotAnswer},
		"ICMP over IPv6": {ip(vip6, client6, packet.ProtoICMP, make([]byte, 8)), drop.NotAnswer},
		"half a header":  {answerOf(vip, client, packet.ProtoUDP, 9, true)[:19], drop.Truncated},
		"nothing":        {nil, drop.Truncated},
	} {
		t.Run(name, func(t *testing.T) {
			w, out, _ := answerWorker(1500)
			tally := moved(t, w, *buf(c.b))
			if d, n := dropped(t, tally); d != c.want || c.want != drop.Accept && n != 1 || tally.InPackets != 1 {
				t.Errorf("%v, %d times of %d; want %v", d, n, tally.InPackets, c.want)
			}
			if (len(out.sent) == 1) != (c.want == drop.Accept) || tally.OutPackets != uint64(len(out.sent)) {
				t.Fatalf("%d packets were sent, %d counted", len(out.sent), tally.OutPackets)
			}
			if c.want != drop.Accept {
				return
			}
			want := bytes.Clone(c.b)
			if want[0]>>4 == 6 {
				want[7]--
			} else {
				want[8]--
				packet.IPv4(want).SetChecksum()
			}
			if !bytes.Equal(out.sent[0], want) || tally.OutBytes != uint64(len(want)) {
				t.Errorf("sent %x\nwant %x", out.sent[0], want)
			}
		})
	}
}

// TestAnswersFinished: a checksum that the kernel has left unfinished is right in what is sent, also in each segment of
// a GSO packet.
func TestAnswersFinished(t *testing.T) {
	for _, src := range []netip.Addr{vip, vip6} {
		dst := client
		if src.Is6() {
			dst = client6
		}
		for _, proto := range []byte{packet.ProtoTCP, packet.ProtoUDP} {
			for _, size := range []int{0, 1200} {
				b := buf(answerOf(src, dst, proto, 5000, true))
				offset, header, at := ipHeaderLen(b.Bytes()), 8, 6
				b.Offload = packet.Offload{Partial: true, CsumStart: uint16(offset), CsumOffset: 6}
				if proto == packet.ProtoTCP {
					header, at, b.Offload.CsumOffset = 20, 16, 16
				}
				want := 1
				if size > 0 {
					b.Offload.Size, want = uint16(size), 5
					if b.Offload.GSO = packet.GSOUDP; proto == packet.ProtoTCP {
						b.Offload.GSO = packet.GSOTCP
					}
				}
				p := b.Bytes()
				binary.BigEndian.PutUint16(p[offset+at:], packet.Fold(packet.PseudoSum(p, proto, len(p)-offset)))
				w, out, _ := answerWorker(9000)
				tally := moved(t, w, *b)
				if len(out.sent) != want || tally.OutPackets != uint64(want) {
					t.Fatalf("protocol %d, segments of %d: %d packets, want %d; dropped %v", proto, size, len(out.sent),
						want, tally.Drops)
				}
				payload := 0
				for _, s := range out.sent {
					n := len(s) - offset
					if packet.Fold(packet.Sum(s[offset:], packet.PseudoSum(s, proto, n))) != 0xffff || s[0]>>4 == 4 &&
						packet.IPv4(s).Check() != drop.Accept {
						t.Errorf("protocol %d, segments of %d: wrong checksum in %x", proto, size, s[:offset+header])
					}
					payload += n - header
				}
				if payload != 5000 {
					t.Errorf("protocol %d, segments of %d: %d bytes of payload", proto, size, payload)
				}
			}
		}
	}
}

// TestAnswersTooBig: the sender of a packet with DF gets an ICMP error with the path MTU, once a batch. A packet
// without DF is sent in fragments.
func TestAnswersTooBig(t *testing.T) {
	w, out, tun := answerWorker(1300)
	large := answerOf(vip, client, packet.ProtoUDP, 1400, true)
	tally := moved(t, w, *buf(large), *buf(large), *buf(answerOf(vip, client, packet.ProtoUDP, 1200, true)))
	if d, n := dropped(t, tally); d != drop.TooBig || n != 2 || len(out.sent) != 1 || out.asked != 1 {
		t.Errorf("dropped %d as %v, sent %d, asked %d times", n, d, len(out.sent), out.asked)
	}
	if len(tun.out) != 2 { // the second about the worker's own port: see DevicePort
		t.Fatalf("%d ICMP errors", len(tun.out))
	}
	for i, port := range []uint16{443, 4711} {
		h := packet.IPv4(tun.out[i])
		q, d := packet.QuotedFlow(h)
		if h.Check() != drop.Accept || h.Src() != client || h.Dst() != vip || packet.Checksum(h.Payload()) != 0 ||
			d != drop.Accept || !q.TooBig() || q.MTU != 1300 ||
			q.Flow.SrcPort != port || q.Flow.Src != vip || q.Flow.Dst != client {
			t.Errorf("ICMP error %d: %x: %+v, %v", i, []byte(h), q, d)
		}
	}

	w, _, tun = answerWorker(1300)
	moved(t, w, *buf(answerOf(vip6, client6, packet.ProtoUDP, 1400, true)))
	if len(tun.out) != 2 {
		t.Fatalf("%d ICMP errors over IPv6", len(tun.out))
	}
	second6 := packet.IPv6(tun.out[1])
	if m := second6[40:]; second6.Dst() != vip6 ||
		packet.Fold(packet.Sum(m, second6.PseudoSum(packet.ProtoICMPv6, len(m)))) != 0xffff ||
		packet.IPv6(m[8:]).Src() != netip.IPv6Unspecified() || packet.IPv6(m[8:]).Dst() != client6 ||
		binary.BigEndian.Uint16(m[48:]) != 4711 {
		t.Errorf("the second ICMP error over IPv6: %x", []byte(second6))
	}

	w, _, tun = answerWorker(1300)
	tally = moved(t, w, *buf(answerOf(vip6, client6, packet.ProtoTCP, 1400, true)))
	if d, n := dropped(t, tally); d != drop.TooBig || n != 1 || len(tun.out) != 1 {
		t.Fatalf("dropped %d as %v, %d ICMP errors", n, d, len(tun.out))
	}
	if q, d := packet.QuotedFlow(tun.out[0]); d != drop.Accept || !q.TooBig() || q.MTU != 1300 ||
		q.Flow.SrcPort != 443 {
		t.Errorf("%+v, %v", q, d)
	}

	// A datagram that is sent in fragments keeps the MTU from no other sender.
	w, _, tun = answerWorker(1300)
	tally = moved(t, w, *buf(answerOf(vip, client, packet.ProtoUDP, 1400, false)),
		*buf(answerOf(vip, client, packet.ProtoTCP, 1400, true)))
	if d, n := dropped(t, tally); d != drop.TooBig || n != 1 || len(tun.out) != 1 {
		t.Errorf("behind fragments: dropped %d as %v, %d ICMP errors", n, d, len(tun.out))
	}

	w, out, tun = answerWorker(600)
	whole := answerOf(vip, client, packet.ProtoUDP, 1400, false)
	tally = moved(t, w, *buf(whole))
	if d, n := dropped(t, tally); n > 0 || len(out.sent) != 3 || tally.OutPackets != 3 || len(tun.out) > 0 {
		t.Fatalf("dropped %d as %v, sent %d", n, d, len(out.sent))
	}
	// The fragments, sent through a path that is narrower still, make the same packet.
	second, narrow, _ := answerWorker(200)
	for _, f := range out.sent {
		moved(t, second, *buf(f))
	}
	data := make([]byte, len(whole)-packet.IPv4HeaderLen)
	end := 0
	for _, f := range narrow.sent {
		h := packet.IPv4(f)
		at := int(binary.BigEndian.Uint16(h[6:])&0x1fff) * 8
		if h.ID() != 99 || len(f) > 200 || h.Check() != drop.Accept {
			t.Errorf("fragment %x", f[:20])
		}
		copy(data[at:], h.Payload())
		if h[6]&0x20 == 0 {
			end = at + len(h.Payload())
		}
	}
	if end != len(data) || !bytes.Equal(data, whole[packet.IPv4HeaderLen:]) {
		t.Errorf("the fragments end at %d, want %d; or hold something else", end, len(data))
	}
}

// TestAnswerErrorsAreBounded: a batch makes no more than some ICMP errors.
func TestAnswerErrorsAreBounded(t *testing.T) {
	w, _, tun := answerWorker(1300)
	var bufs []packet.Buf
	to := client
	for range batch {
		to = to.Next()
		bufs = append(bufs, *buf(answerOf(vip, to, packet.ProtoTCP, 1400, true)))
	}
	if d, n := dropped(t, moved(t, w, bufs...)); d != drop.TooBig || n != batch || len(tun.out) != errorsInBatch {
		t.Errorf("dropped %d as %v, %d ICMP errors", n, d, len(tun.out))
	}
}

// TestAnswerLoops: an answer that comes back is refused, on any queue. A retransmission by its sender is not.
func TestAnswerLoops(t *testing.T) {
	for name, b := range map[string][]byte{
		"UDP": answerOf(vip, client, packet.ProtoUDP, 9, true), "TCP": answerOf(vip, client, packet.ProtoTCP, 9, true),
		"6 UDP": answerOf(vip6, client6, packet.ProtoUDP, 9, true), "another protocol": ip(vip, client, 50,
			make([]byte, 9)),
	} {
		sent := NewSent()
		out := &link{mtu: 1500}
		one := NewAnswerWorker(nil, out, &gro{}, inForce(policy()), sent, 1)
		two := NewAnswerWorker(nil, out, &gro{}, inForce(policy()), sent, 1)
		moved(t, one, *buf(b))
		if tally := moved(t, one, *buf(b)); tally.OutPackets != 2 {
			t.Errorf("%s: a repetition was not sent: %v", name, tally.Drops)
		}
		back := bytes.Clone(out.sent[0])
		if back[0]>>4 == 4 {
			back[4], back[5] = 1, 2 // the kernel has given it an ID
			packet.IPv4(back).SetChecksum()
		}
		if d, n := dropped(t, moved(t, two, *buf(back))); d != drop.AnswerLoop || n != 1 || len(out.sent) != 2 {
			t.Errorf("%s: came back: %d dropped as %v, %d sent", name, n, d, len(out.sent))
		}
	}
	w, out, _ := answerWorker(1500)
	old := answerOf(vip6, client6, packet.ProtoUDP, 9, true)
	old[7] = 1
	if d, n := dropped(t, moved(t, w, *buf(old))); d != drop.AnswerLoop || n != 1 || len(out.sent) != 0 {
		t.Errorf("hop limit 1: %d dropped as %v", n, d)
	}
}

// TestAnswersRefused: the kernel's reason for a refusal is kept, and the loop ends only when the sockets are closed.
func TestAnswersRefused(t *testing.T) {
	w, out, _ := answerWorker(1500)
	out.err = unix.ENETUNREACH
	if d, n := dropped(t, moved(t, w, *buf(answerOf(vip, client, packet.ProtoUDP, 9,
		true)))); d != drop.SendError || n != 1 || w.LastError() != unix.ENETUNREACH {
		t.Errorf("%d dropped as %v, %v", n, d, w.LastError())
	}
	out.err, out.mtuErr = unix.EMSGSIZE, fmt.Errorf("path MTU: UDP socket: %w", unix.EMFILE)
	if d, n := dropped(t, moved(t, w, *buf(answerOf(vip, client, packet.ProtoUDP, 9,
		true)))); d != drop.SendError ||
		n != 2 || w.LastError() != unix.EMFILE {
		t.Errorf("unknown path MTU: %d dropped as %v, %v", n, d, w.LastError())
	}
	out.err = os.ErrClosed
	if err := w.move([]packet.Buf{*buf(answerOf(vip, client, packet.ProtoUDP, 9, true))}); err == nil {
		t.Error("goes on with closed sockets")
	}
}

func TestAnswersAllocateNothing(t *testing.T) {
	w := NewAnswerWorker(nil, sinkhole{}, &gro{}, inForce(policy()), NewSent(), 1)
	small, large := answerOf(vip, client, packet.ProtoUDP, 100, true), answerOf(vip6, client6, packet.ProtoTCP, 30_000,
		true)
	bufs := packet.NewBufs(2)
	if n := testing.AllocsPerRun(100, func() {
		bufs[0].SetLen(copy(bufs[0].Room(), small))
		bufs[1].SetLen(copy(bufs[1].Room(), large))
		bufs[1].Offload = packet.Offload{GSO: packet.GSOTCP, Size: 1400, Partial: true, CsumStart: 40, CsumOffset: 16}
		if err := w.move(bufs); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

// sinkhole is an AnswerSink that accepts everything.
type sinkhole struct{}

func (sinkhole) Send(out []egress.Outgoing) (int, error) { return len(out), nil }
func (sinkhole) PathMTU(_, _ netip.Addr) (int, error)    { return packet.MaxLen, nil }

// FuzzAnswers wants of all that the kernel may read from the device: what is sent is a whole packet from a VIP to a
// client, and each packet is counted.
func FuzzAnswers(f *testing.F) {
	f.Add(answerOf(vip, client, packet.ProtoUDP, 1400, false), uint8(0), uint16(0), uint16(0))
	f.Add(answerOf(vip6, client6, packet.ProtoTCP, 3000, true), uint8(packet.GSOTCP), uint16(1400), uint16(40))
	f.Add(answerOf(vip, client, packet.ProtoUDP, 3000, true), uint8(packet.GSOUDP), uint16(1200), uint16(20))
	w, out, tun := answerWorker(1300)
	in := &packet.NewBufs(1)[0]
	f.Fuzz(func(t *testing.T, b []byte, gso uint8, size, start uint16) {
		if len(b) > packet.MaxLen {
			return
		}
		in.SetLen(copy(in.Room(), b))
		out.sent, w.counters, w.sent = nil, stats.Counters{}, NewSent()
		in.Offload = packet.Offload{GSO: packet.GSO(gso % 4), Size: size, Partial: start > 0, CsumStart: start,
			CsumOffset: 6 + 10*(start&1)}
		tun.out = nil
		tally := moved(t, w, *in)
		if _, n := dropped(t, tally); tally.InPackets != 1 || tally.OutPackets != uint64(len(out.sent)) ||
			len(out.sent) == 0 && n == 0 {
			t.Fatalf("in %d, out %d, sent %d, refused %d", tally.InPackets, tally.OutPackets, len(out.sent), n)
		}
		for _, s := range out.sent {
			src, dst, n := ends(s)
			if n != len(s) || !w.inForce.Load().answers(src, dst) || len(s) > 1300 {
				t.Fatalf("%d bytes: %x", len(s), s)
			}
		}
	})
}
