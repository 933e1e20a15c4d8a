package balancer

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
)

// TestExplainForesees: for every scheduler, with and without persistence, Explain returns the result of the next
// Decide. A second balancer without calls of Explain decides the same.
func TestExplainForesees(t *testing.T) {
	for _, name := range Schedulers() {
		for _, persistent := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s-%v", name, persistent), func(t *testing.T) { explainForesees(t, name, persistent) })
		}
	}
}

func explainForesees(t *testing.T, scheduler string, persistent bool) {
	svc := web(scheduler, rs(1, 3), rs(2, 0), rs(3, 1), rs(4, 2))
	svc.Realservers[3].Upper = 20
	if scheduler == "sh" || scheduler == "mh" {
		svc.Flags = Flags{Fallback: true, Port: true}
	}
	svc.VIPs = append(svc.VIPs, netip.MustParseAddr("198.51.100.81"), netip.MustParseAddr("198.51.100.82"))
	if persistent {
		svc.Persistence = Persistence{Timeout: 20 * time.Second, Mask4: 32, Mask6: 128}
	}
	asked, other := New(conntab.New(conntab.Config{Max: 1024}), 1), New(conntab.New(conntab.Config{Max: 1024}), 1)
	apply(t, asked, svc)
	apply(t, other, svc)
	r := rand.New(rand.NewPCG(1, 2))
	chosen := map[netip.Addr]int{}
	steps := conntab.Ticks(1500)
	if testing.Short() {
		steps = 300
	}
	for step := range steps {
		now := step * 10
		p := flow(r.IntN(200)<<16|r.IntN(3), []uint8{packet.FlagSYN, packet.FlagSYN, packet.FlagACK,
			packet.FlagFIN | packet.FlagACK, packet.FlagRST}[r.IntN(5)])
		p.Flow.Dst = svc.VIPs[r.IntN(3)]
		var before []string
		looks := step%50 == 0
		if looks {
			before = snapshotOf(asked, now)
			snapshotOf(other, now) // which prolongs templates
		}
		e := asked.Snapshot().Explain(p, now)
		if again := asked.Snapshot().Explain(p, now); scheduler != "twos" && !reflect.DeepEqual(e, again) {
			t.Fatalf("step %d: explained again it is another: %+v, %+v", step, e, again)
		}
		if looks {
			if after := snapshotOf(asked, now); !slices.Equal(before, after) {
				t.Fatalf("step %d: the table has changed:\n%v\n%v", step, before, after)
			}
		}
		d, reason := asked.Snapshot().Decide(p, now)
		fresh := e.Connection == nil || e.Fate != conntab.Followed
		if scheduler != "twos" || !fresh {
			if reason != e.Drop || reason == drop.Accept && d.ID() != e.Chosen {
				t.Fatalf("step %d: %v, %v is foreseen, and it is %+v, %v", step, e.Chosen, e.Drop, d, reason)
			}
			if !fresh && e.Chosen != e.Connection.Realserver {
				t.Fatalf("step %d: a connection to %v, but %v is foreseen", step, e.Connection.Realserver, e.Chosen)
			}
		}
		if reason == drop.Accept {
			chosen[d.Address]++
		}
		if scheduler != "twos" {
			if d2, drop2 := other.Snapshot().Decide(p, now); drop2 != reason || reason == drop.Accept &&
				d2.Address != d.Address {
				t.Fatalf("step %d: %v, %v; the one without questions has %v, %v", step, d, reason, d2, drop2)
			}
		}
		if step%20 == 0 {
			asked.table.Sweep(now)
			other.table.Sweep(now)
		}
	}
	if len(chosen) == 0 || chosen[rs(2, 0).Address] > 0 {
		t.Errorf("chosen are %v", chosen)
	}
}

// snapshotOf returns all connections and templates, with their times of expiry.
func snapshotOf(b *Balancer, now conntab.Ticks) (all []string) {
	for c := range b.Connections(now) {
		all = append(all, fmt.Sprint(c))
	}
	slices.Sort(all)
	return all
}

