package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"vstun/testdata/testkit"
)

// TestInteropMethods: the kernel's IPVS and our director send the same packets, to clients and to realservers, for dr
// and for nat. There is one exception: by nat a request of IPv4 without an ID gets one from our director's kernel.
func TestInteropMethods(t *testing.T) {
	needKernel(t)
	for _, m := range []method{dr, nat} {
		t.Run(string(m), func(t *testing.T) {
			testkit.Families(t, func(t *testing.T, ipv6 bool) { testSamePackets(t, m, ipv6) })
		})
	}
}

func testSamePackets(t *testing.T, m method, ipv6 bool) {
	kernel := newStage(t, m, ipv6)
	kernel.startIPVSBy()
	acts := kernel.acts()
	want := kernel.play(acts)
	if err := kernel.Close(); err != nil { // the next has the same names
		t.Fatal(err)
	}
	ours := newStage(t, m, ipv6)
	// In the fast path the markers would overtake what the worker has.
	ours.startOurs("director.queues = 1\ndirector.fast_path = \"off\"\n")
	got := ours.play(acts)
	for i, a := range acts {
		if a.name == withoutID && m == nat {
			want[i], got[i] = exceptID(want[i]), exceptID(got[i])
		}
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			t.Errorf("after %s (-kernel +ours):\n%s", a.name, diff)
		}
	}
	for i, a := range acts[:5] { // else the comparison is blind
		if len(want[i]) != 1 {
			t.Errorf("after %s the kernel sends %q", a.name, want[i])
		}
	}
}

// withoutID is the name of an act.
const withoutID = "a datagram without an ID"

// exceptID returns lines about IPv4 packets in hex, without ID and header checksum.
func exceptID(lines []string) (all []string) {
	for _, line := range lines {
		to, b, _ := strings.Cut(line, ": ")
		all = append(all, to+": "+b[:8]+b[12:20]+b[24:])
	}
	return all
}

// TestInteropKernelDR: the kernel's IPVS sends by VS/DR to hosts with an agent, which owns the VIP and does not answer
// for it. Uploads and datagrams arrive byte-exact.
func TestInteropKernelDR(t *testing.T) {
	needKernel(t)
	s := newMethodSite(t, dr, false, 2, nil)
	s.startAgents("")
	s.command(s.Director, fmt.Sprintf("addr add %s/32 dev eth0\n", s.VIP), "ip", "-batch", "-")
	rules := ""
	for port, protocol := range interopPorts {
		service := fmt.Sprintf("-%c %s", protocol[0], s.at(port))
		rules += fmt.Sprintf("-A %s -s rr\n", service)
		for _, web := range s.Webs {
			rules += fmt.Sprintf("-a %s -r %s -g\n", service, netip.AddrPortFrom(web.Addr, port))
		}
	}
	s.command(s.Director, rules, "ipvsadm", "-R")
	for _, web := range s.Webs {
		s.acceptUploads(web, 80)
		s.namedEcho(web, 81)
		s.echoUDP(web, 53)
	}
	seen := map[string]int{}
	for range 6 {
		_, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(81))
		seen[server]++
	}
	if seen["web1"] != 3 || seen["web2"] != 3 {
		t.Errorf("answers are from %v, want 3 from each", seen)
	}
	s.mustUpload(80, interopBulk)
	s.mustUpload(80, interopBulk)
	s.mustEcho(0, 1, 1472, 4000)
}

