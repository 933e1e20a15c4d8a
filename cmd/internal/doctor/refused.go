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

	"vstun/cmd/internal/api"
	"vstun/cmd/internal/words"
	"vstun/encap/packet"
	"vstun/encap/wire"
)

// realserverDrops reads the agent's counters twice. The agent itself counts, from its start on, the hosts that it
// refuses and the VIPs of refused packets.
func (res *result) realserverDrops(ctx context.Context, s *Realserver, before *api.RealserverStatus) {
	pause(ctx, sampled)
	var after api.RealserverStatus
	if res.failed(api.Get(ctx, s.Config.Control, "/status", &after)) {
		return
	}
	known := realserverAdvice()
	known["not_director"] = s.strangerAdvice(known["not_director"], &after)
	known["inner_destination"] = s.vipAdvice(known["inner_destination"], &after)
	res.dropped(before.Drops, after.Drops, known)
	for _, reason := range slices.Sorted(maps.Keys(known)) {
		if n := after.Drops[reason]; n > 0 && n == before.Drops[reason] && n > after.In.Packets/manyDrops {
			a := known[reason]
			res.find(a.finding(reason, fmt.Sprintf("%d of %s refused since the start", n,
				words.Count(after.In.Packets, "packet"))))
		}
	}
	if len(s.Config.Encaps) > 0 && len(after.FromDirectors) == 0 && len(after.RefusedSources) == 0 {
		res.find(Finding{Severity: Hint, Where: "directors",
			What: fmt.Sprintf("no tunnel packet has come since the start, %v ago",
				time.Duration(after.Uptime)*time.Second),
			Why:     "no director sends any, or the network drops them",
			Remarks: []string{"on the director: director doctor"}})
	}
	for _, c := range after.FromDirectors {
		res.fine("from %s: %s", c.Address, amount(c))
	}
	res.overrun(before.Overruns, after.Overruns)
}

// amount describes the number of counted packets, and the time since the last one.
func amount(c api.Counted) string { return amountOf(c.Packets, uint64(c.Last)) }

func amountOf(packets, seconds uint64) string {
	return fmt.Sprintf("%s, the last %v ago", words.Count(packets, "packet"), time.Duration(seconds)*time.Second)
}

// strangerAdvice returns a with the hosts whose tunnel packets were refused.
func (s *Realserver) strangerAdvice(a advice, st *api.RealserverStatus) advice {
	if len(st.RefusedSources) == 0 {
		return a
	}
	for _, c := range st.RefusedSources {
		a.causes = append(a.causes, fmt.Sprintf("%s is not in directors (%s)", c.Address, amount(c)))
	}
	a.all = st.Out.Packets == 0
	a.remarks = []string{fmt.Sprintf("if that is a director, first add %s to directors in %s",
		quoted(st.RefusedSources), s.File),
		"if it is not, filter it at your network's border"}
	return a
}

// vipAdvice returns a with the VIPs whose packets were refused.
func (s *Realserver) vipAdvice(a advice, st *api.RealserverStatus) advice {
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

func quoted(all []api.Counted) string {
	var names []string
	for _, c := range all {
		names = append(names, fmt.Sprintf("%q", c.Address))
	}
	return strings.Join(names, ", ")
}

// tunnelKinds are the names of tunnels, by their IP protocol.
var tunnelKinds = map[uint8]string{packet.ProtoIPIP: "ipip", packet.ProtoIPv6: "ipip", packet.ProtoGRE: "gre",
	packet.ProtoUDP: "gue"}

// encaps examines, for the time sampled, whether a director sends tunnel packets of a kind that the agent does not
// accept.
func (res *result) encaps(ctx context.Context, s *Realserver) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	var sniffers []*wire.Sniffer
	seen := map[uint8][]netip.Addr{}
	for _, over6 := range []bool{false, true} {
		var filters []wire.SnifferFilter
		for _, protocol := range slices.Sorted(maps.Keys(tunnelKinds)) {
			if slices.ContainsFunc(s.Sockets,
				func(w wire.Socket) bool { return w.Protocol == protocol && w.Over6 == over6 }) {
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
		if res.failed(err) {
			break
		}
		sniffers = append(sniffers, t)
		wait.Go(func() {
			b := make([]byte, packet.IPv6HeaderLen)
			for {
				n, err := t.Read(b)
				if err != nil {
					return
				}
				from, protocol := sender(b[:n])
				mu.Lock()
				if s.isDirector(from) && !slices.Contains(seen[protocol], from) && len(seen[protocol]) < mostSenders {
					seen[protocol] = append(seen[protocol], from)
				}
				mu.Unlock()
			}
		})
	}
	pause(ctx, sampled)
	for _, t := range sniffers {
		_ = t.Close()
	}
	wait.Wait()
	for _, protocol := range slices.Sorted(maps.Keys(seen)) {
		res.unaccepted(s, protocol, seen[protocol])
	}
	if len(res.findings) == 0 && len(res.unchecked) == 0 {
		res.fine("no director sends tunnel packets now that encap = %q does not accept", s.Config.Encaps)
	}
}

// unaccepted records that directors send tunnel packets of a protocol for which the agent has no socket.
func (res *result) unaccepted(s *Realserver, protocol uint8, from []netip.Addr) {
	kind, what := tunnelKinds[protocol], fmt.Sprintf("protocol %d", protocol)
	if protocol == packet.ProtoUDP {
		what = fmt.Sprintf("UDP port %d", s.Config.EncapPort)
	}
	f := Finding{Severity: Error, Where: kind, Why: "the kernel refuses these tunnel packets", Fix: applyRealserver}
	if slices.Contains(s.Config.Encaps, kind) { // no VIP is of the family that the protocol carries
		f.What = fmt.Sprintf("%s comes from %s, and vips has no address of the family that it carries", what,
			joinAddrs(from))
		f.Remarks = []string{fmt.Sprintf("first add the VIP to vips in %s", s.File)}
	} else {
		f.What = fmt.Sprintf("%s comes from %s, and encap has no %s", what, joinAddrs(from), kind)
		f.Remarks = []string{fmt.Sprintf("first add %q to encap in %s", kind, s.File)}
	}
	res.find(f)
}

// mostSenders is the maximum number of senders of one protocol in the report.
const mostSenders = 5

// sender returns the source address and the protocol of an IP packet.
func sender(b []byte) (netip.Addr, uint8) {
	switch {
	case len(b) >= packet.IPv4HeaderLen && packet.Version(b) == 4:
		return packet.IPv4(b).Src(), packet.IPv4(b).Protocol()
	case len(b) >= packet.IPv6HeaderLen:
		return packet.IPv6(b).Src(), packet.IPv6(b).NextHeader()
	}
	return netip.Addr{}, 0
}

// isDirector reports whether a is a director's address.
func (s *Realserver) isDirector(a netip.Addr) bool {
	return slices.ContainsFunc(s.Config.Directors, func(d netip.Prefix) bool { return d.Contains(a) })
}
