package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"vstun/balancer/method"
	"vstun/cmd/internal/api"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
	"vstun/encap/packet"
	"vstun/routing/query"
)

// fewRequests is the number of packets that a realserver may have got before its silence is a finding.
const fewRequests = 10

// masked is a server of VS/NAT: a realserver in a service.
type masked struct {
	service *config.Service
	config.RealserverRef
}

func (m masked) String() string {
	return fmt.Sprintf("realserver %s (%s)", words.Realserver(m.ID()), role(m.service, m.RealserverRef))
}

// reply returns a reply of m by protocol and port, as far as rules select it. ok is false if the kernel answers no
// question about it.
func (m masked) reply(in string) (f query.Flow, ok bool) {
	f = query.Flow{Src: m.Address, Dst: outside[m.Address.Is6()], In: in, SrcPort: m.Port}
	if f.SrcPort == 0 && len(m.service.Ports) > 0 {
		f.SrcPort = max(m.service.Ports[0].First, 1) // any, if the service has every port
	}
	switch m.service.Protocol {
	case "tcp":
		f.Protocol = packet.ProtoTCP
	case "udp":
		f.Protocol = packet.ProtoUDP
	}
	return f, f.Protocol != 0
}

// replies examines the paths of the packets of VS/NAT. Replies of realservers must enter the device tun, and what the
// director writes back there must leave the host.
func (res *result) replies(cfg *config.Director, st *api.DirectorStatus) {
	var all []masked
	var addrs []netip.Addr
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for _, r := range ends(s) {
			if r.Forward == method.NAT {
				all, addrs = append(all, masked{s, r}), append(addrs, r.Address)
			}
		}
	}
	if len(all) == 0 {
		res.fine("no realserver has the method nat")
		return
	}
	paths, err := query.Paths(addrs)
	if res.failed(err) {
		return
	}
	for _, m := range all {
		path := paths[m.Address]
		res.replyPath(cfg.TUN, m, path)
		res.silentRealserver(m, path, st)
	}
	res.writtenBack(cfg.TUN, all)
	if len(res.findings) == 0 {
		res.fine("replies of %s enter %s, and leave by the routes to the clients", words.Count(len(all), "realserver"),
			cfg.TUN)
	}
}

// replyPath examines the path of m's replies to the device tun. path is the path to m.
func (res *result) replyPath(tun string, m masked, path query.Path) {
	in := path.Link
	if path.Local {
		in = ""
	}
	f, ok := m.reply(in)
	if !ok || path == (query.Path{}) { // see routes
		return
	}
	device, _, found, err := query.LookupFlow(f)
	if res.failed(err) || found && device == tun {
		return
	}
	from := "from " + m.Address.String()
	if in != "" {
		from += " iif " + in
	}
	finding := Finding{Severity: Error, Where: m.String(), What: "there is no route for its replies",
		Why: "they do not pass the director, and its clients get no answer",
		Fix: fmt.Sprintf("ip route get %s %s ipproto %s sport %d; ip rule", f.Dst, from, m.service.Protocol,
			f.SrcPort),
		Remarks: []string{"the director's rules have priorities from 11 to 32: remove the rule before them that " +
			"leads elsewhere, or one among them that is not the director's"}}
	if found {
		finding.What = fmt.Sprintf("its replies go to %s, not to %s", device, tun)
	}
	res.find(finding)
}

// silentRealserver finds a realserver that gets requests, and whose replies do not pass the director, or not any more.
// path is the path to it.
func (res *result) silentRealserver(m masked, path query.Path, st *api.DirectorStatus) {
	s := slices.IndexFunc(st.Services, func(s api.Service) bool { return s.Name == m.service.Name })
	if s < 0 || path.Local {
		return
	}
	for _, r := range st.Services[s].Realservers {
		if r.Address != m.Address.String() || r.Port != m.Port {
			continue
		}
		what := silent(&r)
		if what == "" {
			continue
		}
		res.find(Finding{Severity: Error, Where: m.String(), What: what,
			Why: "its clients get no answer, or one from an address that they do not know",
			Causes: []string{"its default route does not lead to this host",
				"its clients are in its own subnet, and it answers them directly",
				"no server listens on its port, or its firewall drops the requests"},
			On: m.Address.String(), Fix: fmt.Sprintf("ip route replace default via %s", path.Source)})
	}
}

// silent returns what is wrong with the replies of r; "" for nothing.
func silent(r *api.Realserver) string {
	switch {
	case r.Forwarded.Packets < fewRequests:
		return ""
	case r.Replies.Packets == 0:
		return fmt.Sprintf("it has got %d packets, and no reply has passed the director", r.Forwarded.Packets)
	case r.Unanswered >= fewRequests:
		return fmt.Sprintf("it has got %d packets since its last reply has passed the director", r.Unanswered)
	}
	return ""
}

// writtenBack examines the paths of packets that the director writes back into the device tun: requests to realservers,
// and replies to clients.
func (res *result) writtenBack(tun string, all []masked) {
	for _, six := range []bool{false, true} {
		i := slices.IndexFunc(all, func(m masked) bool { return m.Address.Is6() == six })
		if i < 0 {
			continue
		}
		m, client := all[i], outside[six]
		if _, ok, err := query.Lookup(client, netip.Addr{}); err != nil || !ok {
			continue // without a default route no example is known
		}
		v := slices.IndexFunc(m.service.VIPs, func(vip netip.Addr) bool { return vip.Is6() == six })
		if v < 0 {
			continue
		}
		vip := m.service.VIPs[v]
		device, _, found, err := query.LookupFlow(query.Flow{Src: vip, Dst: client, In: tun, Protocol: packet.ProtoTCP,
			SrcPort: 1})
		if res.failed(err) || found && device != tun {
			continue
		}
		f := Finding{Severity: Error, Where: fmt.Sprintf("VIP %s", vip),
			What: fmt.Sprintf("what the director writes back into %s is dropped", tun), Why: "clients get no answer",
			Fix: fmt.Sprintf("ip route get %s from %s iif %s; ip rule; sysctl net.ipv4.conf.all.rp_filter "+
				"net.ipv4.conf.%s.rp_filter", client, vip, tun, tun),
			Remarks: []string{"the device must not be forbidden to forward, rp_filter must be 2 or 0 there, and a " +
				"route must lead to the clients"}}
		if found {
			f.What = fmt.Sprintf("what the director writes back into %s comes in there again", tun)
		}
		res.find(f)
	}
}
