package wire

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/encap/packet"
	"vstun/testdata/testkit"
)

// TestReceiversLearnNoPathMTU: a realserver sends nothing through its tunnel sockets, so that an ICMP error about such
// a packet is forged: it must not lower the path MTU to the director. The agent derives the MSS from this MTU.
func TestReceiversLearnNoPathMTU(t *testing.T) {
	inNamespace(t, func() {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "near", MTU: 1500}, PeerName: "far"}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		near, far := up(t, "near"), up(t, "far")
		addr, err := netlink.ParseAddr("10.0.2.2/24")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.AddrAdd(near, addr); err != nil {
			t.Fatal(err)
		}
		mustReceivers(t, 1, Socket{Protocol: packet.ProtoIPIP}, Socket{Protocol: unix.IPPROTO_GRE})
		from, router := netip.MustParseAddr("10.0.2.2"), netip.MustParseAddr("10.0.2.1")
		l, err := LearnPathMTU(unix.IPPROTO_IPV6) // to know when all has been treated
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		send := func(protocol byte, to netip.Addr) {
			about, answer := make([]byte, 1400), make([]byte, packet.MaxLen)
			h := packet.IPv4(about)
			packet.IPv4(h).Encode(packet.IPv4Fields{
				TotalLen: len(h), TTL: 64, Protocol: protocol, Src: from.As4(), Dst: to.As4(),
			})
			h[6] = 0x40
			h.SetChecksum()
			inject(t, far, near, answer[:packet.FragmentationNeeded(answer, about, router, 600)])
		}
		last := netip.MustParseAddr("10.0.2.99")
		director := netip.MustParseAddr("10.0.2.10")
		send(packet.ProtoIPIP, director)
		send(unix.IPPROTO_GRE, director)
		send(unix.IPPROTO_IPV6, last)
		testkit.Eventually(t, "the error that is believed teaches an MTU", func() bool { return mtuTo(t, last) == 600 })
		if got := mtuTo(t, director); got != 0 {
			t.Errorf("MTU %d learned from a forged error", got)
		}
	})
}

// TestPortOfAnotherAgent: two agents (of one user) must not share a UDP port: each would get a part of the flows, and
// drop the other's.
func TestPortOfAnotherAgent(t *testing.T) {
	inNamespace(t, func() {
		s := Socket{Protocol: packet.ProtoUDP, Port: 6080}
		first, err := NewReceivers(2, s)
		if err != nil {
			t.Fatal(err)
		}
		defer first[0].Close()
		defer first[1].Close()
		if second, err := NewReceivers(2, s); err == nil {
			second[0].Close()
			second[1].Close()
			t.Error("a second agent's sockets share the port")
		}
	})
}
