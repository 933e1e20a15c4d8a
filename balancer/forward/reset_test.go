package forward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

const (
	segmentSeq = 0xfffffff0 // sequence numbers wrap behind it
	segmentAck = 0x12345678
)

// segment is a TCP packet from the client to port of the VIP, IPv6 if six, with n bytes of payload and 4 bytes of
// options. Its checksum is right, or, if partial, that of the pseudo-header only.
func segment(six bool, port uint16, flags byte, n int, partial bool) []byte {
	t := make([]byte, 24+n)
	binary.BigEndian.PutUint16(t, 4711)
	binary.BigEndian.PutUint16(t[2:], port)
	binary.BigEndian.PutUint32(t[4:], segmentSeq)
	binary.BigEndian.PutUint32(t[8:], segmentAck)
	t[12], t[13] = 6<<4, flags
	copy(t[20:], []byte{1, 1, 1, 0}) // no operation, end of options
	for i := range t[24:] {
		t[24+i] = byte(i * 3)
	}
	var b []byte
	var pseudo uint64
	if six {
		h := ip6(packet.ProtoTCP, t)
		h.SetTrafficClass(0xbb)
		b, t, pseudo = h, h[40:], h.PseudoSum(packet.ProtoTCP, len(t))
	} else {
		h := ip(packet.ProtoTCP, true, t)
		h.SetTOS(0xbb)
		h.SetChecksum()
		b, t, pseudo = h, h[20:], h.PseudoSum(len(t))
	}
	if partial {
		binary.BigEndian.PutUint16(t[16:], packet.Fold(pseudo))
	} else {
		packet.PutChecksum(t[16:], packet.Sum(t, pseudo), false)
	}
	return b
}

// checkReset checks that out is the one RST from the VIP to the client that answers a segment, with that sequence
// number, flags and acknowledgement number.
func checkReset(t *testing.T, name string, out [][]byte, six bool, port uint16, flags byte, seq, ack uint32) {
	t.Helper()
	if len(out) != 1 {
		t.Errorf("%s: %d answers, want 1", name, len(out))
		return
	}
	var p packet.Info
	d := p.Parse(out[0])
	want := packet.Flow{Src: vip, Dst: client, SrcPort: port, DstPort: 4711, Proto: packet.ProtoTCP}
	if six {
		want.Src, want.Dst = vip6, client6
	}
	if d != drop.Accept || p.Flow != want || p.Len != len(out[0]) || p.Len-p.Offset != 20 {
		t.Errorf("%s: %v, flow %v, want %v: %x", name, d, p.Flow, want, out[0])
		return
	}
	r := out[0][p.Offset:]
	var pseudo uint64
	var tos, ttl byte
	if h := packet.IPv6(out[0]); six {
		pseudo, tos, ttl = h.PseudoSum(packet.ProtoTCP, 20), h.TrafficClass(), h.HopLimit()
	} else {
		h := packet.IPv4(out[0])
		pseudo, tos, ttl = h.PseudoSum(20), h.TOS(), h.TTL()
		if !h.DF() {
			t.Errorf("%s: no DF: %x", name, out[0])
		}
	}
	if tos != 0xb8 || ttl != 64 || packet.Fold(packet.Sum(r, pseudo)) != 0xffff || r[12] != 5<<4 || r[13] != flags ||
		binary.BigEndian.Uint32(r[4:]) != seq || binary.BigEndian.Uint32(r[8:]) != ack {
		t.Errorf("%s: RST is %x, want flags %#x, sequence %#x, acknowledgement %#x", name, out[0], flags, seq, ack)
	}
}

