package packet

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"testing"

	"vstun/encap/packet/drop"
)

// plainSum is the obvious one's complement sum.
func plainSum(sum uint32, b []byte) uint32 {
	for i, c := range b {
		sum += uint32(c) << (8 * (1 - i%2))
		sum = sum>>16 + sum&0xffff
	}
	return sum
}

// recompute computes all checksums of the packet b anew, the obvious way.
func recompute(b []byte, p *Info) {
	if b[0]>>4 == 4 {
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^uint16(plainSum(0, b[:int(b[0]&15)*4])))
	}
	t := b[p.Offset:p.Len]
	at := map[uint8]int{ProtoTCP: 16, ProtoUDP: 6, ProtoICMP: 2, ProtoICMPv6: 2, ProtoSCTP: 8}[p.Flow.Proto]
	t[at], t[at+1] = 0, 0
	if p.Flow.Proto == ProtoSCTP {
		t[at+2], t[at+3] = 0, 0
		binary.LittleEndian.PutUint32(t[at:], crc32.Checksum(t, crc32.MakeTable(crc32.Castagnoli)))
		return
	}
	sum := uint32(0)
	if p.Flow.Proto != ProtoICMP {
		addrs := b[12:20]
		if b[0]>>4 == 6 {
			addrs = b[8:40]
		}
		sum = plainSum(uint32(p.Flow.Proto)+uint32(len(t)), addrs)
	}
	c := ^uint16(plainSum(sum, t))
	if c == 0 && p.Flow.Proto == ProtoUDP {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(t[at:], c)
}

// randomEnd returns a random address of the family of a, and a random port, sometimes 0.
func randomEnd(rnd *rand.Rand, a netip.Addr) netip.AddrPort {
	b := a.AsSlice()
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	to, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(to, uint16(rnd.Uint32())*uint16(rnd.IntN(4)))
}

// translated returns b with another source or destination, and with checksums that are computed anew.
func translated(b []byte, p *Info, src bool, end netip.AddrPort) []byte {
	b = bytes.Clone(b)
	addr, port := 16, 2
	if b[0]>>4 == 6 {
		addr = 24
	}
	if src {
		addr, port = addr-len(end.Addr().AsSlice()), 0
	}
	copy(b[addr:], end.Addr().AsSlice())
	if end.Port() != 0 {
		binary.BigEndian.PutUint16(b[p.Offset+port:], end.Port())
	}
	recompute(b, p)
	return b
}

// replaced writes b to buf, with another source or destination by ReplaceSrc or ReplaceDst. o is the work that is left
// to do in b.
func replaced(buf *Buf, b []byte, p *Info, o Offload, src bool, end netip.AddrPort) []byte {
	buf.SetLen(copy(buf.Room(), b))
	buf.Offload = o
	if src {
		ReplaceSrc(buf, p, end)
	} else {
		ReplaceDst(buf, p, end)
	}
	return buf.Bytes()
}

// portPacket returns a random packet of TCP, UDP or SCTP with right checksums.
func portPacket(t testing.TB, rnd *rand.Rand) ([]byte, *Info) {
	for {
		b := randomPacket(t, rnd)
		p := &Info{}
		if d := p.Parse(b); d != drop.Accept {
			t.Fatal(d)
		}
		if p.Flow.Proto != ProtoICMP && p.Flow.Proto != ProtoICMPv6 {
			for i := p.Offset + 20; i < len(b); i++ {
				b[i] = byte(rnd.Uint32())
			}
			recompute(b, p)
			return b, p
		}
	}
}