// acts returns the steps of a stage: connections and datagrams both ways, and errors.
func (s *stage) acts() (all []act) {
	// The realserver's own address and ports, as it sees requests.
	server := s.VIP
	if s.method == nat {
		server = s.realserver
	}
	tcp := func(back bool, seq, ack uint32, flags, data string) []byte {
		l := &layers.TCP{SrcPort: 40000, DstPort: 80, Seq: seq, Ack: ack, Window: 1000}
		src, dst := s.client, s.VIP
		if back {
			l.SrcPort, l.DstPort = layers.TCPPort(s.ports[0]), 40000
			src, dst = server, s.client
		}
		l.SYN, l.ACK = strings.Contains(flags, "S"), strings.Contains(flags, "A")
		l.FIN, l.RST = strings.Contains(flags, "F"), strings.Contains(flags, "R")
		if l.SYN {
			l.Options = []layers.TCPOption{{OptionType: layers.TCPOptionKindMSS, OptionLength: 4,
				OptionData: []byte{5, 0xb4}}}
		}
		return build(s.t, s.ip(src, dst, layers.IPProtocolTCP), l, gopacket.Payload(data))
	}
	udp := func(back bool, n int) []byte {
		data := string(payload(n))
		if back {
			return udpPacket(s.t, server, s.client, s.ports[1], 40001, data)
		}
		return udpPacket(s.t, s.client, s.VIP, 40001, 53, data)
	}
	with := func(b []byte, edit func(b []byte)) []byte {
		edit(b)
		if b[0]>>4 == 4 {
			fixChecksum(b)
		}
		return b
	}
	ttl := func(n byte) func(b []byte) {
		return func(b []byte) {
			if b[0]>>4 == 4 {
				b[8] = n
			} else {
				b[7] = n
			}
		}
	}
	all = []act{
		{"a SYN", false, tcp(false, 1000, 0, "S", "")},
		{"its SYN-ACK", true, tcp(true, 5000, 1001, "SA", "")},
		{"an ACK", false, tcp(false, 1001, 5001, "A", "")},
		{"a request", false, tcp(false, 1001, 5001, "A", "GET / HTTP/1.0\r\n\r\n")},
		{"an answer", true, tcp(true, 5001, 1019, "A", "HTTP/1.0 200 OK\r\n\r\nodd")},
		{"a full-size answer", true, tcp(true, 5100, 1019, "A", strings.Repeat("x", 1440))},
		{"a full-size request", false, tcp(false, 1019, 5100, "A", strings.Repeat("y", 1440))},
		{"a request with a low TTL", false, with(tcp(false, 2019, 5100, "A", "z"), ttl(3))},
		{"a request that expires at the director", false, with(tcp(false, 2020, 5100, "A", "z"), ttl(2))},
		{"a FIN", false, tcp(false, 2021, 5100, "FA", "")},
		{"its FIN", true, tcp(true, 5100, 2022, "FA", "")},
		{"the last ACK", false, tcp(false, 2022, 5101, "A", "")},
		{"a datagram", false, udp(false, 100)},
		{"its answer", true, udp(true, 101)},
		{"an empty datagram", false, udp(false, 0)},
		{"a full-size datagram", false, udp(false, 1440)},
		{"a full-size answer to it", true, udp(true, 1440)},
		{"a marked datagram", false, with(udp(false, 10), func(b []byte) {
			if b[0]>>4 == 4 {
				b[1] = 0xb8
			} else {
				b[0], b[1] = 0x6b, b[1]|0x80
			}
		})},
	}
	if s.VIP.Is4() {
		all = append(all, act{"a datagram without checksum", false, with(udp(false, 50), func(b []byte) {
			b[26], b[27] = 0, 0
		})}, act{"an answer without checksum", true, with(udp(true, 50), func(b []byte) { b[26], b[27] = 0, 0 })},
			act{withoutID, false, udp(false, 60)},
			act{"a datagram that must not be cut", false, with(udp(false, 61), func(b []byte) { b[6] = 0x40 })})
	}
	for _, back := range []bool{false, true} {
		for i, part := range cutInTwo(udp(back, 2000), 1208) {
			all = append(all, act{fmt.Sprintf("fragment %d of a datagram, %t", i+1, back), back, part})
		}
	}
	// Errors quote what their senders have received.
	request := slices.Clone(udp(false, 100))
	if s.method == nat {
		request = udpPacket(s.t, s.client, s.realserver, 40001, s.ports[1], string(payload(100)))
	}
	answer := udpPacket(s.t, s.VIP, s.client, 53, 40001, string(payload(101)))
	all = append(all, act{"the client's error about an answer", false, s.unreachable(s.client, s.VIP, answer)})
	// With dr it does not pass the director. Over IPv6 IPVS loses it: it leaves the pseudo-header out when it verifies
	// the checksum of ICMPv6 (Linux net/netfilter/ipvs/ip_vs_core.c, handle_response_icmp).
	if s.method == nat && s.VIP.Is4() {
		all = append(all, act{"the realserver's error about a request", true,
			s.unreachable(s.realserver, s.client, request)})
	}
	for i, a := range all {
		if b := a.packet; b[0]>>4 == 4 && b[4] == 0 && b[5] == 0 && a.name != withoutID {
			b[5] = byte(i + 1)
			fixChecksum(b)
		}
	}
	return all
}

