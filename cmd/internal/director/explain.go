package director

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/words"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/routing/query"
)

// explain answers GET /explain: where a flow's packets go, and why. It changes nothing.
func (d *director) explain(q url.Values) (any, error) {
	client, vip, protocol, err := api.ParseFlow(q)
	if err != nil {
		return nil, err
	}
	st := d.controller.state()
	cfg, snap, now := st.Config, st.snapshot, d.plane.now()
	var first packet.Info // of a packet that begins a connection
	var e balancer.Explanation
	for _, name := range []string{"tcp", "udp", "sctp", "tcp"} { // the last one if no protocol has it
		if protocol != "" && name != protocol {
			continue
		}
		first = packet.Info{Len: 60, TCPFlags: packet.FlagSYN, SCTPChunk: packet.ChunkInit,
			Flow: packet.Flow{Src: client.Addr(), SrcPort: client.Port(), Dst: vip.Addr(), DstPort: vip.Port(),
				Proto: plan.Protocol(name)}}
		if e = snap.Explain(&first, now); e.Service != nil || e.Connection != nil {
			break
		}
	}
	out := api.Explanation{Protocol: packet.ProtoName(first.Flow.Proto), Client: client.Addr().String(),
		ClientPort: client.Port(), VIP: vip.Addr().String(), Port: vip.Port()}
	l := lister{services: map[string]*balancer.Service{}}
	if s := e.Service; s != nil {
		l.services[s.Name] = &s.Service
		out.Service, out.Scheduler = s.Name, s.Scheduler
		if out.Candidates, err = d.candidates(st, &e); err != nil {
			return nil, err
		}
	} else {
		out.Near = suggestions(snap, vip.Addr())
	}
	for to, c := range map[**api.Connection]*balancer.Connection{&out.Connection: e.Connection,
		&out.Template: e.Template} {
		if c != nil {
			row := l.row(c)
			*to = &row
		}
	}
	out.Realserver, out.Drop, out.Why = verdict(&e, cfg.Connections)
	if e.Service == nil && e.Connection == nil {
		switch {
		case slices.Contains(st.inputs.RetiredVIPs, vip.Addr()):
			out.Why = fmt.Sprintf("the VIP %v is not configured any more", vip.Addr())
		case !snap.HasVIP(vip.Addr()):
			out.Why = fmt.Sprintf("no service has the VIP %v", vip.Addr())
			if near, ok := words.Nearest(vip.Addr().String(), vipNames(cfg)); ok {
				out.Why += ": did you mean " + near + "?"
			}
		default:
			out.Why = fmt.Sprintf("no service has %s port %d of the VIP", out.Protocol, vip.Port())
		}
	}
	return out, nil
}

// verdict returns the realserver that the flow's packets go to, or the reason of their drop, and an explanation.
func verdict(e *balancer.Explanation, cfg config.Connections) (realserver, reason, why string) {
	gone := "not configured any more"
	if e.Down {
		gone = "down"
	}
	switch c := e.Connection; {
	case c == nil:
	case e.Down && c.State.Movable():
		realserver, reason, why = newConnection(e)
		return realserver, reason, fmt.Sprintf("it was led to %v, which is down, and begins anew elsewhere: %s",
			c.Realserver, why)
	case e.Left && cfg.ExpireNoDest:
		realserver, reason, why = newConnection(e)
		return realserver, reason, fmt.Sprintf("its connection is to %v, which is %s, and so it is forgotten "+
			"(expire_nodest); of a new one: %s", c.Realserver, gone, why)
	case e.Left && cfg.DropOnRemoval:
		return "", drop.Removed.String(), fmt.Sprintf("its connection is to %v, which is %s (on_removal = "+
			"\"drop\")", c.Realserver, gone)
	case e.Left:
		return c.Realserver.String(), "", "it has a connection to it, which goes on, though it is " + gone
	default:
		why = "it has a connection to it"
		if renewed(c.State, cfg.ConnReuse) && e.Template == nil {
			fresh, refused, because := newConnection(e)
			why += fmt.Sprintf(", which has ended: a packet that begins a connection opens a new one, to %s%s: %s",
				fresh, refused, because)
		}
		return c.Realserver.String(), "", why
	}
	return newConnection(e)
}

// newConnection is verdict for a packet that opens a connection.
func newConnection(e *balancer.Explanation) (realserver, reason, why string) {
	s := e.Service
	switch {
	case s == nil:
		return "", e.Drop.String(), "no service has VIP, protocol and port"
	case e.Drop == drop.NoRealserver:
		return "", e.Drop.String(), fmt.Sprintf("%s finds no realserver that may have a new connection", s.Scheduler)
	case e.Drop != drop.Accept:
		return "", e.Drop.String(), fmt.Sprintf("it would get %v, to which there is no route, and no source is set",
			e.Chosen)
	case e.Kept:
		return e.Chosen.String(), "", "persistence keeps the client there"
	}
	why = fmt.Sprintf("%s gives it to a new connection: %s", s.Scheduler, choices[s.Scheduler])
	if s.Flags.Port && (s.Scheduler == "sh" || s.Scheduler == "mh") {
		why += " and its port, so that another port may have another realserver"
	}
	if e.Template != nil {
		why += fmt.Sprintf("; persistence does not keep the client at %v any longer", e.Template.Realserver)
	}
	return e.Chosen.String(), "", why
}

