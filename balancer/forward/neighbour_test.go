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
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

var (
	near     = netip.MustParseAddr("10.0.2.11")
	near6    = netip.MustParseAddr("fd00:0:2::11")
	nearLink = method.Link{Device: 7, MAC: [6]byte{2, 0, 0, 0, 0, 11}, OwnMAC: [6]byte{2, 0, 0, 0, 0, 2}}
)

// frames is a port of packet sockets that keeps the packets, with their work that is left.
type frames struct {
	out  [][]byte
	left []packet.Offload
	to   []egress.Peer
}

func (f *frames) Send(out []egress.Outgoing) (int, error) {
	for i, o := range out {
		f.out, f.to = append(f.out, append(bytes.Clone(o.Head), o.Body...)), append(f.to, *o.To)
		left := packet.Offload{}
		if o.Buf != nil {
			left = o.Buf.Offload
		}
		f.left = append(f.left, left)
		if i == 9 {
			return 10, nil // a short count
		}
	}
	return len(out), nil
}

// directConfig has services web and dns of both families with one realserver each, by VS/DR.
func directConfig(mtu int, link method.Link) (c balancer.Config) {
	for _, s := range []struct {
		name  string
		vip   netip.Addr
		real  netip.Addr
		proto uint8
		port  uint16
	}{
		{"web", vip, near, packet.ProtoTCP, 80}, {"dns", vip, near, packet.ProtoUDP, 53},
		{"web6", vip6, near6, packet.ProtoTCP, 80}, {"dns6", vip6, near6, packet.ProtoUDP, 53},
	} {
		c.Services = append(c.Services, balancer.Service{Name: s.name, VIPs: []netip.Addr{s.vip}, Protocol: s.proto,
			Ports: []balancer.PortRange{{First: s.port, Last: s.port}}, Scheduler: "rr",
			Realservers: []balancer.Realserver{{Address: s.real, Weight: 1,
				Config: method.Config{Kind: method.DR, Link: link, MTU: mtu}}}})
	}
	return c
}

// newDirect is a worker for directConfig. now is its clock.
func newDirect(t testing.TB, mtu int, link method.Link, f egress.Port, now *conntab.Ticks) (*Worker, *script) {
	t.Helper()
	b := balancer.New(conntab.New(conntab.Config{Max: 2048, SloppyTCP: true}), 1)
	if err := b.Apply(directConfig(mtu, link)); err != nil {
		t.Fatal(err)
	}
	s := &script{}
	shared := NewShared()
	shared.UseLink(f)
	return NewWorker(WorkerConfig{Source: s, Raw: s, Link: f, Balancer: b, Shared: shared,
		Clock: func() conntab.Ticks { return *now }}), s
}

// put puts a packet into buffer i of the worker.
func (w *Worker) put(i int, p []byte, o packet.Offload) {
	w.bufs[i].SetLen(copy(w.bufs[i].Room(), p))
	w.bufs[i].Offload = o
}

// tallied returns the worker's counts.
func (w *Worker) tallied() (t stats.Tally) {
	w.Read(&t)
	return t
}

