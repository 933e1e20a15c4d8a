package bgp

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/api"

	"vstun/routing/announce"
	"vstun/routing/kernel/kerneltest"
	"vstun/testdata/testkit"
)

// TestAttributes announces VIPs with every attribute to a peer of another AS, changes and withdraws them.
func TestAttributes(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, "")
	s, _ := speak(t, b.peer(routerAS, false))
	kerneltest.Must(t, s.Announce([]announce.Route{
		route("198.51.100.80"),
		{VIP: netip.MustParseAddr("198.51.100.81"), MED: 7, Prepend: 2, LocalPref: 300,
			Communities: []announce.Community{{A: 65000, B: 100}, {Large: true, A: 65000, B: 1, C: 2}}},
		route("2001:db8:ffff::80"),
	}))
	b.waitRoute("198.51.100.80", `198\.51\.100\.80/32`, `BGP\.as_path: 65010\n`, `BGP\.next_hop: 10\.0\.\d+\.1\n`)
	b.waitRoute("198.51.100.81", `BGP\.as_path: 65010 65010 65010\n`, `BGP\.med: 7\n`,
		`BGP\.community: \(65000,100\)\n`, `BGP\.large_community: \(65000, 1, 2\)\n`, `BGP\.local_pref: 100\n`)
	b.waitRoute("2001:db8:ffff::80", `BGP\.next_hop: 2001:db8:\d+::1 ?`)
	st := waitState(t, s, announce.Established)
	if st.Announced != 3 || len(st.Missing) > 0 || st.HoldTime != 9*time.Second || st.Ups != 1 ||
		st.RouterID != b.addr(2, false) || st.Local != b.addr(1, false) {
		t.Errorf("session: %+v", st)
	}
	kerneltest.Must(t, s.Announce([]announce.Route{{VIP: netip.MustParseAddr("198.51.100.80"), MED: 5}}))
	b.waitRoute("198.51.100.80", `BGP\.med: 5\n`)
	b.waitNoRoute("198.51.100.81")
	b.waitNoRoute("2001:db8:ffff::80")
	if text := b.ask("show protocols all vstun"); !strings.Contains(text, "Established") {
		t.Error(text)
	}
}

// TestManyRoutes counts the routes of a peer that sends them without a filter, and puts none in force.
func TestManyRoutes(t *testing.T) {
	b := newBird(t)
	for i := range announce.ManyRoutes {
		b.static = append(b.static, fmt.Sprintf("192.0.%d.%d/32", i>>8, i&255))
	}
	b.run(routerAS, ownAS, false, "")
	s, _ := speak(t, b.peer(routerAS, false))
	testkit.Eventually(t, "its routes are counted", func() bool {
		return s.Status().Sessions[0].Routes == announce.ManyRoutes
	})
}

// TestInternal announces a VIP to a peer of the speaker's own AS.
func TestInternal(t *testing.T) {
	b := newBird(t)
	b.run(ownAS, ownAS, false, "")
	s, _ := speak(t, b.peer(ownAS, false))
	kerneltest.Must(t, s.Announce([]announce.Route{{VIP: netip.MustParseAddr("198.51.100.80"), LocalPref: 300}}))
	b.waitRoute("198.51.100.80", `BGP\.local_pref: 300\n`, `BGP\.as_path: \n`)
}

// TestIPv6Session announces VIPs of both families over a session of IPv6.
func TestIPv6Session(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, true, "")
	s, _ := speak(t, b.peer(routerAS, true))
	kerneltest.Must(t, s.Announce([]announce.Route{route("198.51.100.80"), route("2001:db8:ffff::80")}))
	b.waitRoute("198.51.100.80", `BGP\.next_hop: 10\.0\.\d+\.1\n`)
	b.waitRoute("2001:db8:ffff::80", `BGP\.next_hop: 2001:db8:\d+::1 ?`)
}

