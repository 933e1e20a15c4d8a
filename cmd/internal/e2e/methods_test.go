package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"vstun/cmd/internal/lab"
	"vstun/testdata/testkit"
)

// TestMethods sends uploads and downloads, byte-exact, by every forwarding method with IPv4 and IPv6, with and without
// offloads, over links of 1,500 and 9,000 bytes. With VSTUN_FULL=1 (`make uploads`) each has 100 MB. That takes
// minutes, and needs a longer -timeout.
func TestMethods(t *testing.T) {
	for _, m := range []method{tun, dr, nat} {
		for _, c := range []struct {
			offload string
			mtu     int
			wire    bool // links carry packets of their MTU, which GRO merges on arrival
		}{{"auto", 1500, false}, {"auto", 1500, true}, {"auto", 9000, false}, {"off", 1500, false},
			{"off", 9000, false}} {
			name := fmt.Sprintf("%s-%s-%d", m, c.offload, c.mtu)
			if c.wire {
				name += "-wire"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				link := lab.Link{MTU: c.mtu}
				if c.wire {
					link.Segmented, link.GRO = true, 50*time.Microsecond
				}
				testTransfers(t, m, "offload = \""+c.offload+"\"", link)
			})
		}
	}
}

func testTransfers(t *testing.T, m method, offload string, link lab.Link) {
	size := long(100_000_000, 2_000_000, 1_000_000)
	links := map[string]lab.Link{"client": link, "director": link, "web1": link}
	if m != tun {
		links["lan"] = link
	}
	s := newSiteBy(t, m, 1, links)
	s.addIPv6()
	s.startAgents(offload)
	web := s.Webs[0]
	s.acceptUploadsAt(web, fmt.Sprintf(":%d", s.realPort(80)))
	text := "director." + offload + "\n"
	for _, six := range []bool{false, true} {
		vip, _, address := s.ends(six)
		web.Addr, address = address, web.Addr
		text += fmt.Sprintf("[[service]]\nname = \"web-%s\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\n%s"+
			"realserver = [ %s ]\n", ipVersion(six), vip, m.keys(), s.realserver(0, "80"))
		web.Addr = address
	}
	s.startDirectorWith(text)
	t.Run("transfer", func(t *testing.T) { // returns when all of its parts have
		for _, six := range []bool{false, true} {
			for _, up := range []bool{true, false} {
				name := "download-" + ipVersion(six)
				if up {
					name = "upload-" + ipVersion(six)
				}
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					s.mustTransfer(t, six, up, size)
				})
			}
		}
	})
	st := s.director.balance()
	if delete(st.Drops, "too_big"); len(st.Drops) != 0 || st.SendError != "" {
		t.Errorf("the director dropped %v, send error %q", st.Drops, st.SendError)
	}
	for _, agent := range s.agents {
		if in := agent.intake(); len(in.Drops) != 0 {
			t.Errorf("%s refused %v", agent, in.Drops)
		}
	}
}

// ends returns the VIP and the addresses of the client and of web1, with IPv4 or IPv6.
func (s *site) ends(ipv6 bool) (vip, client, web netip.Addr) {
	if ipv6 {
		return s.VIP6, s.Client.Addr6, s.Webs[0].Addr6
	}
	return s.VIP, s.Client.Addr, s.Webs[0].Addr
}

// mustTransfer uploads or downloads n bytes through a VIP. The packets must take the ways of the site's method.
func (s *site) mustTransfer(t *testing.T, ipv6, up bool, n int) {
	t.Helper()
	vip, client, address := s.ends(ipv6)
	director := s.Director.Addr
	if ipv6 {
		director = s.Director.Addr6
	}
	// The outermost header of requests at the realserver, and whether replies pass the director.
	request := map[method]lab.Filter{
		tun: {Source: director, Destination: address, Direction: lab.In},
		dr:  {Source: client, Destination: vip, Direction: lab.In},
		nat: {Source: client, Destination: address, Direction: lab.In},
	}[s.method]
	requests, replies := s.counter(t, s.Webs[0], request), s.counter(t, s.Director,
		lab.Filter{Source: vip, Destination: client})
	conn, err := s.Client.Dial("tcp", netip.AddrPortFrom(vip, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begin := time.Now()
	if err := conn.SetDeadline(begin.Add(time.Minute + time.Duration(n/1_000_000)*time.Second)); err != nil {
		t.Fatal(err)
	}
	if up {
		answer, err := put(conn, n)
		if want := fmt.Sprintf("%d bytes, all as they should be", n); answer != want || err != nil {
			t.Errorf("the server answers %q, %v; want %q", answer, err, want)
		}
	} else if err := pull(conn, n); err != nil {
		t.Error(err)
	}
	t.Logf("%.0f Mbit/s", float64(n)*8/1e6/time.Since(begin).Seconds())
	if requests() == 0 {
		t.Errorf("no packet like %+v reached the realserver", request)
	}
	if k := replies(); (k > 0) != (s.method == nat) {
		t.Errorf("%d packets from the VIP passed the director", k)
	}
}

// counter counts packets on a host's eth0 until the end of t.
func (s *site) counter(t *testing.T, h *lab.Host, f lab.Filter) func() uint64 {
	t.Helper()
	c, err := h.Count("eth0", f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func() uint64 {
		n, err := c.Packets()
		if err != nil {
			t.Error(err)
		}
		return n
	}
}

// TestMixedMethods: the realservers of one service have different methods, as in IPVS. Each gets its share. The
// realserver of nat has its own port, and the director as its gateway on the only link of both.
func TestMixedMethods(t *testing.T) {
	t.Parallel()
	testkit.Families(t, func(t *testing.T, ipv6 bool) {
		s := newMethodSite(t, dr, ipv6, 3, nil)
		masked := s.Webs[2]
		s.startAgent(s.Webs[0], "")
		s.startAgent(s.Webs[1], "encap = []")
		s.namedEcho(s.Webs[0], 80)
		s.namedEcho(s.Webs[1], 80)
		s.namedEchoAt(masked, ":8080")
		s.command(masked, "", "ip", "route", "replace", "default", "via", s.Director.Addr.String())
		s.startDirectorWith(fmt.Sprintf(`
[[service]]
name = "web"
vip = %q
protocol = "tcp"
port = 80
scheduler = "rr"
realserver = [ { address = %q }, { address = %q, forward = "dr" }, { address = %q, forward = "nat", port = 8080 } ]
`, s.VIP, s.Webs[0].Addr, s.Webs[1].Addr, masked.Addr))
		seen := map[string]int{}
		for range 12 {
			_, server := s.whoAnswers(anyPort(s.Client.Addr), s.at(80))
			seen[server]++
		}
		if seen["web1"] != 4 || seen["web2"] != 4 || seen["web3"] != 4 {
			t.Errorf("answers are from %v, want 4 from each", seen)
		}
		if st := s.director.balance(); len(st.Drops) != 0 || st.SendError != "" {
			t.Errorf("the director dropped %v, send error %q", st.Drops, st.SendError)
		}
	})
}
