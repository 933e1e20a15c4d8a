package forward

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// offloading is a script whose packets have a TUN device's offload header each.
type offloading struct {
	script
	offload packet.Offload
}

func (s *offloading) ReadBatch(bufs []packet.Buf) (int, error) {
	n, err := s.script.ReadBatch(bufs)
	for i := range bufs[:n] {
		bufs[i].Offload = s.offload
	}
	return n, err
}

// fuzzSite is a worker whose realserver is behind one kind of tunnel and one MTU.
type fuzzSite struct {
	real   netip.Addr
	mtu    int
	worker *Worker
	tun    offloading
	udp    cars
}

// newFuzzSite makes the tunnel that the bits of kind say: format, family, checksum.
func newFuzzSite(t testing.TB, kind uint8, mtu int, now *conntab.Ticks) *fuzzSite {
	t.Helper()
	s := &fuzzSite{real: real1, mtu: mtu}
	r := balancer.Realserver{Weight: 1, Config: method.Config{Source: source, Encap: encap.Kind(kind & 3)}}
	if kind&4 != 0 {
		s.real, r.Source, s.mtu = real6, source6, max(mtu, encap.MinMTU6)
	}
	r.Address, r.MTU, r.Checksum = s.real, s.mtu, kind&8 != 0 && r.Encap != encap.KindIPIP
	if r.Encap.UDP() {
		r.EncapPort = 6080
	}
	b := balancer.New(conntab.New(conntab.Config{Max: 2048, SloppyTCP: true}), 1)
	service := func(name string, proto uint8) balancer.Service {
		return balancer.Service{Name: name, VIPs: []netip.Addr{vip, vip6}, Protocol: proto,
			Ports: []balancer.PortRange{balancer.EveryPort}, Scheduler: "rr",
			Realservers: []balancer.Realserver{r}}
	}
	if err := b.Apply(balancer.Config{Services: []balancer.Service{service("dns", packet.ProtoUDP),
		service("web", packet.ProtoTCP)}}); err != nil {
		t.Fatal(err)
	}
	s.worker = testWorker(&s.tun, &s.tun, &s.udp, b, NewShared(), func() conntab.Ticks { return *now })
	// which looks at everything, and has room for nothing
	s.worker.shared.StartCapture(&Capture{left: 1 << 30, filter: CaptureFilter{VIP: vip}})
	return s
}

// cars is a port of UDP sockets that checks its callers' guarantees, and keeps all packets.
type cars struct {
	t     testing.TB
	limit int // packets of one call
	fail  func() error
	out   [][]byte
}

func (c *cars) Ports() []uint16 { return []uint16{1000, 1001, 1002} }

func (c *cars) Send(out []egress.Outgoing) (int, error) {
	if err := c.fail(); err != nil {
		return 0, err
	}
	out = out[:min(len(out), c.limit)]
	for i, o := range out {
		if len(o.Body) == 0 { // else the kernel makes headers that are open still
			mustAgree(&o)
		}
		first := &out[0]
		if *o.To != *first.To || o.SrcPort != first.SrcPort || o.Class != first.Class || o.TTL != first.TTL ||
			len(o.Body) == 0 && o.Len() > 576 && !o.DF || o.Len() > first.Len() ||
			o.Len() < first.Len() && i < len(out)-1 {
			c.t.Errorf("packet %d of %d, %x, does not go with %x", i, len(out), o.Head, out[0].Head)
		}
		c.out = append(c.out, append(bytes.Clone(o.Head), o.Body...))
	}
	return len(out), nil
}

// toVIP makes a packet of either family one to a VIP, with the headers' lengths and checksum as they should be, so that
// it gets farther.
func toVIP(b []byte) {
	switch {
	case len(b) >= packet.IPv6HeaderLen && b[0]>>4 == 6:
		copy(b[24:40], vip6.AsSlice())
		packet.IPv6(b).SetPayloadLen(len(b) - packet.IPv6HeaderLen)
	case len(b) >= packet.IPv4HeaderLen && b[0]>>4 == 4 && b[0]&15 >= 5 && int(b[0]&15)*4 <= len(b):
		copy(b[16:20], vip.AsSlice())
		packet.IPv4(b).SetTotalLen(len(b))
		packet.IPv4(b).SetChecksum()
	}
}

