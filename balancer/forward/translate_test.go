package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// written is the writing half of a TUN device. It keeps what is written.
type written struct {
	out    [][]byte
	work   []packet.Offload
	refuse func(b *packet.Buf) bool // the kernel refuses b; nil: none
}

func (w *written) Write(bufs []*packet.Buf) (int, error) {
	for i, b := range bufs {
		if w.refuse != nil && w.refuse(b) {
			return i, unix.EINVAL
		}
		w.out, w.work = append(w.out, bytes.Clone(b.Bytes())), append(w.work, b.Offload)
	}
	return len(bufs), nil
}

// natSite is a worker with services of VS/NAT on ports 80 (TCP) and 53 (UDP) of both VIPs, at ports 8080 and 5353 of a
// realserver of each family, and port 90 in a tunnel.
type natSite struct {
	script
	written
	worker *Worker
	now    conntab.Ticks
}

func natConfig(mtu int) balancer.Config {
	service := func(name string, proto uint8, vip, real netip.Addr, port, rport uint16) balancer.Service {
		return balancer.Service{Name: name, VIPs: []netip.Addr{vip}, Protocol: proto,
			Ports: []balancer.PortRange{{First: port, Last: port}}, Scheduler: "rr",
			Realservers: []balancer.Realserver{{Address: real, Weight: 1,
				Config: method.Config{Kind: method.NAT, Port: rport, MTU: mtu}}}}
	}
	tunnel := service("tunnel", packet.ProtoTCP, vip, real1, 90, 0)
	tunnel.Realservers[0].Config = method.Config{Source: source, MTU: mtu}
	return balancer.Config{Services: []balancer.Service{
		service("web", packet.ProtoTCP, vip, real1, 80, 8080), service("web6", packet.ProtoTCP, vip6, real6, 80, 8080),
		service("dns", packet.ProtoUDP, vip, real1, 53, 5353), service("dns6", packet.ProtoUDP, vip6, real6, 53, 5353),
		service("sig", packet.ProtoSCTP, vip, real1, 2905, 2906), tunnel}}
}

func newNATSite(t testing.TB, mtu int) *natSite {
	t.Helper()
	s := &natSite{now: 1000}
	s.worker = NewWorker(WorkerConfig{Source: &s.script, Raw: &s.script, TUN: &s.written,
		Balancer: balancerOf(t, natConfig(mtu)), Shared: NewShared(), Clock: func() conntab.Ticks { return s.now }})
	return s
}

// run forwards packets, with the same work left to do in each, and returns what is written back and what leaves by raw
// sockets.
func (s *natSite) run(t testing.TB, work packet.Offload, in ...[]byte) (back, raw [][]byte) {
	t.Helper()
	s.written, s.script.out = written{}, nil
	for i, p := range in {
		s.worker.bufs[i].SetLen(copy(s.worker.bufs[i].Room(), p))
		s.worker.bufs[i].Offload = work
	}
	s.worker.forward(s.worker.bufs[:len(in)])
	return s.written.out, s.script.out
}