// TestToNeighbour: packets leave unchanged for the realserver's MAC address, GSO packets whole and unfinished checksums
// unfinished. ICMP errors of clients' paths take the same way. Segments that the MTU is too small for become smaller.
func TestToNeighbour(t *testing.T) {
	var f frames
	now := conntab.Ticks(1)
	w, s := newDirect(t, 1500, nearLink, &f, &now)
	partial := packet.Offload{Partial: true, CsumStart: 20, CsumOffset: 16}
	super := partial
	super.GSO, super.Size = packet.GSOTCP, 1448
	large := super
	large.Size = 8960
	datagrams := packet.Offload{GSO: packet.GSOUDP, Size: 1200, Partial: true, CsumStart: 20, CsumOffset: 6}
	request := tcp(80, packet.FlagSYN, 0)
	in := []struct {
		p []byte
		o packet.Offload
	}{{request, packet.Offload{}}, {tcp(80, packet.FlagACK, 500), partial}, {tcp(80, packet.FlagACK, 60_000), super},
		{tcp(80, packet.FlagACK, 60_000), large}, {udp(53, true, 40*1200), datagrams}, {udp6(53, 20), packet.Offload{}},
		{errorAbout(flipped(request), 100, 3, 4, 1400), packet.Offload{}}}
	for i, c := range in {
		w.put(i, c.p, c.o)
	}
	w.forward(w.bufs[:len(in)])
	var tally stats.Tally
	w.Read(&tally)
	if len(f.out) != len(in) || len(s.out) != 0 || tally.OutPackets != uint64(len(in)) {
		t.Fatalf("%d of %d packets left by the link, %d otherwise; counted %+v", len(f.out), len(in), len(s.out), tally)
	}
	for i, c := range in {
		want := c.o
		if want.GSO == packet.GSOTCP {
			want.Size = min(want.Size, 1460)
		}
		to := f.to[i]
		if !bytes.Equal(f.out[i], c.p) || f.left[i] != want || to.MAC != nearLink.MAC || to.OwnMAC != nearLink.OwnMAC ||
			to.Device != nearLink.Device {
			t.Errorf("packet %d: %d bytes with %+v to %+v", i, len(f.out[i]), f.left[i], to)
		}
	}
	st := w.balancer.Snapshot().Status()
	if r := st[0].Realservers[0]; r.Packets != 5 ||
		r.Bytes != uint64(40+540+2*60_040+len(in[6].p)) {
		t.Errorf("the realserver's counts: %+v", r)
	}
}

// TestTinySegments: VS/DR and VS/NAT cut no GSO packet, so they send one of any number of segments.
func TestTinySegments(t *testing.T) {
	const mss = 36 // Linux's smallest, 48, without timestamps
	super := packet.Offload{GSO: packet.GSOTCP, Size: mss, Partial: true, CsumStart: 20, CsumOffset: 16}
	p := tcp(80, packet.FlagSYN, 65_000)
	if n := 65_000 / mss; n <= packet.MaxPieces {
		t.Fatalf("%d segments can be cut", n)
	}
	var f frames
	now := conntab.Ticks(1)
	direct, _ := newDirect(t, 1500, nearLink, &f, &now)
	direct.put(0, p, super)
	direct.forward(direct.bufs[:1])
	nat := newNATSite(t, 1500)
	back, _ := nat.run(t, super, p)
	if len(f.out) != 1 || len(f.out[0]) != len(p) || f.left[0] != super {
		t.Errorf("dr: %d packets, %+v, counted %v", len(f.out), f.left, direct.tallied().Drops)
	}
	if len(back) != 1 || len(back[0]) != len(p) || nat.work[0] != super {
		t.Errorf("nat: %d packets, %+v, counted %v", len(back), nat.work, nat.worker.tallied().Drops)
	}
}

