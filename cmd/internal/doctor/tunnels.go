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

// atOnce is how many targets are probed side by side: a thousand that are all silent take some twenty seconds.
const atOnce = 256

// probe asks for every VIP at every realserver, through the tunnel and from this host's own address, so that the
// realserver's kernel answers us.
func (p *prober) probe(ctx context.Context, e *exam, all []*target) {
	pages, known := make([]exam, len(all)), make([]bool, len(all))
	slots := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	for i, t := range all {
		pages[i].check = e.check
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			(&visit{prober: p, exam: &pages[i], target: t}).look(ctx)
			known[i] = ctx.Err() == nil // what time does not suffice for is not
		})
	}
	wait.Wait()
	var late []string
	for i, page := range pages {
		if !known[i] {
			late = append(late, all[i].where())
			continue
		}
		e.findings = append(e.findings, page.findings...)
		e.fines = append(e.fines, page.fines...)
		e.unchecked = append(e.unchecked, page.unchecked...)
	}
	if len(late) > 0 {
		e.skip("there was not enough time for %s", brief(late))
	}
}

// visit is the probing of one target.
type visit struct {
	*prober
	*exam
	*target
}

// through wraps probes into a tunnel.
func through(c encap.Config) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) { return wrap(c, b) }
}

// ping makes a shot of an echo request for a VIP of size bytes, the tunnel's headers apart.
func (v *visit) ping(c encap.Config, vip *targetVIP, size int) *shot {
	s, err := v.prober.echo(vip.source, vip.addr, size, through(c))
	if err != nil { // there is no such tunnel
		s.err = err
	}
	return s
}

// look asks for the VIPs, and the agent for what it accepts.
func (v *visit) look(ctx context.Context) {
	asked := v.ask(v.Config, 0)
	shots := slices.Clone(asked)
	for _, vip := range v.vips {
		shots = append(shots, v.ping(v.Config, vip, probeSize))
	}
	direct, _ := v.prober.echo(v.Source, v.Destination, probeSize, bare)
	v.volley(ctx, append(shots, direct)...)
	pings := shots[len(asked):]
	var good *targetVIP
	for i, vip := range v.vips {
		if vip.there = pings[i].answered; vip.there && good == nil {
			good = vip
		}
	}
	agent := v.heard(ctx, v.Config, asked)
	if good == nil && agent == nil {
		v.silence(ctx, pings[0], direct)
		return
	}
	accepted := v.accepted(ctx, func(vip *targetVIP) bool { return !vip.there && !lacks(agent, vip) })
	for _, vip := range v.vips {
		switch {
		case vip.there:
		case lacks(agent, vip):
			v.lacking(vip)
		case accepted[vip], good == nil && !direct.answered && len(vip.ports) == 0:
			v.noPings()
		default:
			v.missing(vip, good, agent)
		}
	}
	largest := 0
	if good != nil {
		largest = v.measure(ctx, good)
	}
	v.servers(ctx)
	if len(v.findings) == 0 && good != nil {
		about := ""
		if agent != nil {
			about = fmt.Sprintf("; its agent is %s and has let in from here %s", agent.Program,
				amountOf(agent.Packets, uint64(agent.Age)))
			if agent.Age == query.NoAge {
				about = fmt.Sprintf("; its agent is %s", agent.Program)
			}
		}
		v.fine("%s: answers through %s for %s; the way takes %d bytes%s", v.where(), v.target.what(v.Kind), v.names(),
			largest, about)
	}
}

// ask makes a question for each family that the tunnel carries for the target's VIPs: an agent takes protocols 4 and 41
// as its own VIPs need them.
func (v *visit) ask(c encap.Config, first int) (shots []*shot) {
	for _, six := range []bool{v.Destination.Is6(), v.Destination.Is4()} {
		if at := slices.IndexFunc(v.vips, func(vip *targetVIP) bool { return vip.addr.Is6() == six }); at >= 0 {
			shots = append(shots, v.question(c, v.vips[at].addr, first))
		}
	}
	return shots
}

// mostQuestioned is the largest number of VIPs that an agent is asked for.
const mostQuestioned = 4096