// made returns a packet of the flow f with n bytes of data and right checksums. A TCP packet has flags.
func made(f packet.Flow, flags uint8, n int) []byte {
	head := map[uint8]int{packet.ProtoTCP: 20, packet.ProtoUDP: 8, packet.ProtoSCTP: 16}[f.Proto]
	t := make([]byte, head+n)
	for i := range t[head:] {
		t[head+i] = byte(i * 7)
	}
	binary.BigEndian.PutUint16(t, f.SrcPort)
	binary.BigEndian.PutUint16(t[2:], f.DstPort)
	var b []byte
	if f.Src.Is4() {
		h := make(packet.IPv4, 20, 20+len(t))
		h.Encode(packet.IPv4Fields{TOS: 0x10, TotalLen: 20 + len(t), TTL: 63, Protocol: f.Proto, Src: f.Src.As4(),
			Dst: f.Dst.As4()})
		h.SetID(0x4242)
		h.SetDF(true)
		h.SetChecksum()
		b = h
	} else {
		h := make(packet.IPv6, 40, 40+len(t))
		h.Encode(packet.IPv6Fields{TotalLen: 40 + len(t), HopLimit: 63, NextHeader: f.Proto, Src: f.Src.As16(),
			Dst: f.Dst.As16()})
		b = h
	}
	pseudo := packet.PseudoSum(b, f.Proto, len(t))
	switch f.Proto {
	case packet.ProtoTCP:
		t[12], t[13] = 5<<4, flags
		packet.TCP(t).SetChecksum(pseudo)
	case packet.ProtoUDP:
		packet.UDP(t).SetLen(len(t))
		packet.UDP(t).SetChecksum(pseudo)
	case packet.ProtoSCTP:
		t[12], t[15] = packet.ChunkInit, byte(4+n)
		binary.LittleEndian.PutUint32(t[8:], crc32.Checksum(t, crc32.MakeTable(crc32.Castagnoli)))
	}
	return append(b, t...)
}

// flows returns the flow of a client's requests and that of the requests at the realserver, for a service of natSite.
func flows(proto uint8, six bool) (asked, real packet.Flow) {
	asked = packet.Flow{Src: client, Dst: vip, SrcPort: 4711, Proto: proto}
	real = packet.Flow{Src: client, Dst: real1, SrcPort: 4711, Proto: proto}
	if six {
		asked.Src, asked.Dst, real.Src, real.Dst = client6, vip6, client6, real6
	}
	asked.DstPort = map[uint8]uint16{packet.ProtoTCP: 80, packet.ProtoUDP: 53, packet.ProtoSCTP: 2905}[proto]
	real.DstPort = map[uint8]uint16{packet.ProtoTCP: 8080, packet.ProtoUDP: 5353, packet.ProtoSCTP: 2906}[proto]
	return asked, real
}

// raised returns b with a TTL that is one more.
func raised(b []byte) []byte {
	b = bytes.Clone(b)
	packet.RaiseTTL(b)
	return b
}

// TestTranslate: a request gets the realserver's address and port, and a reply the VIP's, in every protocol and family.
// A request leaves by a raw socket, a reply by the TUN device. Both are counted at the realserver.
func TestTranslate(t *testing.T) {
	for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP} {
		for _, six := range []bool{false, true} {
			if six && proto == packet.ProtoSCTP {
				continue
			}
			s := newNATSite(t, 1500)
			asked, real := flows(proto, six)
			request := made(asked, packet.FlagSYN, 10)
			reply := made(real.Reverse(), packet.FlagSYN|packet.FlagACK, 30)
			got, raw := s.run(t, packet.Offload{}, request, reply, reply)
			want := made(real, packet.FlagSYN, 10)
			replies := [][]byte{raised(made(asked.Reverse(), packet.FlagSYN|packet.FlagACK, 30)),
				raised(made(asked.Reverse(), packet.FlagSYN|packet.FlagACK, 30))}
			if !slices.EqualFunc(got, replies, bytes.Equal) || len(raw) != 1 || !bytes.Equal(raw[0], want) {
				t.Errorf("%d, IPv6 %v: out went\n%x and %x, want\n%x and %x", proto, six, got, raw, replies, want)
			}
			for _, service := range s.worker.balancer.Snapshot().Status() {
				r := service.Realservers[0]
				mine := slices.Contains(service.VIPs, asked.Dst) && service.Protocol == proto &&
					service.Ports[0].First == asked.DstPort
				if mine != (r.Packets == 1 && r.Bytes == uint64(len(request)) &&
					r.Replies == 2 && r.ReplyBytes == uint64(2*len(reply))) {
					t.Errorf("service %s: %+v", service.Name, r)
				}
			}
			var tally stats.Tally
			s.worker.Read(&tally)
			if tally.InPackets != 3 || tally.OutPackets != 3 || tally.OutBytes != tally.InBytes ||
				tally.Drops != [drop.NumReasons]uint64{} {
				t.Errorf("counted %+v", tally)
			}
		}
	}
}

