package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/packet"
	"vstun/encap/query"
)

// atOnce is the number of targets that are probed at once. A thousand silent targets take about twenty seconds.
const atOnce = 256

// examineTargets probes every VIP at every realserver, through the tunnel and from this host's own address, so that the
// realserver's kernel answers this host.
func (p *prober) examineTargets(ctx context.Context, res *result, all []*target) {
	results, done := make([]result, len(all)), make([]bool, len(all))
	slots := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	for i, t := range all {
		results[i].check = res.check
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			(&targetExam{prober: p, result: &results[i], target: t}).examine(ctx)
			done[i] = ctx.Err() == nil
		})
	}
	wait.Wait()
	var late []string
	for i, r := range results {
		if !done[i] {
			late = append(late, all[i].where())
			continue
		}
		res.findings = append(res.findings, r.findings...)
		res.fines = append(res.fines, r.fines...)
		res.unchecked = append(res.unchecked, r.unchecked...)
	}
	if len(late) > 0 {
		res.skip("there was not enough time for %s", brief(late))
	}
}

// targetExam is the examination of one target.
type targetExam struct {
	*prober
	*result
	*target
}

// tunnelled returns a function that puts probes into the tunnel c.
func tunnelled(c encap.Config) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) { return wrap(c, b) }
}

// ping makes a probe of an echo request for a VIP, of size bytes without the tunnel's headers.
func (x *targetExam) ping(c encap.Config, vip *targetVIP, size int) *probe {
	s, err := x.prober.echo(vip.source, vip.addr, size, tunnelled(c))
	if err != nil { // there is no such tunnel
		s.err = err
	}
	return s
}

// examine probes the VIPs, asks the agent for its VIPs and tunnels, and records the result.
func (x *targetExam) examine(ctx context.Context) {
	asked := x.askAgent(x.Config, 0)
	probes := slices.Clone(asked)
	for _, vip := range x.vips {
		probes = append(probes, x.ping(x.Config, vip, probeSize))
	}
	direct, _ := x.prober.echo(x.Source, x.Destination, probeSize, untunnelled)
	x.sendAll(ctx, append(probes, direct)...)
	pings := probes[len(asked):]
	var responding *targetVIP
	for i, vip := range x.vips {
		if vip.answers = pings[i].answered; vip.answers && responding == nil {
			responding = vip
		}
	}
	agent := x.agentAnswer(ctx, x.Config, asked)
	if responding == nil && agent == nil {
		x.explainSilence(ctx, pings[0], direct)
		return
	}
	accepted := x.accepted(ctx, func(vip *targetVIP) bool { return !vip.answers && !lacksVIP(agent, vip) })
	for _, vip := range x.vips {
		switch {
		case vip.answers:
		case lacksVIP(agent, vip):
			x.lacking(vip)
		case accepted[vip], responding == nil && !direct.answered && len(vip.ports) == 0:
			x.noPings()
		default:
			x.missing(vip, responding, agent)
		}
	}
	largest := 0
	if responding != nil {
		largest = x.measure(ctx, responding)
	}
	x.servers(ctx)
	if len(x.findings) == 0 && responding != nil {
		about := ""
		if agent != nil {
			about = fmt.Sprintf("; its agent is %s and has accepted from here %s", agent.Program,
				amountOf(agent.Packets, uint64(agent.Age)))
			if agent.Age == query.NoAge {
				about = fmt.Sprintf("; its agent is %s", agent.Program)
			}
		}
		x.fine("%s: answers through %s for %s; path MTU %d%s", x.where(), x.tunnelName(x.Kind), x.names(),
			largest, about)
	}
}

// askAgent makes a question for each family that the tunnel carries for the target's VIPs. An agent accepts protocol 4
// or 41 only if it has VIPs of that family.
func (x *targetExam) askAgent(c encap.Config, first int) (probes []*probe) {
	for _, six := range []bool{x.Destination.Is6(), x.Destination.Is4()} {
		if at := slices.IndexFunc(x.vips, func(vip *targetVIP) bool { return vip.addr.Is6() == six }); at >= 0 {
			probes = append(probes, x.question(c, x.vips[at].addr, first))
		}
	}
	return probes
}

// mostQuestioned is the maximum number of VIPs that an agent is asked for.
const mostQuestioned = 4096

