package balancer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// choices are slow and obvious models of the schedulers whose choice depends on nothing but the list.
var choices = map[string]func(list []*Dest) *Dest{
	"lc": func(list []*Dest) *Dest {
		return lowest(list, func(d *Dest) float64 { return float64(d.connOverhead()) })
	},
	"wlc": func(list []*Dest) *Dest {
		return lowest(list, func(d *Dest) float64 { return float64(d.connOverhead()) / float64(d.Weight) })
	},
	"sed": func(list []*Dest) *Dest { return lowest(list, delay) },
	"nq": func(list []*Dest) *Dest {
		return lowest(list, func(d *Dest) float64 {
			if d.counts.Active() == 0 {
				return 0
			}
			return delay(d)
		})
	},
	"fo": func(list []*Dest) *Dest { return lowest(list, func(d *Dest) float64 { return float64(-d.Weight) }) },
	"ovf": func(list []*Dest) *Dest {
		var free []*Dest
		for _, d := range list {
			if d.counts.Active() <= d.Weight {
				free = append(free, d)
			}
		}
		return lowest(free, func(d *Dest) float64 { return float64(-d.Weight) })
	},
}

func delay(d *Dest) float64 { return float64(d.counts.Active()+1) / float64(d.Weight) }

// lowest is the first of those that may have a connection for which f is lowest. Numbers and weights are small enough
// for quotients that are equal to be equal as float64.
func lowest(list []*Dest, f func(*Dest) float64) (best *Dest) {
	for _, d := range list {
		if d.available() && (best == nil || f(d) < f(best)) {
			best = d
		}
	}
	return best
}

// wrrModel lists the steps of the kernel's search, one after the other: index in the list and least weight.
type wrrModel struct{ position, current, top, step int }

func (m *wrrModel) pick(list []*Dest) *Dest {
	if m.top <= 0 {
		return nil
	}
	type stop struct{ position, current int }
	var path []stop
	for i := m.position + 1; i < len(list); i++ {
		path = append(path, stop{i, m.current})
	}
	down := func(from, last int) {
		for current := from; current > 0; current -= m.step {
			for i := range list {
				if current <= m.step && i > last {
					return
				}
				path = append(path, stop{i, current})
			}
		}
	}
	end := stop{head, m.top}
	if m.position != head && m.current <= m.step { // the search began in the last round: once around
		down(m.top, m.position)
		end = stop{m.position, m.current}
	} else {
		down(m.current-m.step, len(list))
	}
	for _, s := range path {
		if d := list[s.position]; d.Weight >= s.current && !d.overloaded() {
			m.position, m.current = s.position, s.current
			return d
		}
	}
	m.position, m.current = end.position, end.current
	return nil
}

// TestSchedulersAgainstModels has connections come, thresholds be reached and the configuration change, at random.
func TestSchedulersAgainstModels(t *testing.T) {
	for name := range choices {
		t.Run(name, func(t *testing.T) {
			againstModel(t, name, func(svc *service) *Dest { return choices[name](svc.list) })
		})
	}
	t.Run("wrr", func(t *testing.T) {
		againstModel(t, "wrr", func(svc *service) *Dest {
			s := svc.sched.(*wrr)
			m := wrrModel{s.position, s.current, s.top, s.step}
			return m.pick(svc.list)
		})
	})
}

func againstModel(t *testing.T, name string, model func(*service) *Dest) {
	rnd := rand.New(rand.NewPCG(1, 2))
	n := 0
	for range 60 {
		b := newBalancer(t)
		for range 4 {
			list := make([]Realserver, 1+rnd.IntN(12))
			for i := range list {
				list[i] = rs(i+1+rnd.IntN(2)*100, rnd.IntN(3)*rnd.IntN(8))
				if rnd.IntN(2) == 0 {
					list[i].Upper = 1 + rnd.IntN(20)
					list[i].Lower = rnd.IntN(list[i].Upper + 1)
				}
			}
			apply(t, b, web(name, list...))
			svc := b.services["web"]
			for range 60 {
				n++
				want := model(svc)
				got := svc.sched.pick(svc.list, flow(n, 0), 0)
				if got != want {
					t.Fatalf("choice %d is %v, want %v", n, got, want)
				}
				if got != nil {
					p := flow(n, packet.FlagSYN)
					b.Snapshot().connect(svc, got, 0, p, 0, nil)
					if rnd.IntN(3) == 0 { // an inactive connection
						p.TCPFlags = packet.FlagRST | packet.FlagSYN
						b.table.View().Packet(p, conntab.FromClient, 0)
					}
				}
				if rnd.IntN(20) == 0 {
					b.table.Sweep(1000 * conntab.PerSecond)
				}
			}
		}
	}
}