// TestTranslateGSO: a GSO packet stays whole in either direction, and its checksum unfinished. The segments of TCP are
// made smaller for a narrower path; datagrams that do not fit are answered.
func TestTranslateGSO(t *testing.T) {
	for _, six := range []bool{false, true} {
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			s := newNATSite(t, 1400)
			asked, real := flows(proto, six)
			s.run(t, packet.Offload{}, made(asked, packet.FlagSYN, 0))
			offset, at, kind := len(made(asked, 0, 0))-20, packet.TCPChecksumAt, packet.GSOTCP
			if proto == packet.ProtoUDP {
				offset, at, kind = len(made(asked, 0, 0))-8, packet.UDPChecksumAt, packet.GSOUDP
			}
			work := packet.Offload{GSO: kind, Size: 1300, Partial: true, CsumStart: uint16(offset),
				CsumOffset: uint16(at)}
			for _, f := range [][2]packet.Flow{{asked, real}, {real.Reverse(), asked.Reverse()}} {
				in := made(f[0], packet.FlagACK, 60_000)
				binary.BigEndian.PutUint16(in[offset+at:], packet.Fold(packet.PseudoSum(in, proto, len(in)-offset)))
				got, _ := s.run(t, work, in)
				if len(got) != 1 || s.work[0] != work {
					t.Fatalf("%v: %d packets came out, %+v", f[0], len(got), s.work)
				}
				b := &packet.NewBufs(1)[0]
				b.SetLen(copy(b.Room(), got[0]))
				b.Offload = s.work[0]
				want := raised(made(f[1], packet.FlagACK, 60_000))
				if d := b.Finish(); d != drop.Accept || !bytes.Equal(b.Bytes(), want) {
					t.Errorf("%v: out went %x", f[0], got[0][:80])
				}
			}
			unknown := packet.Offload{GSO: packet.GSOUnknown, Size: 100}
			if got, _ := s.run(t, unknown, made(asked, packet.FlagACK, 900),
				made(real.Reverse(), packet.FlagACK, 900)); len(got) != 0 {
				t.Errorf("of an unknown kind: out went %x", got)
			}
			work.Size = 1390
			got, raw := s.run(t, work, made(asked, packet.FlagACK, 3000))
			switch {
			case proto == packet.ProtoTCP && (len(got) != 1 || int(s.work[0].Size) != 1400-offset-20):
				t.Errorf("IPv6 %v: segments that are too long: %d packets, %+v", six, len(got), s.work)
			case proto == packet.ProtoUDP && (len(got) != 0 || len(raw) != 1):
				t.Errorf("IPv6 %v: datagrams that are too long: %d packets, %d answers", six, len(got), len(raw))
			}
		}
	}
}

// TestTranslateFragments: a packet that came in fragments leaves so that it can be fragmented, DF or not: over IPv4 by
// the kernel, over IPv6 in fragments no larger than those that came.
func TestTranslateFragments(t *testing.T) {
	const n = 2400
	for _, six := range []bool{false, true} {
		s := newNATSite(t, 1500)
		asked, real := flows(packet.ProtoUDP, six)
		stranger := real.Reverse()
		stranger.DstPort++
		for i, f := range [][2]packet.Flow{{asked, real}, {real.Reverse(), asked.Reverse()}, {stranger, stranger}} {
			in, want := made(f[0], 0, n), made(f[1], 0, n)
			id := uint32(i + 1)
			got, raw := s.run(t, packet.Offload{}, cut(in, id, 1208, n+8), cut(in, id, 0, 1208))
			if !six {
				ip := packet.IPv4(want)
				ip.SetID(uint16(id))
				ip.SetDF(false)
				ip.SetChecksum()
				if want = raised(want); len(got) != 1 || len(raw) != 0 || !bytes.Equal(got[0], want) {
					t.Errorf("%v: out went %x and %d packets, want %x", f[0], got, len(raw), want[:60])
				}
				continue
			}
			whole, last := bytes.Clone(want[:40]), 0
			for _, p := range raw {
				if len(p) > encap.MinMTU6 || packet.IPv6(p).NextHeader() != packet.ProtoFragment {
					t.Fatalf("%d bytes: %x", len(p), p[:60])
				}
				if at := packet.IPv6Fragment(p[40:]).Offset(); at != last {
					t.Fatalf("offset %d, want %d", at, last)
				}
				last, whole = last+len(p)-48, append(whole, p[48:]...)
			}
			if len(got) != 0 || len(raw) != 2 || !bytes.Equal(whole, want) {
				t.Errorf("%v: out went %x and %d packets, %x, want %x", f[0], got, len(raw), whole[:60], want[:60])
			}
		}
	}
}