// agentAnswer returns the agent's answer to one of probes, with all its VIPs; the probes went through the tunnel c. It
// returns nil if there is no answer of this version.
func (x *targetExam) agentAnswer(ctx context.Context, c encap.Config, probes []*probe) *query.Answer {
	at := slices.IndexFunc(probes, func(s *probe) bool { return s.answered && s.answer.Version == query.Version })
	if at < 0 {
		if slices.ContainsFunc(probes, func(s *probe) bool { return s.answered }) {
			x.skip("%s: its agent is of another release, and its answers cannot be read", x.where())
		}
		return nil
	}
	all := &probes[at].answer
	for n := len(all.VIPs); n < min(int(all.Total), mostQuestioned); n = len(all.VIPs) {
		if !slices.ContainsFunc(x.vips,
			func(vip *targetVIP) bool { return !vip.answers && !slices.Contains(all.VIPs, vip.addr) }) {
			break
		}
		more := x.askAgent(c, n)
		x.sendAll(ctx, more...)
		for _, s := range more {
			if s.answered && int(s.answer.First) == len(all.VIPs) {
				all.VIPs = append(all.VIPs, s.answer.VIPs...)
			}
		}
		if len(all.VIPs) == n {
			break
		}
	}
	return all
}

// lostAnswers is a cause of lost answers from a VIP whose requests arrive.
const lostAnswers = "its answers are dropped on the path back, as their source is the VIP (a cloud's " +
	"source/destination check, a router's uRPF, rp_filter)"

// lacksVIP reports whether an agent has answered and does not have a VIP.
func lacksVIP(agent *query.Answer, vip *targetVIP) bool {
	return agent != nil && len(agent.VIPs) >= int(agent.Total) && !slices.Contains(agent.VIPs, vip.addr)
}

// noPings records that the host answers other probes, but no pings.
func (x *targetExam) noPings() {
	x.skip("%s: it answers through %s, but no pings: its path MTU is not known", x.where(), x.tunnelName(x.Kind))
}

// missing records that a VIP does not answer, though responding, another VIP, or the agent does.
func (x *targetExam) missing(vip, responding *targetVIP, agent *query.Answer) {
	f := Finding{Severity: x.grade(), Where: x.where(), On: x.Destination.String(), Fix: "realserver doctor"}
	switch {
	case agent != nil && slices.Contains(agent.VIPs, vip.addr):
		f.What, f.Why = fmt.Sprintf("its agent accepts %s, and no answer from %s comes back", vip.addr,
			vip.addr), "requests arrive there, and clients get no answer"
	case responding != nil:
		f.What, f.Why = fmt.Sprintf("it answers for %s, and not for %s", responding.addr,
			vip.addr), "its host does not accept the VIP's packets, or its answers are dropped"
		f.Causes = []string{fmt.Sprintf("%s is neither in vips of realserver.toml there, nor on the kernel's tunnel "+
			"device", vip.addr)}
	default:
		f.What, f.Why = fmt.Sprintf("its agent answers, and nothing from %s comes back",
			vip.addr), "clients get no answer"
		f.Causes = []string{fmt.Sprintf("%s is not in its vips", vip.addr)}
	}
	f.Causes = append(f.Causes,
		lostAnswers,
		"its own firewall drops packets that come out of the tunnel, or the answers")
	f.Remarks = []string{"the command finds faults of that host",
		"if it finds none: switch off the source/destination check there, and uRPF at its router"}
	x.find(f)
}

// lacking records that the agent does not have a VIP.
func (x *targetExam) lacking(vip *targetVIP) {
	x.find(Finding{Severity: x.grade(), Where: x.where(),
		What: fmt.Sprintf("its agent does not have the VIP %s", vip.addr),
		Why:  "the agent refuses the VIP's packets (inner_destination)",
		On:   x.Destination.String(), Fix: applyRealserver,
		Remarks: []string{fmt.Sprintf("first add %q to vips in realserver.toml there", vip.addr)}})
}

// accepted probes the TCP ports of some VIPs and returns the VIPs that answer a SYN.
func (x *targetExam) accepted(ctx context.Context, asked func(*targetVIP) bool) map[*targetVIP]bool {
	probes, some := map[*targetVIP][]*probe{}, map[*targetVIP]bool{}
	var all []*probe
	for _, vip := range x.vips {
		if asked(vip) {
			probes[vip] = x.syns(vip)
			all = append(all, probes[vip]...)
		}
	}
	x.sendAll(ctx, all...)
	for vip, probes := range probes {
		x.reset(vip, probes)
		some[vip] = slices.ContainsFunc(probes, func(s *probe) bool { return s.answered })
	}
	return some
}

