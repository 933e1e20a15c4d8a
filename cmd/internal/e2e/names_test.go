package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vstun/cmd/internal/api"
	"vstun/testdata/testkit"
)

// zone starts a name server on the client's host, with these records.
func (s *site) zone(records ...string) *testkit.Zone {
	s.t.Helper()
	at := net.JoinHostPort(s.Client.Addr.String(), "53")
	conn := s.listenUDP(s.Client, at)
	listener, err := s.Client.Listen("tcp", at)
	if err != nil {
		s.t.Fatal(err)
	}
	return testkit.ServeDNS(s.t, conn, listener, records...)
}

// addressRecords are the A or AAAA records of a name with the addresses of web servers, by index.
func (s *site) addressRecords(name string, webs ...int) (records []string) {
	for _, i := range webs {
		kind := "A"
		if s.Webs[i].Addr.Is6() {
			kind = "AAAA"
		}
		records = append(records, fmt.Sprintf("%s 0 %s %v", name, kind, s.Webs[i].Addr))
	}
	return records
}

// realservers returns the addresses of the first service's realservers.
func (p *program) realservers() (all []string) {
	p.t.Helper()
	for _, r := range p.balance().Services[0].Realservers {
		all = append(all, r.Address)
	}
	return all
}

// addresses returns the addresses of web servers.
func (s *site) addresses(webs ...int) (all []string) {
	for _, i := range webs {
		all = append(all, s.Webs[i].Addr.String())
	}
	return all
}

// has waits until the first service's realservers are these web servers.
func (s *site) has(webs ...int) {
	s.t.Helper()
	want := s.addresses(webs...)
	testkit.Within(s.t, fmt.Sprintf("the realservers are %v", want), 6*soon,
		func() bool { return slices.Equal(s.director.realservers(), want) })
}

// answersOf returns how many of n new connections to a port of the VIP each web server has answered.
func (s *site) answersOf(port uint16, n int) map[string]int {
	s.t.Helper()
	all := map[string]int{}
	for range n {
		c, err := s.Client.Dial("tcp", s.at(port))
		if err != nil {
			s.t.Fatal(err)
		}
		server, err := askName(c, "hi")
		if c.Close(); err != nil {
			s.t.Fatal(err)
		}
		all[server]++
	}
	return all
}

// mustShare fails the test unless exactly these web servers get new connections.
func (s *site) mustShare(port uint16, webs ...int) {
	s.t.Helper()
	got := s.answersOf(port, 20)
	for _, i := range webs {
		if got[s.Webs[i].Name] == 0 {
			s.t.Errorf("%s gets no connection: %v", s.Webs[i].Name, got)
		}
	}
	if len(got) != len(webs) {
		s.t.Errorf("connections are answered by %v, want those of %v", got, webs)
	}
}

// TestNames: a realserver has a name. Answers come and go under downloads, the name server is silent for a while, in
// which the configuration is reloaded and the director starts again, and an answer is hostile: no download breaks, and
// new connections go where the last good answer says. With VSTUN_FULL=1 each method has both families.
func TestNames(t *testing.T) {
	byMethodOnce(t, testNames)
}

