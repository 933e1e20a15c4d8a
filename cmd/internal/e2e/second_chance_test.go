package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"

	"vstun/balancer/secondchance"
	"vstun/testdata/testkit"
)

// chanceSite is a site whose agents give second chances: a director without a table of connections, and mh.
type chanceSite struct {
	*site
	encap string
	key   string
	on    bool
	deaf  bool // the agents refuse the director's tables
}

// newChanceSite builds the hosts. Without on, neither the director nor the agents have [second_chance].
func newChanceSite(t *testing.T, webs int, encap string, ipv6, on bool) *chanceSite {
	t.Helper()
	s := &chanceSite{site: newSite(t, webs, nil), encap: encap, on: on}
	s.speak(ipv6)
	s.key = filepath.Join(s.dir, "chance.key")
	if err := os.WriteFile(s.key, slices.Repeat([]byte("key "), 8), 0o600); err != nil {
		t.Fatal(err)
	}
	s.director = s.prepare(s.Director, "director")
	return s
}

// agent returns keys of realserver.toml.
func (s *chanceSite) agent() string {
	text := fmt.Sprintf("encap = %q\n", s.encap)
	key := s.key
	if s.deaf {
		key += ".other"
		if err := os.WriteFile(key, slices.Repeat([]byte("lock"), 8), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	if s.on {
		var peers []netip.Addr
		for _, web := range s.Webs {
			peers = append(peers, web.Addr)
		}
		text += fmt.Sprintf("[second_chance]\nenabled = true\npeers = [%s]\nkey = %q\n", quoted(peers), key)
	}
	return text
}

// configure gives the director realservers with these weights. A negative one leaves a realserver out.
func (s *chanceSite) configure(ports string, weights ...int) {
	more := "unknown_flows = \"hash\"\n[connections]\nmax = 10_000\nkeep = \"\""
	if s.deaf {
		more += "\nexpire_nodest = true"
	}
	if s.on {
		more += fmt.Sprintf("\n[second_chance]\nkey = %q", s.key)
	}
	text := s.directorTOML(s.director.socket, more, service{"tcp", ports, "mh", weights})
	s.director.configure(strings.ReplaceAll(text, `scheduler = "mh"`,
		fmt.Sprintf("scheduler = \"mh\"\nscheduler_flags = [\"mh-port\"]\nencap = %q", s.encap)))
}

// haveTables waits until the agents have the director's tables.
func (s *chanceSite) haveTables(agents int) {
	s.t.Helper()
	if !s.on || s.deaf {
		return
	}
	testkit.Within(s.t, "the agents have the tables", 4*soon, func() bool {
		t := s.director.balance().Tables
		n := 0
		if t != nil {
			for _, a := range t.Agents {
				if a.Current {
					n++
				}
			}
		}
		return n == agents
	})
}

// sentOn returns the packets that the agents have sent on to others, and those that they got from others.
func (s *chanceSite) sentOn() (sent, received uint64) {
	for _, a := range s.agents {
		if c := a.intake().SecondChance; c != nil {
			sent, received = sent+c.Forwarded.Packets, received+c.Received
		}
	}
	return sent, received
}

// TestSecondChance kills a director while the realservers change: one is added, one is removed and runs on. The next
// director has no connections. With second chances all downloads go on. Without them those break whose slots have
// moved. Agents without tables follow the hops of a director that does not die, and forgets the connections of the
// realserver that it has no longer.
func TestSecondChance(t *testing.T) {
	for _, c := range []struct {
		name, encap string
		ipv6, on    bool
	}{{"ipip", "ipip", false, true}, {"gre6", "gre", true, true}, {"gue", "gue", false, true},
		{"hops", "gue", false, true}, {"without", "ipip", false, false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newChanceSite(t, 4, c.encap, c.ipv6, c.on)
			s.deaf = c.name == "hops"
			s.startAgents(s.agent())
			for _, web := range s.Webs {
				s.pacedDownloads(web, 80, 4096, 20*time.Millisecond)
			}
			s.configure("80", 1, 1, 1, -1)
			s.director.start()
			s.haveTables(3)
			downloads := s.download(80, short(100, 30))
			downloads.mustGoOn(t, "before", 1<<15)

			s.configure("80", 1, 1, -1, 1)
			if s.deaf {
				s.mustReload()
			} else {
				s.director.kill()
				s.director.start()
			}
			if !c.on {
				n, why := downloads.broken()
				t.Logf("without second chances %d of %d downloads are broken: %v", n, downloads.n, why)
				if n == 0 {
					t.Error("no download is broken: the test shows nothing")
				}
				return
			}
			downloads.mustGoOn(t, "after", 1<<16)
			s.haveTables(3)
			if sent, received := s.sentOn(); sent == 0 || received == 0 { // GRO may merge packets on the way
				t.Errorf("%d packets sent on, %d received", sent, received)
			}
			if s.deaf {
				s.mustName(s.Webs[2].Addr)
				return
			}
			s.configure("80", -1, 1, -1, 1) // the director does not die
			s.mustReload()
			downloads.mustGoOn(t, "after a reload", 1<<16)
		})
	}
}

// mustName fails the test unless explain names a realserver as the next hop of some packets.
func (s *chanceSite) mustName(want netip.Addr) {
	s.t.Helper()
	for port := range 40 {
		client := netip.AddrPortFrom(s.Client.Addr, uint16(1024+port))
		if e := s.explain(client.String(), s.at(80)); e.NextHop == want.String() {
			return
		}
	}
	s.t.Errorf("explain names %v for no client", want)
}

// TestSecondChanceOnce gives two agents tables that contradict each other: each has the other one as the realserver of
// all connections. A packet of an unknown connection is sent on once.
func TestSecondChanceOnce(t *testing.T) {
	t.Parallel()
	s := newChanceSite(t, 2, "ipip", false, true)
	s.startAgents(s.agent())
	tables, err := s.Director.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer tables.Close()
	for i, web := range s.Webs {
		d := secondchance.NewDirector([]byte(strings.Repeat("key ", 8)))
		table := &secondchance.Table{Service: "web", VIPs: []netip.Addr{s.VIP}, Ports: []secondchance.Ports{{}}}
		for j, other := range s.Webs {
			table.Members = append(table.Members, secondchance.Member{Via: secondchance.Via{Address: other.Addr},
				Weight: uint32(i ^ j), Available: true})
		}
		gets := func(m *secondchance.Member) bool { return m.Address == web.Addr }
		d.Set([]*secondchance.Table{table}, gets, time.Now())
		send := func(to netip.Addr, b []byte) {
			if _, err := tables.WriteTo(b, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 8849))); err != nil {
				t.Error(err)
			}
		}
		testkit.Within(t, web.Name+" has its table", 4*soon, func() bool {
			d.Send(time.Now(), send)
			_ = tables.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			b := make([]byte, 1<<16)
			for n, _, err := tables.ReadFrom(b); err == nil; n, _, err = tables.ReadFrom(b) {
				d.Take(b[:n], time.Now(), send)
			}
			return d.Status().Agents[0].Current
		})
	}
	const packets = 20
	raw := s.rawSender(s.Director)
	for port := range packets {
		raw.inject(build(t, ip4(s.Director.Addr, s.Webs[port%2].Addr, layers.IPProtocolIPv4),
			ip4(s.Client.Addr, s.VIP, layers.IPProtocolTCP),
			&layers.TCP{SrcPort: layers.TCPPort(20000 + port), DstPort: 80, ACK: true, Seq: 1, Ack: 1, Window: 1000}))
	}
	testkit.Within(t, "all packets have come to their second host", 4*soon, func() bool {
		_, received := s.sentOn()
		return received >= packets
	})
	if sent, received := s.sentOn(); sent != packets || received != packets {
		t.Errorf("%d packets were sent on %d times, and received %d times", packets, sent, received)
	}
}