// TestExplainRefusals covers the reasons why a realserver is not chosen and a packet is dropped.
func TestExplainRefusals(t *testing.T) {
	four, six := web("rr", rs(1, 0), rs(2, 1)), web("rr", Realserver{Address: netip.MustParseAddr("fd00::2"), Weight: 1,
		Config: method.Config{MTU: 1500}})
	four.Realservers[1].Upper = 1
	six.Name, six.Ports = "six", []PortRange{{8000, 8099}}
	b := newBalancer(t, four, six)
	to(b, flow(1, packet.FlagSYN))
	e := b.Snapshot().Explain(flow(2, packet.FlagSYN), 0)
	if e.Drop != drop.NoRealserver || e.Chosen.IsValid() || e.Connection != nil || !e.Candidates[1].Overloaded ||
		e.Candidates[0].Overloaded || e.Candidates[1].Inner != 1480 {
		t.Errorf("all are drained or full: %+v", e)
	}
	p := flow(1, packet.FlagSYN)
	if e := b.Snapshot().Explain(p, 0); e.Connection == nil ||
		e.Connection.Realserver.Addr() != rs(2, 1).Address || e.Left {
		t.Errorf("a connection: %+v", e)
	}
	p.Flow.DstPort = 8001
	if e := b.Snapshot().Explain(p, 0); e.Drop != drop.SendError || e.Candidates[0].Reachable ||
		e.Service.Name != "six" {
		t.Errorf("without a source: %+v", e)
	}
	p.Flow.DstPort = 81
	if e := b.Snapshot().Explain(p, 0); e.Drop != drop.NoService || e.Service != nil {
		t.Errorf("without a service: %+v", e)
	}
	if doors := b.Snapshot().VirtualPorts(vip); len(doors) != 2 || doors[1].Service != "six" ||
		doors[1].Ports.Last != 8099 {
		t.Errorf("the VIP's doors: %+v", doors)
	}
	apply(t, b, web("rr", rs(1, 1)))
	if e := b.Snapshot().Explain(flow(1, packet.FlagACK), 0); e.Connection == nil || !e.Left {
		t.Errorf("a connection of one that has left: %+v", e)
	}
}

// former names one host for all clients.
type former netip.Addr

func (f former) NextHop(netip.AddrPort, netip.Addr) (netip.Addr, bool) { return netip.Addr(f), true }

// TestExplainNextHop: Explain has the realserver that packets name, unless it depends on a port that is not known.
func TestExplainNextHop(t *testing.T) {
	next := netip.MustParseAddr("10.0.11.9")
	for _, c := range []struct {
		hop, byPort bool
		port        uint16
		want        netip.Addr
	}{{true, true, 1024, next}, {true, false, 0, next}, {true, true, 0, netip.Addr{}},
		{false, true, 1024, netip.Addr{}}} {
		svc := web("mh", rs(1, 1))
		svc.Flags.Port = c.byPort
		r := &svc.Realservers[0]
		r.Encap, r.EncapPort, r.Hop = encap.KindGUE, 6080, c.hop
		b := New(conntab.New(conntab.Config{Max: 1024}), 1)
		apply(t, b, svc)
		b.SetFormer("web", former(next))
		p := flow(1, packet.FlagSYN)
		p.Flow.SrcPort = c.port
		if e := b.Snapshot().Explain(p, 1); e.Drop != drop.Accept || e.NextHop != c.want {
			t.Errorf("%+v: %v, next hop %v", c, e.Drop, e.NextHop)
		}
		apply(t, b)
		apply(t, b, svc) // the service that has gone and come has no former choices
		if e := b.Snapshot().Explain(p, 1); e.NextHop.IsValid() {
			t.Errorf("%+v: a new service names %v", c, e.NextHop)
		}
	}
}
