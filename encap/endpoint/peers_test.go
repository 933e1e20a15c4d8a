package endpoint

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"

	"vstun/encap"
	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
)

// cable is the sockets and devices of two ends of a tunnel: what one end sends, the other end gets.
type cable struct {
	sent    [][]byte
	come    [][]byte // to the device, with the link-layer header in front
	offload []packet.Offload
	keep    bool // come
}

func (c *cable) Send(out []egress.Outgoing) (int, error) {
	for i := range out {
		c.sent = append(c.sent, append(bytes.Clone(out[i].Head), out[i].Body...))
	}
	return len(out), nil
}

// ReadBatch returns what was sent.
func (c *cable) ReadBatch(bufs []packet.Buf) (n int, err error) {
	for n < len(bufs) && len(c.sent) > 0 {
		bufs[n].SetLen(copy(bufs[n].Room(), c.sent[0]))
		c.sent = c.sent[1:]
		n++
	}
	if n == 0 {
		return 0, os.ErrClosed
	}
	return n, nil
}

// deviceEnd is the device of a cable.
type deviceEnd struct{ *cable }

func (d deviceEnd) WriteBatch(bufs []*packet.Buf) (n, size int, err error) {
	for _, b := range bufs {
		_ = d.Send(nil, b)
		n, size = n+b.Pieces(), size+b.ChainLen()
	}
	return n, size, nil
}

func (d deviceEnd) Send(link []byte, b *packet.Buf) error {
	if d.keep {
		d.come = append(d.come, append(bytes.Clone(link), whole(b)...))
		d.offload = append(d.offload, b.Offload)
	}
	return nil
}

// tunnelPair is both ends of a tunnel, from director to realserver.
type tunnelPair struct {
	*cable
	out      *Outbound
	in       *Inbound
	sent     stats.Counters // of out
	received stats.Counters // of in
	others   stats.Counters
	table    atomic.Pointer[Peers]
	sizes    *Sizes
}

// newPair makes the ends of a tunnel of c, over a path of an MTU.
func newPair(t *testing.T, c encap.Config, mtu int) *tunnelPair {
	t.Helper()
	c.TTL = 64
	wrap, err := encap.New(c)
	if err != nil {
		t.Fatal(err)
	}
	p := &tunnelPair{cable: &cable{keep: true}, sizes: &Sizes{}}
	inner := mtu - wrap.Overhead()
	var remote atomic.Pointer[Remote]
	remote.Store(&Remote{Tunnel: wrap, Peer: egress.Peer{Src: c.Source, Dst: c.Destination, DstPort: c.Port}, MTU: mtu,
		Ethernet: c.Ethernet, MSS4: inner - 40, MSS6: inner - 60, Sizes: p.sizes})
	if c.Kind.UDP() {
		remote.Load().Kind = egress.UDP
	}
	p.out = NewOutbound(OutboundConfig{Errors: deviceEnd{p.cable}, Raw: p.cable, IDs: egress.NewIDs(1), Remote: &remote,
		Counters: &p.sent, TooBig: func() {}})
	p.table.Store(NewPeers([]*End{{Remote: c.Source, Port: c.Port, MTU: inner, Sinks: []EndSink{deviceEnd{p.cable}},
		Counters: &p.received, Sizes: p.sizes, MSS4: inner - 40, MSS6: inner - 60,
		Decap: encap.Decapsulator{Kind: c.Kind, Key: c.Key, HasKey: c.HasKey, Ethernet: c.Ethernet}}}, 0))
	p.in = NewInbound(p.cable, &p.table, 0, true, c.Kind.Sealed(), &p.others)
	return p
}

// pass sends the packet or frame b through the tunnel. The offload counts from the IP packet on.
func (p *tunnelPair) pass(t *testing.T, b []byte, link int, o packet.Offload) {
	t.Helper()
	p.come, p.offload = nil, nil
	bufs := packet.NewBufs(1)
	front := min(link, packet.EthernetHeaderLen)
	copy(bufs[0].RoomBehind(front), b)
	bufs[0].SetLen(len(b) - front)
	bufs[0].Offload = o
	if o.Partial {
		bufs[0].Offload.CsumStart += uint16(link - front) // as the device has it, for VLAN tags
	}
	p.out.move(bufs)
	for _, s := range p.cable.sent { // the kernel's part
		if ip := packet.IPv4(s); ip.Version() == 4 {
			ip.SetChecksum()
		}
	}
	into := packet.NewBufs(batch)
	if n, err := p.in.ReadBatch(into); n != 0 || err != os.ErrClosed {
		t.Fatalf("%d packets are others, %v", n, err)
	}
}

