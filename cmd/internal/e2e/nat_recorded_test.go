package e2e

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// natCases are the recordings of a kernel's IPVS that pass our director's host, byte by byte: its rules for replies,
// its device, and its kernel's routes. The worker alone replays all recordings (balancer/forward).
var natCases = []string{"shared-real-port", "hairpin", "frag-server", "server-icmp-3-1", "server-icmp-3-4",
	"server-icmp-11-0", "server-icmp-3-3", "server-icmp-12-0", "server-icmp-own", "icmp-stranger",
	"tcp-wrong-realserver", "udp-no-answer-known"}

// natDifferences lists the steps after which our packets are others than the recorded ones, by case.
// balancer/README.md names each difference.
var natDifferences = map[string][]int{
	// In a quote the transport checksum is translated, too (RFC 5508): the packet is as the client has sent it.
	"server-icmp-3-1":  {4, 5},
	"server-icmp-3-4":  {4, 5},
	"server-icmp-11-0": {4, 5},
	"server-icmp-3-3":  {4, 5},
	"server-icmp-own":  {1},
}

// recordedCase is a line of a recording.
type recordedCase struct {
	Case  string
	Setup struct {
		VIP     netip.Addr
		Ipvsadm []string
	}
	Steps []struct {
		From, In string // "client" or "realserver"; hexadecimal
		Out      []struct {
			To, Hex  string
			Volatile [][2]int // offset and length of bytes that vary
		}
	}
}

// TestNATRecorded replays recordings through the director's host. The client is the test at the router's end of the
// director's link, the realservers are the test at web1.
//
//	client 198.51.100.0/24, 2001:db8::/64 ── router ── director ── web1 ── realservers 10.3.0.0/16, fd03::/64
func TestNATRecorded(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newRecordedStage(t, ipv6)
		found := 0
		for _, c := range recordedCases(t, ipv6) {
			if !slices.Contains(natCases, c.Case) {
				continue
			}
			found++
			s.startRecorded(&c)
			s.settled() // neighbours are known
			for i := range c.Steps {
				diff := s.compare(&c, i)
				if differs := slices.Contains(natDifferences[c.Case], i); differs && diff == "" {
					t.Errorf("%s: step %d is as recorded, though it is listed", c.Case, i)
				} else if !differs && diff != "" {
					t.Errorf("%s: step %d: (-recorded +ours)\n%s", c.Case, i, diff)
				}
			}
			s.director.stop()
		}
		if want := map[bool]int{false: len(natCases), true: 3}[ipv6]; found != want {
			t.Errorf("%d of the cases are recorded, want %d", found, want)
		}
	})
}

// recordedCases reads the recordings of VS/NAT.
func recordedCases(t *testing.T, ipv6 bool) (all []recordedCase) {
	t.Helper()
	name := "nat"
	if ipv6 {
		name = "nat6"
	}
	f, err := os.Open("../../../testdata/oracle/wire/" + name + ".jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<22)
	for lines.Scan() {
		var c recordedCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// newRecordedStage builds a stage with the addresses of the recordings.
func newRecordedStage(t *testing.T, ipv6 bool) *stage {
	t.Helper()
	s := &stage{site: newMethodSite(t, nat, ipv6, 1, nil)}
	client, servers := "198.51.100.0/24", "10.3.0.0/16"
	s.client, s.realserver = netip.MustParseAddr("198.51.100.75"), netip.MustParseAddr("10.3.0.1")
	if ipv6 {
		client, servers = "2001:db8::/64", "fd03::/64"
		s.client, s.realserver = netip.MustParseAddr("2001:db8::1bf"), netip.MustParseAddr("fd03::1")
	}
	web, behind := s.Webs[0], netip.MustParsePrefix(servers)
	// The router and web1 drop what they receive.
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if err := s.Router.Sysctl(key, "0"); err != nil {
			t.Fatal(err)
		}
	}
	s.clientEnd = s.openEnd(s.Router, "director", s.mac(s.Director, "eth0"), netip.MustParsePrefix(client))
	s.webEnd = s.openEnd(web, "eth0", s.mac(s.Director, "eth1"), behind)
	s.routeNet(s.Director, behind, web.Addr)
	return s
}

// routeNet routes h's packets to a network by its neighbour via.
func (s *site) routeNet(h *lab.Host, to netip.Prefix, via netip.Addr) {
	s.t.Helper()
	dst := &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}
	if err := h.Do(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()})
	}); err != nil {
		s.t.Fatalf("%s: route to %v via %v: %v", h.Name, to, via, err)
	}
}

