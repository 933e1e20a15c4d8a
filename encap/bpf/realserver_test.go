package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"vstun/encap"
	"vstun/encap/endpoint"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

const tunnelPort = 6080

// rulesOf returns the rules of an agent for the program, and the same for its worker.
func rulesOf(decapsulators ...encap.Decapsulator) (Rules, endpoint.Rules) {
	local := []netip.Addr{realservers[0], realservers[1], netip.MustParseAddr("10.0.11.3")}
	r := Rules{Device: loopback, MTU: 1500, Directors: directors[:], VIPs: virtuals[:], LocalAddrs: local,
		Decapsulators: decapsulators, Port: tunnelPort}
	e := endpoint.Rules{VIPs: virtuals[:], LocalAddrs: local, Decapsulators: decapsulators, Port: tunnelPort,
		MSS4: 1440, MSS6: 1420}
	for _, a := range directors {
		e.Directors = append(e.Directors, netip.PrefixFrom(a, a.BitLen()))
	}
	return r, e
}

func newTestRealserver(t testing.TB) *Realserver {
	t.Helper()
	needRoot(t)
	r, err := LoadRealserver()
	if err != nil {
		t.Fatal(err)
	}
	r.settle = 0
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// agent decapsulates packets as the realserver's agent does.
type agent struct {
	policy atomic.Pointer[endpoint.Policy]
	worker *endpoint.Worker
	in     [][]byte
	out    [][]byte
}

func newAgent(r endpoint.Rules) *agent {
	a := &agent{}
	a.policy.Store(endpoint.NewPolicy(r))
	a.worker = endpoint.NewWorker(a, a, &a.policy, false)
	return a
}

func (a *agent) ReadBatch(bufs []packet.Buf) (int, error) {
	if len(a.in) == 0 {
		return 0, os.ErrClosed
	}
	bufs[0].SetLen(copy(bufs[0].Room(), a.in[0]))
	a.in = a.in[1:]
	return 1, nil
}

func (a *agent) WriteBatch(bufs []*packet.Buf) (n, size int, err error) {
	for _, b := range bufs {
		a.out = append(a.out, bytes.Clone(b.Bytes()))
		n, size = n+1, size+b.Len()
	}
	return n, size, nil
}

// decap returns the packet that leaves the agent for a tunnel packet, nil if it refuses it.
func (a *agent) decap(t testing.TB, b []byte) []byte {
	t.Helper()
	a.in, a.out = [][]byte{b}, nil
	if err := a.worker.Run(); err != nil {
		t.Fatal(err)
	}
	if len(a.out) == 0 {
		return nil
	}
	return a.out[0]
}

// wrapped returns the packet b as the director's worker sends it, with the outer header that the kernel completes.
func wrapped(t testing.TB, c encap.Config, b []byte) []byte {
	t.Helper()
	tunnel, err := encap.New(c)
	if err != nil {
		t.Fatal(err)
	}
	buf := &packet.NewBufs(1)[0]
	buf.SetLen(copy(buf.Room(), b))
	tunnel.Wrap(buf, sourcePort)
	out := bytes.Clone(buf.Bytes())
	if packet.Version(out) == 4 {
		packet.IPv4(out).SetChecksum()
	}
	return out
}

func decapsulator(c encap.Config) encap.Decapsulator {
	return encap.Decapsulator{Kind: c.Kind, Key: c.Key, HasKey: c.HasKey}
}

// TestDecap: from each tunnel over each family, with each pair of ECN codepoints, packets of both families leave the
// program as they leave the agent. What the agent refuses is left.
func TestDecap(t *testing.T) {
	r := newTestRealserver(t)
	for _, outer := range []bool{false, true} {
		for _, c := range tunnels(outer) {
			rules, agentRules := rulesOf(decapsulator(c))
			if err := r.Set(rules); err != nil {
				t.Fatal(err)
			}
			a := newAgent(agentRules)
			for _, inner := range []bool{false, true} {
				for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
					for ecn := range 16 {
						s := request(inner, proto)
						s.class = 0x20 | uint8(ecn&3)
						b := wrapped(t, c, s.bytes())
						if outer {
							packet.IPv6(b).SetTrafficClass(0x20 | uint8(ecn>>2))
						} else {
							packet.IPv4(b).SetTOS(0x20 | uint8(ecn>>2))
							packet.IPv4(b).SetChecksum()
						}
						want, f := a.decap(t, b), frame(b)
						action, got := run(t, r.objects.Realserver, f)
						if refused := ecn>>2 == 3 && ecn&3 == 0; refused != (want == nil) {
							t.Fatalf("the agent's packet with ECN %#x: %x", ecn, want)
						}
						if want == nil {
							if action != next || !bytes.Equal(got, f) {
								t.Fatalf("%v %v in %v: ECN %#x: action %d", c.Kind, inner, outer, ecn, action)
							}
							continue
						}
						if action != redirect || !bytes.Equal(got[packet.EthernetHeaderLen:], want) {
							t.Fatalf("%v %v in %v: ECN %#x: action %d:\n got %x\nwant %x", c.Kind, inner, outer, ecn,
								action, got, want)
						}
					}
				}
			}
		}
	}
}