// pairs returns the tunnels of each format, over both families, for IP packets or frames.
func pairs(frames bool) map[string]encap.Config {
	all := map[string]encap.Config{}
	for _, k := range encap.Kinds() {
		for _, six := range []bool{false, true} {
			c := encap.Config{Kind: k, Source: director, Destination: realserver, Ethernet: frames}
			if six {
				c.Source, c.Destination = director6, realserver6
			}
			if k.UDP() {
				c.Port = port
			}
			if frames && !k.HasFrames() {
				continue
			}
			all[fmt.Sprintf("%v over IPv6 %v", k, six)] = c
			if k.HasKey() {
				c.HasKey, c.Key, c.Checksum = true, 7, true
				all[fmt.Sprintf("%v with key over IPv6 %v", k, six)] = c
			}
		}
	}
	return all
}

// linkTo returns an Ethernet header with VLAN tags.
func linkTo(kind uint16, tags int) []byte {
	b := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for range tags {
		b = append(b, 0x81, 0, 0, 7)
	}
	return append(b, byte(kind>>8), byte(kind))
}

// TestTunnel sends packets and frames through every tunnel. They arrive as they were.
func TestTunnel(t *testing.T) {
	for _, frames := range []bool{false, true} {
		for name, c := range pairs(frames) {
			p := newPair(t, c, 1500)
			for _, six := range []bool{false, true} {
				src, dst, kind := client, vip, uint16(packet.EtherTypeIPv4)
				if six {
					src, dst, kind = client6, vip6, packet.EtherTypeIPv6
				}
				for n, b := range map[string][]byte{
					"datagram":      ip(src, dst, packet.ProtoUDP, append([]byte{0, 1, 0, 2, 0, 12, 0, 0}, "data"...)),
					"another":       ip(src, dst, 132, make([]byte, 40)),
					"empty":         ip(src, dst, 59, nil),
					"short":         ip(src, dst, packet.ProtoTCP, make([]byte, 3)),
					"tunnel itself": ip(src, dst, packet.ProtoIPIP, ip(src, dst, packet.ProtoUDP, make([]byte, 8))),
					"segment":       segment{port: 1, n: 100, flags: packet.FlagACK, six: six}.bytes(),
				} {
					for tags := range 3 {
						var link []byte
						if frames {
							link = linkTo(kind, tags)
						}
						p.pass(t, append(bytes.Clone(link), b...), len(link), packet.Offload{})
						if len(p.come) != 1 || !bytes.Equal(p.come[0], append(bytes.Clone(link), b...)) {
							t.Errorf("%s, frames %v, %s, IPv6 %v, %d tags: %x", name, frames, n, six, tags, p.come)
						}
					}
				}
			}
			if frames {
				arp := append(linkTo(packet.EtherTypeARP, 0), make([]byte, 28)...)
				p.pass(t, arp, packet.EthernetHeaderLen, packet.Offload{})
				if len(p.come) != 1 || !bytes.Equal(p.come[0], arp) {
					t.Errorf("%s: ARP: %x", name, p.come)
				}
			}
			var out, in stats.Tally
			p.sent.Read(&out)
			p.received.Read(&in)
			if out.OutPackets != in.InPackets || in.InPackets != in.OutPackets || out.OutBytes != in.InBytes ||
				out.Drops != (stats.Tally{}).Drops || in.Drops != out.Drops {
				t.Errorf("%s, frames %v: sent %+v, received %+v", name, frames, out, in)
			}
		}
	}
}