// choices describes what each scheduler chooses.
var choices = map[string]string{
	"rr":   "the next in turn",
	"wrr":  "the next in turn by weight",
	"lc":   "the fewest connections",
	"wlc":  "the fewest connections for its weight",
	"sed":  "the fewest active connections for its weight, with this one",
	"nq":   "the first without an active connection, else the fewest for its weight",
	"fo":   "the highest weight",
	"ovf":  "the highest weight that has no more active connections than that",
	"twos": "the better of two that are drawn by chance, so that it may be another one the next time",
	"dh":   "the hash of the VIP",
	"sh":   "the hash of the client",
	"mh":   "the Maglev hash of the client",
	"lblc": "the one that the VIP had last, if it is not crowded, else the fewest connections for its weight",
	"lblcr": "of those that the VIP has the one with the fewest connections for its weight, if it is not crowded, " +
		"else that of all",
}

// renewed reports whether a packet that opens a connection replaces one in this state, see conntab.Reuse.
func renewed(s conntab.State, reuse int) bool {
	switch s {
	case conntab.TimeWait, conntab.Close, conntab.SCTPClosed:
		return reuse >= 1
	case conntab.FinWait:
		return reuse == 2
	}
	return false
}

// candidates returns the realservers of the service, with the path to each as the kernel knows it now.
func (d *director) candidates(st *state, e *balancer.Explanation) ([]api.Candidate, error) {
	var all []netip.Addr
	for _, c := range e.Candidates {
		all = append(all, c.Address)
	}
	paths, err := query.Paths(all)
	if err != nil {
		return nil, err
	}
	svc := d.describe(st, []balancer.ServiceStatus{*e.Service}, time.Now())[0]
	var out []api.Candidate
	for i, c := range e.Candidates {
		path := paths[c.Address]
		r := api.Candidate{Realserver: svc.Realservers[i], Reachable: c.Reachable && path.Link != "",
			Link: path.Link, MTU: c.MTU, InnerMTU: c.Inner}
		if source := c.Source; source.IsValid() {
			r.Source = source.String()
		} else if path.Source.IsValid() {
			r.Source = path.Source.String()
		}
		switch {
		case r.ComingUp():
			r.PassedOver = r.Check.Reason
		case r.Health == "down" && r.Check != nil && (c.Down || c.Weight == 0): // not a sorry server
			r.PassedOver = "its check fails: " + r.Check.Reason
		case c.Down && svc.Sorry:
			r.PassedOver = "the sorry server has the clients"
		case c.Down:
			r.PassedOver = "it is the sorry server, which is not in use"
		case c.Weight == 0:
			r.PassedOver = "weight 0"
		case c.Overloaded:
			r.PassedOver = fmt.Sprintf("%s, and upper is %d: it gets new ones when it has fewer than %d",
				words.Count(c.Active+c.Inactive, "connection"), c.Upper, relief(c.Lower, c.Upper))
		}
		out = append(out, r)
	}
	return out, nil
}

// relief returns the number of connections below which an overloaded realserver gets new ones again.
func relief(lower, upper int) int {
	if lower > 0 {
		return lower
	}
	return (upper*3 + 3) / 4
}

// maxSuggestions is the largest number of frontends that are listed.
const maxSuggestions = 20

// suggestions lists the frontends of the VIP, or, if no service has it, those of other VIPs. The longest common prefix
// comes first.
func suggestions(snap *balancer.Snapshot, vip netip.Addr) (lines []string) {
	frontends := snap.VirtualPorts(vip)
	slices.SortStableFunc(frontends,
		func(a, b balancer.Frontend) int { return common(b.VIP, vip) - common(a.VIP, vip) })
	for i, f := range frontends {
		if i == maxSuggestions {
			return append(lines, fmt.Sprintf("and %d more", len(frontends)-maxSuggestions))
		}
		lines = append(lines, fmt.Sprintf("%s %s port %v (%s)", packet.ProtoName(f.Protocol), f.VIP, f.Ports,
			f.Service))
	}
	return lines
}

// common returns the length of the longest common prefix of two addresses in bits. Of two families it is -1.
func common(a, b netip.Addr) int {
	if a.BitLen() != b.BitLen() {
		return -1
	}
	n := 0
	x, y := a.AsSlice(), b.AsSlice()
	for n < a.BitLen() && (x[n/8]^y[n/8])>>(7-n%8)&1 == 0 {
		n++
	}
	return n
}