// TestNoNextHop announces no VIP of the family that has no next hop, until it has one. The session goes on.
func TestNoNextHop(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, "")
	p := b.peer(routerAS, false, func(p *announce.Peer) { p.NextHop = netip.Addr{} })
	s, _ := speak(t, p)
	kerneltest.Must(t, s.Announce([]announce.Route{route("198.51.100.80")}))
	b.waitRoute("198.51.100.80")
	if st := waitState(t, s, announce.Established); len(st.Missing) > 0 {
		t.Errorf("without a VIP of IPv6 the peer lacks %q", st.Missing)
	}
	kerneltest.Must(t, s.Announce([]announce.Route{route("198.51.100.80"), route("2001:db8:ffff::80")}))
	if st := waitState(t, s, announce.Established); st.Announced != 1 || len(st.Missing) != 1 {
		t.Errorf("session: %+v", st)
	}
	if b.route("2001:db8:ffff::80") != "" {
		t.Error("announced without a next hop")
	}
	p.NextHop = b.addr(1, true)
	kerneltest.Must(t, s.Set(config(p)))
	b.waitRoute("2001:db8:ffff::80", `BGP\.next_hop: 2001:db8:\d+::1 ?`)
	p.NextHop = netip.Addr{}
	kerneltest.Must(t, s.Set(config(p)))
	b.waitNoRoute("2001:db8:ffff::80")
	if st := waitState(t, s, announce.Established); st.Ups != 1 {
		t.Errorf("the session was up %d times", st.Ups)
	}
}

// TestPassword has a session with TCP MD5, and none with another password.
func TestPassword(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, `password "secret";`)
	with := func(password string) announce.Config {
		return config(b.peer(routerAS, false, func(p *announce.Peer) { p.Password = password }))
	}
	s, _ := speak(t, with("secret").Peers...)
	waitState(t, s, announce.Established)
	kerneltest.Must(t, s.Set(with("other")))
	waitFault(t, s, announce.Unanswered)
	kerneltest.Must(t, s.Set(with("secret")))
	waitState(t, s, announce.Established)
}

// TestWrongAS reports that either side has another AS than the other one expects.
func TestWrongAS(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, "")
	s, e := speak(t, b.peer(64999, false))
	waitFault(t, s, announce.WrongAS)
	if !e.has(func(v Event) bool { return v.Fault == announce.WrongAS && !v.Up && !v.Ended }) {
		t.Errorf("events: %+v", e.all)
	}
	other := config(b.peer(routerAS, false))
	other.AS = 65011
	kerneltest.Must(t, s.Set(other))
	waitFault(t, s, announce.Rejected)
}

// TestFaults reports why there is no session.
func TestFaults(t *testing.T) {
	b := newBird(t)
	s, _ := speak(t, b.peer(routerAS, false))
	waitFault(t, s, announce.Refused)
	kerneltest.Must(t, s.Set(config(announce.Peer{Addr: netip.MustParseAddr("203.0.113.1"), AS: routerAS,
		HoldTime: 9 * time.Second, IPv4: true})))
	waitFault(t, s, announce.Unreachable)
	absent := b.peer(routerAS, false)
	absent.Addr = netip.MustParseAddr(strings.TrimSuffix(b.addr(2, false).String(), "2") + "77")
	kerneltest.Must(t, s.Set(config(absent)))
	testkit.Eventually(t, "a fault", func() bool {
		f := s.Status().Sessions[0].Fault
		return f == announce.Unreachable || f == announce.Unanswered
	})
}

// TestSessionEnds reports that a peer ends the session, and that it comes again.
func TestSessionEnds(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, "")
	s, e := speak(t, b.peer(routerAS, false))
	kerneltest.Must(t, s.Announce([]announce.Route{route("198.51.100.80")}))
	waitState(t, s, announce.Established)
	b.end(syscall.SIGTERM)
	testkit.Eventually(t, "an event", func() bool {
		return e.has(func(v Event) bool { return v.Ended && v.Fault == announce.Rejected })
	})
	b.run(routerAS, ownAS, false, "")
	b.waitRoute("198.51.100.80")
	if st := waitState(t, s, announce.Established); st.Ups != 2 || st.Downs != 1 || st.Fault != announce.None {
		t.Errorf("session: %+v", st)
	}
}

// TestBFD finds a killed peer long before the hold time, and has the session again.
func TestBFD(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, "bfd yes;")
	p := b.peer(routerAS, false, func(p *announce.Peer) {
		p.HoldTime, p.BFD = 240*time.Second, announce.BFD{Interval: 100 * time.Millisecond, Multiplier: 3}
	})
	s, e := speak(t, p)
	waitState(t, s, announce.Established)
	testkit.Eventually(t, "BFD up", func() bool { return s.Status().Sessions[0].BFD == "up" })
	kerneltest.Must(t, b.cmd.Process.Signal(syscall.SIGSTOP))
	testkit.Within(t, "the session's end", 30*time.Second, func() bool {
		return e.has(func(v Event) bool { return v.Ended && v.Fault == announce.BFDDown })
	})
	kerneltest.Must(t, b.cmd.Process.Signal(syscall.SIGCONT))
	waitState(t, s, announce.Established)
}

