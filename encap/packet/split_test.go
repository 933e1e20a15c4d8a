package packet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"vstun/encap/packet/drop"
)

// super is a TCP or UDP GSO packet of n bytes of payload, as a TUN device with offloads gives it: the transport
// checksum is that of the pseudo-header. Over IPv6 extension headers stand before the transport header.
func super(t testing.TB, six6 bool, proto byte, n, size int, extensions ...[]byte) (*Buf, *Info) {
	t.Helper()
	tr := ports(4711, 80, 4+n)
	o := Offload{GSO: GSOUDP, Size: uint16(size), Partial: true, CsumOffset: UDPChecksumAt}
	if proto == ProtoTCP {
		tr = ports(4711, 80, 16+12+n)                       // with timestamps
		binary.BigEndian.PutUint32(tr[4:], 0xffffff00)      // wraps on the way
		tr[12], tr[13] = 0x80, FlagFIN|FlagPSH|FlagACK|0x80 // CWR
		o.GSO, o.CsumOffset = GSOTCP, TCPChecksumAt
	} else {
		binary.BigEndian.PutUint16(tr[4:], uint16(8+n))
	}
	for i := range n {
		tr[len(tr)-n+i] = byte(i * 31 >> 3)
	}
	var b []byte
	if six6 {
		next := proto
		if len(extensions) > 0 {
			next = extDestOpts
		}
		b = six(next, slices.Concat(extensions...), tr)
		b[3] = 0x99 // a flow label
	} else {
		b = make(IPv4, 20+len(tr))
		IPv4(b).Encode(IPv4Fields{
			TOS: 0x28, TotalLen: len(b), TTL: 63, Protocol: proto, Src: [4]byte{192, 0, 2, 1}, Dst: vip4.As4(),
		})
		binary.BigEndian.PutUint16(b[4:], 0xfffe)
		IPv4(b).SetChecksum()
		copy(b[20:], tr)
	}
	o.CsumStart = uint16(len(b) - len(tr))
	pseudo := IPv4(b).PseudoSum(len(tr))
	if six6 {
		pseudo = IPv6(b).PseudoSum(proto, len(tr))
	}
	binary.BigEndian.PutUint16(b[o.CsumStart+o.CsumOffset:], Fold(pseudo))
	buf := &NewBufs(1)[0]
	buf.SetLen(copy(buf.Room(), b))
	buf.Offload = o
	var p Info
	if d := p.Parse(buf.Bytes()); d != drop.Accept || p.Offset != int(o.CsumStart) {
		t.Fatal(d, p)
	}
	return buf, &p
}

