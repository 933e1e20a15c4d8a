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

// TestSizes: at every MTU and size, in and over both families, a packet that fits is sent whole. One that may be
// fragmented, or is no larger than the smallest MTU, is sent in outer fragments. For any other the sender gets an ICMP
// error with the right MTU.
func TestSizes(t *testing.T) {
	for _, real := range []netip.Addr{real1, real6} {
		for _, kind := range []encap.Kind{encap.KindIPIP, encap.KindGRE, encap.KindGUE, encap.KindFOU} {
			for _, mtu := range []int{1280, 1300, 1500, 9000} {
				b := newSite(t, real, kind, mtu)
				inner := b.Snapshot().DestsByAddr(real)[0].Inner()
				for _, in := range []struct {
					name  string
					n     int // the largest packet that goes out whole
					told  int // the size that a larger one is answered with; 0: none, it goes out in fragments
					make  func(n int) []byte
					least int // below which no sender is told to go
				}{
					{"4", inner, 0, func(n int) []byte { return udp(53, false, n-28) }, 0},
					{"4 with DF", inner, inner, func(n int) []byte { return udp(53, true, n-28) }, 68},
					{"6", inner, max(inner, 1280), func(n int) []byte { return udp6(53, n-48) }, 1280},
				} {
					for _, n := range []int{inner - 1, inner, inner + 1, 1279, 1280, 1281, mtu, mtu + 100} {
						name := fmt.Sprintf("%s in %v over %v, MTU %d, %d bytes", in.name, kind, real, mtu, n)
						p := in.make(n)
						s := script{in: [][]byte{bytes.Clone(p)}}
						w := testWorker(&s, &s, nil, b, NewShared(), func() conntab.Ticks { return 1 })
						if err := w.Run(); err != nil {
							t.Fatal(err)
						}
						var tally stats.Tally
						w.Read(&tally)
						whole, refused := n <= in.n, n > in.n && in.told > 0 && n > in.least
						if refused != (tally.Drops[drop.TooBig] == 1) || !refused &&
							tally.Drops != ([drop.NumReasons]uint64{}) {
							t.Errorf("%s: counted %v", name, tally.Drops)
							continue
						}
						if refused {
							checkTold(t, name, s.out, p, in.told)
							continue
						}
						if whole != (len(s.out) == 1) {
							t.Errorf("%s: %d packets", name, len(s.out))
							continue
						}
						out := s.out[0]
						if !whole {
							out = putTogether(t, s.out, mtu)
						}
						if len(out) != n+mtu-inner || !bytes.Equal(out[mtu-inner:], p) || len(s.out[0]) > mtu {
							t.Errorf("%s: out went %x", name, out)
						}
					}
				}
			}
		}
	}
}

// checkTold checks that out is one ICMP error about p with an MTU.
func checkTold(t *testing.T, name string, out [][]byte, p []byte, size int) {
	t.Helper()
	if len(out) != 1 {
		t.Errorf("%s: %d answers", name, len(out))
		return
	}
	q, d := packet.QuotedFlow(out[0])
	var in, answer packet.Info
	in.Parse(p)
	if d != drop.Accept || !q.TooBig() || q.MTU != size || q.Flow != in.Flow ||
		answer.Parse(out[0]) != drop.Accept || answer.Flow.Src != in.Flow.Dst {
		t.Errorf("%s: %v, size %d, want %d: %x", name, d, q.MTU, size, out[0])
	}
}

// TestSuperPacketFitsIPv6: a GSO packet over IPv6 is cut to what fits the tunnel, also below 1280 bytes.
func TestSuperPacketFitsIPv6(t *testing.T) {
	for _, mtu := range []int{1280, 1500} {
		for _, real := range []netip.Addr{real1, real6} {
			b := newSite(t, real, encap.KindIPIP, mtu)
			if err := b.Apply(balancer.Config{Services: []balancer.Service{{Name: "web", VIPs: []netip.Addr{vip6},
				Protocol: packet.ProtoTCP,
				Ports:    []balancer.PortRange{{First: 80, Last: 80}}, Scheduler: "rr",
				Realservers: []balancer.Realserver{
					b.Snapshot().Status()[0].Realservers[0].Realserver}}}}); err != nil {
				t.Fatal(err)
			}
			var s script
			w := testWorker(&s, &s, nil, b, NewShared(), func() conntab.Ticks { return 1 })
			const n = 30_000
			syn, data := ip6(packet.ProtoTCP, tcp(80, packet.FlagSYN, 0)[20:]),
				ip6(packet.ProtoTCP, tcp(80, packet.FlagACK, n)[20:])
			w.bufs[0].SetLen(copy(w.bufs[0].Room(), syn))
			w.bufs[1].SetLen(copy(w.bufs[1].Room(), data))
			w.bufs[1].Offload = packet.Offload{GSO: packet.GSOTCP, Size: 1440, Partial: true, CsumStart: 40,
				CsumOffset: 16}
			w.forward(w.bufs[:2])
			got := 0
			for i, o := range s.out[1:] {
				overhead := 20
				if !real.Is4() {
					overhead = 40
				}
				in := packet.IPv6(o[overhead:])
				if len(o) > mtu || in.Check() != drop.Accept || in.TotalLen() != len(in) ||
					packet.Fold(packet.Sum(in[40:], in.PseudoSum(packet.ProtoTCP, len(in)-40))) != 0xffff {
					t.Fatalf("MTU %d: packet %d is %x", mtu, i, o)
				}
				got += len(in) - 60
			}
			if got != n {
				t.Errorf("MTU %d over %v: %d bytes came out, want %d", mtu, real, got, n)
			}
		}
	}
}