// TestLoopEnds: a packet that the kernel leads back into the TUN device loses its TTL there.
func TestLoopEnds(t *testing.T) {
	for _, six := range []bool{false, true} {
		s := newNATSite(t, 1500)
		_, real := flows(packet.ProtoTCP, six)
		p := made(real.Reverse(), packet.FlagACK, 0)
		for i := 0; ; i++ {
			out, _ := s.run(t, packet.Offload{}, p)
			if len(out) == 0 {
				break
			}
			for range 2 { // hops, behind the device and before it
				if out[0] = lowered(out[0]); out[0] == nil {
					break
				}
			}
			if p = out[0]; p == nil {
				break
			}
			if i > 400 {
				t.Fatal("it goes on")
			}
		}
	}
}

// TestErrorsAreTranslated: ICMP errors reach the realserver and the client about their own packets, over IPv6, too. An
// error that is too big for the path is sent in fragments if it came in some.
func TestErrorsAreTranslated(t *testing.T) {
	for _, six := range []bool{false, true} {
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			s := newNATSite(t, 1500)
			asked, real := flows(proto, six)
			s.run(t, packet.Offload{}, made(asked, packet.FlagSYN, 10), made(real.Reverse(), packet.FlagACK, 10))
			kind, code := uint8(packet.ICMPUnreachable), uint8(packet.ICMPCodeFragNeeded)
			hop, quotes := router, []int{28, 40, 48, 128, 540}
			if six {
				kind, code, hop, quotes = packet.ICMPv6TooBig, 0, router6, []int{48, 60, 68, 300, 1200}
			}
			answer, request := made(asked.Reverse(), packet.FlagACK, 1200), made(real, packet.FlagACK, 1200)
			for _, quote := range quotes {
				got, raw := s.run(t, packet.Offload{}, errorAbout(answer, quote, kind, code, 1300))
				want := errorAbout(made(real.Reverse(), packet.FlagACK, 1200), quote, kind, code, 1300)
				if len(got) != 0 || len(raw) != 1 || !bytes.Equal(whole(raw[0]), want) {
					t.Errorf("to the realserver, quoting %d: %x and\n%x, want\n%x", quote, got, raw, want)
				}
				got, raw = s.run(t, packet.Offload{}, errorAbout(request, quote, kind, code, 1300))
				want = errorAbout(made(asked, packet.FlagACK, 1200), quote, kind, code, 1300)
				from := raw[0][12:16]
				if six {
					from = raw[0][8:24]
				}
				if !bytes.Equal(from, asked.Dst.AsSlice()) {
					t.Errorf("from %x, not the VIP", from)
				}
				if len(got) != 0 || len(raw) != 1 || !bytes.Equal(withSource(raw[0], hop), want) {
					t.Errorf("to the client, quoting %d: %x and\n%x, want\n%x", quote, got, raw, want)
				}
			}
		}
	}
}