// large returns a GSO packet of TCP with n bytes of payload, and its offload.
func large(six bool, n, size int) ([]byte, packet.Offload) {
	s := segment{port: 9, n: n, flags: packet.FlagACK, six: six}
	b := s.bytes()
	packet.TCP(b[s.ip():]).SetPartialChecksum(packet.PseudoSum(b, packet.ProtoTCP, len(b)-s.ip()))
	return b, packet.Offload{GSO: packet.GSOTCP, Size: uint16(size), Partial: true, CsumStart: uint16(s.ip()),
		CsumOffset: packet.TCPChecksumAt}
}

// TestTunnelGSO: a GSO packet leaves in segments that fit the path, and is one packet again behind the tunnel, also
// behind VLAN tags.
func TestTunnelGSO(t *testing.T) {
	for _, frames := range []bool{false, true} {
		for name, c := range pairs(frames) {
			for _, six := range []bool{false, true} {
				for tags := range 3 {
					p := newPair(t, c, 1500)
					b, o := large(six, 20_000, 1448)
					var link []byte
					if frames {
						kind := uint16(packet.EtherTypeIPv4)
						if six {
							kind = packet.EtherTypeIPv6
						}
						link = linkTo(kind, tags)
					}
					p.pass(t, append(bytes.Clone(link), b...), len(link), o)
					headers := len(link) + segment{six: six}.headers()
					if len(p.come) != 1 || len(p.come[0]) != len(link)+len(b) ||
						!bytes.Equal(p.come[0][:len(link)], link) ||
						!bytes.Equal(p.come[0][headers:], b[headers-len(link):]) || p.offload[0].GSO != packet.GSOTCP {
						t.Errorf("%s, frames %v, IPv6 %v, %d tags: %d packets, %+v", name, frames, six, tags,
							len(p.come), p.offload)
					}
				}
			}
		}
	}
}

// TestTunnelTooBig: with DF a packet that is too big for the path is dropped, and its sender gets an ICMP error;
// without DF, and of a TAP device, it leaves in fragments.
func TestTunnelTooBig(t *testing.T) {
	c := encap.Config{Source: director, Destination: realserver}
	p := newPair(t, c, 1400)
	b := ip(client, vip, packet.ProtoUDP, make([]byte, 1380))
	packet.IPv4(b).SetDF(true)
	packet.IPv4(b).SetChecksum()
	p.pass(t, b, 0, packet.Offload{})
	if len(p.come) != 1 || packet.IPv4(p.come[0]).Dst() != client ||
		packet.ICMP(p.come[0][packet.IPv4HeaderLen:]).MTU4() != 1380 {
		t.Errorf("with DF: %x", p.come)
	}
	var out stats.Tally
	p.sent.Read(&out)
	if out.Drops[drop.TooBig] != 1 || out.OutPackets != 0 {
		t.Errorf("%+v", out)
	}
	for _, frames := range []bool{false, true} {
		c := encap.Config{Kind: encap.KindGRE, Source: director6, Destination: realserver6, Ethernet: frames}
		p := newPair(t, c, 1400)
		whole, link := ip(client, vip, packet.ProtoUDP, make([]byte, 1380)), 0
		if frames {
			packet.IPv4(whole).SetDF(true)
			packet.IPv4(whole).SetChecksum()
			whole, link = append(linkTo(packet.EtherTypeIPv4, 0), whole...), packet.EthernetHeaderLen
		}
		bufs := packet.NewBufs(1)
		copy(bufs[0].RoomBehind(link), whole)
		bufs[0].SetLen(len(whole) - link)
		p.out.move(bufs)
		if len(p.cable.sent) != 2 || len(p.cable.sent[0]) > 1400 {
			t.Errorf("frames %v: %d packets", frames, len(p.cable.sent))
		}
	}
}