// syns makes a probe of a SYN for each port of the VIP.
func (x *targetExam) syns(vip *targetVIP) (probes []*probe) {
	if len(vip.ports) == 0 {
		return nil
	}
	from, err := x.synPort(vip.source, x.number)
	if err != nil {
		x.skip("%s: TCP ports of %s: %v", x.where(), vip.addr, err)
		return nil
	}
	for _, port := range vip.ports {
		s, err := x.syn(netip.AddrPortFrom(vip.source, from), netip.AddrPortFrom(vip.addr, port), tunnelled(x.Config))
		if err != nil {
			s.err = err
		}
		probes = append(probes, s)
	}
	return probes
}

// names joins the VIPs for the report.
func (x *targetExam) names() string {
	var names []string
	for _, vip := range x.vips {
		names = append(names, vip.addr.String())
	}
	return strings.Join(names, ", ")
}

// servers examines whether servers listen on the VIPs' ports.
func (x *targetExam) servers(ctx context.Context) {
	var all [][]*probe
	for _, vip := range x.vips {
		if vip.answers {
			all = append(all, x.syns(vip))
		} else {
			all = append(all, nil)
		}
	}
	x.sendAll(ctx, slices.Concat(all...)...)
	for i, vip := range x.vips {
		x.reset(vip, all[i])
		for k, s := range all[i] {
			at := netip.AddrPortFrom(vip.addr, vip.ports[k])
			switch {
			case s.answered && s.flags&packet.FlagRST != 0:
				x.find(Finding{Severity: Warning, Where: x.where(), What: fmt.Sprintf("no server listens on %s there",
					at),
					Why: "its clients are refused",
					On:  x.Destination.String(), Fix: "ss -ltn",
					Remarks: []string{fmt.Sprintf("start the server, on %s or on all addresses", at)}})
			case !s.answered && s.err == nil:
				x.find(Finding{Severity: x.grade(), Where: x.where(),
					What: fmt.Sprintf("the VIP answers pings there, and no SYN to %s", at),
					Why:  "a firewall there drops requests that come out of the tunnel", On: x.Destination.String(),
					Fix: "realserver doctor",
					Remarks: []string{"the command names the rule: the firewall must accept packets from vs0, the " +
						"agent's device"}})
			}
		}
	}
}

// reset sends a RST to each connection that a server has accepted or may yet accept.
func (x *targetExam) reset(vip *targetVIP, probes []*probe) {
	for i, s := range probes {
		if s.err != nil || s.answered && s.flags&packet.FlagRST != 0 {
			continue
		}
		b, err := wrap(x.Config,
			segment(netip.AddrPortFrom(vip.source, s.port), netip.AddrPortFrom(vip.addr, vip.ports[i]), s.seq+1, 0,
				packet.FlagRST))
		if err == nil {
			_ = x.send(b) // on an error the server's own timeout ends it
		}
	}
}

// explainSilence finds the reason why neither a VIP nor an agent answers.
func (x *targetExam) explainSilence(ctx context.Context, first, direct *probe) {
	vip := x.vips[0]
	if first.err != nil {
		f := Finding{Severity: x.grade(), Where: x.where()}
		f.What, f.Fix, f.Remarks = x.refused(first.err)
		x.find(f)
		return
	}
	// A realserver may refuse only pings, and other tunnels may arrive.
	var others []encap.Kind
	var probes, asked []*probe
	for _, kind := range []encap.Kind{encap.KindGUE, encap.KindGRE, encap.KindIPIP} {
		if kind != x.Kind && !(kind.UDP() && x.Kind.UDP()) {
			others, probes, asked = append(others, kind), append(probes,
				x.ping(x.as(kind), vip, probeSize)), append(asked, x.askAgent(x.as(kind), 0)...)
		}
	}
	syns := map[*targetVIP][]*probe{}
	all := slices.Concat(probes, asked)
	for _, vip := range x.vips {
		syns[vip] = x.syns(vip)
		all = append(all, syns[vip]...)
	}
	x.sendAll(ctx, all...)
	accepted := false
	for vip, probes := range syns {
		x.reset(vip, probes)
		accepted = accepted || slices.ContainsFunc(probes, func(s *probe) bool { return s.answered })
	}
	if !direct.answered { // a router reports a neighbour that does not answer ARP after three seconds
		x.sendAll(ctx, direct)
	}
	if accepted { // despite any error that a kernel's own tunnel driver has sent meanwhile
		x.noPings()
		return
	}
	if x.explainByOtherTunnel(asked) {
		return
	}
	f := Finding{Severity: x.grade(), Where: x.where()}
	icmpErrors := x.errorsAbout(tunnelFlow(x.Config, vip.addr))
	if !direct.answered {
		plain := flowKey{to: x.Destination, protocol: packet.ProtoICMP}
		if x.Destination.Is6() {
			plain.protocol = packet.ProtoICMPv6
		}
		icmpErrors = append(icmpErrors, x.errorsAbout(plain)...)
	}
	if x.explainByErrors(&f, icmpErrors) {
		x.find(f)
		return
	}
	for i, kind := range others {
		if probes[i].answered {
			x.dropped(kind)
			return
		}
	}
	if !direct.answered {
		f.What = fmt.Sprintf("nothing comes back: neither through %s nor to a plain ping", x.tunnelName(x.Kind))
		f.Causes = []string{"it is down", "there is no route to it, or none back: a realserver needs a default route",
			"a firewall drops all packets from this host"}
		f.Fix = fmt.Sprintf("ping -c 3 %s; ip route get %s", x.Destination, x.Destination)
		f.Remarks = []string{"on that host: realserver doctor"}
		x.find(f)
		return
	}
	x.unanswered(f, others)
}

