package doctor

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"vstun/cmd/internal/control"
	"vstun/cmd/internal/words"
	"vstun/encap/packet"
	"vstun/encap/wire"
)

// realserverDrops looks at the agent's counters twice. Which hosts it refuses, and for which VIPs, the agent has
// counted since its start.
func (e *exam) realserverDrops(ctx context.Context, s *Realserver, before *control.RealserverStatus) {
	pause(ctx, sampled)
	var after control.RealserverStatus
	if e.failed(control.Get(ctx, s.Config.Control, "/status", &after)) {
		return
	}
	known := realserverAdvice()
	known["not_director"] = s.aboutStrangers(known["not_director"], &after)
	known["inner_destination"] = s.aboutVIPs(known["inner_destination"], &after)
	e.dropped(before.Drops, after.Drops, known)
	for _, reason := range slices.Sorted(maps.Keys(known)) {
		if n := after.Drops[reason]; n > 0 && n == before.Drops[reason] && n > after.In.Packets/many {
			a := known[reason]
			e.find(a.finding(reason, fmt.Sprintf("%d of %s refused since the start", n,
				words.Count(after.In.Packets, "packet"))))
		}
	}
	if len(after.FromDirectors) == 0 && len(after.RefusedSources) == 0 {
		e.find(Finding{Severity: Hint, Where: "directors",
			What: fmt.Sprintf("no tunnel packet has come since the start, %v ago",
				time.Duration(after.Uptime)*time.Second),
			Why:     "no director sends any, or the network drops them",
			Remarks: []string{"on the director: director doctor"}})
	}
	for _, c := range after.FromDirectors {
		e.fine("from %s: %s", c.Address, amount(c))
	}
	e.overrun(before.Overruns, after.Overruns)
}

// amount describes the number of counted packets, and the time since the last one.
func amount(c control.Counted) string { return amountOf(c.Packets, uint64(c.Last)) }

func amountOf(packets, seconds uint64) string {
	return fmt.Sprintf("%s, the last %v ago", words.Count(packets, "packet"), time.Duration(seconds)*time.Second)
}

// aboutStrangers names the hosts whose tunnel packets were refused.
func (s *Realserver) aboutStrangers(a advice, st *control.RealserverStatus) advice {
	if len(st.RefusedSources) == 0 {
		return a
	}
	for _, c := range st.RefusedSources {
		a.causes = append(a.causes, fmt.Sprintf("%s is not in directors (%s)", c.Address, amount(c)))
	}
	a.all = st.Out.Packets == 0
	a.remarks = []string{fmt.Sprintf("if that is a director, first add %s to directors in %s",
		quoted(st.RefusedSources), s.File),
		"if it is a stranger, filter it at your network's border"}
	return a
}

// aboutVIPs names the VIPs whose packets were refused.
func (s *Realserver) aboutVIPs(a advice, st *control.RealserverStatus) advice {
	if len(st.RefusedDestinations) == 0 {
		return a
	}
	for _, c := range st.RefusedDestinations {
		a.causes = append(a.causes, fmt.Sprintf("VIP %s is not in vips (%s)", c.Address, amount(c)))
	}
	a.all = st.Out.Packets == 0
	a.remarks = []string{fmt.Sprintf("first add %s to vips in %s", quoted(st.RefusedDestinations), s.File),
		"or take this realserver out of that service"}
	return a
}

func quoted(all []control.Counted) string {
	var names []string
	for _, c := range all {
		names = append(names, fmt.Sprintf("%q", c.Address))
	}
	return strings.Join(names, ", ")
}

// tunnelKinds are the tunnels by their IP protocol, as encap names them.
var tunnelKinds = map[uint8]string{packet.ProtoIPIP: "ipip", packet.ProtoIPv6: "ipip", packet.ProtoGRE: "gre",
	packet.ProtoUDP: "gue"}

// encaps watches for a moment whether a director sends tunnel packets of a kind that the agent does not accept.
func (e *exam) encaps(ctx context.Context, s *Realserver) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	var taps []*wire.Sniffer
	seen := map[uint8][]netip.Addr{}
	for _, over6 := range []bool{false, true} {
		var filters []wire.SnifferFilter
		for _, protocol := range slices.Sorted(maps.Keys(tunnelKinds)) {
			if slices.ContainsFunc(s.Sockets, func(w wire.Socket) bool {
				return w.Protocol == protocol &&
					w.Over6 == over6
			}) {
				continue
			}
			f := wire.SnifferFilter{Protocol: protocol}
			if protocol == packet.ProtoUDP {
				f.First, f.Last = s.Config.EncapPort, s.Config.EncapPort
			}
			filters = append(filters, f)
		}
		if filters == nil {
			continue
		}
		t, err := wire.NewSniffer(over6, filters...)
		if e.failed(err) {
			break
		}
		taps = append(taps, t)
		wait.Go(func() {
			b := make([]byte, packet.IPv6HeaderLen)
			for {
				n, err := t.Read(b)
				if err != nil {
					return
				}
				from, protocol := sender(b[:n])
				mu.Lock()
				if s.knows(from) && !slices.Contains(seen[protocol], from) && len(seen[protocol]) < mostSenders {
					seen[protocol] = append(seen[protocol], from)
				}
				mu.Unlock()
			}
		})
	}
	pause(ctx, sampled)
	for _, t := range taps {
		_ = t.Close()
	}
	wait.Wait()
	for _, protocol := range slices.Sorted(maps.Keys(seen)) {
		e.unaccepted(s, protocol, seen[protocol])
	}
	if len(e.findings) == 0 && len(e.unchecked) == 0 {
		e.fine("no director sends tunnel packets now that encap = %q does not accept", s.Config.Encaps)
	}
}

// unaccepted notes that directors send tunnel packets of a protocol for which the agent has no socket.
func (e *exam) unaccepted(s *Realserver, protocol uint8, from []netip.Addr) {
	kind, what := tunnelKinds[protocol], fmt.Sprintf("protocol %d", protocol)
	if protocol == packet.ProtoUDP {
		what = fmt.Sprintf("UDP port %d", s.Config.EncapPort)
	}
	f := Finding{Severity: Error, Where: kind, Why: "the kernel refuses these tunnel packets", Fix: applyRealserver}
	if slices.Contains(s.Config.Encaps, kind) { // of this family of VIPs there is none
		f.What = fmt.Sprintf("%s comes from %s, and vips has no address of the family that it carries", what,
			joinAddrs(from))
		f.Remarks = []string{fmt.Sprintf("first add the VIP to vips in %s", s.File)}
	} else {
		f.What = fmt.Sprintf("%s comes from %s, and encap has no %s", what, joinAddrs(from), kind)
		f.Remarks = []string{fmt.Sprintf("first add %q to encap in %s", kind, s.File)}
	}
	e.find(f)
}

// mostSenders is how many senders of one protocol are named.
const mostSenders = 5

// sender is source address and protocol of an IP packet.
func sender(b []byte) (netip.Addr, uint8) {
	switch {
	case len(b) >= packet.IPv4HeaderLen && packet.Version(b) == 4:
		return packet.IPv4(b).Src(), packet.IPv4(b).Protocol()
	case len(b) >= packet.IPv6HeaderLen:
		return packet.IPv6(b).Src(), packet.IPv6(b).NextHeader()
	}
	return netip.Addr{}, 0
}

// knows reports whether a is a director's address.
func (s *Realserver) knows(a netip.Addr) bool {
	return slices.ContainsFunc(s.Config.Directors, func(d netip.Prefix) bool { return d.Contains(a) })
}