// withSource returns the ICMP error b as its source would have sent it.
func withSource(b []byte, from netip.Addr) []byte {
	b = bytes.Clone(b)
	if from.Is4() {
		h := packet.IPv4(b)
		h.SetSrc(from.As4())
		h.SetChecksum()
		return b
	}
	copy(b[8:], from.AsSlice())
	packet.ICMP(b[40:]).SetChecksum(packet.IPv6(b).PseudoSum(packet.ProtoICMPv6, len(b)-40))
	return b
}

// TestUnreachable: a client of a realserver without a route gets ICMP host or address unreachable about its own packet,
// and so does one of the director's own host, whose packets come by a device that takes none back.
func TestUnreachable(t *testing.T) {
	for _, six := range []bool{false, true} {
		for _, local := range []bool{false, true} {
			mtu := 0
			if local {
				mtu = 1500
			}
			s := newNATSite(t, mtu)
			if local {
				s.worker = NewWorker(WorkerConfig{Source: &s.script, Raw: &s.script, Balancer: s.worker.balancer,
					Shared: NewShared(), Clock: s.worker.clock})
			}
			asked, _ := flows(packet.ProtoTCP, six)
			in := made(asked, packet.FlagSYN, 0)
			got, raw := s.run(t, packet.Offload{}, in)
			q, d := packet.QuotedFlow(whole(raw[0]))
			wantType, wantCode := uint8(packet.ICMPUnreachable), uint8(packet.ICMPCodeHost)
			if six {
				wantType, wantCode = packet.ICMPv6Unreachable, packet.ICMPv6CodeAddress
			}
			if len(got) != 0 || d != drop.Accept || q.Flow != asked || q.Type != wantType || q.Code != wantCode {
				t.Errorf("local %v: %x and %x", local, got, raw)
			}
			var tally stats.Tally
			if s.worker.Read(&tally); tally.Drops[drop.Unreachable] != 1 {
				t.Errorf("counted %+v", tally.Drops)
			}
		}
	}
}

// TestMixedMethods: a service may have realservers of VS/NAT and in tunnels.
func TestMixedMethods(t *testing.T) {
	s := newNATSite(t, 1500)
	cfg := natConfig(1500)
	web := &cfg.Services[0]
	web.Realservers = append(web.Realservers, balancer.Realserver{Address: netip.MustParseAddr("10.0.11.3"), Weight: 1,
		Config: method.Config{Source: source, Encap: encap.KindIPIP, MTU: 1500}})
	if err := s.worker.balancer.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	asked, _ := flows(packet.ProtoTCP, false)
	other := asked
	other.SrcPort++
	got, raw := s.run(t, packet.Offload{}, made(asked, packet.FlagSYN, 0), made(other, packet.FlagSYN, 0))
	if len(got) != 0 || len(raw) != 2 || destination(raw[1]) != real1 ||
		destination(raw[0]) != web.Realservers[1].Address {
		t.Errorf("%x and %x", got, raw)
	}
}

// own returns natSite's configuration with realservers that are addresses of this host.
func own(mtu int) balancer.Config {
	cfg := natConfig(mtu)
	for i := range cfg.Services {
		cfg.Services[i].Realservers[0].Own = true
	}
	return cfg
}

// TestOwnRealserver: requests to a realserver on this host leave by the TUN device, and so do those that the kernel has
// to fragment.
func TestOwnRealserver(t *testing.T) {
	for _, six := range []bool{false, true} {
		s := newNATSite(t, 1500)
		if err := s.worker.balancer.Apply(own(1500)); err != nil {
			t.Fatal(err)
		}
		asked, real := flows(packet.ProtoUDP, six)
		got, raw := s.run(t, packet.Offload{}, made(asked, 0, 10))
		if len(got) != 1 || len(raw) != 0 || !bytes.Equal(got[0], raised(made(real, 0, 10))) {
			t.Errorf("out went %x and %x", got, raw)
		}
	}
	s := newNATSite(t, 1000)
	asked, _ := flows(packet.ProtoUDP, false)
	large := packet.IPv4(made(asked, 0, 1200))
	large.SetDF(false)
	large.SetChecksum()
	if got, raw := s.run(t, packet.Offload{}, large); len(got) != 1 || len(raw) != 0 {
		t.Errorf("of a packet that is to be fragmented %d packets are written back, and %d leave by a raw socket",
			len(got), len(raw))
	}
}

