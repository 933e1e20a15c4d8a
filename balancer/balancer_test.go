package balancer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/testdata/testkit"
)

var vip = netip.MustParseAddr("198.51.100.80")

func rs(n, weight int) Realserver {
	return Realserver{Address: netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), Weight: weight,
		Config: method.Config{MTU: 1500}}
}

func web(scheduler string, realservers ...Realserver) Service {
	return Service{Name: "web", VIPs: []netip.Addr{vip}, Protocol: packet.ProtoTCP, Ports: []PortRange{{80, 80}},
		Scheduler: scheduler, Realservers: realservers}
}

func newBalancer(t testing.TB, services ...Service) *Balancer {
	t.Helper()
	b := New(conntab.New(conntab.Config{Max: 100_000}), 1)
	apply(t, b, services...)
	return b
}

func apply(t testing.TB, b *Balancer, services ...Service) {
	t.Helper()
	if err := b.Apply(Config{Services: services}); err != nil {
		t.Fatal(err)
	}
}

func flow(n int, flags uint8) *packet.Info {
	return &packet.Info{Len: 40, TCPFlags: flags, Flow: packet.Flow{Proto: packet.ProtoTCP, SrcPort: uint16(n),
		DstPort: 80,
		Src:     netip.AddrFrom4([4]byte{192, 0, byte(n >> 24), byte(n >> 16)}), Dst: vip}}
}

// to returns the last byte of the address of the packet's realserver, or the drop reason.
func to(b *Balancer, p *packet.Info) string {
	d, reason := b.Snapshot().Decide(p, 0)
	if reason != drop.Accept {
		return reason.String()
	}
	return fmt.Sprint(d.Address.As4()[3])
}

func sequence(b *Balancer, from, n int) (s string) {
	for i := range n {
		s += to(b, flow(from+i, packet.FlagSYN)) + " "
	}
	return s
}