// TestFragmentsToNeighbour: a packet without DF that is larger than the MTU leaves in fragments of its own ID, options
// included, and so does each datagram of a GSO packet. With DF the client gets the MTU.
func TestFragmentsToNeighbour(t *testing.T) {
	var f frames
	now := conntab.Ticks(1)
	w, s := newDirect(t, 1300, nearLink, &f, &now)
	plain := udp(53, false, 3000)
	plain.SetID(4711)
	plain.SetChecksum()
	withOptions := optionsIn(plain, 0x07, 3, 4, 1, 0x94, 4, 0, 0) // record route, no operation, router alert
	for i, p := range [][]byte{plain, withOptions} {
		f = frames{}
		w.put(0, p, packet.Offload{})
		w.forward(w.bufs[:1])
		whole := reassemble(t, f.out, 1300)
		if !bytes.Equal(whole, packet.IPv4(p).Payload()) {
			t.Errorf("packet %d: its fragments have other bytes", i)
		}
		for j, b := range f.out {
			h := packet.IPv4(b)
			if h.ID() != 4711 || h.TTL() != 63 || h.Src() != client || f.to[j].MAC != nearLink.MAC {
				t.Errorf("packet %d, fragment %d: %x", i, j, b[:24])
			}
			if i == 1 && (h.HeaderLen() != 28 || (h[20] == 0x07) != (j == 0) || h[24] != 0x94) {
				t.Errorf("options of fragment %d: %x", j, b[20:28])
			}
		}
	}
	f = frames{}
	w.put(0, udp(53, false, 3*1400), packet.Offload{GSO: packet.GSOUDP, Size: 1400, Partial: true, CsumStart: 20,
		CsumOffset: 6})
	w.forward(w.bufs[:1])
	if len(f.out) != 6 {
		t.Errorf("3 datagrams in %d fragments", len(f.out))
	}
	f = frames{}
	w.put(0, udp(53, true, 1400), packet.Offload{})
	w.put(1, udp6(53, 1400), packet.Offload{})
	w.forward(w.bufs[:2])
	if len(f.out) != 0 || len(s.out) != 2 || packet.IPv4(s.out[0]).Protocol() != packet.ProtoICMP ||
		binary.BigEndian.Uint16(s.out[0][26:]) != 1300 || binary.BigEndian.Uint32(s.out[1][44:]) != 1300 {
		t.Errorf("with DF: %d packets left, answers %x", len(f.out), s.out)
	}
}

// optionsIn is the packet p with IP options.
func optionsIn(p packet.IPv4, options ...byte) packet.IPv4 {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	b := append(append(bytes.Clone(p[:20]), options...), p[20:]...)
	b[0] = 0x40 | byte(20+len(options))/4
	packet.IPv4(b).SetTotalLen(len(b))
	packet.IPv4(b).SetChecksum()
	return b
}

// reassemble joins IPv4 fragments, which must be complete, right and no larger than mtu.
func reassemble(t *testing.T, fragments [][]byte, mtu int) (whole []byte) {
	t.Helper()
	for i, b := range fragments {
		h := packet.IPv4(b)
		if len(b) > mtu || h.Check() != drop.Accept || h.FragOffset() != len(whole) || h.DF() ||
			h.More() != (i < len(fragments)-1) {
			t.Fatalf("fragment %d: %x", i, b[:20])
		}
		whole = append(whole, h.Payload()...)
	}
	return whole
}

// TestToNeighbourAllocatesNothing: neither packets, nor fragments, nor packets that find no room to wait.
func TestToNeighbourAllocatesNothing(t *testing.T) {
	for _, link := range []method.Link{nearLink, {Device: 7}} {
		now := conntab.Ticks(1)
		w, _ := newDirect(t, 1300, link, discard{}, &now)
		request, six := tcp(80, packet.FlagSYN, 0), udp6(53, 100)
		large, super := udp(53, false, 3000), udp(53, false, 4200)
		if n := testing.AllocsPerRun(100, func() {
			w.put(0, request, packet.Offload{})
			w.put(1, large, packet.Offload{})
			w.put(2, six, packet.Offload{})
			w.put(3, super, packet.Offload{GSO: packet.GSOUDP, Size: 1400, Partial: true,
				CsumStart: 20, CsumOffset: 6})
			w.forward(w.bufs[:4])
		}); n != 0 {
			t.Errorf("link %+v: %v allocations a batch", link, n)
		}
	}
}

// flaky is frames, but the kernel refuses some of the packets.
type flaky struct {
	frames
	calls int
}

func (f *flaky) Send(out []egress.Outgoing) (int, error) {
	if f.calls++; f.calls%5 == 3 {
		return 0, unix.ENOBUFS
	}
	return f.frames.Send(out)
}