// inOrder is a raw socket and the writing half of a TUN device. It keeps the lengths of packets in the order in which
// they leave, and the device's packets as negative numbers.
type inOrder struct{ out []int }

func (o *inOrder) Send(out []egress.Outgoing) (int, error) {
	for i := range out {
		o.out = append(o.out, out[i].Len())
	}
	return len(out), nil
}

func (o *inOrder) Write(bufs []*packet.Buf) (int, error) {
	for _, b := range bufs {
		o.out = append(o.out, -b.Len())
	}
	return len(bufs), nil
}

// TestOrderOfRequests: requests of a batch leave in the order in which they came, whichever of the two ways each takes.
// They do not wait for replies.
func TestOrderOfRequests(t *testing.T) {
	s := newNATSite(t, 1500)
	var is inOrder
	s.worker.out = egress.Output{}
	s.worker.out.Init(egress.Config{Raw: &is, TUN: &is, IDs: s.worker.shared.ids, Tally: &s.worker.tally})
	asked, real := flows(packet.ProtoUDP, false)
	whole := packet.Offload{GSO: packet.GSOUDP, Size: 1000, Partial: true, CsumStart: 20,
		CsumOffset: packet.UDPChecksumAt}
	for i, p := range []struct {
		of   packet.Flow
		n    int
		work packet.Offload
	}{
		{asked, 1, packet.Offload{}}, {real.Reverse(), 2, packet.Offload{}}, {asked, 3, packet.Offload{}},
		{asked, 4000, whole}, {asked, 5000, whole}, {asked, 6, packet.Offload{}}, {asked, 7000, whole},
		{asked, 8, packet.Offload{}}, {real.Reverse(), 9, packet.Offload{}},
	} {
		s.worker.put(i, made(p.of, 0, p.n), p.work)
	}
	s.worker.forward(s.worker.bufs[:9])
	want := []int{29, 31, -30, -4028, -5028, 34, -7028, 36, -37}
	if !slices.Equal(is.out, want) {
		t.Errorf("out went %v, want %v", is.out, want)
	}
}

// TestCaptureTranslated: packets of both directions are captured as they came and as they leave. The filter names the
// connection as its client sees it.
func TestCaptureTranslated(t *testing.T) {
	asked, real := flows(packet.ProtoUDP, false)
	other := asked
	other.SrcPort++
	stray := real.Reverse()
	stray.DstPort += 9
	answer := made(real.Reverse(), 0, 900)
	in := [][]byte{made(asked, 0, 10), made(other, 0, 10), made(real.Reverse(), 0, 20), made(stray, 0, 20),
		errorAbout(made(real, 0, 10), 60, 3, 1, 0), errorAbout(made(asked.Reverse(), 0, 10), 60, 3, 1, 0),
		cut(answer, 7, 0, 400), cut(answer, 7, 400, 908)}
	for _, c := range []struct {
		name          string
		filter        CaptureFilter
		before, after int
	}{
		{"all", CaptureFilter{}, 8, 7},
		{"client", CaptureFilter{Client: client}, 6, 6},
		{"port", CaptureFilter{Client: client, ClientPort: 4711}, 5, 5},
		{"other", CaptureFilter{ClientPort: 4712}, 2, 1}, // and a fragment: ports do not count
		{"VIP", CaptureFilter{VIP: vip, Port: 53}, 6, 6},
		{"realserver", CaptureFilter{Realserver: netip.AddrPortFrom(real1, 5353)}, 6, 6},
		{"another port", CaptureFilter{Realserver: netip.AddrPortFrom(real1, 53)}, 0, 0},
		{"none", CaptureFilter{Client: source}, 0, 0},
	} {
		s := newNATSite(t, 1500)
		capture := NewCapture(c.filter, 100, 1<<20)
		s.worker.shared.StartCapture(capture)
		s.run(t, packet.Offload{}, clone(in)...)
		s.worker.shared.StopCapture(capture)
		before, after := 0, 0
		for _, p := range capture.Next(context.Background()) {
			if p.Sent {
				after++
			} else if before++; !slices.ContainsFunc(in, func(b []byte) bool { return bytes.Equal(b, p.Bytes) }) &&
				len(p.Bytes) != len(answer) {
				t.Errorf("%s: %x is no packet that came", c.name, p.Bytes)
			}
		}
		if before != c.before || after != c.after {
			t.Errorf("%s: %d before and %d after, want %d and %d", c.name, before, after, c.before, c.after)
		}
	}
}