func testNames(t *testing.T, m method, ipv6 bool) {
	s := newMethodSite(t, m, ipv6, 3, nil)
	s.startAgents("")
	for _, web := range s.Webs {
		s.namedEcho(web, 80)
		s.pacedDownloads(web, 81, 4096, 20*time.Millisecond)
	}
	zone := s.zone(s.addressRecords("web.test.", 0, 1)...)
	config := func(quorum string) string {
		text := ""
		for i, port := range []string{"80", "81"} {
			realserver := `{ address = "web.test", weight = 3 }`
			if m == nat {
				realserver = fmt.Sprintf(`{ address = "web.test", weight = 3, port = 80%s }`, port)
			}
			text += fmt.Sprintf("[[service]]\nname = \"s%d\"\nvip = %q\nprotocol = \"tcp\"\nport = %s\n%s%s"+
				"scheduler = \"rr\"\nresolve = { interval = \"1s\", server = %q }\n"+
				"check = { type = \"tcp\", interval = \"200ms\", rise = 1, initial = \"up\" }\nrealserver = [ %s ]\n",
				i+1, s.VIP, port, m.keys(), quorum, s.Client.Addr, realserver)
		}
		return fmt.Sprintf("director.metrics = %q\n", metricsAddress) + text
	}
	s.startDirectorWith(config(""))
	s.has(0, 1)
	s.mustShare(80, 0, 1)
	if r := s.director.balance().Services[0].Realservers[0]; r.Weight != 3 || r.Host != "web.test" {
		t.Errorf("%+v", r)
	}
	downloads := s.download(81, long(200, 30, 10))
	downloads.mustGoOn(t, "at the start", 1<<15)

	for _, webs := range [][]int{{1, 2}, {0, 1, 2}, {0}, {1, 2}} {
		zone.Set(s.addressRecords("web.test.", webs...)...)
		s.has(webs...)
		s.mustShare(80, webs...)
		downloads.mustGoOn(t, fmt.Sprintf("with an answer of %v", webs), 1<<14)
	}
	if l := s.director.balance().Leaving; l.Realservers != 2 || l.Connections == 0 { // of each service
		t.Errorf("leaving: %+v", l)
	}

	zone.Change(func() { zone.Silent = true })
	testkit.Within(t, "the name fails", 6*soon, func() bool { return s.name().Error != "" })
	s.reloadWith(config("quorum = 2\n"))
	s.has(1, 2)
	s.restartAtOnce(m)
	s.has(1, 2)
	s.mustShare(80, 1, 2)
	testkit.Within(t, "the name fails after the start", 6*soon, func() bool { return s.name().Error != "" })
	downloads.mustGoOn(t, "without a name server", 1<<14)
	s.director.mustName(symptom{"names", []string{"warning", "name web.test (s1, s2)", "cannot be resolved"}})

	zone.Change(func() { zone.Silent = false })
	zone.Set(append(s.addressRecords("web.test.", 0, 1), hostileRecords(s.VIP)...)...)
	s.has(0, 1)
	testkit.Within(t, "the name is resolved", 6*soon, func() bool { return s.name().Error == "" })
	if n := s.name(); len(n.Refused) != 4 || n.Failures == 0 { // two for each service
		t.Errorf("%+v", n)
	}
	s.mustShare(80, 0, 1)
	downloads.mustGoOn(t, "at the end", 1<<14)
	if text := s.director.mustHTTPGet(metricsAddress, "/metrics"); !strings.Contains(text,
		`vstun_name_refused_addresses{family=`) {
		t.Errorf("no metrics of names")
	}
	// In the log of the second process. A busy machine may fail a question more.
	for what, most := range map[string]int{`msg="name not resolved: the last answer stays"`: 3,
		`msg="name resolved again"`: 3, `reason="it is a VIP"`: 2} {
		if got := strings.Count(s.director.Output(), what); got == 0 || got > most {
			t.Errorf("the log has %q %d times, want one to %d", what, got, most)
		}
	}
}

// restartAtOnce ends the director and starts it again. With nat it is killed: SIGTERM would put the host back, which
// ends downloads.
func (s *site) restartAtOnce(m method) {
	s.t.Helper()
	if m == nat {
		s.director.kill()
	} else {
		s.director.stop()
	}
	s.director.start()
}

// name returns the state of the only name.
func (s *site) name() api.Name {
	s.t.Helper()
	all := s.director.balance().Names
	if len(all) != 1 {
		s.t.Fatalf("names: %+v", all)
	}
	return all[0]
}

// hostileRecords are addresses that are no realservers: the VIP, and loopback.
func hostileRecords(vip netip.Addr) []string {
	if vip.Is4() {
		return []string{fmt.Sprintf("web.test. 0 A %v", vip), "web.test. 0 A 127.0.0.1"}
	}
	return []string{fmt.Sprintf("web.test. 0 AAAA %v", vip), "web.test. 0 AAAA ::1"}
}

