package routing

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// refusal is a copy of routes of the main table that the kernel refused.
type refusal struct {
	want []route   // the copy: all routes of one key
	at   time.Time // of the last try
}

// retryRefused is the least time between two tries of a copy of several routes.
const retryRefused = maxSettle

// copySteps is routeSteps for a copy of routes of the main table. The kernel checks a route only when it is added, so
// it may refuse a copy of a route that it has. A throw route, which leads to the main table, then replaces the copy,
// and later passes try the copy again. The first refusal is logged.
//
// A single route is tried in each pass: the throw route stays until the kernel accepts the copy. Several routes can be
// added only after the throw route is removed, so they are tried less often.
func (m *Manager) copySteps(key routeRecord, want []route, recorded bool, snap snapshot) []step {
	was, again := m.refused[key]
	again = again && slices.EqualFunc(was.want, want, route.same)
	if again && len(want) > 1 && time.Since(was.at) < retryRefused {
		steps := m.routeSteps(key, []route{key.throw()}, recorded, snap)
		for i := range steps {
			steps[i].refused = func(error, *changeLog) {} // the refusal has been logged
		}
		return steps
	}
	steps := m.routeSteps(key, want, recorded, snap)
	left := len(steps)
	if left == 0 {
		delete(m.refused, key)
	}
	for i, s := range steps {
		steps[i].do = func() error {
			err := s.do()
			if err == nil {
				left--
			}
			if left == 0 {
				delete(m.refused, key)
			}
			return err
		}
		steps[i].refused = func(err error, log *changeLog) {
			m.refuse(key, want, snap)
			if !again {
				again = true
				log.warn("the kernel refuses to copy a route; replies that take it keep their MSS; retrying",
					"route", key.String(), "copy", snap.describePath(want[0]), "error", err,
					"fix", "correct or remove it in the main table: ip route show "+key.Dst.String())
			}
		}
	}
	return steps
}

// refuse replaces the copy want by a throw route. If the kernel refuses the throw route, too, the next pass tries
// again.
func (m *Manager) refuse(key routeRecord, want []route, snap snapshot) {
	if m.refused == nil {
		m.refused = map[routeRecord]refusal{}
	}
	m.refused[key] = refusal{want, time.Now()}
	throw := key.throw()
	// One of several routes may have replaced a throw route since snap.
	if have := snap.routes[key]; len(want) > 1 || len(have) != 1 || !have[0].same(throw) {
		_ = m.fib.replace(throw)
	}
}

// throw returns a route of the key r that ends the look-up in its table.
func (r routeRecord) throw() route {
	k := r.kernel()
	k.Type = unix.RTN_THROW
	return k
}