// TestTranslateAllocatesNothing covers every kind of packet of VS/NAT.
func TestTranslateAllocatesNothing(t *testing.T) {
	for _, six := range []bool{false, true} {
		s := newNATSite(t, 1500)
		s.worker.sendBy(discard{})
		s.worker.out = egress.Output{}
		s.worker.out.Init(egress.Config{Raw: discard{}, TUN: discard{}, IDs: s.worker.shared.ids,
			Tally: &s.worker.tally})
		asked, real := flows(packet.ProtoUDP, six)
		web, realWeb := flows(packet.ProtoTCP, six)
		big := made(real.Reverse(), 0, 2000)
		in := [][]byte{made(asked, 0, 10), made(real.Reverse(), 0, 20), made(web, packet.FlagSYN, 0),
			made(realWeb.Reverse(), packet.FlagACK, 0), made(asked.Reverse(), 0, 0), made(asked, 0, 1490),
			errorAbout(made(real, 0, 10), 60, 3, 1, 0), errorAbout(made(asked.Reverse(), 0, 10), 60, 3, 1, 0),
			cut(big, 7, 0, 1000), cut(big, 7, 1000, 2008)}
		if n := testing.AllocsPerRun(200, func() {
			for i, p := range in {
				s.worker.bufs[i].SetLen(copy(s.worker.bufs[i].Room(), p))
			}
			s.worker.forward(s.worker.bufs[:len(in)])
			s.now++
		}); n != 0 {
			t.Errorf("%v allocations a batch", n)
		}
	}
}

// TestRefusedWrites: a packet of VS/NAT that the kernel refuses is counted, its error is kept, and a capture has the
// others of its batch.
func TestRefusedWrites(t *testing.T) {
	const packets, second, last = 5, 1, 4
	s := newNATSite(t, 1500)
	if err := s.worker.balancer.Apply(own(1500)); err != nil {
		t.Fatal(err)
	}
	capture := NewCapture(CaptureFilter{}, 100, 1<<20)
	s.worker.shared.StartCapture(capture)
	asked, _ := flows(packet.ProtoUDP, false)
	refused := 0
	s.written.refuse = func(b *packet.Buf) bool {
		n := len(b.Bytes()) - packet.IPv4HeaderLen - packet.UDPHeaderLen
		if n != second && n != last {
			return false
		}
		refused++
		return true
	}
	for i := range packets {
		s.worker.put(i, made(asked, 0, i), packet.Offload{})
	}
	s.worker.forward(s.worker.bufs[:packets])
	s.worker.shared.StopCapture(capture)
	captured := 0
	for _, p := range capture.Next(t.Context()) {
		if p.Sent {
			captured++
		}
	}
	c := s.worker.tallied()
	if refused != 2 || len(s.written.out) != 3 || captured != 3 || c.OutPackets != 3 || c.Drops[drop.SendError] != 2 {
		t.Errorf("%d packets are refused, %d written, %d captured; counted %+v", refused, len(s.written.out), captured,
			c)
	}
	if err := s.worker.LastError(); err != unix.EINVAL {
		t.Errorf("the last error is %v", err)
	}
}