// TestWRROverloaded holds wrr's position against the model's where all are overloaded.
func TestWRROverloaded(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	b := newBalancer(t)
	for range 200 {
		var list []Realserver
		for i := range 1 + rnd.IntN(5) {
			r := rs(i+1, rnd.IntN(4)*(1+rnd.IntN(3)))
			r.Upper = 1
			list = append(list, r)
		}
		apply(t, b)
		apply(t, b, web("wrr", list...))
		svc := b.services["web"]
		s := svc.sched.(*wrr)
		m := wrrModel{s.position, s.current, s.top, s.step}
		for i := range 60 {
			for _, d := range svc.list {
				d.stats.overloaded.Store(false)
				if rnd.IntN(3) > 0 || i%8 == 0 {
					d.Lower = -1 // never few enough
					d.stats.overloaded.Store(true)
				}
			}
			want := m.pick(svc.list)
			if got := s.pick(svc.list, nil, 0); got != want || m != (wrrModel{s.position, s.current, s.top, s.step}) {
				t.Fatalf("%v at %d of weight %d, want %v and %+v; %v", got, s.position, s.current, want, m, list)
			}
		}
	}
}

// TestMaglevMoves removes one of 10 realservers: its own clients must move, and few others.
func TestMaglevMoves(t *testing.T) {
	var list []Realserver
	for i := range 10 {
		list = append(list, rs(i+1, 1))
	}
	const flows = 100_000
	for gone := range list {
		b := newBalancer(t, web("mh", list...))
		pick := func(i int) netip.Addr {
			svc := b.services["web"]
			p := flow(0, 0)
			p.Flow.Src = netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)})
			return svc.sched.pick(svc.list, p, 0).Address
		}
		before := make([]netip.Addr, flows)
		for i := range before {
			before[i] = pick(i)
		}
		apply(t, b, web("mh", append(append([]Realserver{}, list[:gone]...), list[gone+1:]...)...))
		moved, stay := 0, 0
		for i, was := range before {
			if was == list[gone].Address {
				continue
			}
			if stay++; pick(i) != was {
				moved++
			}
		}
		share := 100 * float64(moved) / float64(stay)
		t.Logf("without realserver %d: %.1f %% of the other realservers' flows move", gone+1, share)
		if share > 15 {
			t.Errorf("%.1f %% are more than 15", share)
		}
	}
}

// TestMaglevPort: the realserver's own port is part of its hash; the service's port is part of the others'.
func TestMaglevPort(t *testing.T) {
	picks := func(service, own uint16) (s string) {
		var list []Realserver
		for n := range 5 {
			r := rs(n+1, 1)
			r.Kind, r.Port = method.NAT, own
			list = append(list, r)
		}
		svc := web("mh", list...)
		svc.Ports = []PortRange{{service, service}}
		b := newBalancer(t, svc)
		for n := range 200 {
			p := flow(n, 0)
			p.Flow.Src = netip.AddrFrom4([4]byte{100, 0, 0, byte(n)})
			list := b.services["web"].list
			s += fmt.Sprint(b.services["web"].sched.pick(list, p, 0).Address.As4()[3])
		}
		return s
	}
	if picks(80, 8080) != picks(8080, 0) {
		t.Error("own ports do not count as the service's port does")
	}
	if picks(80, 8080) == picks(80, 0) {
		t.Error("own ports make no difference")
	}
}

func TestTwosDistribution(t *testing.T) {
	full := rs(5, 30)
	full.Upper = 1
	b := newBalancer(t, web("twos", rs(1, 10), rs(2, 20), rs(3, 30), rs(4, 0), full))
	svc := b.services["web"]
	b.Snapshot().connect(svc, svc.list[0], 0, flow(1, packet.FlagSYN), 0, nil)
	const n = 60_000
	drawn := map[string]int{}
	for range n {
		drawn[fmt.Sprint(svc.sched.pick(svc.list, nil, 0).Address.As4()[3])]++
	}
	for name, share := range map[string]float64{"1": 1. / 6, "2": 2. / 6, "3": 3. / 6, "4": 0, "5": 0} {
		if got := float64(drawn[name]) / n; got < share-.02 || got > share+.02 {
			t.Errorf("%s has %.3f of the connections, want %.3f", name, got, share)
		}
	}
	for i := range 10 { // 3 has most connections by weight: only what is drawn twice is its
		b.Snapshot().connect(svc, svc.list[2], 0, flow(10+i, packet.FlagSYN), 0, nil)
	}
	clear(drawn)
	for range n {
		drawn[fmt.Sprint(svc.sched.pick(svc.list, nil, 0).Address.As4()[3])]++
	}
	if got := float64(drawn["3"]) / n; got < .23 || got > .27 {
		t.Errorf("3 has %.3f of the connections, want 0.25", got)
	}
}

func toAddress(i int) *packet.Info {
	p := flow(1, 0)
	p.Flow.Dst = netip.AddrFrom4([4]byte{9, byte(i >> 16), byte(i >> 8), byte(i)})
	return p
}

