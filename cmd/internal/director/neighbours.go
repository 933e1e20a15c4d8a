package director

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"vstun/balancer/method"
	"vstun/cmd/internal/director/plan"
	"vstun/routing/neigh"
	"vstun/routing/query"
)

// neighbours keeps neighbours resolved.
type neighbours interface {
	Set(all []neigh.Neighbour) error
	States() map[neigh.Neighbour]neigh.State
	Changed() <-chan struct{}
}

// resolver is the neighbours of the program: a *neigh.Watcher, or with a TAP device a *neigh.Resolver.
type resolver interface {
	neighbours
	Run(ctx context.Context) error
	Close() error
}

// openNeighbours returns the resolver of the realservers of VS/DR.
func (p *dataPlane) openNeighbours() (resolver, error) {
	if p.ethernet != nil {
		return p.ethernet.resolver, nil
	}
	return neigh.NewWatcher()
}

// place is where a realserver of VS/DR is.
type place struct {
	neigh.Neighbour
	device query.Device
	fault  string // why it is no neighbour of this host
	mtu    int    // of the network; 0: the path's
}

// firstAnswer is how long a new configuration waits for its realservers' answers to ARP or neighbour discovery. They
// usually come within a millisecond. Packets to realservers that answer later wait.
const firstAnswer = 200 * time.Millisecond

// resolveNeighbours finds the realservers of VS/DR that in needs among this host's neighbours. If that fails, what is
// known stays.
func (c *controller) resolveNeighbours(in *plan.Inputs) {
	c.resolvePort(in)
	to := plan.Direct(in.Config)
	for _, a := range in.RetiredDirect {
		if !slices.Contains(to, a) {
			to = append(to, a)
		}
	}
	if len(to) == 0 && len(c.places) == 0 {
		in.Neighbours = nil
		return
	}
	places, err := c.locate(to, in)
	if err == nil {
		var all []neigh.Neighbour
		for _, p := range places {
			if p.fault == "" {
				all = append(all, p.Neighbour)
			}
		}
		err = c.neighbours.Set(all)
	}
	c.logFailure(slog.LevelWarn, "cannot ask the kernel for the neighbours of this host: what is known of realservers "+
		"of forward = \"dr\" stays", err)
	if err != nil {
		return
	}
	c.places = places
	in.Neighbours = c.seeNeighbours()
}

// locate returns where the realservers to are: in the TAP device's network, or where the paths to them lead.
func (c *controller) locate(to []netip.Addr, in *plan.Inputs) (map[netip.Addr]place, error) {
	if in.Config.TAP {
		return inNetwork(to, in), nil
	}
	devices, err := c.ask.devices()
	if err != nil {
		return nil, err
	}
	places := make(map[netip.Addr]place, len(to))
	for _, a := range to {
		path, asked := in.Paths[a]
		if !asked {
			continue
		}
		p := place{fault: notDirect(path)}
		if i := slices.IndexFunc(devices, func(d query.Device) bool { return d.Name == path.Link }); p.fault == "" {
			switch {
			case i < 0:
				continue // the device has just gone; the next refresh knows more
			case devices[i].MAC == [6]byte{}:
				p.fault = fmt.Sprintf("device %s, which leads to it, has no MAC addresses", path.Link)
			default:
				p.device, p.Neighbour = devices[i], neigh.Neighbour{Device: devices[i].Index, Address: a}
			}
		}
		places[a] = p
	}
	return places, nil
}

// inNetwork returns the places of realservers in the TAP device's network.
func inNetwork(to []netip.Addr, in *plan.Inputs) map[netip.Addr]place {
	port := query.Device{Name: in.Config.TUN, Index: in.Port.Device, MAC: in.Port.MAC}
	places := make(map[netip.Addr]place, len(to))
	for _, a := range to {
		places[a] = place{Neighbour: neigh.Neighbour{Device: port.Index, Address: a}, device: port, mtu: in.Port.MTU}
	}
	return places
}

