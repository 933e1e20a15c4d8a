package director

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"vstun/balancer"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/encap/wire"
	"vstun/routing"
	"vstun/routing/neigh"
	"vstun/routing/query"
	"vstun/testdata/testkit"
)

// direct is running, with VS/DR for the service web and no check.
func direct() *config.Director {
	cfg := running()
	cfg.Services = cfg.Services[:1]
	s := &cfg.Services[0]
	s.Quorum = 2
	for i := range s.Realservers {
		s.Realservers[i].Forward, s.Realservers[i].Tunnel = method.DR, config.Tunnel{}
	}
	return cfg
}

// realserver is the realserver of the service web with this address, as the balancer has it.
func (o *operated) realserver(a netip.Addr) balancer.RealserverStatus {
	for _, r := range o.plane.balancer.Snapshot().Status()[0].Realservers {
		if r.Address == a {
			return r
		}
	}
	return balancer.RealserverStatus{}
}

// TestNeighbours: the MAC addresses of realservers of VS/DR, and their changes, are in force at once. A realserver that
// does not answer is down, and its service loses its quorum. It comes back when it answers, with no other change.
func TestNeighbours(t *testing.T) {
	o := operate(t, direct(), nil)
	if got := o.realserver(first).Link; got.Device != 7 || got.OwnMAC != [6]byte{2, 7} || got.Resolved() {
		t.Errorf("at first: %+v", got)
	}
	if st := o.controller.state().Services["web"]; !st.Up || o.realserver(first).Down {
		t.Errorf("without an answer yet, the realserver is down: %+v", st)
	}
	mac, other := [6]byte{2, 1}, [6]byte{2, 2}
	for _, m := range [][6]byte{mac, other} {
		o.neighbours.is(first, neigh.State{MAC: m})
		testkit.Eventually(t, "the MAC address is in force", func() bool { return o.realserver(first).Link.MAC == m })
	}
	o.told.take()
	o.neighbours.is(first, neigh.State{MAC: other, Silent: true})
	testkit.Eventually(t, "the realserver is down", func() bool { return o.realserver(first).Down })
	if st := o.controller.state(); st.Services["web"].Up || len(st.Faults) != 1 ||
		st.Faults[0].Reason != "it does not answer ARP on eth0" || o.realserver(first).Link.MAC != other {
		t.Errorf("state %+v", st.Services)
	}
	snapshot := o.plane.balancer.Snapshot()
	_ = o.controller.do(func() { o.controller.refresh() })
	if o.plane.balancer.Snapshot() != snapshot {
		t.Error("a refresh of the paths has changed the balancer")
	}
	o.neighbours.is(first, neigh.State{MAC: other})
	testkit.Eventually(t, "the realserver is up again", func() bool { return !o.realserver(first).Down })
	testkit.Eventually(t, "the events", func() bool { return len(o.controller.state().Faults) == 0 })
}

// TestRefusedNeighbours: after a configuration that is refused, the realservers of the one in force are still asked
// for. They keep their MAC addresses. Their answers from meanwhile are in force.
func TestRefusedNeighbours(t *testing.T) {
	mac, other := neigh.State{MAC: [6]byte{2, 1}}, neigh.State{MAC: [6]byte{2, 2}}
	second := first.Next()
	at := func(a netip.Addr) neigh.Neighbour { return neigh.Neighbour{Device: 7, Address: a} }
	o := operate(t, direct(), func(o *operated) { o.neighbours.states[at(first)] = mac })
	o.network.answerBy(func(s routing.State) error {
		if !hasRoute(s, vip2) {
			return nil
		}
		o.neighbours.mu.Lock()
		defer o.neighbours.mu.Unlock()
		o.neighbours.states[at(second)] = other // the change is reported by no later event
		return errRefused
	})
	next := direct()
	next.Services[0].VIPs = []netip.Addr{vip2}
	next.Services[0].Realservers = next.Services[0].Realservers[1:]
	if _, _, err := o.controller.configure(next); err == nil {
		t.Fatal("no error")
	}
	_ = o.controller.do(func() { o.controller.takeNeighbours() })
	if len(o.neighbours.asked) != 2 {
		t.Errorf("asked for %v", o.neighbours.asked)
	}
	for a, want := range map[netip.Addr]neigh.State{first: mac, second: other} {
		if r := o.realserver(a); r.Link.Device != 7 || r.Link.MAC != want.MAC || r.Down {
			t.Errorf("realserver %v: %+v, down %v; want MAC address %v", a, r.Link, r.Down, want.MAC)
		}
	}
}