// heard returns the agent's answer to one of shots, which came by c, with all its VIPs; nil: there is none, or one in a
// format that is not known here.
func (v *visit) heard(ctx context.Context, c encap.Config, shots []*shot) *query.Answer {
	at := slices.IndexFunc(shots, func(s *shot) bool { return s.answered && s.answer.Version == query.Version })
	if at < 0 {
		if slices.ContainsFunc(shots, func(s *shot) bool { return s.answered }) {
			v.skip("%s: its agent is of another release, whose answers this one does not know", v.where())
		}
		return nil
	}
	all := &shots[at].answer
	for n := len(all.VIPs); n < min(int(all.Total), mostQuestioned); n = len(all.VIPs) {
		if !slices.ContainsFunc(v.vips,
			func(vip *targetVIP) bool { return !vip.there && !slices.Contains(all.VIPs, vip.addr) }) {
			break
		}
		more := v.ask(c, n)
		v.volley(ctx, more...)
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

// back is why answers from a VIP vanish though requests arrive.
const back = "its answers are dropped on the way back, as they come from the VIP (a cloud's source/destination check, " +
	"a router's uRPF, rp_filter)"

// lacks reports whether an agent that has answered does not have a VIP.
func lacks(agent *query.Answer, vip *targetVIP) bool {
	return agent != nil && len(agent.VIPs) >= int(agent.Total) && !slices.Contains(agent.VIPs, vip.addr)
}

// noPings notes that the host answers, but no pings.
func (v *visit) noPings() {
	v.skip("%s: it answers through %s, but no pings: what its way takes is not known", v.where(), v.target.what(v.Kind))
}

// missing notes that nothing comes back from a VIP, where another one answers, or the agent.
func (v *visit) missing(vip, good *targetVIP, agent *query.Answer) {
	f := Finding{Severity: v.grade(), Where: v.where(), On: v.Destination.String(), Fix: "realserver doctor"}
	switch {
	case agent != nil && slices.Contains(agent.VIPs, vip.addr):
		f.What, f.Why = fmt.Sprintf("its agent accepts %s, and no answer from %s comes back", vip.addr,
			vip.addr), "requests arrive there, and clients hear nothing"
	case good != nil:
		f.What, f.Why = fmt.Sprintf("it answers for %s, and not for %s", good.addr,
			vip.addr), "its host does not take the VIP's packets, or its answers are dropped"
		f.Causes = []string{fmt.Sprintf("%s is neither in vips of realserver.toml there, nor on the kernel's tunnel "+
			"device", vip.addr)}
	default:
		f.What, f.Why = fmt.Sprintf("its agent answers, and nothing from %s comes back",
			vip.addr), "clients hear nothing"
		f.Causes = []string{fmt.Sprintf("%s is not in its vips", vip.addr)}
	}
	f.Causes = append(f.Causes,
		back,
		"a firewall of its own drops what comes out of the tunnel, or the answers")
	f.Remarks = []string{"the command finds faults of that host",
		"where it finds none: switch off the source/destination check there, and uRPF at its router"}
	v.find(f)
}

// lacking notes that the agent does not have a VIP.
func (v *visit) lacking(vip *targetVIP) {
	v.find(Finding{Severity: v.grade(), Where: v.where(),
		What: fmt.Sprintf("its agent does not have the VIP %s", vip.addr),
		Why:  "the agent refuses the VIP's packets (inner_destination)",
		On:   v.Destination.String(), Fix: applyRealserver,
		Remarks: []string{fmt.Sprintf("first add %q to vips in realserver.toml there", vip.addr)}})
}

// accepted returns which of the VIPs that are asked for answer a SYN.
func (v *visit) accepted(ctx context.Context, asked func(*targetVIP) bool) map[*targetVIP]bool {
	shots, some := map[*targetVIP][]*shot{}, map[*targetVIP]bool{}
	var all []*shot
	for _, vip := range v.vips {
		if asked(vip) {
			shots[vip] = v.syns(vip)
			all = append(all, shots[vip]...)
		}
	}
	v.volley(ctx, all...)
	for vip, shots := range shots {
		v.hangUp(vip, shots)
		some[vip] = slices.ContainsFunc(shots, func(s *shot) bool { return s.answered })
	}
	return some
}

// syns makes a shot of a SYN for each port of the VIP that is asked for.
func (v *visit) syns(vip *targetVIP) (shots []*shot) {
	if len(vip.ports) == 0 {
		return nil
	}
	from, err := v.synPort(vip.source, v.number)
	if err != nil {
		v.skip("%s: TCP ports of %s: %v", v.where(), vip.addr, err)
		return nil
	}
	for _, port := range vip.ports {
		s, err := v.syn(netip.AddrPortFrom(vip.source, from), netip.AddrPortFrom(vip.addr, port), through(v.Config))
		if err != nil {
			s.err = err
		}
		shots = append(shots, s)
	}
	return shots
}

// names lists the VIPs.
func (v *visit) names() string {
	var names []string
	for _, vip := range v.vips {
		names = append(names, vip.addr.String())
	}
	return strings.Join(names, ", ")
}

// servers asks whether servers listen on the VIPs' ports.
func (v *visit) servers(ctx context.Context) {
	var all [][]*shot
	for _, vip := range v.vips {
		if vip.there {
			all = append(all, v.syns(vip))
		} else {
			all = append(all, nil)
		}
	}
	v.volley(ctx, slices.Concat(all...)...)
	for i, vip := range v.vips {
		v.hangUp(vip, all[i])
		for k, s := range all[i] {
			at := netip.AddrPortFrom(vip.addr, vip.ports[k])
			switch {
			case s.answered && s.flags&packet.FlagRST != 0:
				v.find(Finding{Severity: Warning, Where: v.where(), What: fmt.Sprintf("no server listens on %s there",
					at),
					Why: "its clients are refused",
					On:  v.Destination.String(), Fix: "ss -ltn",
					Remarks: []string{fmt.Sprintf("start the server, on %s or on all addresses", at)}})
			case !s.answered && s.err == nil:
				v.find(Finding{Severity: v.grade(), Where: v.where(),
					What: fmt.Sprintf("the VIP answers pings there, and no SYN to %s", at),
					Why:  "a firewall there drops the requests that come out of the tunnel", On: v.Destination.String(),
					Fix:     "realserver doctor",
					Remarks: []string{"the command names the rule: vs0, the agent's device, must be let in"}})
			}
		}
	}
}

// hangUp ends connections that servers have accepted, or may yet.
func (v *visit) hangUp(vip *targetVIP, shots []*shot) {
	for i, s := range shots {
		if s.err != nil || s.answered && s.flags&packet.FlagRST != 0 {
			continue
		}
		b, err := wrap(v.Config,
			segment(netip.AddrPortFrom(vip.source, s.port), netip.AddrPortFrom(vip.addr, vip.ports[i]), s.seq+1, 0,
				packet.FlagRST))
		if err == nil {
			_ = v.send(b) // else the server gives up by itself
		}
	}
}

// silence finds out why neither a VIP nor an agent answers.
func (v *visit) silence(ctx context.Context, first, direct *shot) {
	vip := v.vips[0]
	if first.err != nil {
		f := Finding{Severity: v.grade(), Where: v.where()}
		f.What, f.Fix, f.Remarks = v.refused(first.err)
		v.find(f)
		return
	}
	// A realserver may refuse pings alone, and other tunnels may come through.
	var others []encap.Kind
	var shots, asked []*shot
	for _, kind := range []encap.Kind{encap.KindGUE, encap.KindGRE, encap.KindIPIP} {
		if kind != v.Kind && !(kind.UDP() && v.Kind.UDP()) {
			others, shots, asked = append(others, kind), append(shots,
				v.ping(v.as(kind), vip, probeSize)), append(asked, v.ask(v.as(kind), 0)...)
		}
	}
	syns := map[*targetVIP][]*shot{}
	all := slices.Concat(shots, asked)
	for _, vip := range v.vips {
		syns[vip] = v.syns(vip)
		all = append(all, syns[vip]...)
	}
	v.volley(ctx, all...)
	accepted := false
	for vip, shots := range syns {
		v.hangUp(vip, shots)
		accepted = accepted || slices.ContainsFunc(shots, func(s *shot) bool { return s.answered })
	}
	if !direct.answered { // that a neighbour does not answer ARP, a router says after three seconds
		v.volley(ctx, direct)
	}
	if accepted { // whatever a kernel's own tunnel driver has said meanwhile
		v.noPings()
		return
	}
	if v.otherwise(asked) {
		return
	}
	f := Finding{Severity: v.grade(), Where: v.where()}
	said := v.about(roadOf(v.Config, vip.addr))
	if !direct.answered {
		plain := road{to: v.Destination, protocol: packet.ProtoICMP}
		if v.Destination.Is6() {
			plain.protocol = packet.ProtoICMPv6
		}
		said = append(said, v.about(plain)...)
	}
	if v.judge(&f, said) {
		v.find(f)
		return
	}
	for i, kind := range others {
		if shots[i].answered {
			v.dropped(kind)
			return
		}
	}
	if !direct.answered {
		f.What = fmt.Sprintf("nothing comes back: neither to %s nor to a plain ping", v.target.what(v.Kind))
		f.Causes = []string{"it is down", "there is no way to it, or none back: a realserver needs a default route",
			"a firewall drops everything from this host"}
		f.Fix = fmt.Sprintf("ping -c 3 %s; ip route get %s", v.Destination, v.Destination)
		f.Remarks = []string{"on that host: realserver doctor"}
		v.find(f)
		return
	}
	v.mute(f, others)
}

// otherwise explains silence by what an agent has answered through another tunnel, and reports whether it has.
func (v *visit) otherwise(asked []*shot) bool {
	at := slices.IndexFunc(asked, func(s *shot) bool { return s.answered && s.answer.Version == query.Version })
	if at < 0 {
		return false
	}
	a := &asked[at].answer
	f := Finding{Severity: v.grade(), Where: v.where(), Why: "its kernel refuses the tunnel's packets",
		On: v.Destination.String(), Fix: applyRealserver}
	lacking := slices.IndexFunc(v.vips, func(vip *targetVIP) bool { return lacks(a, vip) })
	switch {
	case !a.Has(v.Kind):
		f.What = fmt.Sprintf("its agent does not accept %s", v.target.what(v.Kind))
		f.Remarks = []string{fmt.Sprintf("first add %q to encap in realserver.toml there", v.Kind)}
		v.find(f)
	case v.Kind.UDP() && a.EncapPort != v.Port:
		f.What = fmt.Sprintf("its agent accepts %s at UDP port %d, and not at %d", v.Kind, a.EncapPort, v.Port)
		f.Remarks = []string{"first set the same encap_port there and here"}
		v.find(f)
	case lacking >= 0:
		v.lacking(v.vips[lacking])
	default:
		for _, kind := range []encap.Kind{encap.KindGUE, encap.KindGRE, encap.KindIPIP} {
			if a.Has(kind) && kind != v.Kind {
				v.dropped(kind)
				return true
			}
		}
		return false
	}
	return true
}

// dropped notes that packets of the target's tunnel vanish, and those of another kind arrive.
func (v *visit) dropped(other encap.Kind) {
	protocol := outer(v.Config, v.vips[0].addr)
	v.find(Finding{Severity: v.grade(), Where: v.where(),
		What: fmt.Sprintf("packets of %s do not arrive, those of %s do", v.target.what(v.Kind), v.target.what(other)),
		Why:  "something on the way drops them, as some clouds do", Fix: "director reload",
		Remarks: []string{fmt.Sprintf("first set encap = %q for it", other),
			fmt.Sprintf("or let protocol %d pass from %s to it", protocol, v.Source)}})
}

// mute notes that the host answers plain pings, and nothing that comes through the tunnel.
func (v *visit) mute(f Finding, others []encap.Kind) {
	vip := v.vips[0]
	f.What = fmt.Sprintf("it answers a plain ping, and nothing that comes through %s", v.target.what(v.Kind))
	f.On, f.Fix = v.Destination.String(), "realserver doctor"
	asked := road{to: v.Destination, protocol: packet.ProtoUDP, port: query.Port}
	if slices.ContainsFunc(v.about(asked), func(t trouble) bool { return nobody(t) && t.from == v.Destination }) {
		f.Causes = []string{"it has no agent: its kernel takes the tunnel's packets, and has no VIP", back}
		v.find(f)
		return
	}
	var arrive []string
	for _, kind := range others {
		for _, t := range v.about(roadOf(v.as(kind), vip.addr)) {
			if nobody(t) && t.from == v.Destination {
				arrive = append(arrive, v.target.what(kind))
				break
			}
		}
	}
	if len(arrive) > 0 {
		f.Why = fmt.Sprintf("%s does arrive: its kernel says that no program takes it", strings.Join(arrive, " and "))
	}
	f.Causes = []string{fmt.Sprintf("its agent refuses this director, as %s is not in its directors (not_director)",
		v.Source)}
	if v.Kind == encap.KindGRE {
		f.Causes = append(f.Causes, "its agent refuses the encap_key (tunnel_key)")
	}
	f.Causes = append(f.Causes, fmt.Sprintf("protocol %d is dropped on the way, by a cloud or a firewall",
		outer(v.Config, vip.addr)), back+", and its agent is too old to say so")
	f.Remarks = []string{"the command there shows whether this director's packets arrive: refused, or none",
		"where none arrive: try encap = \"gue\" at both ends"}
	v.find(f)
}

// refused says why this host's kernel does not send.
func (v *visit) refused(err error) (what, fix string, remarks []string) {
	if errors.Is(err, unix.EPERM) {
		return fmt.Sprintf("this host's own firewall lets no %s out", v.target.what(v.Kind)), "nft list ruleset",
			[]string{fmt.Sprintf("let what is for it out: iptables -I OUTPUT -d %s -j ACCEPT", v.Destination)}
	}
	return fmt.Sprintf("the kernel refuses to send to it: %v", err), fmt.Sprintf("ip route get %s", v.Destination), nil
}

// nobody reports whether the error says that nobody takes such packets.
func nobody(t trouble) bool {
	if t.from.Is4() {
		// of protocol, of port
		return t.kind == packet.ICMPUnreachable && (t.code == 2 || t.code == packet.ICMPCodePort)
	}
	// RFC 4443, section 3.4: next header
	return t.kind == packet.ICMPv6Unreachable && t.code == packet.ICMPv6CodePort ||
		t.kind == packet.ICMPv6ParamProblem && t.code == 1
}

// judge explains the ICMP errors that came instead of answers, and reports whether there were some that do.
func (v *visit) judge(f *Finding, all []trouble) bool {
	tunnel := v.target.what(v.Kind)
	for _, t := range all {
		switch {
		case nobody(t) && t.from == v.Destination:
			f.What = fmt.Sprintf("its kernel says that no program takes %s", tunnel)
			f.Causes = []string{"its agent does not run", fmt.Sprintf("its agent has no %q in encap", v.Kind)}
			if v.Kind.UDP() {
				f.Causes = append(f.Causes, fmt.Sprintf("its agent has another encap_port than %d", v.Port))
			}
			f.On, f.Fix = v.Destination.String(), "systemctl start vstun-realserver; realserver doctor"
			return true
		case prohibited(t) || nobody(t):
			f.What, f.Why = fmt.Sprintf("%s refuses %s on the way", t.from, tunnel), "a firewall does not let it pass"
			f.Fix = "director reload"
			f.Remarks = []string{fmt.Sprintf("first let this pass there from %s", v.Source),
				"or set encap = \"gue\", which is UDP"}
			return true
		case unreachable(t):
			who := t.from.String()
			if t.from == v.Source {
				who = "this host's kernel"
			}
			f.What, f.Why = who+" says that it can't be reached", "it is down, or the way to it is broken"
			f.Fix = fmt.Sprintf("ping -c 3 %s; ip route get %s", v.Destination, v.Destination)
			f.Remarks = []string{fmt.Sprintf("look at routes and neighbours of %s", t.from)}
			return true
		case expired(t):
			f.What, f.Why = fmt.Sprintf("packets go round in a circle until their TTL ends at %s", t.from),
				"routers there send them back and forth"
			f.Fix = fmt.Sprintf("traceroute %s", v.Destination)
			return true
		}
	}
	return false
}

func prohibited(t trouble) bool {
	if t.from.Is4() {
		// RFC 1812, section 5.2.7.1
		return t.kind == packet.ICMPUnreachable && (t.code == 9 || t.code == 10 || t.code == 13)
	}
	return t.kind == packet.ICMPv6Unreachable && (t.code == 1 || t.code == 5 || t.code == 6)
}

func unreachable(t trouble) bool {
	if t.from.Is4() {
		return t.kind == packet.ICMPUnreachable && t.code != packet.ICMPCodeFragNeeded
	}
	return t.kind == packet.ICMPv6Unreachable
}

func expired(t trouble) bool {
	if t.from.Is4() {
		return t.kind == packet.ICMPTimeExceeded && t.code == 0
	}
	return t.kind == packet.ICMPv6TimeExceeded && t.code == 0
}