// FuzzForward: the worker survives any packet and offload header of a TUN device. It sends only whole packets that fit
// the path, through each tunnel, even if sockets refuse some.
func FuzzForward(f *testing.F) {
	f.Add([]byte(tcp(80, packet.FlagSYN, 10)), []byte{}, uint8(0), uint16(0), uint16(4), uint8(0), true)
	f.Add([]byte(udp(53, false, 1480)), []byte(udp(53, false, 100)), uint8(2), uint16(0), uint16(4), uint8(0), true)
	f.Add([]byte(udp(53, true, 3000)), []byte{}, uint8(2), uint16(600), uint16(4), uint8(packet.GSOUDP), true)
	f.Add([]byte(udp6(53, 3000)), []byte{}, uint8(6), uint16(1200), uint16(2), uint8(packet.GSOUDP), true)
	f.Add([]byte(udp6(53, 700)), []byte(udp6(53, 700)), uint8(15), uint16(0), uint16(1), uint8(0), false)
	f.Add([]byte(tcp(82, packet.FlagSYN, 3000)), []byte{}, uint8(1), uint16(600), uint16(2), uint8(packet.GSOTCP), true)
	whole := udp6(53, 700)
	f.Add(cut(whole, 1, 48, 708), cut(whole, 1, 0, 48), uint8(2), uint16(0), uint16(1), uint8(0), true)
	mtus := []int{120, 600, 1300, 1400, 1500, 9000}
	var now conntab.Ticks
	sites := map[[2]int]*fuzzSite{} // one for each tunnel and MTU: to make one costs more than a packet
	f.Fuzz(func(t *testing.T, first, second []byte, kind uint8, size, mtu uint16, offload uint8, fix bool) {
		if len(first) > packet.MaxLen || len(second) > packet.MaxLen {
			return
		}
		key := [2]int{int(kind & 15), mtus[int(mtu)%len(mtus)]}
		s := sites[key]
		if s == nil {
			s = newFuzzSite(t, kind&15, key[1], &now)
			sites[key] = s
		}
		s.tun.in, s.tun.out = nil, nil
		for _, b := range [][]byte{first, second, first} {
			if b = bytes.Clone(b); fix {
				toVIP(b)
			}
			s.tun.in = append(s.tun.in, b)
		}
		s.tun.offload = packet.Offload{GSO: packet.GSO(offload & 3), Size: size, Partial: offload&4 != 0,
			CsumStart: uint16(offload >> 3), CsumOffset: 6}
		calls := int(offload)
		s.udp = cars{t: t, limit: 64, fail: func() error {
			if calls++; calls%5 == 3 {
				return unix.EIO
			}
			return nil
		}}
		now += 100
		if err := s.worker.Run(); err != nil {
			t.Fatal(err)
		}
		for _, o := range append(s.tun.out, s.udp.out...) {
			s.check(t, o)
		}
	})
}

// header returns the length and the destination that the header of a packet says, of either family.
func header(b []byte) (n int, dst netip.Addr) {
	switch {
	case len(b) >= packet.IPv6HeaderLen && b[0]>>4 == 6:
		return packet.IPv6(b).TotalLen(), packet.IPv6(b).Dst()
	case len(b) >= packet.IPv4HeaderLen && b[0]>>4 == 4:
		return packet.IPv4(b).TotalLen(), packet.IPv4(b).Dst()
	}
	return 0, netip.Addr{}
}

// check checks that o is a whole packet, and that one to the realserver fits its path.
func (s *fuzzSite) check(t *testing.T, o []byte) {
	t.Helper()
	if n, dst := header(o); n != len(o) || dst == s.real && n > s.mtu {
		t.Errorf("out went %d bytes, which say %d, with MTU %d: %x", len(o), n, s.mtu, o[:min(len(o), 80)])
	}
}

// FuzzRelay: the relay survives any packet about any tunnel. It sends only whole packets with a VIP as source.
func FuzzRelay(f *testing.F) {
	var sites []*balancer.Balancer
	for _, real := range []netip.Addr{real1, real6} {
		for kind := encap.KindIPIP; kind <= encap.KindFOU; kind++ {
			b := newSite(f, real, kind, 1500)
			for _, in := range [][]byte{udp(53, true, 30), udp6(53, 30)} {
				about := wrapped(f, b, in)
				f.Add([]byte(errorAbout(about, 500, 3, 4, 1300)), uint8(len(sites)), true)
				f.Add([]byte(errorAbout(about, 100, 1, 0, 0)), uint8(len(sites)), true)
			}
			sites = append(sites, b)
		}
	}
	var now conntab.Ticks
	f.Fuzz(func(t *testing.T, e []byte, site uint8, fix bool) {
		if len(e) > packet.MaxLen {
			return
		}
		if e = bytes.Clone(e); fix {
			mendICMP(e)
		}
		now += 1000
		s := script{in: [][]byte{e}}
		if err := NewRelay(&s, &s, sites[int(site)%len(sites)], NewShared(),
			func() conntab.Ticks { return now }).Run(); err != nil {
			t.Fatal(err)
		}
		for _, o := range s.out {
			var p packet.Info
			if d := p.Parse(o); d != drop.Accept || p.Len != len(o) || p.Flow.Src != vip && p.Flow.Src != vip6 {
				t.Errorf("%v: out went %x", d, o)
			}
		}
	})
}

// mendICMP corrects lengths and checksums of the ICMP packet b, if that has no IP options.
func mendICMP(b []byte) {
	switch {
	case len(b) > 28 && b[0] == 0x45:
		h := packet.IPv4(b)
		h.SetTotalLen(len(b))
		h.SetChecksum()
		b[22], b[23] = 0, 0
		binary.BigEndian.PutUint16(b[22:], packet.Checksum(b[20:]))
	case len(b) > 48 && b[0]>>4 == 6:
		h := packet.IPv6(b)
		h.SetPayloadLen(len(b) - packet.IPv6HeaderLen)
		b[42], b[43] = 0, 0
		packet.PutChecksum(b[42:], packet.Sum(b[40:], h.PseudoSum(packet.ProtoICMPv6, len(b)-40)), false)
	}
}

// FuzzCapture: a Capture survives any packet, and takes none without the addresses of its filter.
func FuzzCapture(f *testing.F) {
	f.Add([]byte(tcp(80, packet.FlagSYN, 10)))
	f.Add([]byte(udp6(53, 10)))
	f.Add([]byte(ip(packet.ProtoICMP, false, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, tcp(80, packet.FlagACK, 10)...))))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Capture{filter: CaptureFilter{Client: client, VIP: vip, Port: 80}}
		if c.matches(b) && (!bytes.Contains(b, client.AsSlice()) || !bytes.Contains(b, vip.AsSlice())) {
			t.Errorf("%x is taken", b)
		}
	})
}