func (discard) Write(bufs []*packet.Buf) (int, error) { return len(bufs), nil }

// FuzzTranslate: the worker survives any packet and offload header. What it sends has right IP headers and fits the
// path to the realserver, unless the kernel may fragment it.
func FuzzTranslate(f *testing.F) {
	asked, real := flows(packet.ProtoUDP, false)
	web, realWeb := flows(packet.ProtoTCP, true)
	for _, b := range [][]byte{made(asked, 0, 10), made(real.Reverse(), 0, 10), made(web, packet.FlagSYN, 3000),
		made(realWeb.Reverse(), packet.FlagACK, 10), errorAbout(made(real, 0, 10), 60, 3, 1, 0)} {
		f.Add(b, b, uint16(1200), uint8(0), true)
	}
	reply := made(real.Reverse(), 0, 1000)
	f.Add(cut(reply, 1, 0, 800), cut(reply, 1, 800, 1008), uint16(0), uint8(4), true)
	s := newNATSite(f, 1400)
	f.Fuzz(func(t *testing.T, first, second []byte, size uint16, offload uint8, fix bool) {
		if len(first) > packet.MaxLen || len(second) > packet.MaxLen {
			return
		}
		var in [][]byte
		for _, b := range [][]byte{first, second, first} {
			if b = bytes.Clone(b); fix && len(b) >= 20 && b[0]>>4 == 4 && b[0]&15 >= 5 && int(b[0]&15)*4 <= len(b) {
				packet.IPv4(b).SetTotalLen(len(b))
				packet.IPv4(b).SetChecksum()
			}
			in = append(in, b)
		}
		s.now += 100
		written, raw := s.run(t, packet.Offload{GSO: packet.GSO(offload & 3), Size: size, Partial: offload&4 != 0,
			CsumStart: uint16(offload >> 3), CsumOffset: 6}, in...)
		for i, b := range written {
			var p packet.Info
			if d := p.Parse(b); d != drop.Accept || p.Len != len(b) {
				t.Errorf("%v: %s was written back", d, hex.EncodeToString(b))
			}
			request := (p.Flow.Dst == real1 || p.Flow.Dst == real6) && p.Flow.Src != vip && p.Flow.Src != vip6
			if request && p.DF && len(b) > 1400 && s.work[i].GSO == packet.GSONone && !asItCame(in, b) {
				t.Errorf("%d bytes were written back to a realserver", len(b))
			}
		}
		for _, b := range raw {
			var p packet.Info
			if d := p.Parse(whole(b)); d != drop.Accept && d != drop.Fragment || len(b) > 1400 {
				t.Errorf("%v: %d bytes left, %s", d, len(b), hex.EncodeToString(b))
			}
		}
	})
}

// asItCame reports whether b is a packet of in, whatever its TTL is.
func asItCame(in [][]byte, b []byte) bool {
	return slices.ContainsFunc(in, func(p []byte) bool { return len(p) >= len(b) && bytes.Equal(p[16:len(b)], b[16:]) })
}

// BenchmarkTranslate is a batch of 60-byte UDP requests or replies, without the system calls: compare with
// BenchmarkForward.
func BenchmarkTranslate(b *testing.B) {
	asked, real := flows(packet.ProtoUDP, false)
	for name, p := range map[string][]byte{"request": made(asked, 0, 32), "reply": made(real.Reverse(), 0, 32)} {
		b.Run(name, func(b *testing.B) {
			s := newNATSite(b, 1500)
			w := s.worker
			w.out = egress.Output{}
			w.out.Init(egress.Config{Raw: discard{}, TUN: discard{}, IDs: w.shared.ids, Tally: &w.tally})
			s.run(b, packet.Offload{}, made(asked, 0, 32))
			for b.Loop() {
				for i := range w.bufs {
					w.bufs[i].SetLen(copy(w.bufs[i].Room(), p))
				}
				w.forward(w.bufs)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/packet")
		})
	}
}