func TestLocalityForgets(t *testing.T) {
	for _, name := range []string{"lblc", "lblcr"} {
		b := newBalancer(t, web(name, rs(1, 100), rs(2, 100)))
		svc := b.services["web"]
		pick := func(i int, now conntab.Ticks) string {
			svc := b.services["web"]
			return fmt.Sprint(svc.sched.pick(svc.list, toAddress(i), now).Address.As4()[3])
		}
		if got := pick(1, 0); got != "2" {
			t.Fatal(got)
		}
		b.Snapshot().connect(svc, svc.list[0], 0, flow(1, packet.FlagSYN), 0, nil)
		now := conntab.Ticks(day - 1)
		if got := pick(1, now) + pick(2, now); got != "21" {
			t.Errorf("%s: 1 and 2 are at %s", name, got)
		}
		apply(t, b, web(name, rs(1, 100)))
		apply(t, b, web(name, rs(1, 100), rs(2, 100)))
		if got := pick(2, now); got != "1" {
			t.Errorf("%s: after a reload 2 is at %s", name, got)
		}
		if got := pick(1, now+day); got != "1" {
			t.Errorf("%s: 1 is still at %s after a day", name, got)
		}
	}
}

func TestLocalityIsBounded(t *testing.T) {
	b := newBalancer(t, web("lblc", rs(1, 1)))
	svc := b.services["web"]
	s := svc.sched.(*lblc)
	now := conntab.Ticks(1 << 31) // as after 249 days
	for i := range maxDestinations + 1000 {
		if svc.sched.pick(svc.list, toAddress(i), now) == nil {
			t.Fatal("no realserver")
		}
	}
	if n := len(s.memory.destinations); n != maxDestinations {
		t.Errorf("%d addresses are remembered, want %d", n, maxDestinations)
	}
	now += idle
	svc.sched.pick(svc.list, toAddress(5), now-1)
	svc.sched.pick(svc.list, toAddress(1<<20), now)
	if n := len(s.memory.destinations); n != 2 {
		t.Errorf("%d addresses are remembered, want the 2 in use", n)
	}
}

func TestReplicationShrinks(t *testing.T) {
	b := newBalancer(t, web("lblcr", rs(1, 2), rs(2, 2), rs(3, 2)))
	svc := b.services["web"]
	known := func() *destination { return svc.sched.(*lblcr).memory.destinations[toAddress(1).Flow.Dst] }
	var got string
	n := 0
	for range 12 {
		d := svc.sched.pick(svc.list, toAddress(1), 0)
		n++
		b.Snapshot().connect(svc, d, 0, flow(n, packet.FlagSYN), 0, nil)
		got += fmt.Sprint(d.Address.As4()[3])
	}
	// More than the weight, and another one is idle: that joins, and is the first in the set.
	if want := "333222111123"; got != want || len(known().members) != 3 {
		t.Errorf("%s, want %s; %d in the set", got, want, len(known().members))
	}
	for i, want := range []int{3, 3, 2, 2, 1} { // one a day
		now := conntab.Ticks(i) * (day/2 + 1)
		if svc.sched.pick(svc.list, toAddress(1), now); len(known().members) != want {
			t.Errorf("after %d half days there are %d in the set, want %d", i, len(known().members), want)
		}
	}
}

// TestSchedulerTable: each row is complete, and has a name of its own.
func TestSchedulerTable(t *testing.T) {
	names := map[string]bool{}
	for _, row := range schedulers {
		if row.Name == "" || row.Choice == "" || row.make == nil || names[row.Name] {
			t.Errorf("%+v", row)
		}
		names[row.Name] = true
		s := Service{Scheduler: row.Name, Flags: Flags{Port: true}}
		if got := strings.Contains(s.Choice(), "and its port"); got != row.Flags {
			t.Errorf("%s with its port: %s", row.Name, s.Choice())
		}
	}
	if _, ok := LookupScheduler("wlcx"); ok {
		t.Error("an unknown scheduler has a row")
	}
}

// TestConcurrentPicks has all schedulers choose while the configuration changes; the race detector looks on.
func TestConcurrentPicks(t *testing.T) {
	for _, name := range Schedulers() {
		t.Run(name, func(t *testing.T) {
			cfg := func(i int) Service {
				var list []Realserver
				for j := range 5 + i%7 {
					r := rs(j+1+i%2, (i+j)%5)
					r.Upper = 50 * (i % 3)
					list = append(list, r)
				}
				s := web(name, append(list, rs(99, 1))...)
				s.Flags.Fallback = i%20 < 10
				return s
			}
			b := newBalancer(t, cfg(0))
			stop := make(chan struct{})
			var wg sync.WaitGroup
			for worker := range 3 {
				wg.Go(func() {
					for i := worker << 20; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						p := flow(i, packet.FlagSYN)
						if d, reason := b.Snapshot().Decide(p, conntab.Ticks(i)); reason == drop.Accept && d == nil {
							t.Error("no realserver and no reason")
						}
					}
				})
			}
			for i := range 100 {
				apply(t, b, cfg(i))
			}
			close(stop)
			wg.Wait()
		})
	}
}
