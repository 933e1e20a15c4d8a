package director

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"vstun/balancer"
	"vstun/balancer/conntab"
	"vstun/balancer/method"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/director/plan"
	"vstun/cmd/internal/words"
	"vstun/encap/packet"
	"vstun/encap/packet/drop"
	"vstun/routing/query"
	"vstun/routing/vrrp"
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
	out.Realserver, out.Drop, out.Why = verdict(&e)
	if cfg.HashUnknown && !cfg.Connections.SloppyTCP {
		out.Why += unknownFlow(snap, &e, first, now)
	}
	if out.FastPath = d.plane.fast.has(first.Flow); out.FastPath {
		out.Why += "; the kernel forwards its packets (fast path), but for those that end it"
	}
	if e.NextHop.IsValid() {
		out.NextHop = e.NextHop.String()
	}
	out.Role = roleOf(cfg, st.inputs.Roles, vip.Addr())
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

// unknownFlow returns what verdict's explanation lacks about packets of an unknown connection, e, if those go to a
// realserver: unknown_flows = "hash". first is a packet that begins the connection.
func unknownFlow(snap *balancer.Snapshot, e *balancer.Explanation, first packet.Info, now conntab.Ticks) string {
	if e.Connection != nil || first.Flow.Proto != packet.ProtoTCP {
		return ""
	}
	first.TCPFlags = packet.FlagACK
	later := snap.Explain(&first, now)
	switch {
	case later.Drop != drop.Accept:
		return ""
	case later.Chosen == e.Chosen:
		return "; so do packets of a connection that this director does not know (unknown_flows = \"hash\")"
	}
	return fmt.Sprintf("; packets of a connection that this director does not know go to %s (unknown_flows = \"hash\")",
		words.Realserver(later.Chosen))
}

// roleOf returns what explain says about a VIP whose instance of VRRP has another role than master, "" for none.
func roleOf(cfg *config.Director, roles vrrp.Roles, vip netip.Addr) string {
	for i := range cfg.VRRP {
		v := &cfg.VRRP[i]
		if is := roles[v.Name]; slices.Contains(v.VIPs, vip) && is != vrrp.Master {
			return fmt.Sprintf("this director has the role %v in %s, so that neighbours send the VIP's packets to the "+
				"master; what comes here is forwarded all the same: director peers", is, v.Name)
		}
	}
	return ""
}

// verdict returns the realserver of the flow's packets, or the reason of their drop, and an explanation in words. It
// renders the trace of the decision on a packet that begins a connection.
func verdict(e *balancer.Explanation) (realserver, dropped, why string) {
	c := e.Connection
	if c == nil {
		return newConnection(e)
	}
	gone := "not configured any more"
	if e.Down {
		gone = "down"
	}
	to := words.Realserver(c.Realserver)
	realserver, dropped, fresh := newConnection(e)
	switch {
	case e.Restarted:
		return realserver, dropped, fmt.Sprintf("it was led to %s, which is down, and is rescheduled: %s",
			to, fresh)
	case e.Fate == conntab.Removed:
		return "", dropped, fmt.Sprintf("its connection is to %s, which is %s (on_removal = \"drop\")", to, gone)
	case e.Fate == conntab.Forgotten && e.Left:
		return realserver, dropped, fmt.Sprintf("its connection is to %s, which is %s, and so it is forgotten "+
			"(expire_nodest); of a new one: %s", to, gone, fresh)
	case e.Fate == conntab.Forgotten:
		return to, "", fmt.Sprintf("it has a connection to it, which has the weight 0: a packet "+
			"that begins a connection opens a new one (expire_nodest), to %s%s: %s", realserver, dropped, fresh)
	case e.Fate == conntab.Reused:
		return to, "", fmt.Sprintf("it has a connection to it, which has ended: a packet that "+
			"begins a connection opens a new one, to %s%s: %s", realserver, dropped, fresh)
	case e.Drop == drop.SendError, e.Drop == drop.Unreachable:
		return "", dropped, fmt.Sprintf("it has a connection to %s, to which %s", to, noPath(e.Drop, c.Forward))
	case e.Left:
		return to, "", "it has a connection to it, which goes on, though it is " + gone
	}
	return to, "", "it has a connection to it"
}

// noPath returns why no packet can be sent to a realserver with the method kind. Tunnels and dr have the reason
// send_error, nat unreachable.
func noPath(d drop.Reason, kind method.Kind) string {
	switch {
	case kind == method.DR:
		return "there is no path: it is in no subnet of this host"
	case d == drop.Unreachable:
		return "there is no route"
	}
	return "there is no route, and no source is set"
}

// chosenKind returns the method of the realserver that a new connection would get.
func chosenKind(e *balancer.Explanation) method.Kind {
	i := slices.IndexFunc(e.Candidates, func(c balancer.Candidate) bool { return c.ID() == e.Chosen })
	if i < 0 {
		return method.TUN
	}
	return e.Candidates[i].Kind
}

// newConnection is verdict for a new connection.
func newConnection(e *balancer.Explanation) (realserver, dropped, why string) {
	s := e.Service
	switch {
	case s == nil:
		return "", e.Drop.String(), "no service has VIP, protocol and port"
	case e.Drop == drop.NoRealserver:
		return "", e.Drop.String(), fmt.Sprintf("%s finds no realserver that may have a new connection", s.Scheduler)
	case e.Drop != drop.Accept:
		return "", e.Drop.String(), fmt.Sprintf("it would get %s, to which %s", words.Realserver(e.Chosen),
			noPath(e.Drop, chosenKind(e)))
	case e.Kept:
		return words.Realserver(e.Chosen), "", "persistence keeps the client there"
	}
	why = fmt.Sprintf("%s gives it to a new connection: %s", s.Scheduler, s.Choice())
	if e.Template != nil {
		why += fmt.Sprintf("; persistence does not keep the client at %s any longer",
			words.Realserver(e.Template.Realserver))
	}
	return words.Realserver(e.Chosen), "", why
}

// candidates returns the realservers of the service, each with the kernel's present path to it.
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
		if c.Kind == method.TUN && c.Encap.Sealed() {
			path = st.inputs.Paths[c.Address] // of what carries the tunnel
		}
		if st.Config.TAP && c.Kind == method.DR { // in the device's network, without a route
			path = query.Path{Link: st.Config.TUN}
		}
		r := api.Candidate{Realserver: svc.Realservers[i], Reachable: c.Reachable && path.Link != "",
			Link: path.Link, MTU: c.MTU, InnerMTU: c.Inner}
		switch source := c.Source; {
		case c.Kind != method.TUN: // no outer source
		case source.IsValid():
			r.Source = source.String()
		case path.Source.IsValid():
			r.Source = path.Source.String()
		}
		switch {
		case r.Unreachable != "":
			r.PassedOver = "unreachable: " + r.Unreachable
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
				words.Count(c.Active+c.Inactive, "connection"), c.Upper, c.Relief())
		}
		out = append(out, r)
	}
	return out, nil
}

// maxSuggestions is the largest number of frontends that are listed.
const maxSuggestions = 20

// suggestions lists the frontends of the VIP, or, if no service has it, the frontends of other VIPs. The VIPs with the
// longest common prefix come first.
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

// common returns the length of the longest common prefix of two addresses in bits. For addresses of two families it is
// -1.
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