// notDirect returns why a host at the end of path is in no subnet of this host; "": it is.
func notDirect(path query.Path) string {
	switch {
	case path == (query.Path{}):
		return "there is no route to it"
	case path.Local:
		return "it is an address of this host"
	case path.Gateway.IsValid():
		return fmt.Sprintf("it is in no subnet of this host: the route to it has the gateway %v", path.Gateway)
	}
	return ""
}

// seeNeighbours returns what is known about the realservers in c.places.
func (c *controller) seeNeighbours() plan.Neighbours {
	states := c.neighbours.States()
	all := make(plan.Neighbours, len(c.places))
	for a, p := range c.places {
		n := plan.Neighbour{Fault: p.fault}
		if p.fault == "" {
			st := states[p.Neighbour]
			n.MTU = p.mtu
			n.Link = method.Link{Device: p.Device, MAC: st.MAC, OwnMAC: p.device.MAC}
			if st.Silent {
				n.Fault = silence(a, p.device.Name)
			}
		}
		all[a] = n
	}
	return all
}

// silence is the fault of a neighbour that does not answer.
func silence(a netip.Addr, device string) string {
	if a.Is4() {
		return "it does not answer ARP on " + device
	}
	return "it does not answer neighbour discovery on " + device
}

// awaitNeighbours is resolveNeighbours for a new configuration: it waits for the first answers.
func (c *controller) awaitNeighbours(in *plan.Inputs) {
	c.resolveNeighbours(in)
	for end := time.After(firstAnswer); ; {
		open := slices.ContainsFunc(slices.Collect(maps.Values(in.Neighbours)), func(n plan.Neighbour) bool {
			return n.Fault == "" && !n.Resolved()
		})
		if !open {
			return
		}
		select {
		case <-c.neighbours.Changed():
			in.Neighbours = c.seeNeighbours()
		case <-end:
			return
		}
	}
}

// takeNeighbours puts a change of neighbours in force. The channel pause delivers when the next change may be taken.
// Anyone in their subnet can forge the packets that cause a change, and would keep a CPU busy without the pause.
func (c *controller) takeNeighbours() (pause <-chan time.Time) {
	begin := time.Now()
	in := c.state().inputs
	in.Neighbours = c.seeNeighbours()
	c.putNeighbours(in)
	return time.After(min(max(betweenChanges, pathsShare*time.Since(begin)), pathsEvery))
}

// restoreNeighbours asks for the neighbours of the configuration in force again, after another one was refused. It
// waits for the first answers, since what was known of neighbours may be gone.
func (c *controller) restoreNeighbours() {
	in := c.state().inputs
	c.awaitNeighbours(&in)
	c.putNeighbours(in)
}

// putNeighbours puts in, which may differ from the inputs in force by its neighbours, in force, and sends the packets
// that have waited for them.
func (c *controller) putNeighbours(in plan.Inputs) {
	if maps.Equal(in.Neighbours, c.state().inputs.Neighbours) {
		return
	}
	c.logFailure(slog.LevelError, "cannot apply new MAC addresses of realservers", c.converge(in))
	c.plane.shared.SendResolved(c.plane.balancer.Snapshot(), c.plane.now())
}

// reportFaults logs the realservers of VS/DR that packets cannot get to any more, or can again, since the state was.
func (c *controller) reportFaults(was *state) {
	before := map[netip.Addr]string{}
	if was != nil {
		for _, f := range was.Faults {
			before[f.Address] = f.Reason
		}
	}
	for _, f := range c.state().Faults {
		if before[f.Address] != f.Reason {
			c.log.Warn("realserver unreachable", "realserver", f.Address, "reason", f.Reason)
		}
		delete(before, f.Address)
	}
	direct := plan.Direct(c.state().Config)
	for a := range before {
		if slices.Contains(direct, a) {
			c.log.Info("realserver reachable again", "realserver", a)
		}
	}
}