// TestReset: a TCP packet of no known connection is counted as no_connection and answered with a RST (RFC 9293, section
// 3.10.7.1), if that is wanted and right.
func TestReset(t *testing.T) {
	const fin, syn, rst, ack, psh = packet.FlagFIN, packet.FlagSYN, packet.FlagRST, packet.FlagACK, packet.FlagPSH
	const none = 0xff // no answer
	partial := packet.Offload{Partial: true, CsumOffset: 16}
	super := packet.Offload{GSO: packet.GSOTCP, Size: 1400, Partial: true, CsumOffset: 16}
	mended := func(change func(b []byte, at int)) func(b []byte, at int) {
		return func(b []byte, at int) { change(b, at); finish(b, at) }
	}
	for _, c := range []struct {
		name    string
		flags   byte
		n       int // payload in bytes
		offload packet.Offload
		mend    func(b []byte, at int) // at: offset of the TCP header
		want    byte                   // flags of the RST
		seq     uint32
		ack     uint32
	}{
		{name: "ACK", flags: ack, want: rst, seq: segmentAck},
		{name: "data", flags: ack | psh, n: 1000, want: rst, seq: segmentAck},
		{name: "FIN and ACK", flags: fin | ack, want: rst, seq: segmentAck},
		{name: "no flags", n: 100, want: rst | ack, ack: 100 - 16},
		{name: "FIN", flags: fin, n: 3, want: rst | ack, ack: segmentSeq + 4},
		{name: "unfinished checksum", flags: fin, n: 5, offload: partial, want: rst | ack, ack: segmentSeq + 6},
		{name: "GSO packet", flags: psh, n: 40_000, offload: super, want: rst | ack, ack: 40_000 - 16},
		{name: "GSO packet with ACK", flags: ack, n: 40_000, offload: super, want: rst, seq: segmentAck},

		{name: "RST", flags: rst, want: none},
		{name: "RST and ACK", flags: rst | ack, want: none},
		{name: "RST and SYN", flags: rst | syn, want: none},
		{name: "wrong checksum", flags: ack, mend: func(b []byte, at int) { b[at+17]++ }, want: none},
		{name: "long header", flags: ack, mend: mended(func(b []byte, at int) { b[at+12] = 7 << 4 }), want: none},
		{name: "short header", flags: ack, mend: mended(func(b []byte, at int) { b[at+12] = 4 << 4 }), want: none},
		{name: "from multicast", flags: ack, mend: mended(func(b []byte, _ int) { fromMany(b) }), want: none},
	} {
		for _, six := range []bool{false, true} {
			for _, silent := range []bool{false, true} {
				name := fmt.Sprintf("%s, six %v, drop %v", c.name, six, silent)
				b := segment(six, 81, c.flags, c.n, c.offload.Partial)
				at := 20
				if six {
					at = 40
				}
				if c.mend != nil {
					c.mend(b, at)
				}
				var s script
				cfg := siteConfig(real1, encap.KindIPIP, 1500)
				cfg.Options.NoResets = silent
				w := testWorker(&s, &s, nil, balancerOf(t, cfg), NewShared(), func() conntab.Ticks { return 1 })
				w.bufs[0].SetLen(copy(w.bufs[0].Room(), b))
				w.bufs[0].Offload = c.offload
				if c.offload.Partial {
					w.bufs[0].Offload.CsumStart = uint16(at)
				}
				w.forward(w.bufs[:1])
				var tally stats.Tally
				w.Read(&tally)
				answered := c.want != none && !silent
				if tally.Drops[drop.NoConnection] != 1 || tally.Resets != uint64(len(s.out)) ||
					tally.OutPackets != tally.Resets {
					t.Errorf("%s: counted %+v", name, tally)
				}
				if !answered {
					if len(s.out) != 0 {
						t.Errorf("%s: answered with %x", name, s.out)
					}
					continue
				}
				checkReset(t, name, s.out, six, 81, c.want, c.seq, c.ack)
			}
		}
	}
}