// TestReplace: a translated packet is the one whose checksums are computed anew. A damaged packet stays damaged. An
// unfinished checksum is right once it is finished.
func TestReplace(t *testing.T) {
	rnd, buf := rand.New(rand.NewPCG(5, 6)), &NewBufs(1)[0]
	for range 20000 {
		b, p := portPacket(t, rnd)
		src := rnd.IntN(2) == 0
		end := randomEnd(rnd, p.Flow.Src)
		want := translated(b, p, src, end)
		if got := replaced(buf, b, p, Offload{}, src, end); !bytes.Equal(got, want) {
			t.Fatalf("source %v, %v: %x became\n%x, want\n%x", src, end, b, got, want)
		}
		damaged := bytes.Clone(b)
		damaged[len(b)-1] ^= 1 << rnd.IntN(8)
		got := replaced(buf, damaged, p, Offload{}, src, end)
		if bytes.Equal(got, translated(damaged, p, src, end)) {
			t.Fatalf("a damaged packet is whole again: %x", got)
		}
		if p.Flow.Proto == ProtoSCTP {
			continue // the kernel finishes its checksums before the TUN device
		}
		at := map[uint8]uint16{ProtoTCP: TCPChecksumAt, ProtoUDP: UDPChecksumAt}[p.Flow.Proto]
		o := Offload{Partial: true, CsumStart: uint16(p.Offset), CsumOffset: at}
		partial := bytes.Clone(b)
		binary.BigEndian.PutUint16(partial[p.Offset+int(at):], Fold(PseudoSum(b, p.Flow.Proto, p.Len-p.Offset)))
		replaced(buf, partial, p, o, src, end)
		if d := buf.Finish(); d != drop.Accept || !bytes.Equal(buf.Bytes(), want) {
			t.Fatalf("unfinished: %x became\n%x, want\n%x", partial, buf.Bytes(), want)
		}
		o = Offload{GSO: GSOTCP, Size: 10}
		if p.Flow.Proto == ProtoUDP {
			o.GSO = GSOUDP
		}
		replaced(buf, damaged, p, o, src, end) // the checksum of a GSO packet is of no segment
		fixed := translated(damaged, p, src, end)
		if d := buf.Finish(); d != drop.Accept || !bytes.Equal(buf.Bytes(), fixed) {
			t.Fatalf("GSO: %x became\n%x, want\n%x", damaged, buf.Bytes(), fixed)
		}
	}
}

// TestReplaceUDP: a datagram without a checksum gets one, in a GSO packet none. A datagram in a datagram whose checksum
// is unfinished is left alone. A sum of 0 is never written.
func TestReplaceUDP(t *testing.T) {
	rnd, buf := rand.New(rand.NewPCG(7, 8)), &NewBufs(1)[0]
	zeros := 0
	for range 20000 {
		b, p := portPacket(t, rnd)
		if p.Flow.Proto != ProtoUDP {
			continue
		}
		end := randomEnd(rnd, p.Flow.Src)
		if rnd.IntN(2) == 0 { // aim at a checksum of 0 by the address
			aim := translated(b, p, false, end)
			a := end.Addr().AsSlice()
			n := len(a) - 2
			sum := uint32(binary.BigEndian.Uint16(a[n:])) + uint32(binary.BigEndian.Uint16(aim[p.Offset+6:]))
			binary.BigEndian.PutUint16(a[n:], uint16(sum>>16+sum))
			to, _ := netip.AddrFromSlice(a)
			end = netip.AddrPortFrom(to, end.Port())
		}
		want := translated(b, p, false, end)
		got := replaced(buf, b, p, Offload{}, false, end)
		if !bytes.Equal(got, want) {
			t.Fatalf("%x, want %x", got, want)
		}
		if got[p.Offset+6]&got[p.Offset+7] == 0xff {
			zeros++
		}
		none := bytes.Clone(b)
		none[p.Offset+6], none[p.Offset+7] = 0, 0
		if got := replaced(buf, none, p, Offload{}, false, end); !bytes.Equal(got, want) {
			t.Fatalf("without checksum: %x, want %x", got, want)
		}
		for _, o := range []Offload{{GSO: GSOUDP, Size: 10}, {Partial: true, CsumStart: uint16(p.Offset) + 8}} {
			got := replaced(buf, none, p, o, false, end)
			if got[p.Offset+6]|got[p.Offset+7] != 0 || buf.Offload != o {
				t.Fatalf("without checksum, %+v: %x", o, got)
			}
		}
	}
	if zeros < 1000 {
		t.Errorf("%d checksums of 0", zeros)
	}
}