// TestRefusals: the program leaves what the agent refuses, unchanged. Each packet differs from one that both accept in
// one thing.
func TestRefusals(t *testing.T) {
	r := newTestRealserver(t)
	for _, six := range []bool{false, true} {
		for _, c := range tunnels(six) {
			rules, agentRules := rulesOf(decapsulator(c))
			if err := r.Set(rules); err != nil {
				t.Fatal(err)
			}
			a := newAgent(agentRules)
			try := func(name string, b []byte, accept bool) {
				t.Helper()
				f := frame(b)
				want := a.decap(t, b)
				action, got := run(t, r.objects.Realserver, f)
				switch {
				case accept != (want != nil):
					t.Errorf("%v, IPv6 %v: %s: the agent accepts it: %v", c.Kind, six, name, !accept)
				case accept && (action != redirect || !bytes.Equal(got[14:], want)):
					t.Errorf("%v, IPv6 %v: %s: action %d:\n got %x\nwant %x", c.Kind, six, name, action, got[14:], want)
				case !accept && (action != next || !bytes.Equal(got, f)):
					t.Errorf("%v, IPv6 %v: %s: action %d", c.Kind, six, name, action)
				}
			}
			s := request(six, packet.ProtoTCP)
			try("good", wrapped(t, c, s.bytes()), true)
			for name, src := range map[string]string{
				"another director": "10.0.2.3 fd00:2::3", "VIP as outer source": "198.51.100.80 2001:db8:1::80",
			} {
				c := c
				c.Source = address(src, six)
				try(name, wrapped(t, c, s.bytes()), false)
			}
			for name, src := range map[string]string{
				"unspecified": "0.0.0.0 ::", "this network": "0.1.2.3 ::1.2.3.4", "loopback": "127.0.0.1 ::1",
				"multicast": "224.0.0.1 ff02::1", "reserved": "240.0.0.1 fe80::1",
				"broadcast": "255.255.255.255 febf::1", "VIP": "198.51.100.80 2001:db8:1::80",
				"local": "10.0.11.3 fd00:11::2", "mapped": "10.0.11.2 ::ffff:192.0.2.1",
			} {
				s := s
				s.src = netip.AddrPortFrom(address(src, six), 40007)
				try("inner source "+name, wrapped(t, c, s.bytes()), false)
			}
			for name, src := range map[string]string{"below": "223.255.255.255 fe00::1", "above": "128.0.0.1 fec0::1",
				"first": "1.0.0.0 ::1:0:0:0", "last": "126.0.0.1 0:0:0:1::"} {
				s := s
				s.src = netip.AddrPortFrom(address(src, six), 40007)
				try("inner source "+name, wrapped(t, c, s.bytes()), true)
			}
			other := s
			other.dst = netip.AddrPortFrom(pick(realservers, six), 80)
			try("inner destination is no VIP", wrapped(t, c, other.bytes()), false)
			for proto := range 256 {
				s := s
				s.proto = uint8(proto)
				b := wrapped(t, c, s.bytes())
				switch uint8(proto) {
				case packet.ProtoIPIP, packet.ProtoIPv6, packet.ProtoGRE, 55, 94, 97, 98, 115, 137, 143:
					try("inner tunnel", b, false)
				case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP:
					try("inner transport", b, true)
				}
			}
			own := s
			own.proto, own.dst = packet.ProtoUDP, netip.AddrPortFrom(s.dst.Addr(), tunnelPort)
			try("agent's own port", wrapped(t, c, own.bytes()), !c.Kind.UDP())
			try("trailing bytes", wrapped(t, c, append(s.bytes(), 0)), false)
			try("truncated", wrapped(t, c, s.bytes()[:139]), false)
			try("no packet", wrapped(t, c, s.bytes())[:len(wrapped(t, c, s.bytes()))-len(s.bytes())], false)
			if !six {
				damaged := s.bytes()
				damaged[10] ^= 1
				try("inner checksum", wrapped(t, c, damaged), false)
			}
			refusedHeaders(t, c, s, try)
		}
	}
}

