package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vstun/cmd/internal/lab"
)

// stage is a site whose client and realserver are the test itself: it injects and captures packets. Their addresses
// belong to no host, so that no kernel answers.
type stage struct {
	*site
	client, realserver netip.Addr
	ports              [2]uint16 // of the realserver, for TCP and UDP
	clientEnd, webEnd  *wireEnd
}

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
	s.clientEnd = s.openEnd(s.Client, s.mac(s.Router, "client"), s.client)
	s.webEnd = s.openEnd(web, s.mac(gateway, gatewayLink), arrives)
	s.neighbour(s.Router, "client", s.client, s.Client)
	s.neighbour(s.Director, link, s.realserver, web)
	for _, h := range []*lab.Host{s.Router, s.Director} { // every error is sent
		for _, key := range []string{"net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"} {
			if err := h.Sysctl(key, "0"); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

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

// wireEnd is the test's end of a link: a packet socket on a host's eth0.
type wireEnd struct {
	t       *testing.T
	fd      int
	index   int
	gateway net.HardwareAddr // destination of sent frames
	mine    netip.Addr       // destination of captured packets
}

func (s *site) openEnd(h *lab.Host, gateway net.HardwareAddr, mine netip.Addr) *wireEnd {
	s.t.Helper()
	e := &wireEnd{t: s.t, gateway: gateway, mine: mine}
	err := h.Do(func() error {
		dev, err := net.InterfaceByName("eth0")
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
		if b := buf[:n]; ok && at.Pkttype != outgoing && destination(b) == e.mine {
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

// play takes the steps, and returns the packets that reach client and realserver after each, in hexadecimal. want has
// the least number of packets after each step; nil: not known.
func (s *stage) play(acts []act, want []int) (out [][]string) {
	s.t.Helper()
	const quiet = 150 * time.Millisecond // after the last packet
	for i, a := range acts {
		from := s.clientEnd
		if a.server {
			from = s.webEnd
		}
		from.send(a.packet)
		var got []string
		var toClient, toServer [][]byte
		take := func() {
			toClient = append(toClient, s.clientEnd.received()...)
			toServer = append(toServer, s.webEnd.received()...)
		}
		for begin := time.Now(); want != nil && len(toClient)+len(toServer) < want[i] &&
			time.Since(begin) < 3*time.Second; take() {
			time.Sleep(tick)
		}
		time.Sleep(quiet)
		take()
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