// TestSecondChanceTranslated leaves out a realserver whose server the kernel does not find by a packet's addresses: its
// firewall translates them. Its connections stay, since their SYN came there.
func TestSecondChanceTranslated(t *testing.T) {
	t.Parallel()
	s := newChanceSite(t, 3, "ipip", false, true)
	s.startAgents(s.agent())
	for _, web := range s.Webs {
		s.pacedDownloads(web, 8080, 4096, 20*time.Millisecond)
		s.nft(web, "table ip t { chain c { type nat hook prerouting priority -100; "+
			"iifname \"vs0\" tcp dport 80 redirect to :8080; }; }")
	}
	s.configure("80", 1, 1, -1)
	s.director.start()
	s.haveTables(2)
	downloads := s.download(80, 30)
	downloads.mustGoOn(t, "before", 1<<15)
	s.configure("80", -1, 1, 1)
	s.mustReload()
	s.haveTables(2)
	downloads.mustGoOn(t, "after", 1<<16)
	if sent, _ := s.sentOn(); sent != 0 {
		t.Errorf("%d packets were sent on", sent)
	}
}

// TestSecondChanceHops sends packets of unknown connections as GLB's director does: each names the realserver that it
// may go on to. No director has sent tables.
func TestSecondChanceHops(t *testing.T) {
	t.Parallel()
	s := newChanceSite(t, 2, "gue", false, true)
	s.startAgents(s.agent())
	const packets = 20
	raw := s.rawSender(s.Director)
	second := s.Webs[1].Addr.As4()
	header := append([]byte{2, 4, 0, 0, 0, 0, 0, 1}, second[:]...)
	for port := range packets {
		inner := build(t, ip4(s.Client.Addr, s.VIP, layers.IPProtocolTCP),
			&layers.TCP{SrcPort: layers.TCPPort(20000 + port), DstPort: 80, ACK: true, Seq: 1, Ack: 1, Window: 1000})
		raw.inject(udpPacket(t, s.Director.Addr, s.Webs[0].Addr, 40000, 6080, string(append(header, inner...))))
	}
	testkit.Within(t, "all packets have come to their second host", 4*soon, func() bool {
		_, received := s.sentOn()
		return received >= packets
	})
	if sent, received := s.sentOn(); sent != packets || received != packets {
		t.Errorf("%d packets were sent on %d times, and received %d times", packets, sent, received)
	}
}