// refusedHeaders tries packets with other tunnel headers.
func refusedHeaders(t *testing.T, c encap.Config, s spec, try func(string, []byte, bool)) {
	good := wrapped(t, c, s.bytes())
	at := packet.IPv4HeaderLen
	if c.Source.Is6() {
		at = packet.IPv6HeaderLen
	}
	with := func(offset int, x ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at+offset:], x)
		return b
	}
	switch c.Kind {
	case encap.KindGRE:
		for bit := range 16 {
			b := with(0)
			flags := binary.BigEndian.Uint16(b[at:])
			binary.BigEndian.PutUint16(b[at:], flags^1<<bit)
			if bit == 15 || bit == 13 { // a checksum or a key more or less is another header
				continue
			}
			try("GRE flag", b, bit >= 3 && bit <= 9)
		}
		try("GRE type", with(2, 0x65, 0x58), false)
		if c.HasKey {
			try("GRE key", with(7, 9), false)
			without := c
			without.Key, without.HasKey = 0, false
			try("no GRE key", wrapped(t, without, s.bytes()), false)
		} else {
			key := c
			key.HasKey = true
			try("a GRE key", wrapped(t, key, s.bytes()), false)
		}
	case encap.KindGUE:
		try("GUE control", with(8, 0x20), false)
		try("GUE variant 2", with(8, 0x80), false)
		try("GUE header length", with(8, 1), false)
		try("GUE protocol", with(9, packet.ProtoTCP), false)
		try("GUE flags", with(10, 0x80), false)
		fou := c
		fou.Kind = encap.KindFOU
		try("GUE variant 1", wrapped(t, fou, s.bytes()), true)
	case encap.KindFOU:
		try("FOU with another version", with(8, 0x55), false)
	}
}

// address returns the IPv4 or the IPv6 address of a pair.
func address(pair string, six bool) netip.Addr {
	i := slices.Index([]byte(pair), ' ')
	if six {
		return netip.MustParseAddr(pair[i+1:])
	}
	return netip.MustParseAddr(pair[:i])
}

// TestLeftToSockets: packets that the agent accepts by means that the program lacks are left: outer checksums, outer
// and inner fragments. So are tunnel packets to another host, which the kernel forwards.
func TestLeftToSockets(t *testing.T) {
	r := newTestRealserver(t)
	var all []encap.Decapsulator
	for _, k := range []encap.Kind{encap.KindIPIP, encap.KindGRE, encap.KindGUE} {
		all = append(all, encap.Decapsulator{Kind: k})
	}
	rules, agentRules := rulesOf(all...)
	if err := r.Set(rules); err != nil {
		t.Fatal(err)
	}
	a := newAgent(agentRules)
	leave := func(name string, b []byte, accepted bool) {
		t.Helper()
		f := frame(b)
		if action, got := run(t, r.objects.Realserver, f); action != next || !bytes.Equal(got, f) {
			t.Errorf("%s: action %d", name, action)
		}
		if accepted && a.decap(t, b) == nil {
			t.Errorf("%s: refused by the agent, too", name)
		}
	}
	s := request(false, packet.ProtoTCP)
	c := encap.Config{Source: directors[0], Destination: realservers[0]}
	gre, gue := c, c
	gre.Kind, gre.Checksum = encap.KindGRE, true
	gue.Kind, gue.Port, gue.Checksum = encap.KindGUE, tunnelPort, true
	leave("GRE checksum", wrapped(t, gre, s.bytes()), true)
	leave("UDP checksum", wrapped(t, gue, s.bytes()), true)
	fragment := s.bytes()
	packet.IPv4(fragment).SetFragment(0, true)
	packet.IPv4(fragment).SetChecksum()
	leave("inner fragment", wrapped(t, c, fragment), true)
	outer := wrapped(t, c, s.bytes())
	packet.IPv4(outer).SetFragment(0, true)
	packet.IPv4(outer).SetChecksum()
	leave("outer fragment", outer, false)
	away := c
	away.Destination = netip.MustParseAddr("10.0.11.99")
	leave("to another host", wrapped(t, away, s.bytes()), false)
	damaged := wrapped(t, c, s.bytes())
	damaged[10] ^= 1
	leave("outer checksum", damaged, false)
	away = gue
	away.Checksum, away.Port = false, tunnelPort+1
	leave("another UDP port", wrapped(t, away, s.bytes()), false)
	leave("no tunnel", s.bytes(), false)
}