// TestNeighboursPause: a neighbour whose MAC address changes all the time, as forged packets can make it, causes a plan
// now and then only. The first change is in force at once.
func TestNeighboursPause(t *testing.T) {
	o := operate(t, direct(), nil)
	const changes = 12
	begin := time.Now()
	for i := range changes { // each but two waits until the one before is taken
		o.neighbours.is(first, neigh.State{MAC: [6]byte{2, byte(i + 1)}})
	}
	if took, least := time.Since(begin), (changes-2)*betweenChanges; took < least {
		t.Errorf("%d changes are taken in %v, want %v at least", changes, took, least)
	}
	testkit.Eventually(t, "the last change is in force", func() bool {
		return o.realserver(first).Link.MAC == [6]byte{2, changes}
	})
}

// TestUnreachableSorryServer: a realserver that is the sorry server, too, is down while it does not answer.
func TestUnreachableSorryServer(t *testing.T) {
	cfg := direct()
	cfg.Services[0].Sorry = cfg.Services[0].Realservers[0]
	o := operate(t, cfg, func(o *operated) {
		for _, r := range cfg.Services[0].Realservers {
			o.neighbours.states[neigh.Neighbour{Device: 7, Address: r.Address}] = neigh.State{Silent: true}
		}
	})
	if st := o.controller.state().Services["web"]; !st.Sorry || !o.realserver(first).Down {
		t.Errorf("silent: %+v, down %v", st, o.realserver(first).Down)
	}
	o.neighbours.is(first, neigh.State{MAC: [6]byte{2, 1}})
	testkit.Eventually(t, "the sorry server has the connections", func() bool {
		r := o.realserver(first)
		return o.controller.state().Services["web"].Sorry && !r.Down && r.Weight == 1
	})
}

// TestNoNeighbour: a realserver of VS/DR behind a gateway, without a route, or on a device without MAC addresses gets
// no connections, and the state has the reason.
func TestNoNeighbour(t *testing.T) {
	gateway := netip.MustParseAddr("10.0.2.1")
	for _, c := range []struct {
		path query.Path
		want string
	}{
		{query.Path{Link: "eth0", Gateway: gateway, MTU: 1500}, "no subnet of this host"},
		{query.Path{}, "no route"},
		{query.Path{Link: "tun0", MTU: 1500}, "no MAC addresses"},
		{query.Path{Link: "lo", Local: true, MTU: 65535}, "address of this host"},
	} {
		o := operate(t, direct(), func(o *operated) {
			o.controller.ask.paths = func([]netip.Addr) (map[netip.Addr]query.Path, error) {
				return map[netip.Addr]query.Path{first: c.path}, nil
			}
			o.controller.ask.devices = func() ([]query.Device, error) {
				return []query.Device{{Name: "eth0", Index: 7, MAC: [6]byte{2, 7}}, {Name: "tun0", Index: 8}}, nil
			}
		})
		st := o.controller.state()
		if len(st.Faults) != 2 || !strings.Contains(st.Faults[0].Reason, c.want) || !o.realserver(first).Down {
			t.Errorf("%+v: %+v, down %v", c.path, st.Faults, o.realserver(first).Down)
		}
		if len(o.neighbours.asked) > 0 {
			t.Errorf("%+v: asked for %v", c.path, o.neighbours.asked)
		}
		o.end()
	}
}

// TestNoPacketSockets: on a kernel without packet sockets VS/DR is refused, and nothing else.
func TestNoPacketSockets(t *testing.T) {
	p := dataPlane{noLink: wire.ErrNoPacketSockets}
	if err := p.allows(running()); err != nil {
		t.Error(err)
	}
	if err := p.allows(direct()); err == nil || !strings.Contains(err.Error(), "CONFIG_PACKET") {
		t.Errorf("error %v", err)
	}
	if err := (&dataPlane{}).allows(direct()); err != nil {
		t.Error(err)
	}
}
