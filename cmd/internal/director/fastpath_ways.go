package director

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"vstun/balancer/fastpath"
	"vstun/balancer/method"
	"vstun/cmd/internal/config"
	"vstun/cmd/internal/words"
	"vstun/routing/query"
)

// waysRetry is the pause after a question about ways that the kernel has not answered.
const waysRetry = time.Second

// askAgain lets followWays ask once more.
func (f *fastPath) askAgain() {
	select {
	case f.again <- struct{}{}:
	default:
	}
}

// followWays asks the kernel for the ways to realservers at once when its routes have changed: packets in the fast path
// do not look them up. The next look is behind a pause of pathsShare times the duration of this one. IPsec policies,
// of which the kernel reports no change here, come in force with a change of routes, or every pathsEvery.
func (f *fastPath) followWays(ctx context.Context) error {
	var failed error
	tick := time.NewTicker(pathsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-f.routes.Changed():
		case <-f.again:
		}
		begin := time.Now()
		f.followIPsec()
		f.mu.Lock()
		to, servers := slices.Collect(maps.Keys(f.paths)), f.servers
		f.mu.Unlock()
		paths, err := f.ask(to)
		limits, failedLimits := f.look(paths, servers)
		f.mu.Lock()
		f.setWays(paths, limits, failedLimits)
		f.mu.Unlock()
		err = errors.Join(err, failedLimits)
		pause := min(pathsShare*time.Since(begin), pathsEvery)
		if err != nil {
			f.askAgain()
			pause = waysRetry
		}
		if err != nil && failed == nil {
			f.log.Error("cannot ask the kernel for the ways to realservers: there is no fast path until it answers",
				"error", err)
		}
		failed = err
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// trackingEvery is the period of looks at connection tracking, of which the kernel reports no change: a rule that needs
// it switches it on. Connections that begin later do not get to the kernel before a look, see fastpath.Config.
const trackingEvery = time.Second

// followTracking lets followWays ask if connection tracking has changed.
func (f *fastPath) followTracking() {
	f.mu.Lock()
	servers, was := f.servers, f.limits.tracks
	f.mu.Unlock()
	if is, err := f.tracked(servers); is != was || err != nil {
		f.askAgain()
	}
}

// tracked reports whether connection tracking keeps nat out of the fast path.
func (f *fastPath) tracked(servers map[netip.Addr]method.Kind) (bool, error) {
	for _, forward := range servers {
		if forward == method.NAT {
			return f.tracks()
		}
	}
	return false, nil
}

// limits is what keeps packets out of the fast path although they have a path. The kernel may let the questions wait,
// so it is asked without f.mu.
type limits struct {
	marks  query.Marks
	tracks bool // connections; asked if there is a realserver by nat
}

// look returns the limits of packets that take paths to servers.
func (f *fastPath) look(paths map[netip.Addr]query.Path, servers map[netip.Addr]method.Kind) (l limits, err error) {
	if l.marks, err = f.marks(paths); err != nil {
		return limits{}, err
	}
	l.tracks, err = f.tracked(servers)
	return l, err
}

// setWays puts ways in force: the paths out of this host, within limits. After an error, of look, there is none.
// Nftables may mark a packet on the way from the director's device or a socket, which the program passes by: so there
// is no path on which a mark may lead it another way. Connection tracking does not see packets in the fast path: it
// takes the end of a connection by nat for invalid, out of its window or after its timeout, and rules may drop that.
// f.mu is held.
func (f *fastPath) setWays(paths map[netip.Addr]query.Path, l limits, err error) {
	if err != nil {
		f.cache.SetWays(nil)
		return
	}
	f.limits = l
	was := f.logged
	switch f.logged = f.limitReason(); {
	case f.logged == was:
	case f.logged == "":
		f.log.Info("packets take the fast path again", "reason", "no longer: "+was)
	default:
		f.log.Info("some packets do not take the fast path", "reason", f.logged)
	}
	all := make(fastpath.Ways, len(paths))
	for a, p := range paths {
		if !p.Local && p.Link != "" && !l.marks.Other[a] {
			all[a] = fastpath.Way{Device: p.Index, NextHop: cmp.Or(p.Gateway, a), Source: p.Source, MTU: p.MTU,
				NoNAT: l.tracks || l.marks.Rule(a) != ""} // the way of its replies may depend on a mark, too
		}
	}
	f.cache.SetWays(all)
}

// limitReason says which packets stay out because of limits. f.mu is held.
func (f *fastPath) limitReason() string {
	tracked := 0
	rules := map[netip.Addr]string{}
	for a, forward := range f.servers { // the paths have others, too, such as those behind default routes
		if forward == method.NAT && f.limits.tracks {
			tracked++
		}
		if rule := f.limits.marks.Rule(a); f.limits.marks.Other[a] || forward == method.NAT && rule != "" {
			rules[a] = rule
		}
	}
	var all []string
	if tracked > 0 {
		all = append(all, fmt.Sprintf("this host tracks connections of %s by nat, and would take their ends for "+
			"invalid", words.Count(tracked, "realserver")))
	}
	if len(rules) > 0 {
		all = append(all, fmt.Sprintf("a mark may lead packets of %s another way (%s)",
			words.Count(len(rules), "realserver"),
			strings.Join(slices.Compact(slices.Sorted(maps.Values(rules))), ", ")))
	}
	return strings.Join(all, "; ")
}

// routed returns the addresses of cfg's realservers and sorry servers to which packets take routes: by tun, or by nat,
// by which more of them stay out.
func routed(cfg *config.Director) map[netip.Addr]method.Kind {
	all := map[netip.Addr]method.Kind{}
	add := func(r *config.RealserverRef) {
		if r.Forward != method.DR && all[r.Address] != method.NAT {
			all[r.Address] = r.Forward
		}
	}
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for j := range s.Realservers {
			add(&s.Realservers[j])
		}
		if s.HasSorry() {
			add(&s.Sorry)
		}
	}
	return all
}