// finish computes the checksums of the TCP packet b, whose TCP header begins at at.
func finish(b []byte, at int) {
	t := b[at:]
	t[16], t[17] = 0, 0
	if at == 40 {
		packet.PutChecksum(t[16:], packet.Sum(t, packet.IPv6(b).PseudoSum(packet.ProtoTCP, len(t))), false)
		return
	}
	packet.IPv4(b).SetChecksum()
	packet.PutChecksum(t[16:], packet.Sum(t, packet.IPv4(b).PseudoSum(len(t))), false)
}

// fromMany gives b a multicast address as source.
func fromMany(b []byte) {
	if b[0]>>4 == 6 {
		copy(b[8:24], netip.MustParseAddr("ff02::1").AsSlice())
		return
	}
	copy(b[12:16], []byte{224, 0, 0, 1})
}

// TestResetOfFragments: a TCP packet that came in fragments is answered as a whole one.
func TestResetOfFragments(t *testing.T) {
	whole := segment(false, 81, packet.FlagFIN, 800, false)
	first, second := bytes.Clone(whole[:20+400]), append(bytes.Clone(whole[:20]), whole[20+400:]...)
	for i, f := range []packet.IPv4{first, second} {
		f.SetTotalLen(len(f))
		binary.BigEndian.PutUint16(f[6:], []uint16{0x2000, 400 / 8}[i])
		f.SetChecksum()
	}
	s := script{in: [][]byte{first, second}}
	w := testWorker(&s, &s, nil, newSite(t, real1, encap.KindIPIP, 1500), NewShared(),
		func() conntab.Ticks { return 1 })
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	checkReset(t, "fragments", s.out, false, 81, packet.FlagRST|packet.FlagACK, 0, (segmentSeq+801)&0xffffffff)
}

// TestResetOnlyOfTCP: a packet of an unknown SCTP association gets no answer.
func TestResetOnlyOfTCP(t *testing.T) {
	b := newSite(t, real1, encap.KindIPIP, 1500)
	cfg := balancer.Config{Services: []balancer.Service{{Name: "sctp", VIPs: []netip.Addr{vip},
		Protocol: packet.ProtoSCTP,
		Ports:    []balancer.PortRange{{First: 81, Last: 81}}, Scheduler: "rr"}}}
	if err := b.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 32)
	data[1], data[3], data[15] = 1, 81, 16 // ports; a DATA chunk of 16 bytes
	s := script{in: [][]byte{ip(packet.ProtoSCTP, true, data)}}
	w := testWorker(&s, &s, nil, b, NewShared(), func() conntab.Ticks { return 1 })
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	var tally stats.Tally
	w.Read(&tally)
	if len(s.out) != 0 || tally.Drops[drop.NoConnection] != 1 {
		t.Errorf("%d answers, counted %v", len(s.out), tally.Drops)
	}
}

