package tap

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	mdpacket "github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/egress"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/encap/packet/stats"
	"vstun/testdata/testkit"
	"vstun/tundev"
)

var (
	own     = [6]byte{2, 0, 0, 0, 0, 0x80}
	client  = [6]byte{2, 0, 0, 0, 0, 1}
	all     = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	group   = [6]byte{0x33, 0x33, 0xff, 0, 0, 0x80}
	source  = netip.MustParseAddr("192.0.2.1")
	source6 = netip.MustParseAddr("2001:db8::1")
	vip     = netip.MustParseAddr("198.51.100.80")
	vip6    = netip.MustParseAddr("2001:db8:f::80")
)

// heard is a Neighbours that keeps what it gets, and refuses redirects.
type heard struct {
	mu    sync.Mutex
	types []uint16
}

func (h *heard) Receive(src, dst [6]byte, etherType uint16, payload []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.types = append(h.types, etherType)
	return etherType == packet.EtherTypeARP || payload[packet.IPv6HeaderLen] != 137
}

// open makes a TAP device that is up, its port, and a packet socket by which the host sends and receives its frames.
func open(t *testing.T, plain bool, neighbours Neighbours, senders *Senders) (*tundev.Device, *Port, *mdpacket.Conn) {
	t.Helper()
	const noIPv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6" // the host's own packets would come between
	if err := os.WriteFile(noIPv6, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	d, err := tundev.Open("tap0", tundev.Options{Queues: 1, Plain: plain, TAP: true, MAC: [6]byte{0xfe, 0, 0, 0, 0, 1}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	link, err := netlink.LinkByName("tap0")
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
	dev, err := net.InterfaceByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := mdpacket.Listen(dev, mdpacket.Raw, unix.ETH_P_ALL, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(testkit.Patience)); err != nil {
		t.Fatal(err)
	}
	return d, NewPort(d.Queues()[0], own, neighbours, senders), c
}

func frame(src, dst [6]byte, etherType uint16, payload ...byte) []byte {
	f := make(packet.Ethernet, packet.EthernetHeaderLen, 64)
	f.SetSrc(src)
	f.SetDst(dst)
	f.SetType(etherType)
	return append(f, payload...)
}

// datagram is a UDP packet of either family with n bytes of payload.
func datagram(six bool, n int) []byte {
	if six {
		p := make(packet.IPv6, packet.IPv6HeaderLen+packet.UDPHeaderLen+n)
		p.Encode(packet.IPv6Fields{TotalLen: len(p), HopLimit: 64, NextHeader: packet.ProtoUDP, Src: source6.As16(),
			Dst: vip6.As16()})
		packet.UDP(p[packet.IPv6HeaderLen:]).SetLen(packet.UDPHeaderLen + n)
		return p
	}
	p := make(packet.IPv4, packet.IPv4HeaderLen+packet.UDPHeaderLen+n)
	p.Encode(packet.IPv4Fields{TotalLen: len(p), TTL: 64, Protocol: packet.ProtoUDP, Src: source.As4(), Dst: vip.As4()})
	packet.UDP(p[packet.IPv4HeaderLen:]).SetLen(packet.UDPHeaderLen + n)
	return p
}

// icmp6 is a message of ICMPv6; with alert behind the option "router alert".
func icmp6(kind byte, alert bool) []byte {
	p := datagram(true, 24)
	if alert {
		p[6] = 0
		p = append(p[:packet.IPv6HeaderLen:packet.IPv6HeaderLen], packet.ProtoICMPv6, 0, 5, 2, 0, 0, 1, 0, kind)
		return append(p, make([]byte, 23)...)
	}
	p[6], p[packet.IPv6HeaderLen] = packet.ProtoICMPv6, kind
	return p
}

// TestFrames: IP packets for the port's address come through, with the Ethernet header in front. ARP and neighbour
// discovery go to the neighbours. All else is counted, and also what the neighbours refuse.
func TestFrames(t *testing.T) {
	for _, plain := range []bool{false, true} {
		testkit.NewNamespace(t)
		var h heard
		var senders Senders
		d, p, c := open(t, plain, &h, &senders)
		accepted := [][]byte{datagram(false, 30), datagram(true, 30), icmp6(128, false), datagram(false, 31)}
		frames := [][]byte{
			frame(client, [6]byte{2, 0, 0, 0, 0, 9}, packet.EtherTypeIPv4, datagram(false, 1)...),
			frame(client, own, packet.EtherTypeIPv4, accepted[0]...),
			frame(client, all, packet.EtherTypeARP, make([]byte, 28)...),
			frame(client, own, packet.EtherTypeARP, make([]byte, 28)...),
			frame(client, all, packet.EtherTypeIPv4, datagram(false, 1)...),
			frame(client, own, packet.EtherTypeIPv6, accepted[1]...),
			frame(client, group, packet.EtherTypeIPv6, icmp6(135, false)...),
			frame(client, own, packet.EtherTypeIPv6, icmp6(136, false)...),
			frame(client, group, packet.EtherTypeIPv6, icmp6(130, true)...),
			frame(client, own, packet.EtherTypeIPv6, icmp6(137, false)...),
			frame(client, own, packet.EtherTypeIPv6, accepted[2]...),
			frame(client, group, packet.EtherTypeIPv6, datagram(true, 1)...),
			frame(own, own, packet.EtherTypeIPv4, datagram(false, 1)...),
			frame(all, own, packet.EtherTypeIPv4, datagram(false, 1)...),
			frame(client, own, 0x8100, append([]byte{0, 7, 8, 0}, datagram(false, 1)...)...),
			frame(client, own, 0x88cc, 1, 2, 3),
			frame(client, own, packet.EtherTypeIPv4, accepted[3]...),
		}
		const refused = 8
		for _, f := range frames {
			if _, err := c.WriteTo(f, &mdpacket.Addr{HardwareAddr: f[:6]}); err != nil {
				t.Fatal(err)
			}
		}
		bufs := packet.NewBufs(8)
		var got [][]byte
		for len(got) < len(accepted) {
			n, err := p.ReadBatch(bufs)
			if err != nil || n == 0 {
				t.Fatal(n, err)
			}
			for i := range bufs[:n] {
				if e := packet.Ethernet(bufs[i].Before(packet.EthernetHeaderLen)); e.Src() != client || e.Dst() != own {
					t.Errorf("Ethernet header %x", e)
				}
				got = append(got, bytes.Clone(bufs[i].Bytes()))
			}
		}
		if !slices.EqualFunc(got, accepted, bytes.Equal) {
			t.Errorf("packets %x", got)
		}
		want := []uint16{packet.EtherTypeARP, packet.EtherTypeARP, packet.EtherTypeIPv6, packet.EtherTypeIPv6,
			packet.EtherTypeIPv6, packet.EtherTypeIPv6}
		if !slices.Equal(h.types, want) {
			t.Errorf("neighbours got %x", h.types)
		}
		var tally stats.Tally
		p.Read(&tally)
		if tally.Drops[drop.Frame] != refused {
			t.Errorf("%d frames refused, want %d", tally.Drops[drop.Frame], refused)
		}
		for _, a := range []netip.Addr{source, source6} {
			if mac, ok := senders.find(a); !ok || mac != client {
				t.Errorf("packets of %v come from %x, %v", a, mac, ok)
			}
		}
		if mac, ok := senders.find(vip); ok {
			t.Errorf("packets of %v come from %x", vip, mac)
		}
		d.Close()
		if _, err := p.ReadBatch(bufs); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// TestSend: packets leave with an Ethernet header, in a Buf without room in front, and in two pieces. A packet to an
// address whose MAC address is not known is refused, and the ones behind it can be sent.
func TestSend(t *testing.T) {
	testkit.NewNamespace(t)
	senders := new(Senders)
	_, p, c := open(t, false, nil, senders)
	senders.note(datagram(true, 0), client)
	buf := packet.NewBufs(1)
	first, third := datagram(false, 100), datagram(true, 200)
	buf[0].SetLen(copy(buf[0].Room(), first))
	clone := buf[0].Clone()
	server := &egress.Peer{Dst: vip, MAC: [6]byte{2, 0, 0, 0, 0, 7}}
	out := []egress.Outgoing{
		{Segment: packet.Segment{Head: clone.Bytes()}, Hop: egress.Hop{To: server, Kind: egress.Link}, Buf: clone},
		{Segment: packet.Segment{Head: first}, Hop: egress.Hop{To: &egress.Peer{Dst: vip}, Kind: egress.Link}},
		{Segment: packet.Segment{Head: third[:48], Body: third[48:]}, Hop: egress.Hop{To: &egress.Peer{Dst: source6},
			Kind: egress.Link}},
	}
	if n, err := p.Send(out); n != 1 || err != unix.EHOSTUNREACH {
		t.Fatal(n, err)
	}
	if n, err := p.Send(out[2:]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if err := p.SendFrame(all, packet.EtherTypeARP, make([]byte, 28)); err != nil {
		t.Fatal(err)
	}
	in := make([]byte, 2000)
	for i, want := range [][]byte{frame(own, server.MAC, packet.EtherTypeIPv4, first...),
		frame(own, client, packet.EtherTypeIPv6, third...), frame(own, all, packet.EtherTypeARP, make([]byte, 28)...)} {
		if n, _, err := c.ReadFrom(in); err != nil || !bytes.Equal(in[:n], want) {
			t.Errorf("frame %d: %x, %v, want %x", i, in[:n], err, want)
		}
	}
	if n := testing.AllocsPerRun(20, func() { _, _ = p.Send(out[:1]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestSenders: an address takes the place of another one with the same slot, and is never mistaken for it.
func TestSenders(t *testing.T) {
	senders := new(Senders)
	p := packet.IPv4(datagram(false, 0))
	other := [6]byte{2, 0, 0, 0, 0, 2}
	senders.note(p, other)
	senders.note(p, client)
	n := 0
	for i := range 1 << 18 {
		a := [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
		if mac, ok := senders.find(netip.AddrFrom4(a)); ok {
			t.Fatalf("%v has %x", netip.AddrFrom4(a), mac)
		}
	}
	for i := range 1 << senderBits {
		a := [4]byte{10, 0, byte(i >> 8), byte(i)}
		p.SetSrc(a)
		senders.note(p, [6]byte(append([]byte{2, 0}, a[:]...)))
	}
	for i := range 1 << senderBits {
		a := [4]byte{10, 0, byte(i >> 8), byte(i)}
		if mac, ok := senders.find(netip.AddrFrom4(a)); ok {
			n++
			if mac != [6]byte(append([]byte{2, 0}, a[:]...)) {
				t.Fatalf("%v has %x", netip.AddrFrom4(a), mac)
			}
		}
	}
	if n < 1<<senderBits/2 { // 1 - 1/e of them with random slots
		t.Errorf("%d of %d addresses are known", n, 1<<senderBits)
	}
	senders.note([]byte{0x45}, client)
	senders.note(nil, client)
}