// FuzzToNeighbour: the worker survives any packet and offload header of a TUN device. To a realserver of VS/DR it sends
// only packets that the MTU of the link allows, also those that have waited for the MAC address.
func FuzzToNeighbour(f *testing.F) {
	const waits = 0x80 // in kind: the MAC address is not known yet
	request, datagram := tcp(80, packet.FlagSYN, 10), udp(53, false, 3000)
	f.Add([]byte(request), []byte(errorAbout(flipped(request), 100, 3, 4, 1400)), uint8(1), uint16(0), uint8(0), true)
	f.Add([]byte(datagram), []byte(optionsIn(datagram, 0x94, 4, 0, 0)), uint8(1), uint16(0), uint8(0), true)
	f.Add([]byte(datagram), []byte(udp6(53, 3000)), uint8(2), uint16(1400), uint8(packet.GSOUDP), true)
	f.Add([]byte(tcp(80, packet.FlagACK, 3000)), []byte(request), uint8(waits|3), uint16(20), uint8(packet.GSOTCP),
		true)
	whole := udp6(53, 1400)
	f.Add(cut(whole, 1, 48, 1408), cut(whole, 1, 0, 48), uint8(2), uint16(0), uint8(0), true)
	mtus := [...]int{68, 120, 1300, 1500, 9000}
	type site struct {
		worker *Worker
		raw    *script
		link   flaky
	}
	now := conntab.Ticks(1)
	var known, unknown [len(mtus)]site
	for i, mtu := range mtus {
		k, u := &known[i], &unknown[i]
		k.worker, k.raw = newDirect(f, mtu, nearLink, &k.link, &now)
		u.worker, u.raw = newDirect(f, mtu, method.Link{Device: 7}, &u.link, &now)
	}
	f.Fuzz(func(t *testing.T, first, second []byte, kind uint8, size uint16, offload uint8, fix bool) {
		if len(first) > packet.MaxLen || len(second) > packet.MaxLen {
			return
		}
		at := int(kind&^waits) % len(mtus)
		s := &known[at]
		if kind&waits != 0 {
			s = &unknown[at]
		}
		s.raw.out, s.link.frames = nil, frames{}
		for i, b := range [][]byte{first, second, first} {
			if b = bytes.Clone(b); fix {
				toVIP(b)
			}
			s.worker.put(i, b, packet.Offload{GSO: packet.GSO(offload & 3), Size: size, Partial: offload&4 != 0,
				CsumStart: uint16(offload >> 3), CsumOffset: 6})
		}
		now += 100
		s.worker.forward(s.worker.bufs[:3])
		s.worker.shared.SendResolved(known[at].worker.balancer.Snapshot(), now)
		for i, b := range s.link.out {
			mustFit(t, b, s.link.left[i], mtus[at])
		}
		for _, b := range s.raw.out {
			if n, dst := header(b); n != len(b) || dst == vip || dst == vip6 {
				t.Errorf("by a raw socket left %x", b)
			}
		}
	})
}

// mustFit checks that b is a packet for a VIP, or an error about one's reply, that a link with this MTU takes. left is
// the work that the kernel has to do.
func mustFit(t *testing.T, b []byte, left packet.Offload, mtu int) {
	t.Helper()
	n := len(b)
	if left.GSO != packet.GSONone {
		var p packet.Info
		d := p.Parse(b)
		n = p.Offset + packet.UDPHeaderLen
		if left.GSO == packet.GSOTCP {
			n = p.Offset + packet.TCP(b[p.Offset:]).HeaderLen()
		}
		if n += int(left.Size); d != drop.Accept || left.Size == 0 {
			t.Errorf("%v: a GSO packet left with %+v: %x", d, left, b[:min(len(b), 80)])
		}
	}
	if says, dst := header(b); n > mtu || says != len(b) || dst != vip && dst != vip6 {
		t.Errorf("%d bytes left, which say %d, by a link with MTU %d and %+v: %x", len(b), says, mtu, left,
			b[:min(len(b), 80)])
	}
}

// BenchmarkToNeighbour is BenchmarkForward for VS/DR.
func BenchmarkToNeighbour(b *testing.B) {
	now := conntab.Ticks(1)
	w, _ := newDirect(b, 1500, nearLink, discard{}, &now)
	p := udp(53, false, 32)
	for b.Loop() {
		for i := range w.bufs {
			w.bufs[i].SetLen(copy(w.bufs[i].Room(), p))
		}
		w.forward(w.bufs)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/packet")
}