// TestWRRSequences are small cases worked out by hand from ip_vs_wrr.c; the recordings are the real test.
func TestWRRSequences(t *testing.T) {
	for name, c := range map[string]struct {
		list []Realserver
		want string
	}{
		"2 to 1":   {[]Realserver{rs(1, 2), rs(2, 1)}, "2 1 1 2 1 1 "},
		"equal":    {[]Realserver{rs(1, 5), rs(2, 5)}, "2 1 2 1 2 1 "},
		"one is 0": {[]Realserver{rs(1, 3), rs(2, 0)}, "1 1 1 1 1 1 "},
		"all are 0": {[]Realserver{rs(1, 0), rs(2, 0)}, "no_realserver no_realserver no_realserver no_realserver " +
			"no_realserver no_realserver "},
		"none at all": {nil, "no_realserver no_realserver no_realserver no_realserver no_realserver no_realserver "},
	} {
		if got := sequence(newBalancer(t, web("wrr", c.list...)), 1, 6); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestNoWayOverIPv6: a realserver without an outer source gets no packets. It keeps its connections until it has a
// source.
func TestNoWayOverIPv6(t *testing.T) {
	six := Realserver{Address: netip.MustParseAddr("fd00::2"), Weight: 1, Config: method.Config{MTU: 1500}}
	b := newBalancer(t, web("rr", six))
	for _, flags := range []uint8{packet.FlagSYN, packet.FlagACK} {
		if got := to(b, flow(1, flags)); got != "send_error" {
			t.Errorf("without a source: %s", got)
		}
	}
	six.Source = netip.MustParseAddr("fd00::1")
	apply(t, b, web("rr", six))
	d, reason := b.Snapshot().Decide(flow(1, packet.FlagACK), 0)
	if reason != drop.Accept || !d.Reachable() || d.Overhead() != 40 || d.Inner() != 1460 {
		t.Errorf("with a source: %v", reason)
	}
}

func TestReloadKeepsWhatStays(t *testing.T) {
	b := newBalancer(t, web("rr", rs(1, 1), rs(2, 1), rs(3, 1)))
	if got := sequence(b, 1, 4); got != "3 2 1 3 " {
		t.Fatal(got)
	}
	// The same again changes nothing: the next is 2.
	apply(t, b, web("rr", rs(1, 1), rs(2, 1), rs(3, 1)))
	// 4 is new, and before 3; 1 leaves; 2 drains.
	apply(t, b, web("rr", rs(2, 0), rs(3, 1), rs(4, 1)))
	if got := sequence(b, 10, 3); got != "4 3 4 " {
		t.Errorf("after the change: %s", got)
	}
	for i, want := range []string{"3", "2", "1", "3"} {
		if got := to(b, flow(1+i, packet.FlagACK)); got != want {
			t.Errorf("connection %d is at %s now, was at %s", i, got, want)
		}
	}
	if l := b.Leaving(); len(l) != 1 || l[0].Active+l[0].Inactive != 1 || l[0].Service == "" {
		t.Errorf("realservers that have left: %+v", l)
	}
	st := b.Snapshot().Status()
	if len(st) != 1 || len(st[0].Realservers) != 3 || st[0].Realservers[0].Address != rs(2, 0).Address ||
		st[0].Realservers[0].Active != 1 ||
		st[0].Realservers[1].Connections != 3 {
		t.Errorf("status %+v", st)
	}
	// 1 comes back, at the list's head, and finds its connection and its counts again.
	apply(t, b, web("rr", rs(2, 0), rs(3, 1), rs(4, 1), rs(1, 1)))
	if d := b.services["web"].list[0]; d.Address != rs(1, 1).Address || d.counts.Active() != 1 ||
		d.stats.connections.Load() != 1 {
		t.Errorf("it comes back as %+v with %d connections", d.Realserver, d.counts.Active())
	}
	if gone := len(b.Leaving()); gone != 0 {
		t.Errorf("%d are still leaving", gone)
	}
}

// TestMethodOfConnectionStays: a connection keeps the forwarding method that it began with. Ports of one address are
// different realservers.
func TestMethodOfConnectionStays(t *testing.T) {
	nat := func(port uint16) Realserver {
		r := rs(1, 1)
		r.Kind, r.Port = method.NAT, port
		return r
	}
	b := newBalancer(t, web("rr", rs(1, 1)))
	began := func(n int) Realserver {
		d, reason := b.Snapshot().Decide(flow(n, packet.FlagSYN), 0)
		if reason != drop.Accept {
			t.Fatal(reason)
		}
		return d.Realserver
	}
	if r := began(1); r.Kind != method.TUN {
		t.Fatalf("%+v", r)
	}
	apply(t, b, web("rr", nat(0)))
	if r := began(2); r.Kind != method.NAT || r.Port != 0 {
		t.Errorf("a new connection goes to %+v", r)
	}
	apply(t, b, web("rr", nat(8080), nat(8081)))
	if first, second := began(3), began(4); first.Port != 8081 || second.Port != 8080 {
		t.Errorf("new connections go to %+v and %+v", first, second)
	}
	apply(t, b, web("rr", nat(8081)))
	for n, want := range []Realserver{rs(1, 1), nat(0), nat(8081), nat(8080)} {
		d, _ := b.Snapshot().Decide(flow(1+n, packet.FlagACK), 0)
		if d == nil || d.key() != want.key() {
			t.Errorf("connection %d goes to %+v now, want %+v", n+1, d, want)
		}
	}
	if l := b.Leaving(); len(l) != 3 || l[0].Kind != method.TUN || l[1].Kind != method.NAT || l[2].Port != 8080 {
		t.Errorf("left are %+v", l)
	}
	apply(t, b, web("rr", rs(1, 1)))
	if d := b.services["web"].list[0]; d.Kind != method.TUN || d.counts.Active() != 1 {
		t.Errorf("it comes back as %+v with %d connections", d.Realserver, d.counts.Active())
	}
}

func TestServiceThatLeavesKeepsItsConnections(t *testing.T) {
	b := newBalancer(t, web("rr", rs(1, 1)))
	sequence(b, 1, 1)
	apply(t, b)
	if got := to(b, flow(1, packet.FlagACK)); got != "1" {
		t.Errorf("its connection: %s", got)
	}
	if got := to(b, flow(2, packet.FlagSYN)); got != "no_service" {
		t.Errorf("a new one: %s", got)
	}
	if b.Snapshot().HasVIP(vip) {
		t.Error("its VIP is still answered for")
	}
}

// TestFind: Find returns the realserver of a known connection and does not change the connection. DestsByAddr returns
// retired realservers, too.
func TestFind(t *testing.T) {
	b := newBalancer(t, web("rr", rs(1, 1), rs(2, 1)))
	sequence(b, 1, 1)
	for _, left := range []bool{false, true} {
		if left {
			apply(t, b)
		}
		s := b.Snapshot()
		d := s.Find(flow(1, packet.FlagACK).Flow, 0)
		if d == nil {
			t.Fatal("the connection is not found")
		}
		if all := s.DestsByAddr(d.Address); len(all) != 1 || all[0] != d {
			t.Errorf("its realserver stands for %v", all)
		}
		if len(s.DestsByAddr(vip)) != 0 || s.Find(flow(2, 0).Flow, 0) != nil {
			t.Error("something is found that is not there")
		}
	}
}

// TestTowards: DestsByAddr returns one Dest for a thousand services with the same tunnel, and one for each other
// tunnel.
func TestTowards(t *testing.T) {
	keyed := rs(1, 1)
	keyed.Encap, keyed.Key, keyed.HasKey = encap.KindGRE, 7, true
	wide := rs(1, 1)
	wide.MTU = 9000
	var all []Service
	for i, r := range append(slices.Repeat([]Realserver{rs(1, 1)}, 1000), keyed, wide) {
		s := web("rr", r, rs(2, 1))
		s.Name, s.Ports = fmt.Sprint(i), []PortRange{{uint16(i + 1), uint16(i + 1)}}
		all = append(all, s)
	}
	s := newBalancer(t, all...).Snapshot()
	kinds := map[encap.Kind]int{}
	for _, d := range s.DestsByAddr(keyed.Address) {
		kinds[d.Encap] = d.MTU
	}
	if len(s.DestsByAddr(keyed.Address)) != 2 || kinds[encap.KindIPIP] != 9000 || kinds[encap.KindGRE] != 1500 ||
		len(s.DestsByAddr(rs(2, 1).Address)) != 1 {
		t.Errorf("%d stand for one, %d for the other, with the MTUs %v", len(s.DestsByAddr(keyed.Address)),
			len(s.DestsByAddr(rs(2, 1).Address)), kinds)
	}
}

// TestReroute: a retired realserver gets its path's new MTU, and nothing else changes.
func TestReroute(t *testing.T) {
	b := newBalancer(t, web("rr", rs(1, 1), rs(2, 1)))
	sequence(b, 1, 2) // the first is 2's
	apply(t, b, web("rr", rs(1, 1)))
	before := b.Snapshot()
	b.Reroute(map[netip.Addr]Path{rs(1, 1).Address: {MTU: 1300}})
	if b.Snapshot() != before {
		t.Error("a realserver that stays is another one")
	}
	b.Reroute(map[netip.Addr]Path{rs(2, 1).Address: {MTU: 1400, Source: netip.AddrFrom4([4]byte{10, 0, 0, 9})}})
	for n, mtu := range []int{1: 1400, 2: rs(1, 1).MTU} {
		if n > 0 {
			if d := b.Snapshot().Find(flow(n, packet.FlagACK).Flow, 0); d == nil || d.MTU != mtu ||
				d.Source.IsValid() || to(b, flow(n, packet.FlagACK)) == "" {
				t.Errorf("connection %d: %+v, want an MTU of %d", n, d, mtu)
			}
		}
	}
	if l := b.Leaving(); len(l) != 1 || l[0].Active != 1 || len(b.Snapshot().DestsByAddr(rs(2, 1).Address)) != 1 {
		t.Errorf("leaving are %+v", l)
	}
}

// TestRerouteOverIPv6: a realserver that had no route when it was retired gets its tunnel and the route's source.
func TestRerouteOverIPv6(t *testing.T) {
	way := Path{MTU: 1500, Source: netip.MustParseAddr("fd00::1")}
	for name, last := range map[string]netip.Addr{"route away": {}, "route changed": netip.MustParseAddr("fd00::9")} {
		six := Realserver{Address: netip.MustParseAddr("fd00::2"), Weight: 1,
			Config: method.Config{Source: way.Source, MTU: 1500}}
		b := newBalancer(t, web("rr", six))
		if _, reason := b.Snapshot().Decide(flow(1, packet.FlagSYN), 0); reason != drop.Accept {
			t.Fatal(reason)
		}
		six.Source = last
		apply(t, b, web("rr", six))
		apply(t, b, web("rr"))
		b.Reroute(map[netip.Addr]Path{six.Address: way})
		six.Source = way.Source
		d, reason := b.Snapshot().Decide(flow(1, packet.FlagACK), 0)
		if reason != drop.Accept || d.Realserver != six || !d.Reachable() || d.Source != way.Source {
			t.Errorf("%s: %v, %+v", name, reason, d)
		}
		if s := b.Snapshot(); s.Find(flow(1, packet.FlagACK).Flow, 0) != d || s.DestsByAddr(six.Address)[0] != d {
			t.Errorf("%s: it is not what is found", name)
		}
	}
}

func TestSchedulerChanges(t *testing.T) {
	b := newBalancer(t, web("rr", rs(1, 1), rs(2, 3)))
	sequence(b, 1, 3)
	apply(t, b, web("wrr", rs(1, 1), rs(2, 3)))
	if got := sequence(b, 10, 4); got != "2 2 2 1 " {
		t.Errorf("wrr after rr: %s", got)
	}
	if err := b.Apply(Config{Services: []Service{web("no-such")}}); err == nil {
		t.Error("an unknown scheduler is accepted")
	} else if got := sequence(b, 20, 1); got != "2 " {
		t.Errorf("after the refused change: %s", got)
	}
}

func TestSeveralVIPsAndPorts(t *testing.T) {
	s := web("rr", rs(1, 1), rs(2, 1))
	other := netip.MustParseAddr("198.51.100.81")
	s.VIPs, s.Ports = append(s.VIPs, other), []PortRange{{80, 80}, {8000, 8002}}
	b := newBalancer(t, s)
	var got string
	for i, dst := range []netip.AddrPort{netip.AddrPortFrom(vip, 80), netip.AddrPortFrom(other, 80),
		netip.AddrPortFrom(other, 8000),
		netip.AddrPortFrom(vip, 8002), netip.AddrPortFrom(vip, 8003), netip.AddrPortFrom(vip, 7999)} {
		p := flow(i+1, packet.FlagSYN)
		p.Flow.Dst, p.Flow.DstPort = dst.Addr(), dst.Port()
		got += to(b, p) + " "
	}
	if want := "2 1 2 1 no_service no_service "; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestPortsAgainstModel compares with one map entry a port, and one for every other.
func TestPortsAgainstModel(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		p := newPorts()
		want := map[portKey]*service{}
		rest := map[uint8]*service{}
		for range 20 {
			s := &service{config: Service{Protocol: []uint8{packet.ProtoTCP, packet.ProtoUDP}[rnd.IntN(2)]}}
			r := PortRange{First: uint16(1 + rnd.IntN(300))}
			r.Last = r.First + uint16(rnd.IntN(3)*rnd.IntN(20))
			if rnd.IntN(20) == 0 {
				p.add(s, EveryPort)
				rest[s.config.Protocol] = s
				continue
			}
			free := true
			for port := r.First; port <= r.Last; port++ {
				free = free && want[portKey{s.config.Protocol, port}] == nil
			}
			if !free {
				continue
			}
			p.add(s, r)
			for port := r.First; port <= r.Last; port++ {
				want[portKey{s.config.Protocol, port}] = s
			}
		}
		for port := range uint16(400) {
			for _, proto := range []uint8{0, packet.ProtoTCP, packet.ProtoUDP, 255} {
				s := want[portKey{proto, port}]
				if s == nil {
					s = rest[proto]
				}
				if got := p.find(proto, port); got != s {
					t.Fatalf("protocol %d, port %d: %v, want %v", proto, port, got, s)
				}
			}
		}
	}
	var none *ports
	if none.find(packet.ProtoTCP, 80) != nil {
		t.Error("a VIP without ports has a service")
	}
}

func TestNumbersAreFreed(t *testing.T) {
	b := newBalancer(t, web("rr", rs(1, 1)))
	sequence(b, 1, 1)
	apply(t, b, web("rr", rs(2, 1)))
	d := b.numbers[0]
	b.forget(time.Now().Add(2 * forgetAfter))
	if b.numbers[0] != d {
		t.Fatal("a number with a live connection is freed")
	}
	b.table.Sweep(1000 * conntab.PerSecond)
	b.forget(time.Now().Add(forgetAfter / 2)) // its time begins when its last connection was seen
	if b.numbers[0] != d {
		t.Fatal("a number is freed too early")
	}
	b.forget(time.Now().Add(5 * forgetAfter))
	if b.numbers[0] != nil || len(b.retired) != 0 {
		t.Fatal("the number is not freed")
	}
	apply(t, b, web("rr", rs(2, 1), rs(3, 1)))
	if b.numbers[0] == nil || b.numbers[0].Address != rs(3, 1).Address {
		t.Errorf("the number is not used again: %+v", b.numbers[0])
	}
}

// TestReloadUnderLoad: packets of known connections go to the same realserver during reloads.
func TestReloadUnderLoad(t *testing.T) {
	b := newBalancer(t, web("rr", rs(1, 1), rs(2, 1)))
	const n = 100
	var want [n]string
	for i := range n {
		want[i] = to(b, flow(i+1, packet.FlagSYN))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if got := to(b, flow(i%n+1, packet.FlagACK)); got != want[i%n] {
					t.Errorf("connection %d goes to %s, was at %s", i%n, got, want[i%n])
					return
				}
				to(b, flow(1000+i%5000, packet.FlagSYN))
			}
		})
	}
	for i := range 300 {
		apply(t, b, web([]string{"rr", "wrr", "wlc"}[i%3], rs(1, i%2), rs(2+i%3, 1+i%4), rs(9, 1)))
	}
	close(stop)
	wg.Wait()
}

