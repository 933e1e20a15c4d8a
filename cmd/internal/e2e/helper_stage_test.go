package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// stage is a site whose client and realserver are the test itself: it injects and captures packets. Their addresses
// belong to no host, so that no kernel answers.
type stage struct {
	*site
	client, realserver netip.Addr
	ports              [2]uint16 // of the realserver, for TCP and UDP
	clientEnd, webEnd  *wireEnd
	question, reply    []byte // of settled: the client's datagram, and the realserver's
}

// markerPort is the client's port of settled's datagrams.
const markerPort = 49999

// newStage builds a stage for dr or nat, without a director.
func newStage(t *testing.T, m method, ipv6 bool) *stage {
	t.Helper()
	s := &stage{site: newMethodSite(t, m, ipv6, 1, nil), ports: [2]uint16{80, 53}}
	web := s.Webs[0]
	s.client, s.realserver = beside(s.Client.Addr), beside(web.Addr)
	link, gateway, gatewayLink := "eth0", s.Router, "lan"
	arrives := s.VIP
	if m == nat {
		link, gateway, gatewayLink, arrives = "eth1", s.Director, "eth1", s.realserver
		s.ports = [2]uint16{s.realPort(80), s.realPort(53)}
	}
	s.clientEnd = s.openEnd(s.Client, "eth0", s.mac(s.Router, "client"), single(s.client))
	s.webEnd = s.openEnd(web, "eth0", s.mac(gateway, gatewayLink), single(arrives))
	s.neighbour(s.Router, "client", s.client, s.Client)
	s.neighbour(s.Director, link, s.realserver, web)
	s.question = udpPacket(t, s.client, s.VIP, markerPort, 53, "marker")
	answers := netip.AddrPortFrom(s.VIP, 53)
	if m == nat {
		answers = netip.AddrPortFrom(s.realserver, s.ports[1])
	}
	s.reply = udpPacket(t, answers.Addr(), s.client, answers.Port(), markerPort, "marker")
	for _, h := range []*lab.Host{s.Router, s.Director} { // every error is sent
		for _, key := range []string{"net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"} {
			if err := h.Sysctl(key, "0"); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// single returns the prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// beside returns an address of a's subnet that no host of a lab has.
func beside(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] = 0x77
	beside, _ := netip.AddrFromSlice(b)
	return beside
}

func (s *site) mac(h *lab.Host, link string) net.HardwareAddr {
	s.t.Helper()
	mac, err := h.MAC(link)
	if err != nil {
		s.t.Fatal(err)
	}
	return mac
}

// neighbour makes an address a neighbour of h on a link, with the MAC address of another host's eth0.
func (s *site) neighbour(h *lab.Host, link string, addr netip.Addr, at *lab.Host) {
	s.t.Helper()
	mac := s.mac(at, "eth0")
	err := h.Do(func() error {
		dev, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: dev.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: addr.AsSlice(), HardwareAddr: mac})
	})
	if err != nil {
		s.t.Fatalf("neighbour %s of %s: %v", addr, h.Name, err)
	}
}

// wireEnd is the test's end of a link: a packet socket on a host's device.
type wireEnd struct {
	t       *testing.T
	fd      int
	index   int
	gateway net.HardwareAddr // destination of sent frames
	mine    netip.Prefix     // destinations of captured packets
}

func (s *site) openEnd(h *lab.Host, link string, gateway net.HardwareAddr, mine netip.Prefix) *wireEnd {
	s.t.Helper()
	e := &wireEnd{t: s.t, gateway: gateway, mine: mine}
	err := h.Do(func() error {
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		e.index = dev.Index
		e.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		// The kernel would copy sent packets to the socket, too (Linux 4.20).
		_ = unix.SetsockoptInt(e.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		return unix.Bind(e.fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8,
			Ifindex: dev.Index})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { unix.Close(e.fd) })
	return e
}

// send sends a packet to the gateway.
func (e *wireEnd) send(packet []byte) {
	e.t.Helper()
	to := &unix.SockaddrLinklayer{Protocol: unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8, Ifindex: e.index, Halen: 6}
	if packet[0]>>4 == 6 {
		to.Protocol = unix.ETH_P_IPV6<<8&0xff00 | unix.ETH_P_IPV6>>8
	}
	copy(to.Addr[:], e.gateway)
	if err := unix.Sendto(e.fd, packet, 0, to); err != nil {
		e.t.Fatal(err)
	}
}

// received returns the packets to mine that have come.
func (e *wireEnd) received() (all [][]byte) {
	e.t.Helper()
	buf := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(e.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return all
		}
		if err != nil {
			e.t.Fatal(err)
		}
		const outgoing = 4 // PACKET_OUTGOING, linux/if_packet.h
		at, ok := from.(*unix.SockaddrLinklayer)
		if b := buf[:n]; ok && at.Pkttype != outgoing && e.mine.Contains(destination(b)) {
			all = append(all, slices.Clone(b))
		}
	}
}

// destination returns the destination of an IP packet; the zero Addr if it is none.
func destination(b []byte) netip.Addr {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[16:]))
	case len(b) >= 40 && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[24:]))
	}
	return netip.Addr{}
}

// act is a step of a stage: a packet of the client or of the realserver.
type act struct {
	name   string
	server bool // the realserver sends it
	packet []byte
}

