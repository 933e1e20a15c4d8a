package director

import (
	"testing"

	"vstun/balancer/method"
	"vstun/cmd/internal/director/plan"
	"vstun/routing/neigh"
)

// TestAdoptedNeighbour: the MAC address of a realserver of VS/DR that has left the file is asked for also by a start
// that has taken over its connections: without the address they would end.
func TestAdoptedNeighbour(t *testing.T) {
	path, cfg, mac := onTmpfs(t, "32m"), direct(), [6]byte{2, 1}
	gone := cfg.Services[0].Realservers[0].Address
	in := plan.Inputs{Neighbours: plan.Neighbours{}}.Reconfigured(cfg)
	for _, r := range cfg.Services[0].Realservers {
		in.Neighbours[r.Address] = plan.Neighbour{Link: method.Link{Device: 7, MAC: mac, OwnMAC: [6]byte{2, 7}}}
	}
	before := remember(t, path, cfg)
	desired, _ := plan.Plan(in, nil)
	if err := before.plane.balancer.Apply(desired.Balancer); err != nil {
		t.Fatal(err)
	}
	before.adopt(&before.plane)
	before.send(t, 4)
	before.end(t)

	next := direct()
	next.Services[0].Realservers, next.Services[0].Quorum = next.Services[0].Realservers[1:], 1
	after := remember(t, path, next)
	defer after.end(t)
	o := operate(t, next, func(o *operated) {
		o.plane.table, o.plane.balancer = after.plane.table, after.plane.balancer
		for _, r := range cfg.Services[0].Realservers {
			o.neighbours.states[neigh.Neighbour{Device: 7, Address: r.Address}] = neigh.State{MAC: mac}
		}
	})
	retired := false
	_ = o.controller.do(func() {
		if retired = after.adopt(&o.plane); retired {
			o.controller.adopt()
		}
	})
	if !retired || len(o.plane.balancer.Leaving()) != 1 {
		t.Fatalf("retired %v, leaving %+v", retired, o.plane.balancer.Leaving())
	}
	for _, d := range o.plane.balancer.Snapshot().DestsByAddr(gone) {
		if d.Link.MAC != mac {
			t.Errorf("the link to %v is %+v; asked for %v", gone, d.Link, o.neighbours.asked)
		}
	}
}