// TestNobodyThere: a packet to a VIP's port without service, or without a realserver for it, is answered with "port
// unreachable" from the VIP, unless an answer is forbidden or the configuration wants none.
func TestNobodyThere(t *testing.T) {
	rst, toMany, fromMany, stranger := tcp(9, packet.FlagRST, 0), udp(9, false, 9), udp(9, false, 9), udp(9, false, 9)
	copy(toMany[16:20], []byte{224, 0, 0, 1})
	copy(fromMany[12:16], []byte{255, 255, 255, 255})
	stranger[19] = 81
	for _, p := range []packet.IPv4{toMany, fromMany, stranger} {
		p.SetChecksum()
	}
	tcp6 := func(port uint16, flags byte) []byte { return ip6(packet.ProtoTCP, tcp(port, flags, 0)[20:]) }
	for _, c := range []struct {
		name   string
		in     []byte
		d      drop.Reason
		answer bool
	}{
		{"TCP, no service", tcp(9, packet.FlagSYN, 0), drop.NoService, true},
		{"UDP, no service", udp(9, true, 3000), drop.NoService, true},
		{"TCP over IPv6, no service", tcp6(9, packet.FlagSYN), drop.NoService, true},
		{"UDP over IPv6, no service", udp6(9, 3000), drop.NoService, true},
		{"no realserver", tcp(81, packet.FlagSYN, 0), drop.NoRealserver, true},
		{"no realserver over IPv6", tcp6(81, packet.FlagSYN), drop.NoRealserver, true},
		{"RST", rst, drop.NoService, false},
		{"multicast", toMany, drop.NoService, false},
		{"from broadcast", fromMany, drop.NoService, false},
		{"no VIP", stranger, drop.NoService, false},
	} {
		for _, silent := range []bool{false, true} {
			s := script{in: [][]byte{bytes.Clone(c.in)}}
			b, cfg := newSite(t, real1, 0, 1500), siteConfig(real1, 0, 1500)
			cfg.Options.Silent = silent
			if err := b.Apply(cfg); err != nil {
				t.Fatal(err)
			}
			w := testWorker(&s, &s, nil, b, NewShared(), func() conntab.Ticks { return 1 })
			if err := w.Run(); err != nil {
				t.Fatal(err)
			}
			var tally stats.Tally
			w.Read(&tally)
			if tally.Drops[c.d] != 1 || len(s.out) > 1 || (len(s.out) == 1) != (c.answer && !silent) {
				t.Errorf("%s, silent %v: %d answers, counted %v", c.name, silent, len(s.out), tally.Drops)
				continue
			}
			if len(s.out) == 1 {
				q, d := packet.QuotedFlow(s.out[0])
				var in, answer packet.Info
				in.Parse(c.in)
				if kind := [2]uint8{q.Type, q.Code}; d != drop.Accept || kind != [2]uint8{3, 3} &&
					kind != [2]uint8{1, 4} || q.Flow != in.Flow ||
					answer.Parse(s.out[0]) != drop.Accept || answer.Flow.Src != in.Flow.Dst {
					t.Errorf("%s: %v, %x", c.name, d, s.out[0])
				}
			}
		}
	}
}

// TestAnswersAreBounded: one client's floods get a few answers, and do not reduce another client's. Other errors do not
// use up the limit of MTU errors.
func TestAnswersAreBounded(t *testing.T) {
	var s script
	now := conntab.Ticks(1)
	w := testWorker(&s, &s, nil, newSite(t, real1, 0, 1500), NewShared(), func() conntab.Ticks { return now })
	for range 2000 {
		s.in = append(s.in, udp(9, false, 10), udp(53, true, 1480))
	}
	const clients = 8 // clients share bounds by a random hash: one of the others may share the flood's
	for i := range clients {
		other := udp(53, true, 1480)
		other[15] = byte(99 + i)
		other.SetChecksum()
		s.in = append(s.in, other)
	}
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	var ports, sizes, others int
	for _, o := range s.out {
		switch q, _ := packet.QuotedFlow(o); {
		case packet.IPv4(o).Dst() != client:
			others++
		case q.TooBig():
			sizes++
		default:
			ports++
		}
	}
	if ports != 6 || sizes != 20 || others < clients-2 {
		t.Errorf("%d port unreachable, %d sizes, %d sizes to others; want 6, 20, %d or a few less", ports, sizes,
			others, clients)
	}
	now += conntab.PerSecond
	s.out = nil
	for range 100 {
		s.in = append(s.in, udp(9, false, 10))
	}
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	if len(s.out) != 1 {
		t.Errorf("%d answers a second later, want 1", len(s.out))
	}
}