// TestNameComesLate: a name without an answer keeps no director from its start, and a reload brings another one that
// has none. The services are down, and the status says why, until the name server answers.
func TestNameComesLate(t *testing.T) {
	t.Parallel()
	s := newSite(t, 2, nil)
	zone := s.zone()
	config := func(names ...string) string {
		text := ""
		for i, name := range names {
			text += fmt.Sprintf("[[service]]\nname = \"s%d\"\nvip = %q\nprotocol = \"tcp\"\nport = %d\nrealserver = "+
				"[ { address = %q } ]\nresolve = { interval = \"1s\", server = %q }\n", i+1, s.VIP, 80+i, name,
				s.Client.Addr)
		}
		return text
	}
	s.startWith(config("a.test"))
	if st := s.director.balance(); len(st.Services[0].Realservers) != 0 || st.Services[0].Health != "down" ||
		!strings.Contains(s.name().Error, "a.test. does not exist (NXDOMAIN)") {
		t.Errorf("%+v, %+v", st.Services[0], st.Names)
	}
	if got := s.ask("status"); !strings.Contains(got.stdout, "no answer yet, FAILS for") {
		t.Errorf("status:\n%s", got.stdout)
	}
	s.director.mustName(symptom{"names", []string{"error", "name a.test (s1)", "cannot be resolved"}},
		symptom{"health", []string{`service "s1"`, "it is down"}})
	zone.Set(s.addressRecords("a.test.", 0)...)
	s.has(0)
	s.mustBeServedBy(80, "web1")
	changes := s.reloadWith(config("a.test", "b.test"))
	if want := `service "s2": added: tcp 198.51.100.80 port 81, scheduler wlc, 1 realserver`; !slices.Contains(changes,
		want) {
		t.Errorf("the reload prints %q", changes)
	}
	s.mustBeServedBy(80, "web1")
	zone.Set(append(s.addressRecords("a.test.", 0), s.addressRecords("b.test.", 1)...)...)
	testkit.Within(t, "b.test has an answer", 6*soon, func() bool {
		return len(s.director.balance().Services[1].Realservers) == 1
	})
	// The reload waits for the answer of a name that has one: the service is never without a realserver.
	zone.Set(append(s.addressRecords("c.test.", 1), s.addressRecords("b.test.", 1)...)...)
	changes = s.reloadWith(config("c.test", "b.test"))
	if got := s.director.realservers(); !slices.Equal(got, s.addresses(1)) {
		t.Errorf("after the reload, whose changes are %q, the realservers are %v", changes, got)
	}
	s.mustBeServedBy(80, "web2")
}

// TestServiceRecords: SRV records are realservers, with their weights and with nat their ports. A realserver with a
// higher priority number gets connections only while all others are down.
func TestServiceRecords(t *testing.T) {
	for _, m := range []method{tun, nat} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			s := newMethodSite(t, m, false, 3, nil)
			s.startAgents("")
			for _, web := range s.Webs {
				s.namedEcho(web, 80)
			}
			records := func(lines ...string) []string {
				for i := range s.Webs {
					lines = append(lines, s.addressRecords(fmt.Sprintf("web%d.test.", i+1), i)...)
				}
				return lines
			}
			record := func(web, priority, weight int) string {
				return fmt.Sprintf("_http._tcp.test. 0 SRV %d %d %d web%d.test.", priority, weight, s.realPort(80), web)
			}
			zone := s.zone(records(record(1, 10, 30), record(2, 10, 10), record(3, 20, 5))...)
			s.startDirectorWith(fmt.Sprintf("[[service]]\nname = \"s1\"\nvip = %q\nprotocol = \"tcp\"\nport = 80\n%s"+
				"scheduler = \"wrr\"\ncheck = { type = \"tcp\", interval = \"200ms\", timeout = \"200ms\", rise = 1, "+
				"initial = \"up\" }\nresolve = { srv = \"_http._tcp.test\", interval = \"1s\", server = %q }\n", s.VIP,
				m.keys(), s.Client.Addr))
			s.has(0, 1, 2)
			share := func(want map[string]int) {
				t.Helper()
				testkit.Within(t, fmt.Sprintf("40 connections are shared as %v", want), 6*soon, func() bool {
					return fmt.Sprint(s.answersOf(80, 40)) == fmt.Sprint(want)
				})
			}
			share(map[string]int{"web1": 30, "web2": 10})
			if r := s.director.balance().Services[0].Realservers[2]; !r.Standby || r.Weight != 5 ||
				r.Host != "web3.test" {
				t.Errorf("%+v", r)
			}
			zone.Set(records(record(1, 10, 10), record(2, 10, 10), record(3, 20, 5))...)
			share(map[string]int{"web1": 20, "web2": 20})
			s.die(0)
			s.die(1)
			testkit.Within(t, "the others are down", 6*soon, func() bool {
				return s.director.balance().Services[0].WeightUp == 5
			})
			share(map[string]int{"web3": 40})
			s.revive(0)
			s.revive(1)
			share(map[string]int{"web1": 20, "web2": 20})
			zone.Set(records(record(2, 0, 0), record(3, 0, 0))...)
			s.has(1, 2)
			share(map[string]int{"web2": 20, "web3": 20})
		})
	}
}