// TestRules: a new set of rules replaces the old one. Counters of a director that was removed stay.
func TestRules(t *testing.T) {
	r := newTestRealserver(t)
	rules, _ := rulesOf(encap.Decapsulator{Kind: encap.KindIPIP})
	c := encap.Config{Source: directors[0], Destination: realservers[0]}
	s := request(false, packet.ProtoTCP)
	f := frame(wrapped(t, c, s.bytes()))
	want := func(action int) {
		t.Helper()
		if got, _ := run(t, r.objects.Realserver, f); got != action {
			t.Errorf("action %d, want %d", got, action)
		}
	}
	want(next)
	if err := r.Set(rules); err != nil {
		t.Fatal(err)
	}
	want(redirect)
	taken := func() Taken {
		t.Helper()
		all := map[netip.Addr]Taken{}
		if err := r.Read(all); err != nil {
			t.Fatal(err)
		}
		return all[directors[0]]
	}
	size := uint64(len(f) - packet.EthernetHeaderLen)
	one := Taken{1, size, size - packet.IPv4HeaderLen}
	if taken() != one {
		t.Errorf("%+v", taken())
	}
	without := rules
	without.Directors = directors[1:]
	if err := r.Set(without); err != nil {
		t.Fatal(err)
	}
	want(next)
	if err := r.AddDirector(directors[0]); err != nil {
		t.Fatal(err)
	}
	want(redirect)
	if taken() != one.Plus(one) {
		t.Errorf("%+v", taken())
	}
	without = rules
	without.VIPs = virtuals[1:]
	if err := r.Set(without); err != nil {
		t.Fatal(err)
	}
	want(next)
	if err := r.Set(rules); err != nil {
		t.Fatal(err)
	}
	want(redirect)
	if err := r.Set(Rules{}); err == nil {
		t.Error("rules without a device are accepted")
	}
}

// TestVIPs: the program takes packets to each of few or many VIPs, and to no other address.
func TestVIPs(t *testing.T) {
	r := newTestRealserver(t)
	rules, _ := rulesOf(encap.Decapsulator{Kind: encap.KindIPIP})
	c := encap.Config{Source: directors[0], Destination: realservers[0]}
	of := func(six bool, i int) netip.Addr {
		if six {
			return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 7, 15: byte(i + 1)})
		}
		return netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i + 1)})
	}
	for _, n := range []int{0, 1, 3, 4, 5, 300} {
		rules.VIPs = nil
		for i := range n {
			rules.VIPs = append(rules.VIPs, of(false, i))
			if i < 250 {
				rules.VIPs = append(rules.VIPs, of(true, i))
			}
		}
		must(t, r.Set(rules))
		for _, six := range []bool{false, true} {
			for _, i := range []int{0, 1, 2, 3, 4, 5, 249} {
				s := request(six, packet.ProtoTCP)
				s.dst = netip.AddrPortFrom(of(six, i), 80)
				want := next
				if i < n {
					want = redirect
				}
				if action, _ := run(t, r.objects.Realserver, frame(wrapped(t, c, s.bytes()))); action != want {
					t.Errorf("%d VIPs, IPv6 %v: number %d: action %d, want %d", n, six, i, action, want)
				}
			}
			s := request(six, packet.ProtoTCP)
			s.dst = netip.AddrPortFrom(pick([2]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, six), 80)
			if action, _ := run(t, r.objects.Realserver, frame(wrapped(t, c, s.bytes()))); action != next {
				t.Errorf("%d VIPs: the unspecified address: action %d", n, action)
			}
		}
	}
}

