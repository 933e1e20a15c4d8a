package bpf

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

func newTestDirector(t testing.TB) *Director {
	t.Helper()
	needRoot(t)
	d, err := LoadDirector(DirectorConfig{Flows4: 1 << 10, Flows6: 1 << 10, Paths: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// add adds a path and the flow of s to it.
func add(t testing.TB, d *Director, p Path, s spec, f Flow) Ref {
	t.Helper()
	ref, err := d.Add(p)
	if err != nil {
		t.Fatal(err)
	}
	f.Flow, f.Path = s.flow(), ref
	if n, err := d.Set([]Flow{f}); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	return ref
}

func tunnelPath(t testing.TB, c encap.Config, six bool) Path {
	t.Helper()
	tunnel, err := encap.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return Path{Kind: Tunnel, IPv6: six, Device: loopback, MTU: 1500, Tunnel: &tunnel}
}

// variants calls test with packets that differ in the fields that matter.
func variants(s spec, test func(name string, s spec)) {
	for _, ttl := range []uint8{2, 33, 34, 64, 255} {
		for _, class := range []uint8{0, 0xb8 | 2, 0xff} {
			for _, noDF := range []bool{false, true} {
				for _, payload := range []int{0, 1, 1000} {
					s.ttl, s.class, s.noDF, s.payload = ttl, class, noDF, payload
					test(fmt.Sprintf("TTL %d, class %#x, no DF %v, payload %d", ttl, class, noDF, payload), s)
				}
			}
		}
	}
}

// TestTunnels: in each tunnel over each family, packets of both families leave the program as they leave the worker,
// but for the ID of an outer header without DF.
func TestTunnels(t *testing.T) {
	d := newTestDirector(t)
	for _, outer := range []bool{false, true} {
		for _, inner := range []bool{false, true} {
			for _, c := range tunnels(outer) {
				for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
					s := request(inner, proto)
					ref := add(t, d, tunnelPath(t, c, inner), s, Flow{Port: sourcePort})
					m, w := methodOf(t, c), newWorker()
					variants(s, func(name string, s spec) {
						b := s.bytes()
						want := w.forward(m, b, netip.AddrPort{}, 1500)
						action, got := run(t, d.objects.Director, frame(b))
						if action != redirect || len(want) != 1 {
							t.Fatalf("%v %v in %v: %s: action %d; %d packets from the worker", c.Kind, inner, outer,
								name, action, len(want))
						}
						got = got[packet.EthernetHeaderLen:]
						if packet.Version(got) == 4 && (packet.IPv4(got).ID() == 0) != packet.IPv4(got).DF() {
							t.Errorf("ID %d with DF %v", packet.IPv4(got).ID(), packet.IPv4(got).DF())
						}
						finishOuter(want[0], got)
						if !bytes.Equal(got, want[0]) {
							t.Fatalf("%v %v in %v: %s:\n got %x\nwant %x", c.Kind, inner, outer, name, got, want[0])
						}
					})
					if err := d.Remove(ref); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
}

// TestLink: with method DR, packets leave as they came, with a lower TTL, in a frame to the realserver.
func TestLink(t *testing.T) {
	d := newTestDirector(t)
	mac, own := [6]byte{2, 0, 0, 0, 0, 9}, [6]byte{2, 0, 0, 0, 0, 8}
	for _, six := range []bool{false, true} {
		s := request(six, packet.ProtoTCP)
		add(t, d, Path{Kind: Link, IPv6: six, Device: loopback, MTU: 1500, MAC: mac, OwnMAC: own}, s, Flow{})
		m, err := method.New(pick(realservers, six), method.Config{Kind: method.DR, MTU: 1500,
			Link: method.Link{Device: loopback, MAC: mac, OwnMAC: own}})
		if err != nil {
			t.Fatal(err)
		}
		w := newWorker()
		s.id = 5
		variants(s, func(name string, s spec) {
			b := s.bytes()
			want := w.forward(m, b, netip.AddrPort{}, 1500)
			action, got := run(t, d.objects.Director, frame(b))
			f := packet.Ethernet(got)
			if action != redirect || len(want) != 1 || !bytes.Equal(f.Payload(), want[0]) || f.Dst() != mac ||
				f.Src() != own {
				t.Fatalf("%v: %s: action %d:\n got %x\nwant %x", six, name, action, got, want)
			}
		})
		s.id, s.noDF = 0, true
		b := frame(s.bytes())
		if action, got := run(t, d.objects.Director, b); !six && (action != next || !bytes.Equal(got, b)) {
			t.Errorf("a packet that needs an ID: action %d", action)
		}
	}
}

// TestNATRequests: with method NAT, requests leave the program as they leave the worker. Those that do not fit the path
// are left.
func TestNATRequests(t *testing.T) {
	d := newTestDirector(t)
	for _, six := range []bool{false, true} {
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			for _, port := range []uint16{0, 80, 8080} {
				s := request(six, proto)
				to := netip.AddrPortFrom(pick(realservers, six), port)
				ref := add(t, d, Path{Kind: NAT, IPv6: six, Device: loopback, TUN: loopback, MTU: 1500,
					Realserver: to}, s, Flow{})
				m, err := method.New(to.Addr(), method.Config{Kind: method.NAT, Port: port, MTU: 1500})
				if err != nil {
					t.Fatal(err)
				}
				w := newWorker()
				variants(s, func(name string, s spec) {
					s.id = 77
					b := s.bytes()
					want := w.forward(m, b, netip.AddrPort{}, 1500)
					action, got := run(t, d.objects.Director, frame(b))
					if action != redirect || len(want) != 1 || !bytes.Equal(got[packet.EthernetHeaderLen:], want[0]) {
						t.Fatalf("%v: port %d: %s: action %d:\n got %x\nwant %x", six, port, name, action, got, want)
					}
				})
				s.payload = 1500
				big := frame(s.bytes())
				if action, got := run(t, d.objects.Director, big); action != next || !bytes.Equal(got, big) {
					t.Errorf("IPv6 %v: a request that does not fit: action %d", six, action)
				}
				must(t, d.Remove(ref))
			}
		}
	}
	s := request(false, packet.ProtoUDP)
	to := netip.AddrPortFrom(realservers[0], 80)
	add(t, d, Path{Kind: NAT, Device: loopback, TUN: loopback, MTU: 1500, Realserver: to}, s, Flow{})
	s.noChecksum = true
	b := frame(s.bytes())
	if action, got := run(t, d.objects.Director, b); action != next || !bytes.Equal(got, b) {
		t.Errorf("a datagram without checksum: action %d", action)
	}
}

// TestLeaves: packets of a known flow that need more than the program does are left, unchanged. So is a packet of an
// unknown flow.
func TestLeaves(t *testing.T) {
	d := newTestDirector(t)
	type change struct {
		name string
		spec func(*spec)
		data func(packet.IPv4)
	}
	tcp := func(b packet.IPv4) packet.TCP {
		if b.Version() == 6 {
			return packet.TCP(b[packet.IPv6HeaderLen:])
		}
		return packet.TCP(b[packet.IPv4HeaderLen:])
	}
	flags := func(f uint8) func(*spec) { return func(s *spec) { s.flags = f } }
	for _, six := range []bool{false, true} {
		s := request(six, packet.ProtoTCP)
		c := tunnels(false)[0]
		flow := Flow{Flow: s.flow(), Path: add(t, d, tunnelPath(t, c, six), s, Flow{})}
		changes := []change{
			{"SYN", flags(packet.FlagSYN), nil}, {"SYN, ACK", flags(packet.FlagSYN | packet.FlagACK), nil},
			{"FIN", flags(packet.FlagFIN | packet.FlagACK), nil}, {"RST", flags(packet.FlagRST | packet.FlagACK), nil},
			{"no flag", flags(0), nil},
			{"TTL 1", func(s *spec) { s.ttl = 1 }, nil}, {"TTL 0", func(s *spec) { s.ttl = 0 }, nil},
			{"too big", func(s *spec) { s.payload = 1500 - 20 - 20 - 20 + 1 }, nil},
			{"another port", func(s *spec) { s.src = netip.AddrPortFrom(s.src.Addr(), 40008) }, nil},
			{"another protocol", func(s *spec) { s.proto = packet.ProtoUDP }, nil},
			{"short TCP header", nil, func(b packet.IPv4) { tcp(b).SetHeaderLen(16) }},
			{"TCP header beyond the packet", func(s *spec) { s.payload = 0 },
				func(b packet.IPv4) { tcp(b).SetHeaderLen(60) }},
		}
		if six {
			changes = append(changes,
				change{"extension header", nil, func(b packet.IPv4) { b[6] = packet.ExtHopByHop }},
				change{"longer than the frame", nil, func(b packet.IPv4) { b[5]++ }},
				change{"another version", nil, func(b packet.IPv4) { b[0] = 0x50 }})
		} else {
			fix := func(f func(b packet.IPv4)) func(packet.IPv4) {
				return func(b packet.IPv4) { f(b); b.SetChecksum() }
			}
			changes = append(changes,
				change{"fragment", nil, fix(func(b packet.IPv4) { b.SetFragment(0, true) })},
				change{"last fragment", nil, fix(func(b packet.IPv4) { b.SetFragment(64, false) })},
				change{"options", nil, fix(func(b packet.IPv4) { copy(b[20:], []byte{1, 1, 1, 1}); b[0] = 0x46 })},
				change{"wrong checksum", nil, func(b packet.IPv4) { b[10] ^= 1 }},
				change{"longer than the frame", nil, fix(func(b packet.IPv4) { b.SetTotalLen(b.TotalLen() + 1) })},
				change{"shorter than its headers", nil, fix(func(b packet.IPv4) { b.SetTotalLen(39) })},
				change{"another version", nil, fix(func(b packet.IPv4) { b[0] = 0x55 })})
		}
		if action, _ := run(t, d.objects.Director, frame(s.bytes())); action != redirect {
			t.Fatalf("the packet without changes: action %d", action)
		}
		for _, change := range changes {
			if n, err := d.Set([]Flow{flow}); n != 1 { // the last packet may have ended it
				t.Fatal(err)
			}
			s := s
			if change.spec != nil {
				change.spec(&s)
			}
			b := s.bytes()
			if change.data != nil {
				change.data(b)
			}
			f := frame(b)
			if action, got := run(t, d.objects.Director, f); action != next || !bytes.Equal(got, f) {
				t.Errorf("IPv6 %v: %s: action %d:\n got %x\nwant %x", six, change.name, action, got, f)
			}
		}
		least := packet.EthernetHeaderLen + packet.IPv4HeaderLen // the kernel runs no program on less
		if six {
			least = packet.EthernetHeaderLen + packet.IPv6HeaderLen
		}
		for n := least; n < len(frame(s.bytes())); n++ {
			f := frame(s.bytes())[:n]
			if action, got := run(t, d.objects.Director, f); action != next || !bytes.Equal(got, f) {
				t.Errorf("IPv6 %v: %d bytes: action %d", six, n, action)
			}
		}
	}
	s := request(false, packet.ProtoTCP)
	f := packet.Ethernet(frame(s.bytes()))
	f.SetDst([6]byte{2, 0, 0, 0, 0, 77})
	if action, _ := run(t, d.objects.Director, f); action != next {
		t.Errorf("a frame for another host: action %d", action)
	}
}

// TestTurns: a packet with SYN, FIN or RST ends its flow, so that nothing behind it overtakes it. Set begins it anew.
func TestTurns(t *testing.T) {
	d := newTestDirector(t)
	s := request(false, packet.ProtoTCP)
	flow := Flow{Flow: s.flow(), Path: add(t, d, tunnelPath(t, tunnels(false)[0], false), s, Flow{})}
	for _, flags := range []uint8{packet.FlagSYN, packet.FlagFIN | packet.FlagACK, packet.FlagRST,
		packet.FlagRST | packet.FlagACK, packet.FlagSYN | packet.FlagACK} {
		if n, err := d.Set([]Flow{flow}); n != 1 {
			t.Fatal(err)
		}
		turn := s
		turn.flags = flags
		for i, want := range []struct {
			s      spec
			action int
		}{{s, redirect}, {turn, next}, {s, next}, {s, next}} {
			if action, _ := run(t, d.objects.Director, frame(want.s.bytes())); action != want.action {
				t.Errorf("flags %#x, packet %d: action %d, want %d", flags, i, action, want.action)
			}
		}
		if err := d.Read(func(_ packet.Flow, c State, live bool) {
			if n, _ := c.Count.Since(0); live || n != 1 {
				t.Errorf("flags %#x: live %v, %d packets", flags, live, n)
			}
		}); err != nil {
			t.Error(err)
		}
	}
}

// TestPadding: a link's padding does not enter the tunnel.
func TestPadding(t *testing.T) {
	d := newTestDirector(t)
	s := request(false, packet.ProtoTCP)
	s.payload, s.padding = 0, 6
	c := tunnels(false)[0]
	add(t, d, tunnelPath(t, c, false), s, Flow{})
	want := newWorker().forward(methodOf(t, c), s.bytes(), netip.AddrPort{}, 1500)[0]
	action, got := run(t, d.objects.Director, frame(s.bytes()))
	finishOuter(want, got[14:])
	if action != redirect || !bytes.Equal(got[14:], want) {
		t.Errorf("action %d:\n got %x\nwant %x", action, got[14:], want)
	}
}

// TestNATReplies: with method NAT, replies leave the program as they leave the worker and its kernel, by the kernel's
// route to the client. Without a route, and where they do not fit it, they are left.
func TestNATReplies(t *testing.T) {
	needRoot(t)
	newRouter(t, 1300)
	d := newTestDirector(t)
	for _, six := range []bool{false, true} {
		for _, proto := range []uint8{packet.ProtoTCP, packet.ProtoUDP} {
			for _, port := range []uint16{80, 8080} {
				server := netip.AddrPortFrom(pick(realservers, six), 8080)
				s := spec{src: server, dst: netip.AddrPortFrom(pick(clients, six), 40007), proto: proto, ttl: 63,
					flags: packet.FlagACK, payload: 100, id: 99}
				vip := netip.AddrPortFrom(pick(virtuals, six), port)
				add(t, d, Path{Kind: NAT, IPv6: six, Device: loopback, TUN: loopback, MTU: 1500, Realserver: server}, s,
					Flow{VIP: vip.Addr(), Port: port})
				m, err := method.New(server.Addr(), method.Config{Kind: method.NAT, Port: 8080, MTU: 1500})
				must(t, err)
				w := newWorker()
				variants(s, func(name string, s spec) {
					b := s.bytes()
					want := w.forward(m, b, vip, 1500)
					action, got := run(t, d.objects.Director, frame(b))
					if action != redirect || len(want) != 1 || !bytes.Equal(got[packet.EthernetHeaderLen:], want[0]) {
						t.Fatalf("%v: port %d: %s: action %d:\n got %x\nwant %x", six, port, name, action, got, want)
					}
				})
				s.payload = 1300
				big := frame(s.bytes())
				if action, got := run(t, d.objects.Director, big); action != next || !bytes.Equal(got, big) {
					t.Errorf("IPv6 %v: a reply that does not fit: action %d", six, action)
				}
				s.payload, s.dst = 100, netip.AddrPortFrom(pick(nowhere, six), 40007)
				add(t, d, Path{Kind: NAT, IPv6: six, Device: loopback, TUN: loopback, MTU: 1500, Realserver: server}, s,
					Flow{VIP: vip.Addr(), Port: port})
				away := frame(s.bytes())
				if action, got := run(t, d.objects.Director, away); action != next || !bytes.Equal(got, away) {
					t.Errorf("IPv6 %v: a reply without a route: action %d", six, action)
				}
			}
		}
	}
}

// TestPathChanges: while paths are removed and others take their places, each packet leaves by one of the paths, whole,
// or is left. After Remove none leaves by the removed path.
func TestPathChanges(t *testing.T) {
	d := newTestDirector(t)
	s := request(false, packet.ProtoTCP)
	var paths []Path
	var want [][]byte
	w := newWorker()
	all := append(tunnels(false), tunnels(true)...)
	for _, c := range all {
		paths = append(paths, tunnelPath(t, c, false))
		b := w.forward(methodOf(t, c), s.bytes(), netip.AddrPort{}, 1500)[0]
		finishOuter(b, make([]byte, packet.IPv4HeaderLen)) // DF: the ID is 0
		want = append(want, b)
	}
	in := frame(s.bytes())
	stop, ended := make(chan struct{}), make(chan string, 1)
	go func() {
		taken := 0
		for {
			select {
			case <-stop:
				ended <- fmt.Sprint("taken ", taken > 0)
				return
			default:
			}
			o := ebpf.RunOptions{Data: in, DataOut: make([]byte, len(in)+256)}
			action, err := d.objects.Director.Run(&o)
			switch got := o.DataOut; {
			case err != nil:
				ended <- err.Error()
				return
			case int(int32(action)) == next:
			case !slices.ContainsFunc(want, func(b []byte) bool { return bytes.Equal(b, got[14:]) }):
				ended <- fmt.Sprintf("a packet of no path: %x", got)
				return
			default:
				taken++
			}
		}
	}()
	for i := range 3000 {
		ref, err := d.Add(paths[i%len(paths)])
		must(t, err)
		_, err = d.Set([]Flow{{Flow: s.flow(), Path: ref, Port: sourcePort}})
		must(t, err)
		action, got := run(t, d.objects.Director, in)
		if action != redirect || !bytes.Equal(got[14:], want[i%len(want)]) {
			t.Fatalf("action %d: %x", action, got)
		}
		must(t, d.Remove(ref))
		if action, _ := run(t, d.objects.Director, in); action != next {
			t.Fatalf("action %d after Remove", action)
		}
	}
	close(stop)
	if result := testkit.Receive(t, "end of the other goroutine", ended); result != "taken true" {
		t.Error(result)
	}
}