// TestSameConfigurationKeepsTheTurn: a reload of the same configuration under load does not make wrr repeat a choice.
func TestSameConfigurationKeepsTheTurn(t *testing.T) {
	b := newBalancer(t, web("wrr", rs(1, 2), rs(2, 1)))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 500 {
			apply(t, b, web("wrr", rs(1, 2), rs(2, 1)))
		}
	}()
	var got string
	const n = 3000
	for i := range n {
		got += to(b, flow(i+1, packet.FlagSYN))
	}
	<-done
	if want := strings.Repeat("211", n/3); got != want {
		t.Error("the turn was lost")
	}
}

func TestDecideAllocatesNothing(t *testing.T) {
	for _, s := range Schedulers() {
		b := newBalancer(t, web(s, rs(1, 1), rs(2, 3)))
		p := flow(1, packet.FlagSYN)
		snap, i := b.Snapshot(), 0
		if n := testing.AllocsPerRun(1000, func() {
			i++
			p.Flow.SrcPort = uint16(i)
			snap.Decide(p, 0)
			snap.Decide(p, 0)
		}); n != 0 {
			t.Errorf("%s: %v allocations a decision", s, n)
		}
	}
}

func TestStatusKeepsOrder(t *testing.T) {
	b := newBalancer(t, web("rr", rs(3, 1), rs(1, 1), rs(2, 1)))
	var got []Realserver
	for _, r := range b.Snapshot().Status()[0].Realservers {
		got = append(got, r.Realserver)
	}
	if want := []Realserver{rs(3, 1), rs(1, 1), rs(2, 1)}; !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
}