// TestSplit6 parses every segment, checks its checksum by the RFC's drawing of it, and puts the payload together again.
func TestSplit6(t *testing.T) {
	for _, c := range []struct {
		proto             byte
		n, size, mtu, out int // out: payload of a segment
		extensions        [][]byte
	}{
		{ProtoTCP, 14280, 1428, 1500, 1428, nil},
		{ProtoTCP, 14281, 1428, 1460, 1388, nil}, // cut finer, as it has to fit
		{ProtoTCP, 65000, 1440, 1460, 1388, nil},
		{ProtoTCP, 100, 1440, 1460, 100, nil},
		{ProtoTCP, 20000, 1400, 1460, 1364, [][]byte{options(extDestOpts, []byte{0x1e, 10, 11: 0}...),
			options(ProtoTCP, 0x1e, 2, 7, 7)}},
		{ProtoUDP, 12000, 1200, 1460, 1200, nil},
		{ProtoUDP, 12001, 1200, 1460, 1200, nil},
		{ProtoUDP, 65000, 1400, 1460, 1400, [][]byte{options(ProtoUDP, 0x1e, 2, 7, 7)}},
		{ProtoUDP, 12000, 1600, 1460, 1600, nil}, // datagrams are not cut
	} {
		for _, overhead := range []int{0, IPv4HeaderLen, IPv6HeaderLen} {
			t.Run(fmt.Sprint(c.proto, c.n, c.size, len(c.extensions), overhead), func(t *testing.T) {
				b, p := super(t, true, c.proto, c.n, c.size, c.extensions...)
				whole := IPv6(bytes.Clone(b.Bytes()))
				cut, d := NewCut(b, p, c.mtu)
				if d != drop.Accept || cut.Payload != c.out && c.n > c.out || cut.Headers != len(whole)-c.n {
					t.Fatal(cut, d)
				}
				switch overhead {
				case IPv4HeaderLen:
					IPv4(b.Prepend(overhead)).Encode(IPv4Fields{
						TTL: 64, Protocol: ProtoIPv6, Src: [4]byte{10, 0, 0, 1}, Dst: [4]byte{10, 0, 0, 2},
					})
				case IPv6HeaderLen:
					IPv6(b.Prepend(overhead)).Encode(IPv6Fields{
						TotalLen: IPv6HeaderLen, HopLimit: 64, NextHeader: ProtoIPv6, Src: client6.As16(),
						Dst: vip6.As16(),
					})
				}
				cut.Overhead = overhead
				segs, rest := Split(nil, b, p, cut, make([]byte, PieceRoom))
				if n := (c.n + cut.Payload - 1) / cut.Payload; len(segs) != n ||
					len(rest) != PieceRoom-n*(overhead+cut.Headers) {
					t.Fatalf("%d segments, want %d; %d bytes of room left", len(segs), n, len(rest))
				}
				var got []byte
				seq := uint32(0xffffff00)
				for i, s := range segs {
					first, last := i == 0, i == len(segs)-1
					outer := slices.Concat(s.Head, s.Body)
					switch overhead {
					case IPv4HeaderLen:
						if n := IPv4(outer).TotalLen(); n != len(outer) {
							t.Fatalf("the outer header says %d of %d bytes", n, len(outer))
						}
					case IPv6HeaderLen:
						if IPv6(outer).TotalLen() != len(outer) || IPv6(outer).Check() != drop.Accept {
							t.Fatalf("the outer header says %d of %d bytes", IPv6(outer).TotalLen(), len(outer))
						}
					}
					in := IPv6(outer[overhead:])
					var q Info
					if d := q.Parse(in); d != drop.Accept || q.Len != len(in) || q.Flow != p.Flow ||
						q.Offset != p.Offset {
						t.Fatalf("segment %d: %v %+v", i, d, q)
					}
					if !checkParsed(t, in, &q) {
						t.Fatal("gopacket does not understand it")
					}
					tr := in[q.Offset:]
					if sum := plainChecksum(in, c.proto, tr); sum != 0 {
						t.Fatalf("segment %d: sum %04x", i, sum)
					}
					if !bytes.Equal(in[:4], whole[:4]) || !bytes.Equal(in[6:q.Offset], whole[6:q.Offset]) {
						t.Fatalf("segment %d: headers %x, want %x", i, in[:q.Offset], whole[:q.Offset])
					}
					body := in[cut.Headers:]
					if !last && len(body) != cut.Payload || len(body) == 0 || c.proto == ProtoTCP && len(in) > c.mtu {
						t.Fatalf("segment %d has %d bytes of payload", i, len(body))
					}
					if c.proto == ProtoTCP {
						flags := byte(FlagACK)
						if first {
							flags |= 0x80
						}
						if last {
							flags |= FlagFIN | FlagPSH
						}
						if binary.BigEndian.Uint32(tr[4:]) != seq || tr[13] != flags {
							t.Fatalf("segment %d: %x", i, tr[:20])
						}
						seq += uint32(len(body))
					} else if int(binary.BigEndian.Uint16(tr[4:])) != len(tr) {
						t.Fatalf("datagram %d: %x", i, tr[:8])
					}
					got = append(got, body...)
				}
				if !bytes.Equal(got, whole[cut.Headers:]) {
					t.Error("the payload is not the same")
				}
			})
		}
	}
}

