package forward

import (
	"bytes"
	"net/netip"
	"testing"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

var (
	client6 = netip.MustParseAddr("2001:db8:1::7")
	vip6    = netip.MustParseAddr("2001:db8:80::80")
	real6   = netip.MustParseAddr("2001:db8:11::2")
	source6 = netip.MustParseAddr("2001:db8:2::2")
	router6 = netip.MustParseAddr("2001:db8:ff::1")
	router  = netip.MustParseAddr("10.0.77.1")
)

// newSite returns a balancer with a UDP service on port 53 of both VIPs, at one realserver.
func newSite(t testing.TB, real netip.Addr, kind encap.Kind, mtu int) *balancer.Balancer {
	t.Helper()
	return balancerOf(t, siteConfig(real, kind, mtu))
}

// balancerOf returns a balancer with cfg in force.
func balancerOf(t testing.TB, cfg balancer.Config) *balancer.Balancer {
	t.Helper()
	b := balancer.New(conntab.New(conntab.Config{Max: 2048}), 1)
	if err := b.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	return b
}

// siteConfig is the configuration of newSite.
func siteConfig(real netip.Addr, kind encap.Kind, mtu int) balancer.Config {
	rs := balancer.Realserver{Address: real, Weight: 1, Config: method.Config{Source: source, Encap: kind, MTU: mtu}}
	if !real.Is4() {
		rs.Source = source6
	}
	if kind.UDP() {
		rs.EncapPort = 6080
	}
	return balancer.Config{Services: []balancer.Service{
		{Name: "dns", VIPs: []netip.Addr{vip, vip6}, Protocol: packet.ProtoUDP,
			Ports: []balancer.PortRange{{First: 53, Last: 53}}, Scheduler: "rr",
			Realservers: []balancer.Realserver{rs}},
		{Name: "empty", VIPs: []netip.Addr{vip, vip6}, Protocol: packet.ProtoTCP,
			Ports: []balancer.PortRange{{First: 81, Last: 81}}, Scheduler: "rr"},
	}}
}

// ip6 makes an IPv6 packet from the client to the VIP.
func ip6(proto byte, payload []byte) packet.IPv6 {
	b := make(packet.IPv6, 40+len(payload))
	copy(b[40:], payload)
	packet.IPv6(b).Encode(packet.IPv6Fields{
		TotalLen: len(b), HopLimit: 63, NextHeader: proto, Src: client6.As16(), Dst: vip6.As16(),
	})
	return b
}

func udp6(port uint16, n int) packet.IPv6 {
	return ip6(packet.ProtoUDP, udp(port, true, n)[20:])
}

// wrapped returns the packet to a realserver for one packet that fits.
func wrapped(t testing.TB, b *balancer.Balancer, in []byte) []byte {
	s := &script{in: [][]byte{in}}
	if err := testWorker(s, s, nil, b, NewShared(), func() conntab.Ticks { return 1 }).Run(); err != nil {
		t.Fatal(err)
	}
	if len(s.out) != 1 {
		t.Fatalf("%d packets out of %x", len(s.out), in)
	}
	if s.out[0][0]>>4 == 4 {
		packet.IPv4(s.out[0]).SetChecksum() // the kernel's part
	}
	return s.out[0]
}

// errorAbout returns a router's error about the packet b, of which it quotes quote bytes.
func errorAbout(b []byte, quote int, kind, code uint8, mtu uint32) []byte {
	from := router
	if b[0]>>4 == 6 {
		from = router6
	}
	room := make([]byte, packet.ICMPRoom)
	f := packet.ICMPFields{Type: kind, Code: code, Rest: mtu}
	return room[:packet.ICMPError(room, b[:min(quote, len(b))], from, f)]
}

// TestRelay: an error about a tunnel packet reaches the client as one about its own packet, in its family's words,
// where it can make use of it.
func TestRelay(t *testing.T) {
	const all = 2000
	for _, c := range []struct {
		name       string
		in         []byte
		real       netip.Addr
		kind       encap.Kind
		quote      int
		what, code uint8
		mtu        uint32
		want       []byte // type, code, 4 bytes; nil: nothing
		unbelieved bool   // its size
	}{
		{"size", udp(53, true, 1000), real1, encap.KindIPIP, all, 3, 4, 800, []byte{3, 4, 0, 0, 780 >> 8, 780 & 255},
			false},
		{"size in gue", udp(53, true, 1000), real1, encap.KindGUE, all, 3, 4, 800, []byte{3, 4, 0, 0, 768 >> 8,
			768 & 255}, false},
		{"size that says nothing", udp(53, true, 1000), real1, encap.KindIPIP, all, 3, 4, 0, nil, false},
		{"size that the packet fits", udp(53, true, 1000), real1, encap.KindIPIP, all, 3, 4, 1048, nil, false},
		{"tiny", udp(53, true, 1000), real1, encap.KindIPIP, all, 3, 4, 87, nil, false},
		{"smallest", udp(53, true, 1000), real1, encap.KindIPIP, all, 3, 4, 88, []byte{3, 4, 0, 0, 0, 68}, false},
		{"size, without DF", udp(53, false, 1000), real1, encap.KindIPIP, all, 3, 4, 800, nil, false},
		{"short quote", udp(53, true, 1000), real1, encap.KindIPIP, 20 + 28, 3, 4, 800, []byte{3, 4, 0, 0, 780 >> 8,
			780 & 255}, false},
		{"too short", udp(53, true, 1000), real1, encap.KindIPIP, 20 + 27, 3, 4, 800, nil, false},
		{"host", udp(53, true, 100), real1, encap.KindFOU, all, 3, 1, 0, []byte{3, 1, 0, 0, 0, 0}, false},
		{"port", udp(53, true, 100), real1, encap.KindGUE, all, 3, 3, 0, []byte{3, 3, 0, 0, 0, 0}, false},
		{"time", udp(53, true, 100), real1, encap.KindGRE, all, 11, 0, 0, []byte{11, 0, 0, 0, 0, 0}, false},
		{"source quench", udp(53, true, 100), real1, encap.KindIPIP, all, 4, 0, 0, nil, false},
		{"6 in 6: size", udp6(53, 1400), real6, encap.KindIPIP, all, 2, 0, 1400, []byte{2, 0, 0, 0, 1360 >> 8,
			1360 & 255}, false},
		{"6 in 6: below 1280", udp6(53, 1400), real6, encap.KindIPIP, all, 2, 0, 1300, []byte{2, 0, 0, 0, 1280 >> 8, 0},
			false},
		{"6 in 6: nothing to do", udp6(53, 1200), real6, encap.KindIPIP, all, 2, 0, 1290, nil, false},
		{"6 in 6: unreachable", udp6(53, 1200), real6, encap.KindGUE, all, 1, 3, 0, []byte{1, 3, 0, 0, 0, 0}, false},
		{"6 in 6: time", udp6(53, 1200), real6, encap.KindGRE, all, 3, 0, 0, []byte{3, 0, 0, 0, 0, 0}, false},
		{"6 in 6: parameter", udp6(53, 1200), real6, encap.KindGRE, all, 4, 0, 0, nil, false},
		{"6 in 4: size", udp6(53, 1400), real1, encap.KindIPIP, all, 3, 4, 1400, []byte{2, 0, 0, 0, 1380 >> 8,
			1380 & 255}, false},
		{"6 in 4: unreachable", udp6(53, 1400), real1, encap.KindIPIP, all, 3, 2, 0, []byte{1, 3, 0, 0, 0, 0}, false},
		{"6 in 4: time", udp6(53, 1400), real1, encap.KindIPIP, all, 11, 0, 0, []byte{3, 0, 0, 0, 0, 0}, false},
		{"4 in 6: size", udp(53, true, 1400), real6, encap.KindIPIP, all, 2, 0, 1300, []byte{3, 4, 0, 0, 1260 >> 8,
			1260 & 255}, false},
		{"6 in 4: port", udp6(53, 1400), real1, encap.KindGUE, all, 3, 3, 0, []byte{1, 4, 0, 0, 0, 0}, false},
		{"4 in 6: unreachable", udp(53, true, 1400), real6, encap.KindIPIP, all, 1, 0, 0, []byte{3, 1, 0, 0, 0, 0},
			false},
		{"4 in 6: port", udp(53, true, 1400), real6, encap.KindGUE, all, 1, 4, 0, []byte{3, 3, 0, 0, 0, 0}, false},
		{"4 in 6: time", udp(53, true, 1400), real6, encap.KindIPIP, all, 3, 0, 0, []byte{11, 0, 0, 0, 0, 0}, false},
		{"size that is nothing new", udp(53, true, 1400), real1, encap.KindIPIP, 20, 3, 4, 1500, nil, false},
		{"4 in 6: below what every way takes", udp(53, true, 1400), real6, encap.KindIPIP, all, 2, 0, 1279, nil, true},
		{"6 in 6: below what every way takes", udp6(53, 1400), real6, encap.KindGUE, all, 2, 0, 200, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newSite(t, c.real, c.kind, 1500)
			e := errorAbout(wrapped(t, b, c.in), c.quote, c.what, c.code, c.mtu)
			var s script
			s.in = [][]byte{e}
			shared := NewShared()
			r := NewRelay(&s, &s, b, shared, func() conntab.Ticks { return 1 })
			if err := r.Run(); err != nil {
				t.Fatal(err)
			}
			asked := false
			select {
			case <-shared.TooBig:
				asked = true
			default:
			}
			if size := c.mtu != 0 || c.code == 4 && c.what == 3; asked != (size && c.mtu < 1500 && !c.unbelieved) {
				t.Errorf("the way's MTU is asked for: %v", asked)
			}
			if c.want == nil {
				if len(s.out) != 0 {
					t.Errorf("out went %x", s.out[0])
				}
				return
			}
			if len(s.out) != 1 {
				t.Fatalf("%d packets out", len(s.out))
			}
			var p packet.Info
			if d := p.Parse(s.out[0]); d != drop.Accept {
				t.Fatal(d)
			}
			m := s.out[0][p.Offset:]
			got := append(append([]byte{}, m[:2]...), m[4:8]...)
			want := append(append([]byte{}, c.want[:2]...), 0, 0, c.want[4], c.want[5])
			var in packet.Info
			in.Parse(c.in)
			if p.Flow.Src != in.Flow.Dst || p.Flow.Dst != in.Flow.Src || !bytes.Equal(got, want) ||
				!bytes.HasPrefix(c.in, m[8:]) || len(m) < 8+28 {
				t.Errorf("out went %x, want %x", s.out[0], want)
			}
			if q, d := packet.QuotedFlow(s.out[0]); d != drop.Accept || q.Flow != in.Flow {
				t.Errorf("%v: about %v", d, q.Flow)
			}
		})
	}
}

