package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vstun/encap"
	"vstun/encap/packet"
)

// atOnce is how many targets are probed side by side: a thousand that are all silent take some twenty seconds.
const atOnce = 256

// probe asks for every VIP at every realserver, through the tunnel and from this host's own address, so that the realserver's kernel answers us.
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

// look asks for the VIPs.
func (v *visit) look(ctx context.Context) {
	var shots []*shot
	for _, vip := range v.vips {
		shots = append(shots, v.ping(v.Config, vip, probeSize))
	}
	direct, _ := v.prober.echo(v.Source, v.Destination, probeSize, bare)
	v.volley(ctx, append(shots, direct)...)
	var good *targetVIP
	for i, vip := range v.vips {
		if vip.there = shots[i].answered; vip.there && good == nil {
			good = vip
		}
	}
	if good == nil {
		v.silence(ctx, shots[0], direct)
		return
	}
	for _, vip := range v.vips {
		if !vip.there {
			v.find(Finding{Severity: v.grade(), Where: v.where(), What: fmt.Sprintf("it answers for %s, and not for %s", good.addr, vip.addr),
				Why:  "its agent refuses the packets of a VIP that is not in its vips (inner_destination)",
				Mend: fmt.Sprintf("on %s: systemctl restart vstun-realserver  # with %q in vips of its realserver.toml", v.Destination, vip.addr)})
		}
	}
	largest := v.measure(ctx, good)
	v.servers(ctx)
	if len(v.findings) == 0 {
		v.fine("%s: answers through %s for %s; the way takes %d bytes", v.where(), v.target.what(v.Kind), v.names(), largest)
	}
}

// names lists the VIPs.
func (v *visit) names() string {
	var names []string
	for _, vip := range v.vips {
		names = append(names, vip.addr.String())
	}
	return strings.Join(names, ", ")
}

// servers asks whether somebody listens on the VIPs' ports.
func (v *visit) servers(ctx context.Context) {
	type asked struct {
		*shot
		at netip.AddrPort
	}
	var all []asked
	var shots []*shot
	for _, vip := range v.vips {
		if !vip.there {
			continue
		}
		for _, port := range vip.ports {
			at := netip.AddrPortFrom(vip.addr, port)
			s, err := v.syn(vip.source, at, through(v.Config))
			if err == nil {
				all, shots = append(all, asked{s, at}), append(shots, s)
			}
			defer v.hangUp(vip, s, at)
		}
	}
	v.volley(ctx, shots...)
	for _, a := range all {
		switch {
		case a.answered && a.flags&tcpRST != 0:
			v.find(Finding{Severity: Warning, Where: v.where(), What: fmt.Sprintf("nobody listens on %s there", a.at), Why: "its clients are refused",
				Mend: fmt.Sprintf("on %s: ss -ltn  # start the server, on %s or on all addresses", v.Destination, a.at)})
		case !a.answered && a.err == nil:
			v.find(Finding{Severity: v.grade(), Where: v.where(), What: fmt.Sprintf("the VIP answers pings there, and no SYN to %s", a.at),
				Why:  "a firewall there drops the requests that come out of the tunnel",
				Mend: fmt.Sprintf("on %s: realserver doctor  # names the rule; vs0, the agent's device, must be let in", v.Destination)})
		}
	}
}

// hangUp ends a connection that a server has accepted.
func (v *visit) hangUp(vip *targetVIP, s *shot, at netip.AddrPort) {
	if !s.answered || s.flags&tcpRST != 0 {
		return
	}
	if b, err := wrap(v.Config, segment(netip.AddrPortFrom(vip.source, s.port), at, s.seq+1, 0, tcpRST)); err == nil {
		_ = v.send(b) // else the server gives up by itself
	}
}