// TestErrorsReachTheirRealserver: an ICMP error from a client's path goes to the connection's realserver, whole and
// unchanged, even if the service has changed. It neither makes nor prolongs a connection.
func TestErrorsReachTheirRealserver(t *testing.T) {
	for _, six := range []bool{false, true} {
		for _, left := range []bool{false, true} {
			b := newSite(t, real6, encap.KindIPIP, 1500)
			var s script
			now := conntab.Ticks(1)
			w := testWorker(&s, &s, nil, b, NewShared(), func() conntab.Ticks { return now })
			request := []byte(udp(53, true, 20))
			if six {
				request = udp6(53, 20)
			}
			answer := flipped(request)
			e := errorAbout(answer, 100, 3, 4, 1400)
			unknown := flipped(request)
			if six {
				e = errorAbout(answer, 100, 2, 0, 1400)
				unknown[43]++
			} else {
				unknown[23]++
			}
			bad := bytes.Clone(e)
			bad[len(bad)-1]++
			kind := byte(3)
			if six {
				kind = 1
			}
			s.in = [][]byte{e, request, bytes.Clone(e), bad, errorAbout(unknown, 100, kind, 1, 0)}
			if !left {
				s.in = append(s.in, udp(9, false, 1)) // another matter
			}
			if err := w.Run(); err != nil {
				t.Fatal(err)
			}
			if len(s.out) < 2 || !bytes.Equal(s.out[1][40:], e) {
				t.Fatalf("six %v: %d packets out", six, len(s.out))
			}
			var tally stats.Tally
			w.Read(&tally)
			if tally.Drops[drop.NoConnection] != 2 || tally.Drops[drop.BadChecksum] != 1 {
				t.Errorf("six %v: counted %v", six, tally.Drops)
			}
			if left {
				if err := b.Apply(balancer.Config{}); err != nil {
					t.Fatal(err)
				}
			}
			now += 299 * conntab.PerSecond // UDP's time but for a second
			s.in, s.out = [][]byte{bytes.Clone(e)}, nil
			if err := w.Run(); err != nil {
				t.Fatal(err)
			}
			if len(s.out) != 1 || !bytes.Equal(s.out[0][40:], e) {
				t.Errorf("six %v, left %v: %d packets out", six, left, len(s.out))
			}
			now += conntab.PerSecond
			s.in, s.out = [][]byte{bytes.Clone(e)}, nil
			if err := w.Run(); err != nil {
				t.Fatal(err)
			}
			if len(s.out) != 0 {
				t.Errorf("six %v: an error has prolonged its connection", six)
			}
		}
	}
}

// flipped returns a realserver's answer to the UDP packet b: addresses and ports are exchanged.
func flipped(b []byte) []byte {
	r := bytes.Clone(b)
	n, at, size := 20, 12, 4
	if b[0]>>4 == 6 {
		n, at, size = 40, 8, 16
	}
	copy(r[at:], b[at+size:at+2*size])
	copy(r[at+size:], b[at:at+size])
	copy(r[n:], b[n+2:n+4])
	copy(r[n+2:], b[n:n+2])
	if n == 20 {
		packet.IPv4(r).SetChecksum()
	}
	return r
}

// TestNothingAllocatesOutOfTheOrdinary: answers, relayed errors and fragments need no allocation.
func TestNothingAllocatesOutOfTheOrdinary(t *testing.T) {
	for _, real := range []netip.Addr{real1, real6} {
		now := conntab.Ticks(1)
		w := testWorker(&script{}, discard{}, nil, newSite(t, real, encap.KindGRE, 1300), NewShared(),
			func() conntab.Ticks { now += 100; return now })
		request, request6 := udp(53, true, 20), udp6(53, 20)
		echo := make([]byte, 64)
		echo[0] = packet.ICMPEcho
		binary.BigEndian.PutUint16(echo[2:], packet.Checksum(echo))
		in := [][]byte{request, request6, udp(53, false, 1400), udp(53, true, 1400), udp6(53, 1400), udp6(53, 1230),
			udp(9, false, 10), udp6(9, 10),
			tcp(81, packet.FlagSYN, 0), errorAbout(flipped(request), 100, 3, 4, 1400), errorAbout(flipped(request6),
				100, 2, 0, 1400),
			ip(packet.ProtoICMP, false, echo), ip(packet.ProtoICMP, false, make([]byte, 8))}
		if n := testing.AllocsPerRun(1000, func() {
			for i, b := range in {
				w.bufs[i].SetLen(copy(w.bufs[i].Room(), b))
			}
			w.forward(w.bufs[:len(in)])
		}); n != 0 {
			t.Errorf("%v allocations a batch", n)
		}
		var tally stats.Tally
		w.Read(&tally)
		if tally.Drops[drop.SendError]+tally.Drops[drop.BadChecksum]+tally.Drops[drop.NoConnection] != 0 {
			t.Errorf("counted %v", tally.Drops)
		}
	}
}