// TestTunnelGSOPadding: a GSO packet has no bytes behind the end of its IP packet. A guest's frame can: it is dropped.
func TestTunnelGSOPadding(t *testing.T) {
	p := newPair(t, encap.Config{Kind: encap.KindGRE, Source: director, Destination: realserver, Ethernet: true}, 9000)
	const options = 5 * 1024 // of the destination, in each segment's head
	h := segment{six: true, flags: packet.FlagACK}.bytes()
	b := append(h[:packet.IPv6HeaderLen:packet.IPv6HeaderLen], make([]byte, options)...)
	for at := packet.IPv6HeaderLen; at < len(b); at += 2048 {
		n := min(2048, len(b)-at)
		b[at], b[at+1] = 60, byte(n/8-1)
		if at+n == len(b) {
			b[at] = packet.ProtoTCP
		}
		for i := at + 2; i < at+n; {
			pad := min(257, at+n-i) // PadN
			b[i], b[i+1] = 1, byte(pad-2)
			i += pad
		}
	}
	b[6] = 60
	b = append(b, h[packet.IPv6HeaderLen:]...)
	packet.IPv6(b).SetPayloadLen(len(b) - packet.IPv6HeaderLen)
	b = append(b, make([]byte, 50_000)...)
	bufs := packet.NewBufs(2)
	for i := range bufs {
		link := linkTo(packet.EtherTypeIPv6, 0)
		room := bufs[i].RoomBehind(len(link))
		copy(room[copy(room, link):], b)
		bufs[i].SetLen(len(b))
		bufs[i].Offload = packet.Offload{GSO: packet.GSOTCP, Size: 1000, Partial: true,
			CsumStart: packet.IPv6HeaderLen + options, CsumOffset: packet.TCPChecksumAt}
	}
	p.out.move(bufs)
	var out stats.Tally
	p.sent.Read(&out)
	if out.Drops[drop.Offload] != 2 || len(p.cable.sent) != 0 {
		t.Errorf("%d packets left, %+v", len(p.cable.sent), out)
	}
}

// TestTunnelMSS: SYNs have the MSS that fits, whichever end lowers it, and a packet that GRO has merged is cut for it.
func TestTunnelMSS(t *testing.T) {
	c := encap.Config{Source: director, Destination: realserver}
	p := newPair(t, c, 1500)
	syn := func(src, dst netip.Addr, mss uint16) []byte {
		b := ip(src, dst, packet.ProtoTCP, make([]byte, 24))
		s := packet.TCP(b[20:])
		s.SetSrcPort(9)
		s.SetDstPort(80)
		s.SetHeaderLen(24)
		s.SetFlags(packet.FlagSYN)
		copy(s[20:], []byte{2, 4, byte(mss >> 8), byte(mss)})
		s.SetChecksum(packet.PseudoSum(b, packet.ProtoTCP, len(s)))
		return b
	}
	mss := func(b []byte) int { return int(b[42])<<8 | int(b[43]) }
	p.pass(t, syn(client, vip, 1536), 0, packet.Offload{})
	if len(p.come) != 1 || mss(p.come[0]) != 1440 {
		t.Errorf("%x", p.come)
	}
	p.pass(t, syn(client, vip, 512), 0, packet.Offload{}) // the peer's segments are no larger
	if len(p.come) != 1 || mss(p.come[0]) != 512 {
		t.Errorf("%x", p.come)
	}
	wrapped := wrap(encap.KindIPIP, director, mergedBack(vip, client, 80, 9, 3*512))
	p.cable.sent, p.come, p.offload = [][]byte{wrapped}, nil, nil
	_, _ = p.in.ReadBatch(packet.NewBufs(batch))
	if len(p.offload) != 1 || p.offload[0].GSO != packet.GSOTCP || p.offload[0].Size != 512 {
		t.Errorf("%+v", p.offload)
	}
	p.pass(t, syn(client, vip, 1), 0, packet.Offload{})
	wrapped = wrap(encap.KindIPIP, director, mergedBack(vip, client, 80, 9, 3*512))
	p.cable.sent, p.come, p.offload = [][]byte{wrapped}, nil, nil
	_, _ = p.in.ReadBatch(packet.NewBufs(batch))
	if len(p.offload) != 1 || p.offload[0].Size != minSegment {
		t.Errorf("an MSS of 1: %+v", p.offload)
	}
	p.pass(t, syn(client, vip, 1440), 0, packet.Offload{})
	unfinished := syn(client, vip, 1536)
	s := packet.TCP(unfinished[20:])
	s.SetPartialChecksum(packet.PseudoSum(unfinished, packet.ProtoTCP, len(s)))
	p.cable.sent, p.come, p.offload = [][]byte{wrap(encap.KindIPIP, director, unfinished)}, nil, nil
	_, _ = p.in.ReadBatch(packet.NewBufs(batch))
	if len(p.come) != 1 || mss(p.come[0]) != 1440 || !p.offload[0].Partial ||
		packet.TCP(p.come[0][20:]).Checksum() != s.Checksum() {
		t.Errorf("an unfinished SYN: %x, %+v", p.come, p.offload)
	}
	wrapped = wrap(encap.KindIPIP, director, mergedBack(vip, client, 80, 10, 4*1440))
	p.cable.sent, p.come, p.offload = [][]byte{wrapped}, nil, nil
	_, _ = p.in.ReadBatch(packet.NewBufs(batch))
	if len(p.offload) != 1 || p.offload[0].Size != 1440 {
		t.Errorf("another connection: %+v", p.offload)
	}
}

