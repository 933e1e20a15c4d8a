package forward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
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

var (
	client = netip.MustParseAddr("192.0.2.1")
	vip    = netip.MustParseAddr("198.51.100.80")
	real1  = netip.MustParseAddr("10.0.11.2")
	source = netip.MustParseAddr("10.0.2.2")
)

// script is a source that returns its packets and then ends, and a sink that keeps all packets.
type script struct {
	in   [][]byte
	out  [][]byte
	fail func(p packet.IPv4) error // the kernel's word about a packet
}

func (s *script) ReadBatch(bufs []packet.Buf) (int, error) {
	if len(s.in) == 0 {
		return 0, os.ErrClosed
	}
	n := 0
	for n < len(bufs) && n < len(s.in) {
		bufs[n].SetLen(copy(bufs[n].Room(), s.in[n]))
		n++
	}
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Send(out []egress.Outgoing) (int, error) {
	for i, o := range out {
		p := append(bytes.Clone(o.Head), o.Body...)
		mustAgree(&o)
		if s.fail != nil {
			if err := s.fail(p); err != nil {
				if i > 0 {
					return i, nil
				}
				return 0, err
			}
		}
		s.out = append(s.out, p)
		if i == 9 {
			return 10, nil // a short count, as sendmmsg may give
		}
	}
	return len(out), nil
}

// mustAgree panics unless the hop of o agrees with its bytes.
func mustAgree(o *egress.Outgoing) {
	h := o.Hop
	var to egress.Peer
	is := egress.Hop{To: h.To, Kind: h.Kind, DF: true}
	var transport packet.UDP
	whole := false // UDP, and no fragment
	if ip := packet.IPv6(o.Head); ip.Version() == 6 {
		to.Src, to.Dst, is.Class, is.TTL = ip.Src(), ip.Dst(), ip.TrafficClass(), ip.HopLimit()
		transport, whole = packet.UDP(o.Head[packet.IPv6HeaderLen:]), ip.NextHeader() == packet.ProtoUDP
	} else {
		ip := packet.IPv4(o.Head)
		to.Src, to.Dst, is.Class, is.TTL, is.DF = ip.Src(), ip.Dst(), ip.TOS(), ip.TTL(), ip.DF()
		transport, whole = packet.UDP(o.Head[packet.IPv4HeaderLen:]), ip.Protocol() == packet.ProtoUDP && !ip.Fragment()
	}
	if h.Kind == egress.Raw && !h.To.Src.IsValid() { // a request of VS/NAT: the kernel does not route it by its source
		to.Src, whole = h.To.Src, false
	}
	if whole {
		to.DstPort, is.SrcPort = transport.DstPort(), transport.SrcPort()
	} else { // nothing else is used
		to.DstPort, is.Class, is.TTL, is.DF, is.SrcPort = h.To.DstPort, h.Class, h.TTL, h.DF, h.SrcPort
	}
	if *h.To != to || h != is || whole != (h.Kind == egress.UDP) {
		panic(fmt.Sprintf("hop %+v to %+v of a packet with %+v to %+v", h, *h.To, is, to))
	}
}

// testWorker returns a worker with number 0. udp may have source ports.
func testWorker(source Source, raw, udp egress.Port, b *balancer.Balancer, s *Shared,
	clock func() conntab.Ticks) *Worker {
	c := WorkerConfig{Source: source, Raw: raw, UDP: udp, Balancer: b, Shared: s, Clock: clock}
	if p, ok := udp.(interface{ Ports() []uint16 }); ok {
		c.UDPPorts = p.Ports()
	}
	return NewWorker(c)
}

// sendBy makes w send by raw only.
func (w *Worker) sendBy(raw egress.Port) {
	w.out = egress.Output{}
	w.out.Init(egress.Config{Raw: raw, IDs: w.shared.ids, Tally: &w.tally, TooBig: w.shared.tooBig})
}

func newWorker(t testing.TB, s *script, mtu int) *Worker {
	b := balancer.New(conntab.New(conntab.Config{Max: 2048}), 1)
	if err := b.Apply(balancer.Config{Services: []balancer.Service{
		{Name: "web", VIPs: []netip.Addr{vip}, Protocol: packet.ProtoTCP,
			Ports: []balancer.PortRange{{First: 80, Last: 80}}, Scheduler: "rr",
			Realservers: []balancer.Realserver{{Address: real1, Weight: 1,
				Config: method.Config{Source: source, MTU: mtu}}}},
		{Name: "dns", VIPs: []netip.Addr{vip}, Protocol: packet.ProtoUDP,
			Ports: []balancer.PortRange{{First: 53, Last: 53}}, Scheduler: "rr",
			Realservers: []balancer.Realserver{{Address: real1, Weight: 1,
				Config: method.Config{Source: source, MTU: mtu}}}},
		{Name: "empty", VIPs: []netip.Addr{vip}, Protocol: packet.ProtoTCP,
			Ports: []balancer.PortRange{{First: 81, Last: 81}}, Scheduler: "rr"},
	}}); err != nil {
		t.Fatal(err)
	}
	return testWorker(s, s, nil, b, NewShared(), func() conntab.Ticks { return 1 })
}

// ip makes an IPv4 packet from the client to the VIP.
func ip(proto byte, df bool, payload []byte) packet.IPv4 {
	b := make(packet.IPv4, 20+len(payload))
	copy(b[20:], payload)
	packet.IPv4(b).Encode(packet.IPv4Fields{
		TotalLen: len(b), TTL: 63, Protocol: proto, Src: client.As4(), Dst: vip.As4(),
	})
	if df {
		b[6] = 0x40
		b.SetChecksum()
	}
	return b
}

func tcp(port uint16, flags byte, n int) packet.IPv4 {
	t := make([]byte, 20+n)
	binary.BigEndian.PutUint16(t, 4711)
	binary.BigEndian.PutUint16(t[2:], port)
	t[12], t[13] = 0x50, flags
	return ip(packet.ProtoTCP, true, t)
}

func udp(port uint16, df bool, n int) packet.IPv4 {
	u := make([]byte, 8+n)
	binary.BigEndian.PutUint16(u, 4711)
	binary.BigEndian.PutUint16(u[2:], port)
	for i := range u[8:] {
		u[8+i] = byte(i * 7)
	}
	return ip(packet.ProtoUDP, df, u)
}

// run forwards packets and returns the sent packets and the counts.
func run(t *testing.T, mtu int, fail func(packet.IPv4) error, packets ...packet.IPv4) ([][]byte, stats.Tally,
	*Worker) {
	t.Helper()
	s := &script{fail: fail}
	for _, p := range packets {
		s.in = append(s.in, p)
	}
	w := newWorker(t, s, mtu)
	if err := w.Run(); err != nil {
		t.Fatal(err)
	}
	var got stats.Tally
	w.Read(&got)
	return s.out, got, w
}

func TestForward(t *testing.T) {
	in := []packet.IPv4{tcp(80, packet.FlagSYN, 0), tcp(80, packet.FlagACK, 500), udp(53, false, 40)}
	padded := append(bytes.Clone(udp(53, false, 1)), 0, 0, 0)
	out, got, w := run(t, 1500, nil, append(in, padded)...)
	if len(out) != 4 {
		t.Fatalf("%d packets came out", len(out))
	}
	for i, o := range out {
		h := packet.IPv4(o)
		want := []byte(padded[:29])
		if i < 3 {
			want = in[i]
		}
		ttl := byte(63)
		if i == 3 {
			ttl = 62 // the second datagram of its flow
		}
		if h.Src() != source || h.Dst() != real1 || h.Protocol() != packet.ProtoIPIP || h.TTL() != ttl ||
			h.TotalLen() != len(o) || !bytes.Equal(o[20:], want) {
			t.Errorf("packet %d: %x", i, o)
		}
	}
	if got.InPackets != 4 || got.OutPackets != 4 || got.OutBytes != got.InBytes+4*20-3 {
		t.Errorf("counted %+v", got)
	}
	st := w.balancer.Snapshot().Status()
	if r := st[0].Realservers[0]; r.Packets != 2 || r.Bytes != 40+540 || r.Connections != 1 || r.Active != 1 {
		t.Errorf("realserver counts %+v", r)
	}
	if r := st[1].Realservers[0]; r.Packets != 2 || r.Bytes != 68+29 || r.Inactive != 1 {
		t.Errorf("realserver counts %+v", r)
	}
}

func TestDropsAreCounted(t *testing.T) {
	fragment := udp(53, false, 100)
	fragment[6] = 0x20
	fragment.SetChecksum()
	broken := tcp(80, packet.FlagSYN, 0)
	broken[10]++
	out, got, _ := run(t, 1500, nil,
		tcp(80, packet.FlagACK, 0), tcp(8080, packet.FlagSYN, 0), tcp(81, packet.FlagSYN, 0), udp(54, false, 0),
		ip(47, false, make([]byte, 20)), ip(packet.ProtoICMP, false, make([]byte, 8)), fragment, broken,
		packet.IPv4{0x60, 1, 2}, make(packet.IPv4, 40))
	want := stats.Tally{InPackets: 10, InBytes: got.InBytes}
	for _, d := range []drop.Reason{drop.NoConnection, drop.NoService, drop.NoService,
		drop.NoRealserver, drop.Protocol,
		drop.ICMP, drop.Fragment, drop.BadChecksum, drop.Truncated, drop.NotIPv4} {
		want.Drops[d]++
	}
	if got.Drops != want.Drops || len(out) != 3 { // no_service and no_realserver are answered
		t.Errorf("counted %+v, want %+v; %d packets came out", got.Drops, want.Drops, len(out))
	}
}

func TestPing(t *testing.T) {
	echo := make([]byte, 64)
	echo[0] = packet.ICMPEcho
	binary.BigEndian.PutUint16(echo[2:], packet.Checksum(echo))
	stranger := ip(packet.ProtoICMP, false, echo)
	stranger[19] = 99
	stranger.SetChecksum()
	out, got, _ := run(t, 1500, nil, ip(packet.ProtoICMP, false, echo), stranger)
	if len(out) != 1 || packet.IPv4(out[0]).Src() != vip || packet.IPv4(out[0]).Dst() != client ||
		out[0][20] != packet.ICMPEchoReply ||
		packet.Checksum(out[0][20:]) != 0 || got.OutPackets != 1 || got.Drops[drop.NoService] != 1 {
		t.Errorf("%x %+v", out, got)
	}
}

// TestNeighbourDiscovery: the kernel forwards a neighbour's check of a VIP on the LAN. It has a reason of its own.
func TestNeighbourDiscovery(t *testing.T) {
	var now conntab.Ticks
	w, s := newDirect(t, 1500, nearLink, discard{}, &now)
	for kind := byte(130); kind < 140; kind++ {
		m := make([]byte, 32)
		m[0] = kind
		copy(m[8:], vip6.AsSlice())
		p := ip6(packet.ProtoICMPv6, m)
		p[40], p[42], p[43] = kind, 0, 0
		packet.PutChecksum(p[42:], packet.Sum(p[40:], p.PseudoSum(packet.ProtoICMPv6, len(m))), false)
		before := w.tallied()
		w.put(0, p, packet.Offload{})
		w.forward(w.bufs[:1])
		want := before.Drops
		if kind >= 133 && kind <= 137 {
			want[drop.Neighbour]++
		} else {
			want[drop.ICMP]++
		}
		if got := w.tallied().Drops; got != want || len(s.out) != 0 {
			t.Errorf("type %d: counted %v, want %v; %d answers", kind, got, want, len(s.out))
		}
	}
}

// TestPingOfARealserver: a ping whose flow is pinned goes through the tunnel. Other pings of the same sender get an
// answer from the VIP. Neither allocates.
func TestPingOfARealserver(t *testing.T) {
	for _, to := range []netip.Addr{real1, real6} {
		s := &script{}
		r := balancer.Realserver{Address: to, Weight: 1, Config: method.Config{Source: source, MTU: 1500}}
		if to.Is6() {
			r.Source = source6
		}
		web := func(vip netip.Addr) balancer.Service {
			return balancer.Service{Name: vip.String(), VIPs: []netip.Addr{vip}, Protocol: packet.ProtoTCP,
				Ports:     []balancer.PortRange{{First: 80, Last: 80}},
				Scheduler: "rr", Realservers: []balancer.Realserver{r}}
		}
		b := balancer.New(conntab.New(conntab.Config{Max: 2048}), 1)
		if err := b.Apply(balancer.Config{Services: []balancer.Service{web(vip), web(vip6)},
			Probed: []balancer.Target{r.Target()}}); err != nil {
			t.Fatal(err)
		}
		w := testWorker(s, s, nil, b, NewShared(), func() conntab.Ticks { return 1 })
		var in [][]byte
		for id := range byte(2) {
			echo := make([]byte, 24)
			echo[0], echo[5], echo[23] = packet.ICMPEcho, id, 42
			binary.BigEndian.PutUint16(echo[2:], packet.Checksum(echo))
			four := ip(packet.ProtoICMP, false, echo)
			six := ip6(packet.ProtoICMPv6, echo)
			six[40], six[42], six[43] = packet.ICMPv6Echo, 0, 0
			packet.PutChecksum(six[42:], packet.Sum(six[40:], six.PseudoSum(packet.ProtoICMPv6, 24)), false)
			in = append(in, four, six)
		}
		for _, f := range []packet.Flow{{Src: client, Dst: vip, SrcPort: 1, Proto: packet.ProtoICMP},
			{Src: packet.IPv6(in[1]).Src(), Dst: vip6, SrcPort: 1, Proto: packet.ProtoICMPv6}} {
			if err := b.Pin(f, r.Target(), false, 0); err != nil {
				t.Fatal(err)
			}
		}
		s.in = in
		if err := w.Run(); err != nil {
			t.Fatal(err)
		}
		if len(s.out) != 4 {
			t.Fatalf("%d packets came out", len(s.out))
		}
		overhead := 20
		if to.Is6() {
			overhead = 40
		}
		for i, o := range s.out {
			through := i >= 2
			if through && !bytes.Equal(o[overhead:], in[i]) || !through && (len(o) != len(in[i]) ||
				packet.IPv4(o).Dst() != client && packet.IPv6(o).Dst() != packet.IPv6(in[1]).Src()) {
				t.Errorf("to %v: packet %d became %x", to, i, o)
			}
		}
		w = testWorker(s, discard{}, nil, b, NewShared(), func() conntab.Ticks { return 1 })
		if n := testing.AllocsPerRun(100, func() {
			for i, p := range in {
				w.bufs[i].SetLen(copy(w.bufs[i].Room(), p))
			}
			w.forward(w.bufs[:len(in)])
		}); n != 0 {
			t.Errorf("%v allocations a batch", n)
		}
	}
}

func TestTooBigWithDF(t *testing.T) {
	fits, tooBig := udp(53, true, 1480-28), udp(53, true, 1480-27)
	out, got, _ := run(t, 1500, nil, fits, tooBig, tooBig)
	if len(out) != 3 || got.Drops[drop.TooBig] != 2 {
		t.Fatalf("%d packets, %+v", len(out), got)
	}
	e := packet.IPv4(out[1])
	if e.Dst() != client || e.Src() != vip || e[20] != 3 || e[21] != 4 || binary.BigEndian.Uint16(e[26:]) != 1480 ||
		!bytes.Equal(e[28:], tooBig[:len(e)-28]) {
		t.Errorf("error is %x", e)
	}
}

func TestTooBigWithoutDF(t *testing.T) {
	for _, mtu := range []int{1500, 600, 88} {
		in := udp(53, false, 1472)
		out, got, _ := run(t, mtu, nil, in, in)
		var whole [2][]byte
		for _, o := range out {
			h := packet.IPv4(o)
			if len(o) > mtu || h.ID() == 0 {
				t.Fatalf("MTU %d: fragment %x", mtu, o[:20])
			}
			i := 0
			if h.ID() != packet.IPv4(out[0]).ID() {
				i = 1
			}
			whole[i] = append(whole[i], o[20:]...)
		}
		if !bytes.Equal(whole[0], in) || !bytes.Equal(whole[1], in) || got.OutPackets != uint64(len(out)) ||
			got.Drops != ([drop.NumReasons]uint64{}) {
			t.Errorf("MTU %d: %d packets, %+v", mtu, len(out), got)
		}
	}
}

func TestRefusedPacketCostsItselfAlone(t *testing.T) {
	var in []packet.IPv4
	for i := range 200 {
		in = append(in, udp(53, false, i))
	}
	out, got, w := run(t, 1500, func(p packet.IPv4) error {
		switch len(p) % 10 {
		case 3:
			return unix.EMSGSIZE
		case 7:
			return unix.ENETUNREACH
		}
		return nil
	}, in...)
	if len(out) != 160 || got.OutPackets != 160 || got.Drops[drop.TooBig] != 20 ||
		got.Drops[drop.SendError] != 20 {
		t.Errorf("%d packets, %+v", len(out), got)
	}
	select {
	case <-w.shared.TooBig:
	default:
		t.Error("the sender is not told of the new MTU")
	}
	if w.LastError() == nil {
		t.Error("no last error")
	}
}

func TestClosedSinkEnds(t *testing.T) {
	run(t, 1500, func(packet.IPv4) error { return os.ErrClosed }, udp(53, false, 1))
}

func TestForwardAllocatesNothing(t *testing.T) {
	s := &script{}
	w := newWorker(t, s, 1500)
	w.sendBy(discard{})
	in := []packet.IPv4{tcp(80, packet.FlagSYN, 0), udp(53, false, 40), udp(53, false, 1480), udp(53, true, 1480),
		tcp(82, packet.FlagSYN, 0)}
	if n := testing.AllocsPerRun(1000, func() {
		for i, b := range in {
			w.bufs[i].SetLen(copy(w.bufs[i].Room(), b))
		}
		w.forward(w.bufs[:len(in)])
	}); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

// TestRefusalsAllocateNothing: packets that the kernel refuses need no allocation. Without a route it refuses all.
func TestRefusalsAllocateNothing(t *testing.T) {
	w := newWorker(t, &script{}, 1500)
	w.sendBy(refusal{})
	in := udp(53, false, 40)
	if n := testing.AllocsPerRun(1000, func() {
		w.bufs[0].SetLen(copy(w.bufs[0].Room(), in))
		w.forward(w.bufs[:1])
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
	if w.LastError() != unix.ENETUNREACH {
		t.Error(w.LastError())
	}
}

type refusal struct{}

func (refusal) Send([]egress.Outgoing) (int, error) { return 0, unix.ENETUNREACH }

type discard struct{}

func (discard) Send(out []egress.Outgoing) (int, error) { return len(out), nil }

// TestMisplacedChecksum: a TUN device's checksum offset must not change the fields by which the packet was decided: its
// port, its addresses.
func TestMisplacedChecksum(t *testing.T) {
	for _, c := range []struct {
		in            []byte
		start, offset uint16
		want          drop.Reason
	}{
		{tcp(80, packet.FlagSYN, 0), 20, 16, drop.Accept},
		{udp(53, false, 10), 20, 6, drop.Accept},
		{udp(53, false, 10), 28, 6, drop.Accept}, // of what the datagram carries
		{udp(53, false, 10), 28, 9, drop.Offload},
		{udp(53, false, 10), 27, 8, drop.Offload},
		{tcp(80, packet.FlagSYN, 0), 20, 2, drop.Offload},
		{tcp(80, packet.FlagSYN, 0), 0, 16, drop.Offload},
		{udp(53, false, 10), 20, 16, drop.Offload},
		{udp6(53, 10), 20, 6, drop.Offload},
		{udp(53, false, 10), 65535, 6, drop.Offload},
		{ip(packet.ProtoICMP, false, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}), 20, 2, drop.Offload},
	} {
		s := &offloading{script: script{in: [][]byte{c.in}}, offload: packet.Offload{Partial: true, CsumStart: c.start,
			CsumOffset: c.offset}}
		w := newWorker(t, &s.script, 1500)
		w.source = s
		if err := w.Run(); err != nil {
			t.Fatal(err)
		}
		var got stats.Tally
		w.Read(&got)
		if ok := c.want == drop.Accept; ok != (got.OutPackets == 1 && len(s.out) == 1) || !ok &&
			got.Drops[c.want] != 1 {
			t.Errorf("checksum at %d + %d: %+v, want %v", c.start, c.offset, got, c.want)
		}
	}
}

// BenchmarkForward is a batch of 60-byte UDP packets, or of a TCP connection, without the system calls.
func BenchmarkForward(b *testing.B) {
	plain, hops := newWorker(b, &script{}, 1500), hopSite(b, &script{})
	hops.balancer.SetFormer("web", &former{netip.AddrPortFrom(client, 4711), real1})
	gue := testWorker(&script{}, &script{}, nil, newSite(b, real1, encap.KindGUE, 1500), NewShared(),
		func() conntab.Ticks { return 1 })
	for _, c := range []struct {
		name string
		w    *Worker
		p    packet.IPv4
	}{{"ipip", plain, udp(53, false, 32)}, {"gue", gue, udp(53, false, 32)},
		{"gue with hops", hops, tcp(80, packet.FlagSYN, 20)}} {
		b.Run(c.name, func(b *testing.B) {
			c.w.sendBy(discard{})
			for b.Loop() {
				for i := range c.w.bufs {
					c.w.bufs[i].SetLen(copy(c.w.bufs[i].Room(), c.p))
				}
				c.w.forward(c.w.bufs)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/packet")
		})
	}
}