// startRecorded starts a director with the services of a recording, and one for the datagrams of settled.
func (s *stage) startRecorded(c *recordedCase) {
	s.t.Helper()
	text := fmt.Sprintf("director.queues = 1\ndirector.fast_path = \"off\"\nconnections.keep = \"\"\n"+
		"[[service]]\nname = \"marker\"\nvip = %q\nprotocol = \"udp\"\n"+
		"port = 9\nforward = \"nat\"\nrealserver = [ { address = %q, port = 9009 } ]\n", c.Setup.VIP, s.realserver)
	s.question = udpPacket(s.t, s.client, c.Setup.VIP, markerPort, 9, "marker")
	s.reply = udpPacket(s.t, s.realserver, s.client, 9009, markerPort, "marker")
	for _, line := range c.Setup.Ipvsadm {
		f := strings.Fields(line)
		if f[0] == "-A" { // -A -t VIP:PORT -s rr
			vip := netip.MustParseAddrPort(f[2])
			protocol := map[string]string{"-t": "tcp", "-u": "udp"}[f[1]]
			text += fmt.Sprintf("[[service]]\nname = \"%s%d\"\nvip = %q\nprotocol = %q\nport = %d\nscheduler = %q\n"+
				"forward = \"nat\"\n", protocol, vip.Port(), vip.Addr(), protocol, vip.Port(), f[4])
			continue
		}
		real := netip.MustParseAddrPort(f[4]) // -a -t VIP:PORT -r REALSERVER:PORT -m
		text += fmt.Sprintf("[[service.realserver]]\naddress = %q\nport = %d\n", real.Addr(), real.Port())
	}
	s.startDirectorWith(text)
}

// compare takes a step of a recording, and returns how the packets that follow differ from the recorded ones.
func (s *stage) compare(c *recordedCase, i int) string {
	s.t.Helper()
	step := c.Steps[i]
	end := s.clientEnd
	if step.From == "realserver" {
		end = s.webEnd
	}
	packet := func(text string) []byte {
		b, err := hex.DecodeString(text)
		if err != nil {
			s.t.Fatalf("%s: step %d: %v", c.Case, i, err)
		}
		return b
	}
	end.send(packet(step.In))
	got, want := map[string][][]byte{}, map[string][][]byte{}
	got["client"], got["realserver"] = s.settled()
	for to, all := range got {
		for _, b := range all {
			if b[0]>>4 == 4 && !slices.Equal(b[10:12], fixChecksum(slices.Clone(b))[10:12]) {
				s.t.Errorf("%s: step %d: wrong checksum of the header of %x, to the %s", c.Case, i, b, to)
			}
		}
	}
	for _, o := range step.Out {
		b := packet(o.Hex)
		at := len(want[o.To])
		for _, v := range o.Volatile {
			clear(b[v[0]:][:v[1]])
			if at < len(got[o.To]) {
				clear(got[o.To][at][v[0]:][:v[1]])
			}
		}
		want[o.To] = append(want[o.To], b)
	}
	lines := func(to map[string][][]byte) (all []string) {
		for _, name := range []string{"client", "realserver"} {
			for _, b := range joined(to[name]) {
				all = append(all, fmt.Sprintf("to the %s: %x", name, b))
			}
		}
		return all
	}
	return cmp.Diff(lines(want), lines(got))
}
