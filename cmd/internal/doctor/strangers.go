package doctor

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"vstun/cmd/internal/control"
	"vstun/encap/packet"
	"vstun/encap/wire"
)

// realserverDrops looks at the agent's counters twice, and meanwhile at who sends tunnel packets.
func (e *exam) realserverDrops(ctx context.Context, s *Realserver, before *control.RealserverStatus) {
	strangers, err := s.strangers(ctx)
	if err != nil {
		e.skip("who sends tunnel packets: %v", err)
		pause(ctx, sampled)
	}
	var after control.RealserverStatus
	if e.failed(control.Get(ctx, s.Config.Control, "/status", &after)) {
		return
	}
	known := realserverAdvice()
	if len(strangers) > 0 {
		known["not_director"] = advice{fmt.Sprintf("%s sent tunnel packets just now, and is not in directors", joinAddrs(strangers)),
			fmt.Sprintf("if that is a director: add %s to directors in %s, and restart; else filter it at your network's border", quotedAddrs(strangers), s.File)}
	}
	e.dropped(before.Drops, after.Drops, known)
	for _, reason := range slices.Sorted(maps.Keys(known)) {
		if n := after.Drops[reason]; n == before.Drops[reason] && n > after.In.Packets/many {
			e.find(Finding{Severity: Warning, Where: reason, What: fmt.Sprintf("%d packets of %d have been refused since the start", n, after.In.Packets), Why: known[reason].why, Mend: known[reason].mend})
		}
	}
	e.overrun(before.Overruns, after.Overruns)
}

func quotedAddrs(all []netip.Addr) string {
	var names []string
	for _, a := range all {
		names = append(names, fmt.Sprintf("%q", a))
	}
	return strings.Join(names, ", ")
}

// mostStrangers is how many are named.
const mostStrangers = 5

// strangers watches for a moment who sends tunnel packets without being a director.
func (s *Realserver) strangers(ctx context.Context) (found []netip.Addr, err error) {
	var mu sync.Mutex
	var wait sync.WaitGroup
	var taps []*wire.Tap
	for _, over6 := range []bool{false, true} {
		var filters []wire.TapFilter
		for _, socket := range s.Sockets {
			if socket.Over6 == over6 {
				filters = append(filters, wire.TapFilter{Protocol: socket.Protocol, First: socket.Port, Last: socket.Port})
			}
		}
		if filters == nil {
			continue
		}
		t, failed := wire.NewTap(over6, filters...)
		if failed != nil {
			err = failed
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
				from := source(b[:n])
				mu.Lock()
				if from.IsValid() && !s.knows(from) && !slices.Contains(found, from) && len(found) < mostStrangers {
					found = append(found, from)
				}
				mu.Unlock()
			}
		})
	}
	if err == nil {
		pause(ctx, sampled)
	}
	for _, t := range taps {
		_ = t.Close()
	}
	wait.Wait()
	return found, err
}

// source is the source address of an IP packet.
func source(b []byte) netip.Addr {
	switch {
	case len(b) >= packet.IPv4HeaderLen && b[0]>>4 == 4:
		return packet.IPv4(b).Src()
	case len(b) >= packet.IPv6HeaderLen:
		return packet.IPv6(b).Src()
	}
	return netip.Addr{}
}

// knows tells whether a is a director's address.
func (s *Realserver) knows(a netip.Addr) bool {
	return slices.ContainsFunc(s.Config.Directors, func(d netip.Prefix) bool { return d.Contains(a) })
}