// TestSplitUDPWithoutChecksum: over IPv4 there is none in the datagrams either, over IPv6 there must be one.
func TestSplitUDPWithoutChecksum(t *testing.T) {
	for _, six6 := range []bool{false, true} {
		b, p := super(t, six6, ProtoUDP, 3000, 1000)
		b.Offload.Partial = false
		clear(b.Bytes()[p.Offset+UDPChecksumAt:][:2])
		cut, _ := NewCut(b, p, 1460)
		segs, _ := Split(nil, b, p, cut, make([]byte, PieceRoom))
		for _, s := range segs {
			in := slices.Concat(s.Head, s.Body)
			sum := binary.BigEndian.Uint16(in[p.Offset+UDPChecksumAt:])
			if six6 && plainChecksum(in, ProtoUDP, in[p.Offset:]) != 0 || !six6 && sum != 0 {
				t.Errorf("IPv6 %v: checksum %04x", six6, sum)
			}
		}
	}
}

// TestNewCutHasRoom: what NewCut accepts fits PieceRoom, under the longest tunnel header, however long the
// extension headers.
func TestNewCutHasRoom(t *testing.T) {
	long := options(ProtoTCP, bytes.Repeat([]byte{0x1e, 100, 101: 0}, 10)...)
	accepted := 0
	for size := 1; size < 1400; size += 3 {
		for _, extensions := range [][][]byte{nil, {long}} {
			b, p := super(t, true, ProtoTCP, 64000, size, extensions...)
			cut, d := NewCut(b, p, 9000)
			if d != drop.Accept {
				continue
			}
			accepted++
			IPv6(b.Prepend(Headroom)).Encode(IPv6Fields{
				TotalLen: Headroom, HopLimit: 64, NextHeader: extDestOpts, Src: client6.As16(), Dst: vip6.As16(),
			})
			cut.Overhead = Headroom
			if segs, _ := Split(nil, b, p, cut, make([]byte, PieceRoom)); len(segs) > MaxPieces {
				t.Fatal(len(segs), "pieces")
			}
		}
	}
	if accepted < 500 {
		t.Error("only", accepted, "accepted")
	}
}

func TestFinish6(t *testing.T) {
	for _, proto := range []byte{ProtoTCP, ProtoUDP} {
		for n := range 70 {
			b, p := super(t, true, proto, n, 1400, options(proto))
			b.Offload.GSO = GSONone
			if d := b.Finish(); d != drop.Accept || b.Offload.Partial {
				t.Fatal(d)
			}
			if in := IPv6(b.Bytes()); plainChecksum(in, proto, in[p.Offset:]) != 0 {
				t.Errorf("%d bytes: wrong checksum", n)
			}
		}
	}
	// A sum that comes out as 0 is written as 0xffff.
	b, p := super(t, true, ProtoUDP, 2, 1400)
	in := IPv6(b.Bytes())
	clear(in[p.Offset+8:])
	binary.BigEndian.PutUint16(in[p.Offset+8:], ^Fold(Sum(in[p.Offset:], 0)))
	if b.Finish(); binary.BigEndian.Uint16(in[p.Offset+UDPChecksumAt:]) != 0xffff || plainChecksum(in, ProtoUDP,
		in[p.Offset:]) != 0 {
		t.Errorf("%x", in[p.Offset:])
	}
	b, _ = super(t, true, ProtoUDP, 2, 1400)
	b.Offload.CsumStart = 48
	if d := b.Finish(); d != drop.Offload {
		t.Error("a checksum behind the packet:", d)
	}
}

func TestSplitAllocatesNothing(t *testing.T) {
	b, p := super(t, true, ProtoTCP, 64000, 1400)
	segs, room := make([]Segment, 0, MaxPieces), make([]byte, PieceRoom)
	if n := testing.AllocsPerRun(20, func() {
		cut, _ := NewCut(b, p, 1460)
		Split(segs, b, p, cut, room)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkSplit6(b *testing.B) {
	buf, p := super(b, true, ProtoTCP, 64000, 1400)
	room, segs := make([]byte, PieceRoom), make([]Segment, 0, 100)
	b.SetBytes(64000)
	for b.Loop() {
		cut, _ := NewCut(buf, p, 1460)
		segs, _ = Split(segs[:0], buf, p, cut, room)
	}
}