// mergedBack returns a TCP packet that GRO has merged, with n bytes of payload and an unfinished checksum.
func mergedBack(src, dst netip.Addr, from, to uint16, n int) []byte {
	b := ip(src, dst, packet.ProtoTCP, make([]byte, 20+n))
	s := packet.TCP(b[20:])
	s.SetSrcPort(from)
	s.SetDstPort(to)
	s.SetHeaderLen(20)
	s.SetFlags(packet.FlagACK)
	s[30] = 1 // otherwise the sum could be right by chance
	s.SetPartialChecksum(packet.PseudoSum(b, packet.ProtoTCP, len(s)))
	return b
}

// TestPeers: a packet is found by its outer source, protocol, port and tunnel header.
func TestPeers(t *testing.T) {
	end := func(kind encap.Kind, from netip.Addr, at uint16, key uint32, frames bool) *End {
		return &End{Remote: from, Port: at,
			Decap: encap.Decapsulator{Kind: kind, Key: key, HasKey: key != 0, Ethernet: frames}}
	}
	ipip, gre, key := end(encap.KindIPIP, director, 0, 0, false), end(encap.KindGRE, director, 0, 0, false),
		end(encap.KindGRE, director, 0, 7, false)
	tap, six := end(encap.KindGRE, director, 0, 0, true), end(encap.KindIPIP, director6, 0, 0, false)
	gue, gueTAP := end(encap.KindGUE, director, 6080, 0, false), end(encap.KindGUE, director, 6080, 0, true)
	fou := end(encap.KindFOU, director, 5555, 0, false)
	peers := NewPeers([]*End{ipip, gre, key, tap, six, gue, gueTAP, fou}, 6080)
	inner := ip(client, vip, packet.ProtoUDP, make([]byte, 8))
	udp := func(at uint16, payload ...byte) []byte {
		u := make(packet.UDP, 8, 8+len(payload))
		u.SetDstPort(at)
		return append(u, payload...)
	}
	fragment := func(offset int, more bool) []byte {
		b := ip(director, realserver, 4, inner)
		packet.IPv4(b).SetFragment(offset, more)
		return b
	}
	for name, c := range map[string]struct {
		b        []byte
		want     *End
		stranger bool
	}{
		"ipip":                   {ip(director, realserver, 4, inner), ipip, false},
		"IPv6 in it":             {ip(director, realserver, 41, ip(client6, vip6, 59, nil)), ipip, false},
		"over IPv6":              {ip(director6, realserver6, 4, inner), six, false},
		"of another":             {ip(client, realserver, 4, inner), nil, false},
		"gre":                    {ip(director, realserver, 47, append([]byte{0, 0, 8, 0}, inner...)), gre, false},
		"gre, key":               {ip(director, realserver, 47, []byte{0x20, 0, 8, 0, 0, 0, 0, 7}), key, false},
		"gre, another key":       {ip(director, realserver, 47, []byte{0x20, 0, 8, 0, 0, 0, 0, 8}), gre, false},
		"gre, frame":             {ip(director, realserver, 47, []byte{0, 0, 0x65, 0x58}), tap, false},
		"gre, cut":               {ip(director, realserver, 47, []byte{0, 0}), gre, false},
		"gue":                    {ip(director, realserver, 17, udp(6080, 0, 4, 0, 0)), gue, false},
		"gue, frame":             {ip(director, realserver, 17, udp(6080, 0, 47, 0, 0)), gueTAP, false},
		"gue, variant 1":         {ip(director, realserver, 17, udp(6080, inner...)), gue, false},
		"fou":                    {ip(director, realserver, 17, udp(5555, inner...)), fou, false},
		"fou, of another":        {ip(client, realserver, 17, udp(5555, inner...)), nil, true},
		"gue, of another":        {ip(client, realserver, 17, udp(6080)), nil, false}, // the port is shared
		"another port":           {ip(director, realserver, 17, udp(53)), nil, false},
		"udp, cut":               {ip(director, realserver, 17, []byte{1}), nil, false},
		"first fragment":         {fragment(0, true), nil, false},
		"last fragment":          {fragment(1480, false), nil, false},
		"fragment of IPv6":       {ip(director6, realserver6, 44, []byte{4, 0, 0, 1, 0, 0, 0, 1}), nil, false},
		"no IP":                  {[]byte{0x45, 0}, nil, false},
		"nothing":                {nil, nil, false},
		"a wrong length":         {append(ip(director, realserver, 4, inner), 0), nil, false},
		"a wrong length of IPv6": {append(ip(director6, realserver6, 4, inner), 0), nil, false},
	} {
		b := buf(c.b)
		before := b.Len()
		got := peers.find(b, false)
		if got.end != c.want || got.stranger != c.stranger || (got.end == nil) != (b.Len() == before) {
			t.Errorf("%s: %+v, %d bytes of %d", name, got, b.Len(), before)
		}
	}
}