// TestRaiseTTL: the TTL is one more, but never more than 255, and the header's checksum fits.
func TestRaiseTTL(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 10))
	for i := range 2000 {
		b, p := portPacket(t, rnd)
		at := 8
		if b[0]>>4 == 6 {
			at = 7
		}
		b[at] = byte(i)
		recompute(b, p)
		want := bytes.Clone(b)
		want[at] = byte(min(i%256+1, 255))
		recompute(want, p)
		if RaiseTTL(b); !bytes.Equal(b, want) {
			t.Fatalf("%x, want %x", b[:40], want[:40])
		}
	}
}

// TestReplaceQuoted: an ICMP error about a translated packet becomes the error about the packet before its translation,
// whatever it quotes.
func TestReplaceQuoted(t *testing.T) {
	rnd, buf := rand.New(rand.NewPCG(11, 12)), &NewBufs(1)[0]
	for range 20000 {
		b, p := portPacket(t, rnd)
		src := rnd.IntN(2) == 0
		end := randomEnd(rnd, p.Flow.Src)
		was := netip.AddrPortFrom(p.Flow.Dst, p.Flow.DstPort)
		if src {
			was = netip.AddrPortFrom(p.Flow.Src, p.Flow.SrcPort)
		}
		if end.Port() == 0 || mapped(b[8:]) && b[0]>>4 == 6 {
			continue
		}
		about := replaced(buf, b, p, Offload{}, src, end)
		n := min(len(b), p.Offset+4+2*rnd.IntN(30)) // no half of a checksum
		f := ICMPFields{Type: ICMPUnreachable, Code: ICMPCodeFragNeeded, Rest: 1280}
		if b[0]>>4 == 6 {
			f = ICMPFields{Type: ICMPv6TooBig, Rest: 1280}
		}
		from := randomEnd(rnd, p.Flow.Src).Addr()
		var room, other [ICMPRoom]byte
		e := room[:ICMPError(room[:], about[:n], from, f)]
		q, d := QuotedFlow(e)
		if d != drop.Accept {
			t.Fatalf("%v: %x", d, e)
		}
		if src {
			ReplaceQuotedSrc(e, &q, was)
		} else {
			ReplaceQuotedDst(e, &q, was)
			from = was.Addr()
		}
		want := other[:ICMPError(other[:], b[:n], from, f)]
		if at := q.Payload + sctpChecksumAt; p.Flow.Proto == ProtoSCTP && at < len(e) {
			// Its checksum cannot be computed from a quote: it stays, and the error's is right for that.
			copy(want[at:min(at+4, len(want))], e[at:])
			i := Info{Flow: Flow{Proto: ProtoICMP}, Offset: q.Offset - ICMPHeaderLen, Len: len(want)}
			if b[0]>>4 == 6 {
				i.Flow.Proto = ProtoICMPv6
			}
			recompute(want, &i)
		}
		if !bytes.Equal(e, want) {
			t.Fatalf("source %v, %v, %d bytes of %x: error is\n%x, want\n%x", src, end, n, about, e, want)
		}
	}
}

// TestReplaceAllocatesNothing covers packets and errors of both families.
func TestReplaceAllocatesNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(13, 14))
	buf := &NewBufs(1)[0]
	for range 50 {
		b, p := portPacket(t, rnd)
		end := randomEnd(rnd, p.Flow.Src)
		var room [ICMPRoom]byte
		e := room[:ICMPError(room[:], b, end.Addr(), ICMPFields{Type: 1})]
		if b[0]>>4 == 4 {
			e = room[:PortUnreachable(room[:], b, end.Addr())]
		}
		q, d := QuotedFlow(e)
		if d != drop.Accept {
			t.Fatalf("%v: %x", d, e)
		}
		if n := testing.AllocsPerRun(10, func() {
			buf.SetLen(copy(buf.Room(), b))
			ReplaceSrc(buf, p, end)
			ReplaceDst(buf, p, end)
			RaiseTTL(buf.Bytes())
			ReplaceQuotedDst(e, &q, end)
		}); n != 0 {
			t.Fatalf("%v allocations for %x", n, b)
		}
	}
}