// TestManyHaveLeft: retired realservers do not make reloads slower.
func TestManyHaveLeft(t *testing.T) {
	b := New(conntab.New(conntab.Config{Max: 1024}), 1)
	const n = 20_000
	for round := range 5 {
		var cfg Config
		for i := range n / 10 {
			s := web("rr")
			s.Name = fmt.Sprintf("%d-%d", round, i)
			for j := range 10 {
				s.Realservers = append(s.Realservers,
					Realserver{Address: netip.AddrFrom4([4]byte{10, byte(round), byte(j), 1}), Weight: 1,
						Config: method.Config{MTU: 1500}})
			}
			cfg.Services = append(cfg.Services, s)
		}
		if took := testkit.CPUTime(func() { apply(t, b, cfg.Services...) }); took > 5*time.Second {
			t.Fatalf("round %d takes %v", round, took)
		}
	}
}

// TestOptionsOfSnapshot: a snapshot decides by its own options and table Config, even after a later Apply.
func TestOptionsOfSnapshot(t *testing.T) {
	cfg := Config{Services: []Service{web("wrr", rs(1, 1))}}
	b := newBalancer(t, cfg.Services...)
	before := b.Snapshot()
	cfg.Options.Silent = true
	cfg.Table = &conntab.Config{SloppyTCP: true}
	if err := b.Apply(cfg); err != nil {
		t.Fatal(err)
	}
	after := b.Snapshot()
	if before.Silent() || !after.Silent() {
		t.Error("both snapshots have the same options")
	}
	if _, reason := before.Decide(flow(1, packet.FlagACK), 0); reason != drop.NoConnection {
		t.Errorf("an ACK of no connection: %v", reason)
	}
	if _, reason := after.Decide(flow(1, packet.FlagACK), 0); reason != drop.Accept {
		t.Errorf("an ACK of no connection, with SloppyTCP: %v", reason)
	}
	if err := b.Apply(cfg); err != nil || b.Snapshot() != after {
		t.Errorf("the same again makes another snapshot, %v", err)
	}
	b.Reroute(map[netip.Addr]Path{})
	cfg.Services[0].Scheduler = "lottery"
	cfg.Table = &conntab.Config{}
	if err := b.Apply(cfg); err == nil || b.Snapshot() != after {
		t.Errorf("a refused configuration: %v", err)
	}
	if _, reason := b.Snapshot().Decide(flow(2, packet.FlagACK), 0); reason != drop.Accept {
		t.Errorf("after it an ACK of no connection: %v", reason)
	}
}