// TestPeersOfWireGuard: a packet with the source of a tunnel in WireGuard is that tunnel's only if WireGuard has
// brought it, whichever other tunnels there are, and no other tunnel's then.
func TestPeersOfWireGuard(t *testing.T) {
	end := func(kind encap.Kind, frames bool) *End {
		return &End{Remote: director, Port: port, Decap: encap.Decapsulator{Kind: kind, Ethernet: frames}}
	}
	sealed, frames := end(encap.KindWireGuard, false), end(encap.KindWireGuard, true)
	ipip, gre, fou := end(encap.KindIPIP, false), end(encap.KindGRE, true), end(encap.KindFOU, false)
	inner := ip(client, vip, packet.ProtoUDP, make([]byte, 8))
	u := make(packet.UDP, 8)
	u.SetDstPort(port)
	for name, c := range map[string]struct {
		b           []byte
		raw, sealed *End
	}{
		"IP packet": {ip(director, realserver, packet.ProtoIPIP, inner), ipip, sealed},
		"frame":     {ip(director, realserver, packet.ProtoGRE, []byte{0, 0, 0x65, 0x58}), gre, frames},
		"fou":       {ip(director, realserver, packet.ProtoUDP, append(u, inner...)), fou, nil},
	} {
		alone, all := NewPeers([]*End{sealed, frames}, 0), NewPeers([]*End{ipip, gre, fou, sealed, frames}, 0)
		for _, x := range []struct {
			what string
			p    *Peers
			from bool
			want *End
		}{
			{"raw, alone", alone, false, nil}, {"sealed, alone", alone, true, c.sealed},
			{"raw", all, false, c.raw}, {"sealed", all, true, c.sealed},
		} {
			if got := x.p.find(buf(c.b), x.from); got.end != x.want {
				t.Errorf("%s, %s: %+v", name, x.what, got)
			}
		}
	}
}