// TestRelayIsNotFooled: errors that quote unsent packets, are damaged, or come too often, are not relayed.
func TestRelayIsNotFooled(t *testing.T) {
	b := newSite(t, real1, encap.KindGUE, 1500)
	good := wrapped(t, b, udp(53, true, 1000))
	var s script
	r := NewRelay(&s, &s, b, NewShared(), func() conntab.Ticks { return 1 })
	try := func(name string, e []byte, want int) {
		t.Helper()
		s.in, s.out = [][]byte{e}, nil
		if err := r.Run(); err != nil {
			t.Fatal(err)
		}
		if len(s.out) != want {
			t.Errorf("%s: %d packets out, want %d", name, len(s.out), want)
		}
	}
	change := func(at int, v byte) []byte {
		p := bytes.Clone(good)
		p[at] = v
		return errorAbout(p, 500, 3, 1, 0)
	}
	damaged := errorAbout(good, 500, 3, 1, 0)
	damaged[60]++
	try("damaged", damaged, 0)
	try("from another host", change(15, 9), 0)
	try("to another realserver", change(19, 9), 0)
	try("another port", change(23, 9), 0)
	try("another header", change(28, 1), 0)
	try("another protocol", change(9, 47), 0)
	try("no VIP inside", change(32+19, 9), 0)
	try("multicast inside", change(32+12, 224), 0)
	try("ICMP inside", change(32+9, packet.ProtoICMP), 0)
	try("no packet inside", change(32, 0x25), 0)
	for range 6 {
		try("good", errorAbout(good, 500, 3, 1, 0), 1)
	}
	try("too many", errorAbout(good, 500, 3, 1, 0), 0)
	for range 20 {
		try("size", errorAbout(good, 500, 3, 4, 900), 1)
	}
	try("too many sizes", errorAbout(good, 500, 3, 4, 900), 0)
	if n := testing.AllocsPerRun(100, func() {
		r.answer(b.Snapshot(), damaged, 1)
		r.answer(b.Snapshot(),
			errorAboutGood, 1)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

var errorAboutGood = errorAbout(udp(53, true, 10), 100, 3, 1, 0)

// TestRelayKernelDriver: a realserver whose kernel has its own tunnel driver sends "port unreachable" about packets
// that its agent takes. No client gets an error.
func TestRelayKernelDriver(t *testing.T) {
	for _, c := range []struct {
		kind encap.Kind
		from netip.Addr
		in   []byte
		real netip.Addr
		told bool
	}{
		{encap.KindIPIP, real1, udp(53, true, 100), real1, false},
		{encap.KindGRE, real1, udp6(53, 100), real1, false},
		{encap.KindIPIP, real6, udp6(53, 100), real6, false},
		{encap.KindIPIP, router, udp(53, true, 100), real1, true},
		{encap.KindGUE, real1, udp(53, true, 100), real1, true}, // no socket has the UDP port
		{encap.KindFOU, real6, udp6(53, 100), real6, true},
	} {
		b := newSite(t, c.real, c.kind, 1500)
		about, room := wrapped(t, b, c.in), make([]byte, packet.ICMPRoom)
		s := script{in: [][]byte{room[:packet.PortUnreachable(room, about, c.from)]}}
		if err := NewRelay(&s, &s, b, NewShared(), func() conntab.Ticks { return 1 }).Run(); err != nil {
			t.Fatal(err)
		}
		if told := len(s.out) == 1; told != c.told {
			t.Errorf("%v, from %v: the client is told: %v, want %v", c.kind, c.from, told, c.told)
		}
	}
}
