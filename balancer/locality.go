package balancer

import (
	"net/netip"
	"slices"
	"sync"

	"vstun/balancer/conntab"
)

// locality is what lblc and lblcr remember of each destination address. A service's snapshots share it: realservers are
// known in it by what outlives a reload, their destStats.
type locality struct {
	mu     sync.Mutex
	places map[netip.Addr]*place
	swept  conntab.Ticks // when places were last looked through
}

// place is a destination address with its realservers, the last added first. One that has left the service stays, as it
// may come back.
type place struct {
	servers        []seat
	used, modified conntab.Ticks
}

// seat is a realserver, and where in the list it was found last.
type seat struct {
	stats *destStats
	at    int
}

// The kernel's numbers.
const (
	maxPlaces   = 1 << 14                          // addresses that are remembered
	day         = 24 * 60 * 60 * conntab.PerSecond // after so long without use an address is forgotten
	idle        = 6 * 60 * conntab.PerSecond       // and after this when there are too many
	sweepPlaces = 60 * conntab.PerSecond           // how often is looked for those
)

// age is the time from t to now; 0 where t is a little after now, as one worker's now may be before another's.
func age(t, now conntab.Ticks) conntab.Ticks {
	const little = 60 * conntab.PerSecond
	if t-now < little {
		return 0
	}
	return now - t
}

// get returns what is remembered of a, or nil. l.mu is held, as long as the place is used.
func (l *locality) get(a netip.Addr, now conntab.Ticks) *place {
	p := l.places[a]
	if p == nil || age(p.used, now) >= day {
		return nil
	}
	p.used = now
	return p
}

// put remembers d alone for a, if there is room. l.mu is held.
func (l *locality) put(a netip.Addr, d *Dest, now conntab.Ticks) {
	if len(l.places) >= maxPlaces && l.places[a] == nil {
		if age(l.swept, now) < sweepPlaces {
			return
		}
		l.swept = now
		for key, p := range l.places {
			if age(p.used, now) >= idle {
				delete(l.places, key)
			}
		}
		if len(l.places) >= maxPlaces {
			return
		}
	}
	l.places[a] = &place{servers: []seat{{stats: d.stats}}, used: now, modified: now}
}

// find returns the realserver as it is in list; nil: it has left.
func (s *seat) find(list []*Dest) *Dest {
	if s.at < 0 || s.at >= len(list) || list[s.at].stats != s.stats {
		s.at = slices.IndexFunc(list, func(d *Dest) bool { return d.stats == s.stats })
	}
	if s.at < 0 {
		return nil
	}
	return list[s.at]
}

// crowded reports whether d has more active connections than its weight while another has less than half of its own.
func (s *leastLoad) crowded(d *Dest) bool {
	return d.counts.Active() > d.Weight && slices.ContainsFunc(s.loads,
		func(l load) bool { return 2*int64(l.counts.Active()) < l.weight })
}