// TestInboundPassesOthers: packets of no tunnel stay in order, whatever is between them.
func TestInboundPassesOthers(t *testing.T) {
	p := newPair(t, encap.Config{Kind: encap.KindFOU, Port: port, Source: director, Destination: realserver}, 1500)
	fou := func(from netip.Addr, n int) []byte {
		u := make(packet.UDP, 8)
		u.SetDstPort(port)
		return ip(from, realserver, packet.ProtoUDP, append(u, ip(client, vip, 59, make([]byte, n))...))
	}
	others := [][]byte{ip(client, vip, 4, []byte{1}), ip(director, vip, 4, []byte{2}), ip(client6, vip6, 47, []byte{3})}
	p.cable.sent = [][]byte{fou(director, 1), others[0], fou(director, 2), fou(client, 3), others[1], others[2],
		fou(director, 4)}
	bufs := packet.NewBufs(batch)
	n, err := p.in.ReadBatch(bufs)
	if n != len(others) || err != nil {
		t.Fatalf("%d others, %v", n, err)
	}
	for i, want := range others {
		if !bytes.Equal(bufs[i].Bytes(), want) {
			t.Errorf("other %d is %x", i, bufs[i].Bytes())
		}
	}
	for i, size := range []int{1, 2, 4} {
		if len(p.come) != 3 || len(p.come[i]) != 20+size {
			t.Errorf("packets of the tunnel: %x", p.come)
		}
	}
	var strangers stats.Tally
	p.others.Read(&strangers)
	if strangers.Drops[drop.NotPeer] != 1 {
		t.Errorf("%+v", strangers)
	}
	p.table.Store(nil)
	p.cable.sent = [][]byte{fou(director, 1)}
	if n, err := p.in.ReadBatch(bufs); n != 1 || err != nil {
		t.Errorf("without tunnels: %d others, %v", n, err)
	}
}

// TestTunnelLoops: a tunnel whose packets would come back to its device sends none.
func TestTunnelLoops(t *testing.T) {
	for name, c := range pairs(false) {
		p := newPair(t, c, 1500)
		again := *p.out.remote.Load()
		again.Loops = true
		p.out.remote.Store(&again)
		b, o := large(false, 1, 100)
		p.pass(t, b, 0, o)
		var sent stats.Tally
		if p.sent.Read(&sent); len(p.come) > 0 || sent.OutPackets > 0 || sent.Drops[drop.Unreachable] != 1 {
			t.Errorf("%s: %d packets come, %d sent, %d dropped", name, len(p.come), sent.OutPackets,
				sent.Drops[drop.Unreachable])
		}
	}
}

// TestTunnelAllocatesNothing for a packet, nor for a GSO packet.
func TestTunnelAllocatesNothing(t *testing.T) {
	for _, frames := range []bool{false, true} {
		for name, c := range pairs(frames) {
			p := newPair(t, c, 1500)
			small, o := segment{port: 1, n: 100, flags: packet.FlagACK}.bytes(), packet.Offload{}
			big, gso := large(false, 20_000, 1400)
			bufs, into := packet.NewBufs(2), packet.NewBufs(batch)
			var link []byte
			if frames {
				link = linkTo(packet.EtherTypeIPv4, 0)
			}
			fill := func(b *packet.Buf, p []byte, o packet.Offload) {
				room := b.RoomBehind(len(link))
				copy(room[copy(room, link):], p)
				b.SetLen(len(p))
				b.Offload = o
			}
			fill(&bufs[0], small, o)
			fill(&bufs[1], big, gso)
			p.out.move(bufs)
			wire := p.cable.sent
			sink := &held{packets: wire}
			p.out.out.Init(egress.Config{Raw: sink, IDs: egress.NewIDs(1), Tally: &p.out.tally, TooBig: func() {}})
			p.in.source, p.keep = sink, false
			if n := testing.AllocsPerRun(50, func() {
				fill(&bufs[0], small, o)
				fill(&bufs[1], big, gso)
				p.out.move(bufs)
				sink.at = 0
				_, _ = p.in.ReadBatch(into)
			}); n != 0 {
				t.Errorf("%s, frames %v: %v allocations", name, frames, n)
			}
		}
	}
}

// held is packets that come again and again, and a port that drops what it gets.
type held struct {
	packets [][]byte
	at      int
}

func (h *held) Send(out []egress.Outgoing) (int, error) { return len(out), nil }

func (h *held) ReadBatch(bufs []packet.Buf) (n int, err error) {
	for ; n < len(bufs) && h.at < len(h.packets); n++ {
		bufs[n].SetLen(copy(bufs[n].Room(), h.packets[h.at]))
		h.at++
	}
	if n == 0 {
		return 0, os.ErrClosed
	}
	return n, nil
}