// silence finds out why no VIP answers.
func (v *visit) silence(ctx context.Context, first, direct *shot) {
	vip := v.vips[0]
	// A realserver may refuse pings alone, and other tunnels may come through.
	var others []encap.Kind
	var shots []*shot
	for _, kind := range []encap.Kind{encap.KindGUE, encap.KindGRE, encap.KindIPIP} {
		if kind != v.Kind && !(kind.UDP() && v.Kind.UDP()) {
			others, shots = append(others, kind), append(shots, v.ping(v.as(kind), vip, probeSize))
		}
	}
	for _, vip := range v.vips {
		for _, port := range vip.ports {
			if s, err := v.syn(vip.source, netip.AddrPortFrom(vip.addr, port), through(v.Config)); err == nil {
				shots = append(shots, s)
				defer v.hangUp(vip, s, netip.AddrPortFrom(vip.addr, port))
			}
		}
	}
	f := Finding{Severity: v.grade(), Where: v.where()}
	if first.err != nil {
		f.What, f.Mend = v.refused(first.err)
		v.find(f)
		return
	}
	v.volley(ctx, shots...)
	if !direct.answered { // that a neighbour does not answer ARP, a router says after three seconds
		v.volley(ctx, direct)
	}
	for _, s := range shots[len(others):] {
		if s.answered { // whatever a kernel's own tunnel driver has said meanwhile
			v.skip("%s: it answers through %s, but no pings: what its way takes is not known", v.where(), v.target.what(v.Kind))
			return
		}
	}
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
	tunnel := v.target.what(v.Kind)
	for i, kind := range others {
		if shots[i].answered {
			f.What = fmt.Sprintf("packets of %s do not arrive, those of %s do", tunnel, v.target.what(kind))
			f.Why = "something on the way drops them, as some clouds do"
			f.Mend = fmt.Sprintf("director reload  # with encap = %q for it; or let protocol %d pass from %s to %s", kind, outer(v.Config, vip.addr), v.Source, v.Destination)
			v.find(f)
			return
		}
	}
	if !direct.answered {
		f.What, f.Why = fmt.Sprintf("nothing comes back: neither to %s nor to a plain ping", tunnel), "it is down, there is no way to it, or a firewall drops everything from this host"
		f.Mend = fmt.Sprintf("ping %s; ip route get %s  # and on %s: realserver doctor", v.Destination, v.Destination, v.Destination)
		v.find(f)
		return
	}
	f.What = fmt.Sprintf("it answers a plain ping, and nothing that comes through %s", tunnel)
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
		f.What += fmt.Sprintf(" (its kernel says that nobody takes %s: that does arrive)", strings.Join(arrive, " and "))
	}
	refuses := fmt.Sprintf("its agent refuses this director, as %s is not in its directors", v.Source)
	if v.Kind == encap.KindGRE {
		refuses += " or its encap_key is another"
	}
	f.Why = fmt.Sprintf("from here these look the same: %s; protocol %d is dropped on the way (clouds, firewalls);"+
		" or its answers are dropped on the way back, as they come from the VIP (a cloud's source/destination check, a router's uRPF, rp_filter)", refuses, outer(v.Config, vip.addr))
	f.Mend = fmt.Sprintf("on %s: realserver doctor  # not_director tells; then try encap = \"gue\" at both ends; then switch off the source/destination check of %s, and uRPF at its router",
		v.Destination, v.Destination)
	v.find(f)
}

// refused says why this host's kernel does not send.
func (v *visit) refused(err error) (what, mend string) {
	if errors.Is(err, unix.EPERM) {
		return fmt.Sprintf("this host's own firewall lets no %s out", v.target.what(v.Kind)),
			fmt.Sprintf("nft list ruleset  # let what is for %s out: iptables -I OUTPUT -d %s -j ACCEPT", v.Destination, v.Destination)
	}
	return fmt.Sprintf("the kernel refuses to send to it: %v", err), fmt.Sprintf("ip route get %s", v.Destination)
}

// nobody tells whether the error says that nobody takes such packets.
func nobody(t trouble) bool {
	if t.from.Is4() {
		return t.kind == packet.ICMPUnreachable && (t.code == 2 || t.code == packet.ICMPCodePort) // of protocol, of port
	}
	return t.kind == packet.ICMPv6Unreachable && t.code == packet.ICMPv6CodePort || t.kind == packet.ICMPv6ParamProblem && t.code == 1 // RFC 4443, section 3.4: next header
}

// judge explains the ICMP errors that came instead of answers, and tells whether there were some that do.
func (v *visit) judge(f *Finding, all []trouble) bool {
	tunnel := v.target.what(v.Kind)
	for _, t := range all {
		switch {
		case nobody(t) && t.from == v.Destination:
			f.What = fmt.Sprintf("its kernel says that nobody takes %s", tunnel)
			f.Why = fmt.Sprintf("its agent does not run, or has no %q in encap", v.Kind)
			if v.Kind.UDP() {
				f.Why += fmt.Sprintf(", or another encap_port than %d", v.Port)
			}
			f.Mend = fmt.Sprintf("on %s: systemctl start vstun-realserver; realserver doctor", v.Destination)
			return true
		case prohibited(t) || nobody(t):
			f.What, f.Why = fmt.Sprintf("%s refuses %s on the way", t.from, tunnel), "a firewall does not let it pass"
			f.Mend = fmt.Sprintf("director reload  # with encap = \"gue\", which is UDP, or once it lets this pass from %s to %s", v.Source, v.Destination)
			return true
		case unreachable(t):
			who := t.from.String()
			if t.from == v.Source {
				who = "this host's kernel"
			}
			f.What, f.Why = who+" says that it can't be reached", "it is down, or the way to it is broken"
			f.Mend = fmt.Sprintf("ping %s; ip route get %s  # and look at routes and neighbours of %s", v.Destination, v.Destination, t.from)
			return true
		case expired(t):
			f.What, f.Why = fmt.Sprintf("packets go round in a circle until their TTL ends at %s", t.from), "routers there send them back and forth"
			f.Mend = fmt.Sprintf("traceroute %s", v.Destination)
			return true
		}
	}
	return false
}

func prohibited(t trouble) bool {
	if t.from.Is4() {
		return t.kind == packet.ICMPUnreachable && (t.code == 9 || t.code == 10 || t.code == 13) // RFC 1812, section 5.2.7.1
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