// cutInTwo returns an IP packet in two fragments. The first has n bytes of data, a multiple of 8.
func cutInTwo(b []byte, n int) [][]byte {
	const id = 0x5678
	if b[0]>>4 == 4 {
		first, second := slices.Clone(b[:20+n]), slices.Concat(b[:20], b[20+n:])
		for i, part := range [][]byte{first, second} {
			binary.BigEndian.PutUint16(part[2:], uint16(len(part)))
			binary.BigEndian.PutUint16(part[4:], id)
			binary.BigEndian.PutUint16(part[6:], []uint16{0x2000, uint16(n / 8)}[i]) // more follow; the offset
			fixChecksum(part)
		}
		return [][]byte{first, second}
	}
	var parts [][]byte
	for i, data := range [][]byte{b[40 : 40+n], b[40+n:]} {
		part := slices.Concat(b[:40], []byte{b[6], 0}, words([]uint16{1, uint16(n)}[i], 0, id), data)
		binary.BigEndian.PutUint16(part[4:], uint16(len(part)-40))
		part[6] = 44
		parts = append(parts, part)
	}
	return parts
}

func (s *stage) ip(src, dst netip.Addr, protocol layers.IPProtocol) gopacket.SerializableLayer {
	if src.Is6() {
		return ip6(src, dst, protocol)
	}
	return ip4(src, dst, protocol)
}

// unreachable returns an ICMP error, port unreachable, that quotes 128 bytes of a packet. Over IPv4 it has an ID: an
// ID of 0 is replaced by the director's kernel.
func (s *stage) unreachable(src, dst netip.Addr, quoted []byte) []byte {
	quote := gopacket.Payload(quoted[:min(len(quoted), 128)])
	if src.Is4() {
		ip := ip4(src, dst, layers.IPProtocolICMPv4)
		ip.Id = 0x4321
		return build(s.t, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(
			layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodePort)}, quote)
	}
	b := build(s.t, ip6(src, dst, layers.IPProtocolICMPv6), gopacket.Payload(append([]byte{1, 4, 0, 0, 0, 0, 0, 0},
		quote...)))
	// The pseudo-header: both addresses, length and next header (RFC 8200, section 8.1).
	sum := slices.Concat(b[8:40], binary.BigEndian.AppendUint32(nil, uint32(len(b)-40)), []byte{0, 0, 0, 58}, b[40:])
	var total uint32
	for i := 0; i < len(sum); i += 2 {
		total += uint32(sum[i])<<8 | uint32(append(sum, 0)[i+1])
	}
	for total>>16 != 0 {
		total = total&0xffff + total>>16
	}
	binary.BigEndian.PutUint16(b[42:], ^uint16(total))
	return b
}

// startIPVSBy makes the director's kernel the director of the stage's services by its method.
func (s *stage) startIPVSBy() {
	s.t.Helper()
	address := s.VIP.String() + "/32"
	if s.VIP.Is6() {
		address = s.VIP.String() + "/128"
	}
	// On eth0, since over IPv6 no host answers for the addresses of its lo.
	s.command(s.Director, fmt.Sprintf("addr add %s dev eth0 nodad\n", address), "ip", "-batch", "-")
	flag := map[method]string{dr: "-g", nat: "-m"}[s.method]
	var rules strings.Builder
	for i, service := range []string{"-t " + s.at(80), "-u " + s.at(53)} {
		fmt.Fprintf(&rules, "-A %s -s rr\n-a %s -r %s %s\n", service, service,
			netip.AddrPortFrom(s.realserver, s.ports[i]), flag)
	}
	s.command(s.Director, rules.String(), "ipvsadm", "-R")
}

// startOurs starts our director with the stage's services. more is TOML before them.
func (s *stage) startOurs(more string) {
	s.t.Helper()
	text := more
	for i, protocol := range []string{"tcp", "udp"} {
		port := [2]uint16{80, 53}[i]
		keys := fmt.Sprintf("address = %q", s.realserver)
		if s.ports[i] != port {
			keys += fmt.Sprintf(", port = %d", s.ports[i])
		}
		text += fmt.Sprintf("[[service]]\nname = %q\nvip = %q\nprotocol = %q\nport = %d\n%srealserver = [ { %s } ]\n",
			protocol, s.VIP, protocol, port, s.method.keys(), keys)
	}
	s.startDirectorWith(text)
}
