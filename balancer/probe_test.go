package balancer

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"vstun/balancer/conntab"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/testdata/testkit"
)

// TestProbesGoTheirOwnWay: a pinned flow goes to its target with weight 0, without the service, and when the target is
// down. It uses a new path of the target. It does not count as a connection.
func TestProbesGoTheirOwnWay(t *testing.T) {
	b := New(conntab.New(conntab.Config{Max: 1024, DropRemoved: true}), 1)
	put := func(probed []Target, services ...Service) {
		t.Helper()
		if err := b.Apply(Config{Services: services, Probed: probed}); err != nil {
			t.Fatal(err)
		}
	}
	one, two := rs(1, 5), rs(2, 5)
	both := []Target{one.Target(), two.Target()}
	put(both, web("wrr", one, two))
	p := flow(9, packet.FlagSYN)
	if err := b.Pin(p.Flow, one.Target(), false, 0); err != nil {
		t.Fatal(err)
	}
	if err := b.Pin(p.Flow, two.Target(), false, 0); !errors.Is(err, ErrPinned) {
		t.Errorf("the same flow a second time: %v", err)
	}
	if d := b.Snapshot().Pinned(p.Flow, 0); d == nil || d.Address != one.Address {
		t.Errorf("pinned to %+v", d)
	}
	moved := one
	moved.MTU, moved.Source = 1300, netip.MustParseAddr("10.0.2.2")
	down := one
	down.Down = true
	for _, step := range []func(){
		func() {},
		func() { put(both, web("wrr", rs(1, 0), two)) },
		func() { put(both, web("wrr", down, two)) },
		func() { put(both, web("wrr", two)) },
		func() { put(both) },
		func() { put([]Target{moved.Target(), two.Target()}) },
		func() { put([]Target{two.Target()}) },
	} {
		step()
		if d, reason := b.Snapshot().Decide(p, 1); reason != drop.Accept || d.Address != one.Address {
			t.Errorf("the probe goes to %v (%v)", d, reason)
		}
	}
	if d, _ := b.Snapshot().Decide(p, 1); d.MTU != 1300 || d.Source != moved.Source {
		t.Errorf("the probe's way is %+v", d.Realserver)
	}
	for c := range b.Connections(1) {
		t.Errorf("a connection: %+v", c)
	}
	if l := b.Leaving(); len(l) != 0 {
		t.Errorf("leaving are %+v", l)
	}
	if err := b.Pin(flow(10, 0).Flow, one.Target(), false, 0); err == nil {
		t.Error("a realserver that is not checked any more got a probe")
	}
}

// TestDown: a realserver that is down gets nothing new, its half-open connections and datagrams move on, its
// established connections stay, and its clients' persistence leads elsewhere; when it comes back it is one as before.
func TestDown(t *testing.T) {
	for _, dropRemoved := range []bool{false, true} {
		b := New(conntab.New(conntab.Config{Max: 1024, DropRemoved: dropRemoved}), 1)
		dns := web("rr", rs(1, 1))
		dns.Name, dns.Protocol = "dns", packet.ProtoUDP
		apply(t, b, web("rr", rs(1, 1)), dns)
		half, established, datagram := flow(1, packet.FlagSYN), flow(2, packet.FlagSYN), flow(3, 0)
		datagram.Flow.Proto = packet.ProtoUDP
		to(b, half)
		to(b, established)
		to(b, datagram)
		established.TCPFlags = packet.FlagACK
		to(b, established)

		failed := rs(1, 1)
		failed.Down = true
		dns.Realservers = []Realserver{failed, rs(2, 1)}
		apply(t, b, web("rr", failed, rs(2, 1)), dns)
		if got := to(b, half) + to(b, datagram) + sequence(b, 100, 3); got != "222 2 2 " {
			t.Errorf("what can begin anew goes to %s", got)
		}
		want := "1"
		if dropRemoved {
			want = "realserver_removed"
		}
		if got := to(b, established); got != want {
			t.Errorf("the established connection goes to %s, want %s", got, want)
		}
		if st := b.Snapshot().Status()[0].Realservers; len(st) != 2 || !st[0].Down || st[0].Active != 1 ||
			st[0].Connections != 2 || st[1].Down {
			t.Errorf("status is %+v", st)
		}
		if l := b.Leaving(); len(l) != 0 {
			t.Errorf("leaving are %+v", l)
		}
		apply(t, b, web("rr", rs(1, 1), rs(2, 1)), dns)
		if got := to(b, established); got != "1" {
			t.Errorf("when it is back its connection goes to %s", got)
		}
		if got := sequence(b, 200, 2); got != "1 2 " && got != "2 1 " {
			t.Errorf("when it is back new connections go to %s", got)
		}
		apply(t, b, web("rr", rs(2, 1)), dns)
		if l := b.Leaving(); len(l) != 1 || l[0].Address != rs(1, 1).Address || l[0].Active != 2 {
			t.Errorf("removed while up: leaving are %+v", l)
		}
	}
}

// TestDownFromTheStart: a realserver that was never up gets no clients. When it comes up, it has its own place in the
// list.
func TestDownFromTheStart(t *testing.T) {
	down := rs(1, 1)
	down.Down = true
	persistent := web("sh", down)
	persistent.Persistence = Persistence{Timeout: 1e9, Mask4: 32, Mask6: 128}
	b := newBalancer(t, persistent)
	if got := to(b, flow(1, packet.FlagSYN)); got != "no_realserver" {
		t.Errorf("the first goes to %s", got)
	}
	persistent.Realservers = []Realserver{rs(1, 1)}
	apply(t, b, persistent)
	if got := to(b, flow(1, packet.FlagSYN)); got != "1" {
		t.Errorf("when it is up the first goes to %s", got)
	}
	persistent.Realservers = []Realserver{down, rs(2, 1)}
	apply(t, b, persistent)
	if got := to(b, flow(1, packet.FlagSYN)) + to(b, flow(2, packet.FlagSYN)); got != "22" {
		t.Errorf("a persistent client of one that is down goes to %s", got)
	}
	apply(t, b)
	if l := b.Leaving(); len(l) != 1 || l[0].Address != rs(2, 1).Address {
		t.Errorf("leaving are %+v", l)
	}
}

// TestManyFail: hundreds of realservers that go down and come back together cost little more than one.
func TestManyFail(t *testing.T) {
	var up, down []Realserver
	for i := range 500 {
		r := rs(i+1, 1)
		up = append(up, r)
		r.Down = i > 0
		down = append(down, r)
	}
	for _, sched := range []string{"wlc", "wrr", "mh"} {
		b := newBalancer(t, web(sched, up...))
		took := testkit.CPUTime(func() {
			apply(t, b, web(sched, down...))
			apply(t, b, web(sched, up...))
		})
		if took > 3*time.Second {
			t.Errorf("%s: it took %v", sched, took)
		}
		if got := to(b, flow(1, packet.FlagSYN)); got == "no_realserver" {
			t.Errorf("%s: no realserver serves", sched)
		}
	}
}