// TestResetsAreBounded: a worker sends 1,000 resets a second, to one client as to several, and allocates nothing for
// them.
func TestResetsAreBounded(t *testing.T) {
	now := conntab.Ticks(1)
	var s script
	w := testWorker(&s, &s, nil, newSite(t, real1, encap.KindIPIP, 1500), NewShared(),
		func() conntab.Ticks { return now })
	in := segment(false, 81, packet.FlagACK, 100, false)
	fill := func() {
		for i := range w.bufs {
			w.bufs[i].SetLen(copy(w.bufs[i].Room(), in))
		}
		w.forward(w.bufs)
	}
	for range 10 {
		fill()
	}
	burst := len(s.out)
	if burst != 50 {
		t.Errorf("%d resets at once, want 50", burst)
	}
	for range 2 * conntab.PerSecond { // two seconds
		now++
		for range 10 {
			fill()
		}
	}
	if n := len(s.out) - burst; n < 1900 || n > 2100 {
		t.Errorf("%d resets in two seconds, want 2000", n)
	}
	site := newSite(t, real1, encap.KindIPIP, 1500)
	w = testWorker(&s, discard{}, nil, site, NewShared(), func() conntab.Ticks { now++; return now })
	if n := testing.AllocsPerRun(200, fill); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

// TestResetWithoutService: a TCP packet that opens no connection gets a RST from a VIP's port without service, as far
// as no_service wants an answer: a client whose connection is established takes no ICMP error for its end.
func TestResetWithoutService(t *testing.T) {
	for _, silent := range []bool{false, true} {
		for _, six := range []bool{false, true} {
			s := script{in: [][]byte{segment(six, 9, packet.FlagACK, 10, false)}}
			cfg := siteConfig(real1, encap.KindIPIP, 1500)
			cfg.Options = balancer.Options{Silent: silent, NoResets: true} // NoResets is of no meaning here
			w := testWorker(&s, &s, nil, balancerOf(t, cfg), NewShared(), func() conntab.Ticks { return 1 })
			if err := w.Run(); err != nil {
				t.Fatal(err)
			}
			var tally stats.Tally
			w.Read(&tally)
			if tally.Drops[drop.NoService] != 1 {
				t.Errorf("counted %v", tally.Drops)
			}
			if silent {
				if len(s.out) != 0 {
					t.Errorf("six %v: answered though no_service is drop", six)
				}
				continue
			}
			checkReset(t, fmt.Sprintf("six %v", six), s.out, six, 9, packet.FlagRST, segmentAck, 0)
		}
	}
}

// TestVIPThatHasLeft: packets for a VIP that no service has any more are refused as those to a port without service, as
// long as the VIP is among Config.LeftVIPs. Pings are not answered then.
func TestVIPThatHasLeft(t *testing.T) {
	echo := make([]byte, 64)
	echo[0] = packet.ICMPEcho
	binary.BigEndian.PutUint16(echo[2:], packet.Checksum(echo))
	in := [][]byte{tcp(81, packet.FlagSYN, 0), ip6(packet.ProtoTCP, tcp(81, packet.FlagSYN, 0)[20:]),
		udp(53, false, 10), udp6(53, 10), ip(packet.ProtoICMP, false, echo),
		segment(false, 81, packet.FlagACK, 0, false), segment(true, 81, packet.FlagACK, 0, false)}
	for _, left := range []bool{false, true} {
		for _, silent := range []bool{false, true} {
			b := newSite(t, real1, encap.KindIPIP, 1500)
			cfg := balancer.Config{Options: balancer.Options{Silent: silent}}
			if left {
				cfg.LeftVIPs = []netip.Addr{vip, vip6}
			}
			if err := b.Apply(cfg); err != nil {
				t.Fatal(err)
			}
			var unreachable, resets int
			for _, p := range in { // each by itself: the answers to one client are bounded
				s := script{in: [][]byte{bytes.Clone(p)}}
				w := testWorker(&s, &s, nil, b, NewShared(), func() conntab.Ticks { return 1 })
				if err := w.Run(); err != nil {
					t.Fatal(err)
				}
				var tally stats.Tally
				w.Read(&tally)
				if tally.Drops[drop.NoService] != 1 {
					t.Errorf("left %v: counted %v", left, tally.Drops)
				}
				resets += int(tally.Resets)
				unreachable += len(s.out) - int(tally.Resets)
			}
			wantUnreachable, wantResets := 4, 2
			if !left || silent {
				wantUnreachable, wantResets = 0, 0
			}
			if unreachable != wantUnreachable || resets != wantResets {
				t.Errorf("left %v, silent %v: %d port unreachable, %d RST; want %d and %d",
					left, silent, unreachable, resets, wantUnreachable, wantResets)
			}
		}
	}
	// Apply takes a list that is the only change.
	b := newSite(t, real1, encap.KindIPIP, 1500)
	for _, list := range [][]netip.Addr{{vip}, {vip, vip6}, nil} {
		if err := b.Apply(balancer.Config{LeftVIPs: list}); err != nil {
			t.Fatal(err)
		}
		if was := b.Snapshot().WasVIP(vip); was != (len(list) > 0) {
			t.Errorf("%v: WasVIP(%v) is %v", list, vip, was)
		}
	}
}