// same reports whether a and b are equal, except that a sum of 0 has two forms.
func same(a, b []byte) bool {
	for i := 0; i+1 < len(a) && len(a) == len(b); i += 2 {
		x, y := binary.BigEndian.Uint16(a[i:]), binary.BigEndian.Uint16(b[i:])
		if x != y && uint32(x)+uint32(y) != 0xffff {
			return false
		}
	}
	return len(a) == len(b)
}

// FuzzReplace: any packet that is translated there and back is what it was. Any ICMP error, too; its checksum is right
// in between.
func FuzzReplace(f *testing.F) {
	rnd := rand.New(rand.NewPCG(15, 16))
	var room [ICMPRoom]byte
	buf := &NewBufs(1)[0]
	for range 20 {
		b, p := portPacket(f, rnd)
		f.Add(b, uint64(3), true)
		e := bytes.Clone(room[:ICMPError(room[:], b, p.Flow.Dst, ICMPFields{Type: 3})])
		f.Add(e, uint64(4), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64, src bool) {
		if len(b) > MaxLen {
			return
		}
		b = bytes.Clone(b)
		fixHeader(b)
		rnd := rand.New(rand.NewPCG(seed, 1))
		if q, d := QuotedFlow(b); d == drop.Accept {
			fuzzQuoted(t, b, &q, src, randomEnd(rnd, q.Flow.Src))
		}
		p := &Info{}
		if p.Parse(b) != drop.Accept {
			return
		}
		switch p.Flow.Proto {
		case ProtoTCP, ProtoUDP, ProtoSCTP:
		default:
			return
		}
		if p.Flow.Proto == ProtoUDP && b[p.Offset+6]|b[p.Offset+7] == 0 {
			recompute(b, p) // it gets a checksum
		}
		was := netip.AddrPortFrom(p.Flow.Dst, p.Flow.DstPort)
		if src {
			was = netip.AddrPortFrom(p.Flow.Src, p.Flow.SrcPort)
		}
		replaced(buf, b, p, Offload{}, src, randomEnd(rnd, p.Flow.Src))
		if was.Port() == 0 {
			return // it can't be put back
		}
		if src {
			ReplaceSrc(buf, p, was)
		} else {
			ReplaceDst(buf, p, was)
		}
		if !same(buf.Bytes(), b) {
			t.Errorf("%x became %x", b, buf.Bytes())
		}
	})
}

func fuzzQuoted(t *testing.T, b []byte, q *Quoted, src bool, end netip.AddrPort) {
	e, was := bytes.Clone(b), netip.AddrPortFrom(q.Flow.Dst, q.Flow.DstPort)
	from := IPv4(b).Src
	if b[0]>>4 == 6 {
		from = IPv6(b).Src
	}
	router := from()
	switch {
	case end.Addr().Is6() && mapped(end.Addr().AsSlice()):
		return
	case src:
		was = netip.AddrPortFrom(q.Flow.Src, q.Flow.SrcPort)
		ReplaceQuotedSrc(e, q, end)
	default:
		ReplaceQuotedDst(e, q, end)
	}
	r, d := QuotedFlow(e)
	if d != drop.Accept || r.Offset != q.Offset || r.Payload != q.Payload ||
		src && r.Flow.Src != end.Addr() || !src && r.Flow.Dst != end.Addr() {
		t.Fatalf("%v, %+v: %x became %x", d, r, b, e)
	}
	if src {
		ReplaceQuotedSrc(e, &r, was)
	} else {
		ReplaceQuotedDst(e, &r, was)
		if router != was.Addr() {
			return // its source was another
		}
	}
	if !same(e, b) {
		t.Errorf("there and back: %x became %x", b, e)
	}
}