// explainByOtherTunnel explains the silence by an agent's answer through another tunnel, and reports whether it could.
func (x *targetExam) explainByOtherTunnel(asked []*probe) bool {
	at := slices.IndexFunc(asked, func(s *probe) bool { return s.answered && s.answer.Version == query.Version })
	if at < 0 {
		return false
	}
	a := &asked[at].answer
	f := Finding{Severity: x.grade(), Where: x.where(), Why: "its kernel refuses the tunnel's packets",
		On: x.Destination.String(), Fix: applyRealserver}
	lacking := slices.IndexFunc(x.vips, func(vip *targetVIP) bool { return lacksVIP(a, vip) })
	switch {
	case !a.Has(x.Kind):
		f.What = fmt.Sprintf("its agent does not accept %s", x.tunnelName(x.Kind))
		f.Remarks = []string{fmt.Sprintf("first add %q to encap in realserver.toml there", x.Kind)}
		x.find(f)
	case x.Kind.UDP() && a.EncapPort != x.Port:
		f.What = fmt.Sprintf("its agent accepts %s at UDP port %d, and not at %d", x.Kind, a.EncapPort, x.Port)
		f.Remarks = []string{"first set the same encap_port there and here"}
		x.find(f)
	case lacking >= 0:
		x.lacking(x.vips[lacking])
	default:
		for _, kind := range []encap.Kind{encap.KindGUE, encap.KindGRE, encap.KindIPIP} {
			if a.Has(kind) && kind != x.Kind {
				x.dropped(kind)
				return true
			}
		}
		return false
	}
	return true
}

// dropped records that packets of the target's tunnel are lost while packets of another kind arrive.
func (x *targetExam) dropped(other encap.Kind) {
	protocol := outerProtocol(x.Config, x.vips[0].addr)
	x.find(Finding{Severity: x.grade(), Where: x.where(),
		What: fmt.Sprintf("packets of %s do not arrive, packets of %s do", x.tunnelName(x.Kind), x.tunnelName(other)),
		Why:  "the network drops the protocol, as some clouds do", Fix: "director reload",
		Remarks: []string{fmt.Sprintf("first set encap = %q for it", other),
			fmt.Sprintf("or let protocol %d pass from %s to it", protocol, x.Source)}})
}

// unanswered records that the host answers plain pings, but no packet through the tunnel.
func (x *targetExam) unanswered(f Finding, others []encap.Kind) {
	vip := x.vips[0]
	f.What = fmt.Sprintf("it answers a plain ping, but no packet through %s", x.tunnelName(x.Kind))
	f.On, f.Fix = x.Destination.String(), "realserver doctor"
	question := flowKey{to: x.Destination, protocol: packet.ProtoUDP, port: query.Port}
	if slices.ContainsFunc(x.errorsAbout(question),
		func(t icmpError) bool { return noReceiver(t) && t.from == x.Destination }) {
		f.Causes = []string{"it has no agent: its kernel decapsulates the tunnel's packets, and has no VIP",
			lostAnswers}
		x.find(f)
		return
	}
	var arrive []string
	for _, kind := range others {
		for _, t := range x.errorsAbout(tunnelFlow(x.as(kind), vip.addr)) {
			if noReceiver(t) && t.from == x.Destination {
				arrive = append(arrive, x.tunnelName(kind))
				break
			}
		}
	}
	if len(arrive) > 0 {
		f.Why = fmt.Sprintf("packets of %s arrive: its kernel reports that no program receives them",
			strings.Join(arrive, " and "))
	}
	f.Causes = []string{fmt.Sprintf("its agent refuses this director: %s is not in its directors (not_director)",
		x.Source)}
	if x.Kind == encap.KindGRE {
		f.Causes = append(f.Causes, "its agent refuses the encap_key (tunnel_key)")
	}
	f.Causes = append(f.Causes, fmt.Sprintf("protocol %d is dropped on the path, by a cloud or a firewall",
		outerProtocol(x.Config, vip.addr)), lostAnswers+", and its agent is too old to report that")
	f.Remarks = []string{"the command shows there whether this director's packets arrive",
		"if none arrive: try encap = \"gue\" at both ends"}
	x.find(f)
}