// TestBFDOfEveryPeer: BFD begins with the session, whatever else the peer has, and disturbs it not.
func TestBFDOfEveryPeer(t *testing.T) {
	var peers []announce.Peer
	for _, c := range []struct {
		as         uint32
		ipv6       bool
		statements string
		change     func(*bird, *announce.Peer)
	}{
		{routerAS, false, "", func(b *bird, p *announce.Peer) { p.Source, p.IPv6 = b.addr(1, false), false }},
		{routerAS, false, `password "secret";`, func(_ *bird, p *announce.Peer) { p.Password = "secret" }},
		{routerAS, false, "ttl security on;", func(_ *bird, p *announce.Peer) { p.TTLSecurity = true }},
		{routerAS, true, "", func(*bird, *announce.Peer) {}},
		{ownAS, false, "direct; ", func(_ *bird, p *announce.Peer) { p.HoldTime = 6 * time.Second }},
	} {
		b := newBird(t)
		b.run(c.as, ownAS, c.ipv6, c.statements+"bfd yes;")
		p := b.peer(c.as, c.ipv6, func(p *announce.Peer) {
			p.BFD = announce.BFD{Interval: 500 * time.Millisecond, Multiplier: 3}
			c.change(b, p)
		})
		peers = append(peers, p)
	}
	s, _ := speak(t, peers...)
	testkit.Eventually(t, "sessions that last, with BFD", func() bool {
		return !slices.ContainsFunc(s.Status().Sessions, func(v announce.Session) bool {
			return v.State != announce.Established || v.Since < 2*time.Second || v.BFD != "up"
		})
	})
	for _, v := range s.Status().Sessions {
		if v.Ups != 1 {
			t.Errorf("%d sessions: %+v", v.Ups, v)
		}
	}
}

// TestStaleReset: the engine has got a reset while there is no session. The next session lasts.
func TestStaleReset(t *testing.T) {
	b := newBird(t)
	s, _ := speak(t, b.peer(routerAS, false))
	waitFault(t, s, announce.Refused)
	kerneltest.Must(t, s.engine.ResetPeer(t.Context(), &api.ResetPeerRequest{Address: b.addr(2, false).String()}))
	b.run(routerAS, ownAS, false, "")
	testkit.Eventually(t, "a session that lasts", func() bool {
		v := s.Status().Sessions[0]
		return v.State == announce.Established && v.Since > time.Second
	})
	if st := s.Status().Sessions[0]; st.Ups != 1 {
		t.Errorf("the reset has ended a session: %+v", st)
	}
}

// TestCloseInSilence: the end of a speaker does not hang while BFD finds many peers silent.
func TestCloseInSilence(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		t.Skip("SKIPPED: needs root, to make a network namespace")
	}
	var peers []announce.Peer
	var from []net.Conn
	for i := range 32 {
		a := netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)})
		peers = append(peers, announce.Peer{Addr: a, AS: routerAS, HoldTime: 9 * time.Second, IPv4: true,
			BFD: announce.BFD{Interval: 500 * time.Millisecond, Multiplier: 3}})
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: a.AsSlice()}}).Dial("udp", "127.0.0.1:3784")
		kerneltest.Must(t, err)
		defer c.Close()
		from = append(from, c)
	}
	s := New(func(Event) {})
	kerneltest.Must(t, s.Set(config(peers...)))
	for i := range peers {
		kerneltest.Must(t, s.engine.setBFD(&peers[i], true))
	}
	has := func(state string) bool {
		return slices.ContainsFunc(s.Status().Sessions, func(v announce.Session) bool { return v.BFD == state })
	}
	down := []byte{1 << 5, 1 << 6, 3, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0, 0, 0, 0, 0}
	testkit.Eventually(t, "BFD of all peers", func() bool {
		for _, c := range from {
			_, _ = c.Write(down)         // refused until the engine listens
			time.Sleep(time.Millisecond) // they are silent one after the other
		}
		return !has("down")
	})
	testkit.Eventually(t, "BFD to find a peer silent", func() bool { return has("down") })
	ended := make(chan error, 1)
	go func() { ended <- s.Close() }()
	select {
	case err := <-ended:
		kerneltest.Must(t, err)
	case <-time.After(testkit.Patience):
		t.Fatal("the speaker does not end")
	}
}