// play takes the steps, and returns the packets that reach client and realserver after each, in hexadecimal.
func (s *stage) play(acts []act) (out [][]string) {
	s.t.Helper()
	for _, a := range acts {
		from := s.clientEnd
		if a.server {
			from = s.webEnd
		}
		from.send(a.packet)
		toClient, toServer := s.settled()
		var got []string
		for _, b := range joined(toClient) {
			got = append(got, "to the client: "+s.unvaried(b))
		}
		for _, b := range joined(toServer) {
			got = append(got, "to the realserver: "+s.unvaried(b))
		}
		slices.Sort(got)
		out = append(out, got)
	}
	return out
}

// settled returns the packets that have reached client and realserver, once the director has done with all that were
// sent before. It sends a datagram of the client by the director, and an answer, and waits for their arrival. It does
// so twice, since a worker sends some packets of a batch after others. Our director must have one queue.
func (s *stage) settled() (toClient, toServer [][]byte) {
	s.t.Helper()
	receive := func() (markers int) {
		for all, end := range map[*[][]byte]*wireEnd{&toClient: s.clientEnd, &toServer: s.webEnd} {
			for _, b := range end.received() {
				if isMarker(b) {
					markers++
				} else {
					*all = append(*all, b)
				}
			}
		}
		return markers
	}
	for range 2 {
		s.clientEnd.send(s.question)
		testkit.Within(s.t, "a datagram has passed the director", soon, func() bool { return receive() > 0 })
		s.webEnd.send(s.reply)
		testkit.Within(s.t, "its answer has reached the client", soon, func() bool { return receive() > 0 })
	}
	return toClient, toServer
}

// isMarker reports whether b is a datagram of settled, which has neither options nor fragments.
func isMarker(b []byte) bool {
	ip := parseIP(b)
	if len(b) < ip.header+8 || b[0]>>4 == 4 && b[9] != unix.IPPROTO_UDP || b[0]>>4 == 6 && b[6] != unix.IPPROTO_UDP {
		return false
	}
	return slices.Contains([]uint16{binary.BigEndian.Uint16(b[ip.header:]), binary.BigEndian.Uint16(b[ip.header+2:])},
		markerPort)
}

// unvaried returns a packet in hexadecimal, without what may vary:
//   - the ID of an IPv4 packet and the flow label of an IPv6 one that the director's host made,
//   - the source of such an error: IPVS sends it from the VIP, our director's kernel from its own address,
//   - with nat the checksum of a quoted datagram: IPVS replaces the quoted port, but leaves the checksum.
//
// Checksums over these are 0, too.
func (s *stage) unvaried(b []byte) string {
	ip := parseIP(b)
	if ip.src == s.Director.Addr || ip.src == s.VIP && ip.exceeded() {
		if ip.src.Is4() {
			clear(b[4:6])
			clear(b[10:16])
		} else {
			clear(b[1:4])
			clear(b[8:24])
			clear(b[42:44]) // ICMPv6's, which includes the source
		}
	}
	if s.method == nat && ip.unreachable() {
		clear(b[ip.header+2 : ip.header+4])
		quoted := ip.header + 8 + ip.header
		clear(b[quoted+6 : quoted+8])
	}
	return fmt.Sprintf("%x", b)
}

// joined returns the packets with fragments, which must be of one packet, put together. Their sizes may differ from
// IPVS's, and the ID of IPv6's is new.
func joined(all [][]byte) (whole [][]byte) {
	var head, data []byte
	slices.SortStableFunc(all, func(a, b []byte) int { return offset(a) - offset(b) })
	for _, b := range all {
		header := 20
		if b[0]>>4 == 6 {
			header = 48
		}
		switch at := offset(b); {
		case at < 0:
			whole = append(whole, b)
			continue
		case at == 0:
			head = slices.Clone(b[:header])
		case at != len(data):
			data = append(data, []byte(fmt.Sprintf("a hole up to %d", at))...)
		}
		data = append(data, b[header:]...)
	}
	switch {
	case head == nil && data == nil:
		return whole
	case len(head) == 20:
		clear(head[2:4]) // length
		clear(head[6:8]) // more follow
		clear(head[10:12])
	case len(head) == 48:
		clear(head[4:6])
		clear(head[42:48])
	}
	return append(whole, append(head, data...))
}

// offset returns the offset of a fragment, in bytes; -1 for other packets.
func offset(b []byte) int {
	field := 0
	switch {
	case b[0]>>4 == 4:
		field = (int(b[6])<<8 | int(b[7])) & 0x3fff
		if field == 0 {
			return -1
		}
		return field & 0x1fff * 8
	case b[6] != unix.IPPROTO_FRAGMENT:
		return -1
	}
	return (int(b[42])<<8 | int(b[43])) &^ 7
}

// ipPart is what a comparison needs of an IP packet without options.
type ipPart struct {
	src    netip.Addr
	header int // bytes
	icmp   int // type of an ICMP error, with 1000 added over IPv6; 0: another packet
}

func parseIP(b []byte) (p ipPart) {
	if b[0]>>4 == 4 {
		p.src, p.header = netip.AddrFrom4([4]byte(b[12:])), 20
		if b[9] == unix.IPPROTO_ICMP {
			p.icmp = int(b[20])
		}
		return p
	}
	p.src, p.header = netip.AddrFrom16([16]byte(b[8:])), 40
	if b[6] == unix.IPPROTO_ICMPV6 {
		p.icmp = 1000 + int(b[40])
	}
	return p
}

func (p ipPart) exceeded() bool    { return p.icmp == 11 || p.icmp == 1003 }
func (p ipPart) unreachable() bool { return p.icmp == 3 || p.icmp == 1001 }