// refused returns the parts of a finding about a packet that this host's kernel refuses to send.
func (x *targetExam) refused(err error) (what, fix string, remarks []string) {
	if errors.Is(err, unix.EPERM) {
		what = fmt.Sprintf("this host's own firewall drops outgoing packets of %s", x.tunnelName(x.Kind))
		remark := fmt.Sprintf("accept packets to it: iptables -I OUTPUT -d %s -j ACCEPT", x.Destination)
		return what, "nft list ruleset", []string{remark}
	}
	return fmt.Sprintf("the kernel refuses to send to it: %v", err), fmt.Sprintf("ip route get %s", x.Destination), nil
}

// noReceiver reports whether the error means that no program receives such packets.
func noReceiver(t icmpError) bool {
	if t.from.Is4() {
		// protocol or port unreachable
		return t.kind == packet.ICMPUnreachable && (t.code == 2 || t.code == packet.ICMPCodePort)
	}
	// port unreachable; unrecognized next header (RFC 4443, section 3.4)
	return t.kind == packet.ICMPv6Unreachable && t.code == packet.ICMPv6CodePort ||
		t.kind == packet.ICMPv6ParamProblem && t.code == 1
}

// explainByErrors explains the silence by the ICMP errors that came instead of answers, and reports whether it could.
func (x *targetExam) explainByErrors(f *Finding, all []icmpError) bool {
	tunnel := x.tunnelName(x.Kind)
	for _, t := range all {
		switch {
		case noReceiver(t) && t.from == x.Destination:
			f.What = fmt.Sprintf("its kernel reports that no program receives %s", tunnel)
			f.Causes = []string{"its agent does not run", fmt.Sprintf("its agent has no %q in encap", x.Kind)}
			if x.Kind.UDP() {
				f.Causes = append(f.Causes, fmt.Sprintf("its agent has another encap_port than %d", x.Port))
			}
			f.On, f.Fix = x.Destination.String(), "systemctl start vstun-realserver; realserver doctor"
			return true
		case prohibited(t) || noReceiver(t):
			f.What, f.Why = fmt.Sprintf("%s refuses %s on the path", t.from, tunnel), "a firewall there rejects it"
			f.Fix = "director reload"
			f.Remarks = []string{fmt.Sprintf("first accept it there from %s", x.Source),
				"or set encap = \"gue\", which is UDP"}
			return true
		case unreachable(t):
			reporter := t.from.String()
			if t.from == x.Source {
				reporter = "this host's kernel"
			}
			f.What, f.Why = reporter+" reports that it is unreachable", "it is down, or the path to it is broken"
			f.Fix = fmt.Sprintf("ping -c 3 %s; ip route get %s", x.Destination, x.Destination)
			f.Remarks = []string{fmt.Sprintf("look at routes and neighbours of %s", t.from)}
			return true
		case expired(t):
			f.What, f.Why = fmt.Sprintf("packets loop until their TTL ends at %s", t.from),
				"routers there send them back and forth"
			f.Fix = fmt.Sprintf("traceroute %s", x.Destination)
			return true
		}
	}
	return false
}

func prohibited(t icmpError) bool {
	if t.from.Is4() {
		// RFC 1812, section 5.2.7.1
		return t.kind == packet.ICMPUnreachable && (t.code == 9 || t.code == 10 || t.code == 13)
	}
	return t.kind == packet.ICMPv6Unreachable && (t.code == 1 || t.code == 5 || t.code == 6)
}

func unreachable(t icmpError) bool {
	if t.from.Is4() {
		return t.kind == packet.ICMPUnreachable && t.code != packet.ICMPCodeFragNeeded
	}
	return t.kind == packet.ICMPv6Unreachable
}

func expired(t icmpError) bool {
	if t.from.Is4() {
		return t.kind == packet.ICMPTimeExceeded && t.code == 0
	}
	return t.kind == packet.ICMPv6TimeExceeded && t.code == 0
}