// TestPeers changes one of two peers: the session with the other one goes on.
func TestPeers(t *testing.T) {
	first, second := newBird(t), newBird(t)
	for _, b := range []*bird{first, second} {
		b.run(routerAS, ownAS, false, "")
	}
	s, _ := speak(t, first.peer(routerAS, false), second.peer(routerAS, false))
	kerneltest.Must(t, s.Announce([]announce.Route{route("198.51.100.80")}))
	first.waitRoute("198.51.100.80")
	second.waitRoute("198.51.100.80")
	shorter := second.peer(routerAS, false, func(p *announce.Peer) { p.HoldTime = 6 * time.Second })
	kerneltest.Must(t, s.Set(config(first.peer(routerAS, false), shorter)))
	testkit.Eventually(t, "the second session again", func() bool {
		st := s.Status().Sessions[1]
		return st.State == announce.Established && st.HoldTime == 6*time.Second
	})
	second.waitRoute("198.51.100.80")
	kerneltest.Must(t, s.Set(config(first.peer(routerAS, false))))
	second.waitNoRoute("198.51.100.80")
	if st := s.Status().Sessions[0]; st.Ups != 1 || st.Downs != 0 {
		t.Errorf("the first session has not gone on: %+v", st)
	}
}

// TestListen accepts a session that the peer opens.
func TestListen(t *testing.T) {
	b := newBird(t)
	cfg := config(b.peer(routerAS, false))
	cfg.Listen = b.addr(1, false)
	e := &events{}
	s := New(e.add)
	defer func() { kerneltest.Must(t, s.Close()) }()
	kerneltest.Must(t, s.Set(cfg))
	waitFault(t, s, announce.Refused)
	b.run(routerAS, ownAS, false, "")
	waitState(t, s, announce.Established)
}

// TestListenPassword: a password that is taken away is no longer asked for, and a former one does not count.
func TestListenPassword(t *testing.T) {
	b := newBird(t)
	cfg := config(b.peer(routerAS, false, func(p *announce.Peer) { p.Password = "secret" }))
	cfg.Listen = b.addr(1, false)
	s := New(func(Event) {})
	defer func() { kerneltest.Must(t, s.Close()) }()
	kerneltest.Must(t, s.Set(cfg))
	connects := func(patience time.Duration) (ok bool) {
		b.in(func() {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(cfg.Listen, port).String(), patience)
			if ok = err == nil; ok {
				c.Close()
			}
		})
		return ok
	}
	if connects(300 * time.Millisecond) {
		t.Error("a connection without the password")
	}
	for range 2 {
		cfg.Peers = []announce.Peer{b.peer(routerAS, false)}
		kerneltest.Must(t, s.Set(cfg))
		if !connects(10 * time.Second) {
			t.Fatal("no connection behind the password's end")
		}
		cfg.Peers = []announce.Peer{b.peer(routerAS, false, func(p *announce.Peer) { p.Password = "other" })}
		kerneltest.Must(t, s.Set(cfg))
	}
	b.run(routerAS, ownAS, false, `password "other"; passive yes;`)
	waitState(t, s, announce.Established)
	cfg.Peers = nil
	kerneltest.Must(t, s.Set(cfg))
	if !connects(10 * time.Second) {
		t.Error("no connection behind the peer's end")
	}
}

// TestPlannedEnd: another configuration of a peer is no fault of its session.
func TestPlannedEnd(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, "")
	for _, password := range []string{"", "former"} {
		statement := ""
		if password != "" {
			statement = `password "former";`
			b.end(syscall.SIGTERM)
			b.run(routerAS, ownAS, false, statement)
		}
		with := func(hold time.Duration) announce.Config {
			return config(b.peer(routerAS, false, func(p *announce.Peer) { p.HoldTime, p.Password = hold, password }))
		}
		e := &events{}
		s := New(e.add)
		kerneltest.Must(t, s.Set(with(9*time.Second)))
		waitState(t, s, announce.Established)
		kerneltest.Must(t, s.Set(with(6*time.Second)))
		testkit.Eventually(t, "the next session", func() bool {
			st := s.Status().Sessions[0]
			return st.State == announce.Established && st.HoldTime == 6*time.Second
		})
		kerneltest.Must(t, s.Set(config()))
		kerneltest.Must(t, s.Close())
		if len(e.all) != 2 || e.has(func(v Event) bool { return !v.Up }) {
			t.Errorf("events: %+v", e.all)
		}
	}
}

// yielded returns routes as another speaker is about to announce them.
func yielded(routes ...announce.Route) []announce.Route {
	for i := range routes {
		routes[i].Yielded = true
	}
	return routes
}