// TestSettle: after a change of rules, and with a new director, the program takes no packet for a moment: those that
// the sockets have got enter first.
func TestSettle(t *testing.T) {
	r := newTestRealserver(t)
	r.settle = holdTime
	rules, _ := rulesOf(encap.Decapsulator{Kind: encap.KindIPIP})
	rules.Directors = directors[1:]
	s := request(false, packet.ProtoTCP)
	packets := [2][]byte{}
	for i := range packets {
		c := encap.Config{Source: directors[i], Destination: realservers[i]}
		packets[i] = frame(wrapped(t, c, s.bytes()))
	}
	taken := func(director int) bool {
		action, _ := run(t, r.objects.Realserver, packets[director])
		return action == redirect
	}
	settles := func(when string, director int, change func() error) {
		t.Helper()
		begin := time.Now()
		must(t, change())
		// A busy machine may come back when the moment is over.
		if taken(director) && time.Since(begin) < holdTime-2*jiffy {
			t.Errorf("%s: a packet is taken at once", when)
		}
		testkit.Within(t, when+": packets are taken", 5*time.Second, func() bool { return taken(director) })
	}
	settles("the first rules", 1, func() error { return r.Set(rules) })
	rules.VIPs = virtuals[:1]
	settles("other rules", 1, func() error { return r.Set(rules) })
	settles("a new director", 0, func() error { return r.AddDirector(directors[0]) })
	must(t, r.Pause())
	must(t, r.AddDirector(netip.MustParseAddr("10.0.2.9")))
	for end := time.Now().Add(2 * holdTime); time.Now().Before(end); {
		if taken(0) {
			t.Fatal("a new director ends a pause")
		}
	}
}

// runSegments is run for a GSO packet with segments of this size.
func runSegments(t *testing.T, p *ebpf.Program, f []byte, size uint32) int {
	t.Helper()
	var skb [192]byte // struct __sk_buff of linux/bpf.h
	binary.NativeEndian.PutUint32(skb[176:], size)
	r, err := p.Run(&ebpf.RunOptions{Data: f, DataOut: make([]byte, len(f)+256), Context: skb[:]})
	if err != nil {
		t.Fatal(err)
	}
	return int(int32(r))
}

// TestLeftInOrder: a packet that is larger than the device's MTU, datagrams that the kernel has merged and packets with
// a UDP checksum are left to the sockets, and so are the packets that would overtake them, for a moment.
func TestLeftInOrder(t *testing.T) {
	r := newTestRealserver(t)
	p := r.objects.Realserver
	gue := encap.Config{Kind: encap.KindGUE, Source: directors[0], Destination: realservers[0], Port: tunnelPort}
	rules, _ := rulesOf(decapsulator(gue), encap.Decapsulator{Kind: encap.KindIPIP})
	if err := r.Set(rules); err != nil {
		t.Fatal(err)
	}
	for _, six := range []bool{false, true} {
		s := request(six, packet.ProtoTCP)
		headers := packet.TCPHeaderLen + packet.IPv4HeaderLen
		if six {
			headers += packet.IPv6HeaderLen - packet.IPv4HeaderLen
		}
		small := frame(wrapped(t, gue, s.bytes()))
		checked := gue
		checked.Checksum = true
		sum := frame(wrapped(t, checked, s.bytes()))
		s.payload = 1500 - headers
		fits := frame(wrapped(t, gue, s.bytes()))
		s.payload++
		large := frame(wrapped(t, gue, s.bytes()))
		s.payload = 3000
		segments := frame(wrapped(t, gue, s.bytes()))
		datagrams := append(slices.Clone(small), small[packet.EthernetHeaderLen+28:]...)
		outer := packet.IPv4(datagrams[packet.EthernetHeaderLen:])
		outer.SetTotalLen(len(outer))
		outer.SetChecksum()
		packet.UDP(outer[packet.IPv4HeaderLen:]).SetLen(len(outer) - packet.IPv4HeaderLen)
		taken := func(f []byte, size uint32) bool { return runSegments(t, p, f, size) == redirect }
		for _, f := range [][]byte{small, fits} {
			if !taken(f, 0) {
				t.Errorf("a packet of %d bytes is left", len(f))
			}
		}
		// A test run gives the packet no type of GSO. The kernel then refuses to take its headers off.
		if taken(segments, uint32(1500-headers)); !taken(small, 0) {
			t.Error("a GSO packet whose segments fit holds the next packets")
		}
		for name, left := range map[string]func() bool{
			"large packet":      func() bool { return !taken(large, 0) },
			"segments too long": func() bool { return !taken(segments, uint32(1501-headers)) },
			"datagrams":         func() bool { return !taken(datagrams, uint32(len(small)-42)) },
			"UDP checksum":      func() bool { return !taken(sum, 0) },
		} {
			if !left() {
				t.Errorf("%s: taken", name)
			}
			if taken(small, 0) {
				t.Errorf("%s: overtaken", name)
			}
			testkit.Within(t, name+": the next packets are taken again", 5*time.Second,
				func() bool { return taken(small, 0) })
		}
	}
}