// TestYield: yielded routes get the community GRACEFUL_SHUTDOWN, and are withdrawn later, each after its own time.
// Others are not touched.
func TestYield(t *testing.T) {
	b := newBird(t)
	b.run(ownAS, ownAS, false, "")
	cfg := config(b.peer(ownAS, false))
	cfg.Graceful, cfg.Linger = time.Hour, time.Millisecond
	s := New(func(Event) {})
	defer func() { kerneltest.Must(t, s.Close()) }()
	kerneltest.Must(t, s.Set(cfg))
	one, two := route("198.51.100.80"), route("198.51.100.81")
	kerneltest.Must(t, s.Announce([]announce.Route{one, two}))
	b.waitRoute("198.51.100.80", `BGP\.local_pref: 100\n`)
	b.waitRoute("198.51.100.81")
	kerneltest.Must(t, s.Announce(append(yielded(one), two)))
	b.waitRoute("198.51.100.80", `BGP\.local_pref: 0\n`, `BGP\.community: \(65535,0\)\n`)
	b.waitRoute("198.51.100.81", `BGP\.local_pref: 100\n`)
	if st := s.Status(); !st.Graceful || len(st.Routes) != 2 {
		t.Errorf("status: %+v", st)
	}
	kerneltest.Must(t, s.Announce([]announce.Route{one, two}))
	b.waitRoute("198.51.100.80", `BGP\.local_pref: 100\n`)
	cfg.Graceful = 10 * time.Millisecond
	kerneltest.Must(t, s.Set(cfg))
	kerneltest.Must(t, s.Announce(append(yielded(one), two)))
	b.waitNoRoute("198.51.100.80")
	kerneltest.Must(t, s.Announce([]announce.Route{one, two}))
	b.waitRoute("198.51.100.80")
	kerneltest.Must(t, s.Announce([]announce.Route{two})) // without another speaker there is nothing to wait for
	b.waitNoRoute("198.51.100.80")
	kerneltest.Must(t, s.Leave())
	b.waitNoRoute("198.51.100.81")
	kerneltest.Must(t, s.Announce([]announce.Route{one, two}))
	if st := s.Status(); st.Sessions[0].Ups != 1 || st.Graceful || len(st.Routes) > 0 {
		t.Errorf("status: %+v", st)
	}
}

// TestYieldFirst: a route that is yielded before it is announced is not announced.
func TestYieldFirst(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, "")
	s := New(func(Event) {})
	defer func() { kerneltest.Must(t, s.Close()) }()
	kerneltest.Must(t, s.Announce(yielded(route("198.51.100.80"))))
	cfg := config(b.peer(routerAS, false))
	cfg.Graceful = time.Hour
	kerneltest.Must(t, s.Set(cfg))
	waitState(t, s, announce.Established)
	if st := s.Status(); len(st.Routes) > 0 || b.route("198.51.100.80") != "" {
		t.Errorf("status: %+v", st)
	}
	kerneltest.Must(t, s.Announce([]announce.Route{route("198.51.100.80")}))
	b.waitRoute("198.51.100.80")
}

// TestLeaveBehindYield waits for the withdrawal that has begun before.
func TestLeaveBehindYield(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, "")
	cfg := config(b.peer(routerAS, false))
	cfg.Graceful = time.Second
	s := New(func(Event) {})
	defer func() { kerneltest.Must(t, s.Close()) }()
	kerneltest.Must(t, s.Set(cfg))
	kerneltest.Must(t, s.Announce([]announce.Route{route("198.51.100.80")}))
	b.waitRoute("198.51.100.80")
	ends := time.Now().Add(cfg.Graceful)
	kerneltest.Must(t, s.Announce(yielded(route("198.51.100.80"))))
	kerneltest.Must(t, s.Leave())
	if time.Now().Before(ends) {
		t.Error("it has not waited")
	}
	b.waitNoRoute("198.51.100.80")
}

// TestClose leaves no goroutine.
func TestClose(t *testing.T) {
	b := newBird(t)
	b.run(routerAS, ownAS, false, "")
	before := runtime.NumGoroutine()
	for range 3 {
		s := New(func(Event) {})
		kerneltest.Must(t, s.Set(config(b.peer(routerAS, false))))
		waitState(t, s, announce.Established)
		kerneltest.Must(t, s.Close())
	}
	testkit.Eventually(t, "the goroutines' end", func() bool { return runtime.NumGoroutine() <= before })
}
